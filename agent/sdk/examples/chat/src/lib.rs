//! Chat rooms.
//!
//! | request | what |
//! | --- | --- |
//! | `POST /session?name=Ann` | a session with that name, in a cookie |
//! | `POST /rooms/{room}/messages` | says the body; the message as JSON |
//! | `GET /rooms/{room}/messages?after=N` | messages after number N, as JSON |
//! | `GET /rooms/{room}/events` | the same as they come, as server-sent events |
//! | WebSocket at `/rooms/{room}/socket` | each text message is said; all are heard, as JSON |
//!
//! All state is in memory, bounded. Streams survive moves of the service; a client that lost its
//! event stream says the last number that it saw in `last-event-id`, as browsers do.

mod rooms;

use std::cell::RefCell;

use hop3_guest::{Error, Message, Request, Response, Service, Stream, json, stream};
use rooms::{Kind, Refusal, Rooms};

const ANONYMOUS: &str = "anonymous";

thread_local! {
    static ROOMS: RefCell<Rooms> = RefCell::default();
}

fn refused(refusal: Refusal) -> Response {
    let (status, text) = refusal.answer();
    Response::text(text).status(status)
}

/// Who asks, by the session in its cookie.
fn author(rooms: &Rooms, request: &Request) -> String {
    let session = request.cookie("session").and_then(|id| rooms.session(id));
    session.unwrap_or(ANONYMOUS).to_owned()
}

/// The number of the last message that the client has.
fn after(request: &Request) -> u64 {
    let query = request.query("after");
    let said = query.as_deref().or_else(|| request.header("last-event-id"));
    said.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn open_session(rooms: &mut Rooms, request: &Request) -> Response {
    let name = request.query("name").unwrap_or_default();
    match rooms.open_session(&name) {
        Ok(id) => {
            let cookie = format!("session={id}; Path=/; HttpOnly; SameSite=Strict");
            Response::no_content().header("set-cookie", cookie)
        }
        Err(refusal) => refused(refusal),
    }
}

fn say(rooms: &mut Rooms, room: &str, request: &Request) -> Result<Response, Error> {
    let Ok(text) = request.text() else {
        return Ok(Response::bad_request("the body is not text"));
    };
    let author = author(rooms, request);
    Ok(match rooms.say(room, &author, text)? {
        Ok(message) => Response::json(message).status(201),
        Err(refusal) => refused(refusal),
    })
}

fn listen(rooms: &mut Rooms, room: &str, request: &Request, kind: Kind) -> Result<Response, Error> {
    if let Err(refusal) = rooms.may_listen(room) {
        return Ok(refused(refusal));
    }
    let (stream, head) = match kind {
        Kind::Events => stream::events()?,
        Kind::Socket => match stream::websocket(request)? {
            Some(opened) => opened,
            None => return Ok(Response::bad_request("this is for WebSockets")),
        },
    };
    let author = author(rooms, request);
    rooms.listen(room, stream, kind, author);
    // Whoever comes for the first time hears what comes; whoever comes back, what it missed.
    let last = after(request);
    if last > 0 {
        rooms.repeat(room, stream, kind, last)?;
    }
    Ok(head)
}

fn heard(rooms: &mut Rooms, stream: Stream, text: &[u8]) -> Result<(), Error> {
    let Some((room, author)) = rooms.listener(stream) else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(text);
    if let Err(refusal) = rooms.say(&room, &author, &text)? {
        let why = json::string(&refusal.answer().1);
        stream.send_text(format!(r#"{{"error":{why}}}"#))?;
    }
    Ok(())
}

struct Chat;

impl Service for Chat {
    fn request(request: Request) -> Result<Response, Error> {
        ROOMS.with_borrow_mut(|rooms| match (request.method(), &request.segments()[..]) {
            ("POST", ["session"]) => Ok(open_session(rooms, &request)),
            ("POST", ["rooms", room, "messages"]) => say(rooms, room, &request),
            ("GET", ["rooms", room, "messages"]) => Ok(Response::json(json::array(
                rooms.messages(room, after(&request)),
            ))),
            ("GET", ["rooms", room, "events"]) => listen(rooms, room, &request, Kind::Events),
            ("GET", ["rooms", room, "socket"]) => listen(rooms, room, &request, Kind::Socket),
            _ => Ok(Response::not_found()),
        })
    }

    fn message(message: Message) -> Result<(), Error> {
        ROOMS.with_borrow_mut(|rooms| match message {
            Message::Data(data) if data.text => heard(rooms, data.stream, &data.bytes),
            Message::Closed(closed) => {
                rooms.leave(closed.stream);
                Ok(())
            }
            _ => Ok(()),
        })
    }
}

hop3_guest::export!(Chat);

#[cfg(test)]
mod tests;
