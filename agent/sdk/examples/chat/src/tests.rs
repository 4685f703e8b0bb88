//! The service against the stand-in for Hop3.

use hop3_guest::testing::{Effect, Host};

use super::*;

fn sent(effects: &[Effect]) -> Vec<(u64, String, bool)> {
    let one = |effect: &Effect| match effect {
        Effect::Send {
            stream,
            bytes,
            text,
        } => (*stream, String::from_utf8_lossy(bytes).into_owned(), *text),
        other => panic!("{other:?}"),
    };
    effects.iter().map(one).collect()
}

const FIRST: &str = r#"{"id":1,"author":"anonymous","text":"hi"}"#;

#[test]
fn messages_are_kept_and_read_from_a_number() {
    let mut host = Host::<Chat>::new();
    let said = host.request("POST", "/rooms/a/messages", b"hi");
    assert_eq!(
        (said.reply().status, said.reply().text().as_str()),
        (201, FIRST)
    );
    host.request("POST", "/rooms/a/messages", b"there");
    host.request("POST", "/rooms/b/messages", b"elsewhere");
    let read = |host: &mut Host<Chat>, path: &str| host.request("GET", path, b"").reply().text();
    let all = read(&mut host, "/rooms/a/messages");
    assert!(all.contains("hi") && all.contains("there") && !all.contains("elsewhere"));
    assert!(!read(&mut host, "/rooms/a/messages?after=1").contains("hi"));
    assert_eq!(read(&mut host, "/rooms/none/messages"), "[]");
}

#[test]
fn history_is_bounded_and_numbers_go_on() {
    let mut host = Host::<Chat>::new();
    for n in 0..rooms::HISTORY_MAX + 5 {
        host.request("POST", "/rooms/a/messages", n.to_string().as_bytes());
    }
    let all = host.request("GET", "/rooms/a/messages", b"").reply().text();
    assert_eq!(all.matches("\"id\"").count(), rooms::HISTORY_MAX);
    assert!(all.starts_with("[{\"id\":6,"), "{all}");
}

#[test]
fn events_and_sockets_hear_what_is_said_once() {
    let mut host = Host::<Chat>::new();
    let events = host.request("GET", "/rooms/a/events", b"");
    assert_eq!(
        events.reply().header("content-type"),
        Some("text/event-stream")
    );
    assert!(events.effects.is_empty());
    let upgrade = [("upgrade", "websocket")];
    let socket = host.request_with("GET", "/rooms/a/socket", &upgrade, b"");
    assert_eq!(
        (socket.reply().status, socket.reply().stream),
        (101, Some(2))
    );
    let heard = |effects: &[Effect], number: u64, message: &str| {
        let event = format!("id: {number}\ndata: {message}\n\n");
        assert_eq!(
            sent(effects),
            [(1, event, false), (2, message.to_owned(), true)]
        );
    };
    let said = host.request("POST", "/rooms/a/messages", b"hi");
    heard(&said.effects, 1, FIRST);
    let said = host.data(2, b"ho", true);
    heard(
        &said.effects,
        2,
        r#"{"id":2,"author":"anonymous","text":"ho"}"#,
    );
    host.closed(1, 1001);
    assert_eq!(
        sent(&host.request("POST", "/rooms/a/messages", b"x").effects).len(),
        1
    );
    let elsewhere = host.request("POST", "/rooms/b/messages", b"x");
    assert!(elsewhere.effects.is_empty());
}

#[test]
fn whoever_comes_back_gets_what_it_missed() {
    let mut host = Host::<Chat>::new();
    for text in ["one", "two", "three"] {
        host.request("POST", "/rooms/a/messages", text.as_bytes());
    }
    let back = host.request_with("GET", "/rooms/a/events", &[("last-event-id", "1")], b"");
    let sent = sent(&back.effects);
    assert!(sent.len() == 2 && sent[0].1.contains("two") && sent[1].1.contains("three"));
}

#[test]
fn a_session_gives_a_name() {
    let mut host = Host::<Chat>::new();
    let opened = host.request("POST", "/session?name=Ann+B", b"");
    let cookie = opened
        .reply()
        .header("set-cookie")
        .unwrap_or_default()
        .to_owned();
    let pair = cookie.split(';').next().unwrap_or_default();
    assert_eq!(pair.len(), "session=".len() + 32, "{cookie}");
    let said = host.request_with("POST", "/rooms/a/messages", &[("cookie", pair)], b"x");
    assert!(said.reply().text().contains(r#""author":"Ann B""#));
    let again = host.request("POST", "/session?name=Ann+B", b"");
    assert_ne!(again.reply().header("set-cookie"), Some(cookie.as_str()));
    let forged = [("cookie", "session=0")];
    let said = host.request_with("POST", "/rooms/a/messages", &forged, b"x");
    assert!(said.reply().text().contains(ANONYMOUS));
}

#[test]
fn what_is_too_long_is_refused() {
    let mut host = Host::<Chat>::new();
    let long = vec![b'x'; rooms::MESSAGE_BYTES_MAX + 1];
    assert_eq!(
        host.request("POST", "/rooms/a/messages", &long)
            .reply()
            .status,
        400
    );
    assert_eq!(
        host.request("POST", "/rooms/a/messages", b"")
            .reply()
            .status,
        400
    );
    assert_eq!(
        host.request("POST", "/session?name=", b"").reply().status,
        400
    );
    let room = format!("/rooms/{}/messages", "r".repeat(65));
    assert_eq!(host.request("POST", &room, b"x").reply().status, 400);
    let upgrade = [("upgrade", "websocket")];
    host.request_with("GET", "/rooms/a/socket", &upgrade, b"");
    let refused = sent(&host.data(1, &long, true).effects);
    assert!(
        refused.len() == 1 && refused[0].1.contains("error"),
        "{refused:?}"
    );
}

#[test]
fn quiet_rooms_make_way_and_rooms_with_listeners_stay() {
    let mut host = Host::<Chat>::new();
    host.request("GET", "/rooms/watched/events", b"");
    for n in 0..300 {
        let said = host.request("POST", &format!("/rooms/{n}/messages"), b"x");
        assert_eq!(said.reply().status, 201);
    }
    assert_eq!(
        host.request("GET", "/rooms/0/messages", b"").reply().text(),
        "[]"
    );
    let said = host.request("POST", "/rooms/watched/messages", b"x");
    assert_eq!(sent(&said.effects).len(), 1);
}

#[test]
fn a_full_room_can_speak_within_what_a_call_may_send() {
    let mut host = Host::<Chat>::new();
    let listen = |host: &mut Host<Chat>| host.request("GET", "/rooms/a/events", b"").reply().status;
    assert!((0..250).all(|_| listen(&mut host) == 200));
    assert_eq!(listen(&mut host), 503);
    let worst = "\"".repeat(rooms::MESSAGE_BYTES_MAX);
    let said = host.request("POST", "/rooms/a/messages", worst.as_bytes());
    assert_eq!(said.reply().status, 201);
    assert_eq!(sent(&said.effects).len(), 250);
}
