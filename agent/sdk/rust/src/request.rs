//! A request to the service.

use crate::{
    error::Error,
    http,
    sys::{self, field},
};

/// A request. The service's name is no part of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    method: String,
    target: String,
    segments: Vec<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    more: bool,
    from: Option<String>,
}

impl Request {
    /// What the host is asking.
    pub(crate) fn read() -> Self {
        let target = sys::text(field::PATH).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        Self {
            method: sys::text(field::METHOD).unwrap_or_default(),
            segments: segments.map(|text| http::decode(text, false)).collect(),
            target,
            headers: http::headers(&sys::text(field::HEADERS).unwrap_or_default()),
            body: sys::field(field::BODY).unwrap_or_default(),
            more: sys::number(field::MORE) == 1,
            from: sys::text(field::FROM),
        }
    }

    /// `GET`, `POST`, …
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The path as it came, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The path's parts, decoded, empty ones left out: made to be matched on.
    #[must_use]
    pub fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    /// The first value of a name in the query, decoded.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        http::query(self.target.split_once('?')?.1, name)
    }

    /// A header, by its name in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        http::header(&self.headers, name)
    }

    /// All headers, names in lower case.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// A cookie that the client sent.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<&str> {
        http::cookie(self.header("cookie")?, name)
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, without copying it.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The body as text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<&str, Error> {
        std::str::from_utf8(&self.body)
            .map_err(|error| Error::new(format!("the request's body is not text: {error}")))
    }

    /// Whether the rest of the body comes as stream data, once a [stream](crate::stream) is opened.
    #[must_use]
    pub fn more(&self) -> bool {
        self.more
    }

    /// The instance that asks, `service/NAME/INDEX`, if one does.
    #[must_use]
    pub fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }
}
