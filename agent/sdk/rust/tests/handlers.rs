//! Handlers against the stand-in for Hop3: inputs arrive, answers and effects come out, failures
//! leave nothing.
#![allow(missing_docs)]

use hop3_guest::{
    Error, HostError, Message, Request, Response, Service, Stream, Timer, call, instance, kv, log,
    publish, stream,
    testing::{Effect, Host},
    timer,
};

struct Everything;

impl Service for Everything {
    const SCHEMA: u32 = 2;

    fn init() -> Result<(), Error> {
        kv::set("born", &hop3_guest::now_ms())?;
        Ok(())
    }

    fn request(request: Request) -> Result<Response, Error> {
        match (request.method(), &request.segments()[..]) {
            ("GET", ["who"]) => Ok(Response::text(format!(
                "{} {}/{} {:?}",
                instance::name(),
                instance::index(),
                instance::count(),
                request.from()
            ))),
            ("GET", ["echo", what]) => {
                let more = request.query("more").unwrap_or_default();
                let header = request.header("X-Thing").unwrap_or_default();
                Ok(Response::text(format!("{what} {more} {header}")))
            }
            ("POST", ["fail"]) => {
                kv::set("left", "behind")?;
                timer::after(1, 10)?;
                publish("t/x", "never")?;
                Err(Error::new("on purpose"))
            }
            ("POST", ["big"]) => Ok(Response::bytes("x/y", vec![0; 2 << 20])),
            ("POST", ["status"]) => Ok(Response::new(99)),
            ("POST", ["header"]) => Ok(Response::new(200).header("bad name", "x")),
            ("POST", ["ask"]) => {
                let number = call("other", "GET", "/x", "")?;
                Ok(Response::text(number.to_string()))
            }
            ("GET", ["events"]) => {
                let (stream, response) = stream::events()?;
                kv::set("stream", &stream.number())?;
                stream.event(Some("1"), None, "two\nlines")?;
                Ok(response)
            }
            ("GET", ["socket"]) => match stream::websocket(&request)? {
                Some((_, response)) => Ok(response),
                None => Ok(Response::bad_request("a WebSocket, please")),
            },
            ("POST", ["timer"]) => {
                timer::after(7, 50)?;
                Ok(Response::no_content())
            }
            _ => Ok(Response::not_found()),
        }
    }

