//! Rooms, their history and listeners, and sessions. Everything is bounded; whatever is forgotten
//! is the oldest.

use std::{
    collections::{BTreeMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher as _,
};

use hop3_guest::{Error, HostError, Stream, json};

/// Rooms at once; the one that was quiet longest is forgotten, unless somebody listens.
const ROOMS_MAX: usize = 256;
/// Bytes of a room's name.
const ROOM_BYTES_MAX: usize = 64;
/// Messages kept of a room.
pub(crate) const HISTORY_MAX: usize = 100;
/// Bytes of a message. With `LISTENERS_MAX`, a message to all stays within what one call may send
/// (1 MiB), even where each byte is escaped.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1_000;
/// Listeners of a room.
const LISTENERS_MAX: usize = 250;
/// Sessions at once; the oldest is forgotten.
const SESSIONS_MAX: usize = 10_000;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 32;

/// How a listener hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Server-sent events.
    Events,
    /// A WebSocket.
    Socket,
}

/// What is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A room's name.
    Room,
    /// A person's name.
    Name,
    /// A message.
    Message,
    /// Everything is full of listeners.
    Full,
}

impl Refusal {
    /// Status and text.
    pub(crate) fn answer(self) -> (u16, String) {
        match self {
            Self::Room => (
                400,
                format!("a room's name has 1 to {ROOM_BYTES_MAX} bytes"),
            ),
            Self::Name => (400, format!("a name has 1 to {NAME_BYTES_MAX} bytes")),
            Self::Message => (
                400,
                format!("a message has 1 to {MESSAGE_BYTES_MAX} bytes, no control characters"),
            ),
            Self::Full => (503, "too many listeners: come back later".to_owned()),
        }
    }
}

struct Listener {
    kind: Kind,
    author: String,
}

#[derive(Default)]
struct Room {
    /// Number of the last message.
    last: u64,
    /// When it was last used, by `Rooms::clock`.
    used: u64,
    history: VecDeque<(u64, String)>,
    listeners: BTreeMap<Stream, Listener>,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Rooms {
    rooms: BTreeMap<String, Room>,
    /// Names by session, and sessions from the oldest.
    sessions: BTreeMap<String, String>,
    session_order: VecDeque<String>,
    /// Secret of session ids; made by the first.
    secret: Option<RandomState>,
    sessions_opened: u64,
    clock: u64,
}

fn plain(text: &str, bytes_max: usize) -> bool {
    let allowed = |c: char| !c.is_control() || c == '\n';
    (1..=bytes_max).contains(&text.len()) && text.chars().all(allowed)
}

impl Rooms {
    /// Opens a session: its id, which nobody can guess (a keyed hash of its number).
    pub(crate) fn open_session(&mut self, name: &str) -> Result<String, Refusal> {
        if !plain(name, NAME_BYTES_MAX) {
            return Err(Refusal::Name);
        }
        if self.session_order.len() == SESSIONS_MAX
            && let Some(oldest) = self.session_order.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        self.sessions_opened += 1;
        let secret = self.secret.get_or_insert_default();
        let half = |part: u8| secret.hash_one((self.sessions_opened, part));
        let id = format!("{:016x}{:016x}", half(0), half(1));
        self.sessions.insert(id.clone(), name.to_owned());
        self.session_order.push_back(id.clone());
        Ok(id)
    }

    /// A session's name.
    pub(crate) fn session(&self, id: &str) -> Option<&str> {
        self.sessions.get(id).map(String::as_str)
    }

    /// The room, made if there is none.
    fn room(&mut self, name: &str) -> Result<&mut Room, Refusal> {
        if !plain(name, ROOM_BYTES_MAX) {
            return Err(Refusal::Room);
        }
        if self.rooms.len() == ROOMS_MAX && !self.rooms.contains_key(name) {
            let idle = self
                .rooms
                .iter()
                .filter(|(_, room)| room.listeners.is_empty());
            let quiet = idle.min_by_key(|(_, room)| room.used);
            let quiet = quiet.map(|(name, _)| name.clone()).ok_or(Refusal::Full)?;
            self.rooms.remove(&quiet);
        }
        self.clock += 1;
        let room = self.rooms.entry(name.to_owned()).or_default();
        room.used = self.clock;
        Ok(room)
    }

    /// Says something to all who listen; the message, as JSON.
    pub(crate) fn say(
        &mut self,
        room: &str,
        author: &str,
        text: &str,
    ) -> Result<Result<String, Refusal>, Error> {
        if !plain(text, MESSAGE_BYTES_MAX) {
            return Ok(Err(Refusal::Message));
        }
        let room = match self.room(room) {
            Ok(room) => room,
            Err(refusal) => return Ok(Err(refusal)),
        };
        room.last += 1;
        let number = room.last;
        let (author, text) = (json::string(author), json::string(text));
        let message = format!(r#"{{"id":{number},"author":{author},"text":{text}}}"#);
        if room.history.len() == HISTORY_MAX {
            room.history.pop_front();
        }
        room.history.push_back((number, message.clone()));
        let mut gone = Vec::new();
        for (stream, listener) in &room.listeners {
            if !send(*stream, listener.kind, number, &message)? {
                gone.push(*stream);
            }
        }
        for stream in gone {
            room.listeners.remove(&stream);
        }
        Ok(Ok(message))
    }

    /// Messages after a number that are still known.
    pub(crate) fn messages(&self, room: &str, after: u64) -> Vec<String> {
        let history = self.rooms.get(room).map(|room| &room.history);
        let newer = history
            .into_iter()
            .flatten()
            .filter(|(number, _)| *number > after);
        newer.map(|(_, message)| message.clone()).collect()
    }

    /// Whether there is room for one more.
    pub(crate) fn may_listen(&mut self, room: &str) -> Result<(), Refusal> {
        match self.room(room)?.listeners.len() {
            LISTENERS_MAX.. => Err(Refusal::Full),
            _ => Ok(()),
        }
    }

    /// Adds a listener to a room that is there.
    pub(crate) fn listen(&mut self, room: &str, stream: Stream, kind: Kind, author: String) {
        if let Some(room) = self.rooms.get_mut(room) {
            room.listeners.insert(stream, Listener { kind, author });
        }
    }

    /// Sends a listener what it missed.
    pub(crate) fn repeat(
        &self,
        room: &str,
        stream: Stream,
        kind: Kind,
        after: u64,
    ) -> Result<(), Error> {
        let history = self.rooms.get(room).map(|room| &room.history);
        for (number, message) in history.into_iter().flatten() {
            if *number > after {
                send(stream, kind, *number, message)?;
            }
        }
        Ok(())
    }

    /// Where a listener is, and as whom.
    pub(crate) fn listener(&self, stream: Stream) -> Option<(String, String)> {
        self.rooms.iter().find_map(|(name, room)| {
            let listener = room.listeners.get(&stream)?;
            Some((name.clone(), listener.author.clone()))
        })
    }

    /// A listener went away.
    pub(crate) fn leave(&mut self, stream: Stream) {
        for room in self.rooms.values_mut() {
            room.listeners.remove(&stream);
        }
    }
}

/// Whether the listener is still there.
fn send(stream: Stream, kind: Kind, number: u64, message: &str) -> Result<bool, Error> {
    let sent = match kind {
        Kind::Events => {
            // One line of data: JSON has no line ends of its own.
            stream.send(format!("id: {number}\ndata: {message}\n\n"))
        }
        Kind::Socket => stream.send_text(message),
    };
    match sent {
        Ok(()) => Ok(true),
        Err(HostError::Absent) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
