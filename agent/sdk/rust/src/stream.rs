//! Client streams: answers that go on (server-sent events, a WebSocket, a streamed body).
//!
//! A handler opens one for the request that it answers, and keeps its number; any later handler can
//! send on it. Streams survive moves and restarts of the instance. When the client goes away
//! [`Message::Closed`](crate::Message::Closed) comes, and data that it sends as
//! [`Message::Data`](crate::Message::Data).

use crate::{
    Request, Response,
    error::{Error, HostError, check, check_number},
    sys,
};

/// An open client stream: a number, unique in its instance for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(u64);

/// Answers with `head`, and keeps the answer open for data.
///
/// # Errors
/// [`HostError::Limit`] where as many are open as `spec.limits.streams` allows.
pub fn open(head: Response) -> Result<(Stream, Response), HostError> {
    let stream = check_number(sys::reply_stream())?;
    Ok((Stream(stream), head))
}

/// Answers with server-sent events; [`Stream::event`] sends one.
///
/// # Errors
/// As [`open`].
pub fn events() -> Result<(Stream, Response), HostError> {
    let head = Response::new(200)
        .header("content-type", "text/event-stream")
        .header("cache-control", "no-cache");
    open(head)
}

/// Accepts a WebSocket; none if `request` does not ask for one: answer it in another way.
///
/// # Errors
/// As [`open`].
pub fn websocket(request: &Request) -> Result<Option<(Stream, Response)>, HostError> {
    let asked = request.header("upgrade").unwrap_or_default();
    if !asked.eq_ignore_ascii_case("websocket") {
        return Ok(None);
    }
    open(Response::new(101)).map(Some)
}

impl Stream {
    /// The stream with this number, as it was kept.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// Sends bytes: a piece of the body, or a binary message of a WebSocket.
    ///
    /// # Errors
    /// [`HostError::Absent`] when it is closed, [`HostError::Limit`] when this call sent too much.
    pub fn send(self, bytes: impl AsRef<[u8]>) -> Result<(), HostError> {
        check(sys::stream_send(self.signed(), bytes.as_ref(), false)).map(drop)
    }

    /// Sends a text message of a WebSocket.
    ///
    /// # Errors
    /// As [`Stream::send`].
    pub fn send_text(self, text: impl AsRef<str>) -> Result<(), HostError> {
        check(sys::stream_send(
            self.signed(),
            text.as_ref().as_bytes(),
            true,
        ))
        .map(drop)
    }

    /// Sends a server-sent event: its id (what a client that comes back says in
    /// `last-event-id`), its name, and its data, which may have several lines.
    ///
    /// # Errors
    /// As [`Stream::send`]; or `id` or `name` has a line end, which would begin another field.
    pub fn event(self, id: Option<&str>, name: Option<&str>, data: &str) -> Result<(), Error> {
        let mut text = String::new();
        for (field, value) in [("id", id), ("event", name)] {
            let Some(value) = value else { continue };
            if value.contains(['\n', '\r', '\0']) {
                return Err(Error::new(format!("an event's {field} has a line end")));
            }
            text.push_str(&format!("{field}: {value}\n"));
        }
        for line in data.split(['\n', '\r']) {
            text.push_str(&format!("data: {line}\n"));
        }
        text.push('\n');
        Ok(self.send(text)?)
    }

    /// Ends it, with a WebSocket's close code (1000: all is well).
    ///
    /// # Errors
    /// [`HostError::Absent`] when it is closed already.
    pub fn close(self, code: u16) -> Result<(), HostError> {
        check(sys::stream_close(self.signed(), code.into())).map(drop)
    }

    fn signed(self) -> i64 {
        // The host's numbers are positive; another one is no stream.
        i64::try_from(self.0).unwrap_or(-1)
    }
}