    fn message(message: Message) -> Result<(), Error> {
        match message {
            Message::Topic(message) => kv::set(&message.topic, &message.payload)?,
            Message::Data(data) if data.text => data.stream.send_text("text")?,
            Message::Data(data) => data.stream.send(&data.bytes)?,
            Message::Closed(closed) => kv::set("closed", &closed.code)?,
            Message::Called(ended) => {
                let said = match ended.result {
                    Ok(reply) => format!("{} {}", reply.status, reply.body.len()),
                    Err(why) => why,
                };
                kv::set("called", &format!("{} {said}", ended.call))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn timer(timer: Timer) -> Result<(), Error> {
        log::info(format!("{} {}", timer.number, timer.due_ms));
        Ok(())
    }

    fn upgrade(from: u32) -> Result<(), Error> {
        kv::set("from", &from)?;
        Ok(())
    }
}

hop3_guest::export!(Everything);

fn text(key: &str) -> Option<String> {
    kv::get(key).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn requests_are_taken_apart() {
    let mut host = Host::<Everything>::new();
    let who = host.request("GET", "/who", b"");
    assert_eq!(who.reply().text(), "service/test/0 0/1 None");
    let echo = host.request_with("GET", "//echo/a%20b/?more=c+d", &[("x-thing", "e")], b"");
    assert_eq!(echo.reply().text(), "a b c d e");
    assert_eq!(host.request("GET", "/nothing", b"").reply().status, 404);
}

#[test]
fn a_failed_handler_leaves_nothing() {
    let mut host = Host::<Everything>::new();
    host.grant_topic("t/*");
    let failed = host.request("POST", "/fail", b"");
    assert!(failed.failed() && failed.answer.is_none() && failed.effects.is_empty());
    assert_eq!(failed.log, [(0, "request: on purpose".to_owned())]);
    assert!(text("left").is_none() && host.timers().is_empty());
}

#[test]
fn replies_that_the_host_refuses_fail_the_handler_and_say_which_part() {
    let mut host = Host::<Everything>::new();
    for (path, part) in [
        ("/big", "body of 2097152 bytes"),
        ("/status", "status 99"),
        ("/header", "header `bad name`"),
    ] {
        let called = host.request("POST", path, b"");
        assert!(
            called.failed() && called.log[0].1.contains(part),
            "{called:?}"
        );
    }
}

#[test]
fn calls_end_as_messages() {
    let mut host = Host::<Everything>::new();
    assert!(host.request("POST", "/ask", b"").failed(), "not granted");
    host.grant_service("other");
    let asked = host.request("POST", "/ask", b"");
    assert_eq!(asked.reply().text(), "1");
    assert!(matches!(&asked.effects[..], [Effect::Call { call: 1, path, .. }] if path == "/x"));
    host.call_ended(1, Ok((200, b"four")));
    assert_eq!(text("called").as_deref(), Some("1 200 4"));
    host.call_ended(2, Err("lost"));
    assert_eq!(text("called").as_deref(), Some("2 lost"));
}

#[test]
fn streams_open_send_and_close() {
    let mut host = Host::<Everything>::new();
    let opened = host.request("GET", "/events", b"");
    assert_eq!(opened.reply().stream, Some(1));
    assert_eq!(
        opened.reply().header("Content-Type"),
        Some("text/event-stream")
    );
    let sent = |effects: &[Effect]| match effects {
        [Effect::Send { bytes, text, .. }] => (String::from_utf8_lossy(bytes).into_owned(), *text),
        other => panic!("{other:?}"),
    };
    assert_eq!(sent(&opened.effects).0, "id: 1\ndata: two\ndata: lines\n\n");
    assert_eq!(
        sent(&host.data(1, b"x", true).effects),
        ("text".to_owned(), true)
    );
    assert_eq!(
        sent(&host.data(1, b"x", false).effects),
        ("x".to_owned(), false)
    );
    assert!(!host.closed(1, 1001).failed());
    assert_eq!(Stream::from_number(1).send("late"), Err(HostError::Absent));
    assert!(kv::get::<u32>("closed").is_ok_and(|code| code == Some(1001)));

    let plain = host.request("GET", "/socket", b"");
    assert_eq!(plain.reply().status, 400);
    let socket = host.request_with("GET", "/socket", &[("Upgrade", "websocket")], b"");
    assert_eq!(
        (socket.reply().status, socket.reply().stream),
        (101, Some(2))
    );
}

#[test]
fn an_event_cannot_forge_fields() {
    let mut host = Host::<Everything>::new();
    let opened = host.request("GET", "/events", b"");
    let stream = Stream::from_number(opened.reply().stream.unwrap_or(0));
    assert!(stream.event(Some("1\ndata: forged"), None, "x").is_err());
    assert!(stream.event(None, Some("a\rb"), "x").is_err());
}

#[test]
fn timers_topics_init_and_upgrade() {
    let mut host = Host::<Everything>::new();
    assert!(kv::get::<u64>("born").is_ok_and(|born| born == Some(0)));
    host.set_now(1_000);
    host.request("POST", "/timer", b"");
    assert_eq!(host.timers().into_iter().collect::<Vec<_>>(), [(7, 1_050)]);
    let rung = host.next_timer().map(|called| called.log);
    assert_eq!(rung, Some(vec![(2, "7 1050".to_owned())]));
    assert!(host.next_timer().is_none());
    host.topic("a/b", b"news");
    assert_eq!(text("a/b").as_deref(), Some("news"));
    assert!(!host.upgrade(1).failed());
    assert!(kv::get::<u32>("from").is_ok_and(|from| from == Some(1)));
}

struct Quiet;
impl Service for Quiet {}

#[test]
fn the_default_refuses_an_unknown_state() {
    let refused = Host::<Quiet>::new().upgrade(3);
    assert!(
        refused.failed() && refused.log[0].1.contains("version 3"),
        "{refused:?}"
    );
}
