//! What comes to `Service::message`.

use crate::{
    Stream, http,
    sys::{self, field, kind},
};

/// One of four things.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A message on a topic of `spec.subscribe`.
    Topic(TopicMessage),
    /// Data on a client stream.
    Data(StreamData),
    /// A client stream ended at the client's side.
    Closed(StreamClosed),
    /// A call made with [`crate::call`] ended.
    Called(CallEnded),
}

/// A message on a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMessage {
    /// The topic.
    pub topic: String,
    /// What was published.
    pub payload: Vec<u8>,
    /// The instance that published it, `service/NAME/INDEX`, if one did.
    pub from: Option<String>,
}

/// Data on a client stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamData {
    /// Which.
    pub stream: Stream,
    /// What came. One WebSocket message, or a piece of a body.
    pub bytes: Vec<u8>,
    /// Whether it is a WebSocket's text message.
    pub text: bool,
}

/// A client stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamClosed {
    /// Which. Nothing can be sent on it any more.
    pub stream: Stream,
    /// The close code.
    pub code: u32,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallEnded {
    /// The number that [`crate::call`] gave.
    pub call: u64,
    /// The reply, or why there is none.
    pub result: Result<Reply, String>,
}

/// Another service's reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Message {
    /// What the host is delivering; none for a kind that this SDK does not know.
    pub(crate) fn read() -> Option<Self> {
        let stream = || Stream::from_number(sys::number(field::STREAM));
        let body = || sys::field(field::BODY).unwrap_or_default();
        match sys::field(field::KIND)?.first().copied()? {
            kind::TOPIC => Some(Self::Topic(TopicMessage {
                topic: sys::text(field::TOPIC)?,
                payload: body(),
                from: sys::text(field::FROM),
            })),
            kind::STREAM_DATA => Some(Self::Data(StreamData {
                stream: stream(),
                bytes: body(),
                text: sys::number(field::TEXT) == 1,
            })),
            kind::STREAM_CLOSED => Some(Self::Closed(StreamClosed {
                stream: stream(),
                code: u32::try_from(sys::number(field::CODE)).unwrap_or(0),
            })),
            kind::CALL_ENDED => Some(Self::Called(CallEnded {
                call: sys::number(field::CALL),
                result: reply(body()),
            })),
            _ => None,
        }
    }
}

fn reply(body: Vec<u8>) -> Result<Reply, String> {
    let status = sys::text(field::STATUS).and_then(|text| text.parse().ok());
    match status {
        Some(status) if status > 0 => Ok(Reply {
            status,
            headers: http::headers(&sys::text(field::HEADERS).unwrap_or_default()),
            body,
        }),
        _ => Err(String::from_utf8_lossy(&body).into_owned()),
    }
}
