//! What a request is answered with.

use crate::{
    error::{Error, HostError, check},
    sys,
};

/// A status, headers and a body.
///
/// ```
/// use hop3_guest::Response;
///
/// let found = Response::json(r#"{"a": 1}"#).header("cache-control", "no-store");
/// let created = Response::new(201).header("location", "/rooms/7");
/// ```
///
/// For an answer that goes on, see [`crate::stream`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// With a status, and nothing else.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// 200 with plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::bytes("text/plain; charset=utf-8", text.into())
    }

    /// 200 with JSON.
    pub fn json(json: impl Into<String>) -> Self {
        Self::bytes("application/json", json.into())
    }

    /// 200 with bytes of some type.
    pub fn bytes(content_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(200)
            .header("content-type", content_type)
            .body(bytes)
    }

    /// 204: it is done, and there is nothing to say.
    pub fn no_content() -> Self {
        Self::new(204)
    }

    /// 400 with what is wrong.
    pub fn bad_request(why: impl Into<String>) -> Self {
        Self::text(why).status(400)
    }

    /// 404.
    pub fn not_found() -> Self {
        Self::text("not found").status(404)
    }

    /// With another status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With another body.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Gives it to the host.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let refused = |what: String| {
            move |error: HostError| Error::new(format!("the response's {what}: {error}"))
        };
        check(sys::reply_status(self.status.into()))
            .map_err(refused(format!("status {}", self.status)))?;
        for (name, value) in &self.headers {
            check(sys::reply_header(name.as_bytes(), value.as_bytes()))
                .map_err(refused(format!("header `{name}`")))?;
        }
        if !self.body.is_empty() {
            check(sys::reply_write(&self.body))
                .map_err(refused(format!("body of {} bytes", self.body.len())))?;
        }
        Ok(())
    }
}
