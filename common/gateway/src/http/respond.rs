//! The response to a client: a guest's reply in HTTP's form, its stream as a body that flows.

use std::task::Poll;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use hop3_common::{codes::Problem, wire::ServiceReply};
use tokio::sync::mpsc;

use super::{body::Rest, head};
use crate::{
    reply::invalid,
    stream::{Client, Down, Item, Opened},
};

/// Names the instance that answered.
pub(super) static INSTANCE: HeaderName = HeaderName::from_static("hop3-instance");
/// Close code of a body that broke off.
const ABNORMAL: u16 = 1006;

/// A reply without a stream.
pub(super) fn whole(
    method: &Method,
    reply: &ServiceReply,
    index: u32,
) -> Result<Response, Problem> {
    let body = if bodiless(method, reply.status) {
        Body::empty()
    } else {
        Body::from(reply.body.clone())
    };
    let mut response = head(reply, index, body)?;
    if *method == Method::HEAD && !never(reply.status) {
        // What the body would have; a guest that knows better says so.
        let said = reply
            .headers
            .iter()
            .find(|(name, _)| name == CONTENT_LENGTH.as_str());
        let value = match said {
            Some((_, value)) => HeaderValue::from_maybe_shared(value.clone()).map_err(invalid)?,
            None => HeaderValue::from(reply.body.len()),
        };
        response.headers_mut().insert(CONTENT_LENGTH, value);
    }
    Ok(response)
}

/// A reply whose stream is its body; `rest` of the request's body goes up the same stream.
pub(super) fn streamed(
    method: &Method,
    reply: &ServiceReply,
    index: u32,
    opened: Opened,
    rest: Option<Rest>,
) -> Result<Response, Problem> {
    if bodiless(method, reply.status) {
        // The stream is closed: nothing of it could be shown.
        drop(opened);
        return whole(method, reply, index);
    }
    let response = head(reply, index, Body::empty())?;
    let (relay, Client { up, down }) = opened.relay()?;
    match rest {
        Some(rest) => tokio::spawn(async move {
            tokio::join!(relay.run(), upload(rest, up));
        }),
        None => tokio::spawn(relay.run()),
    };
    Ok(response.map(|_| flow(reply.body.clone(), down)))
}

/// Whether the response has no body whatever the guest says.
fn bodiless(method: &Method, status: u16) -> bool {
    *method == Method::HEAD || never(status)
}

fn never(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// Status and headers.
fn head(reply: &ServiceReply, index: u32, body: Body) -> Result<Response, Problem> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).map_err(invalid)?;
    let headers = response.headers_mut();
    headers.reserve(reply.headers.len() + 2);
    for (name, value) in &reply.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(invalid)?;
        // The length is of what is really sent.
        if head::of_connection(&name) || name == CONTENT_LENGTH {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(value.clone()).map_err(invalid)?;
        headers.append(name, value);
    }
    headers.insert(&INSTANCE, HeaderValue::from(index));
    Ok(response)
}

/// The client stream broke: the client sees a body that breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the stream of the service's instance broke off")]
struct BrokeOff;

/// A body of what comes down a stream, each piece as it comes.
fn flow(first: Bytes, mut down: mpsc::Receiver<Down>) -> Body {
    let mut first = Some(first).filter(|first| !first.is_empty());
    Body::from_stream(stream::poll_fn(move |cx| {
        if let Some(first) = first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        down.poll_recv(cx).map(|item| match item {
            Some(Down::Item(Item::Data { bytes, .. })) => Some(Ok(bytes)),
            Some(Down::Item(Item::Close { .. })) => None,
            Some(Down::Lost(_)) | None => Some(Err(BrokeOff)),
        })
    }))
}

/// Sends the rest of a request's body up its stream.
async fn upload(mut rest: Rest, up: mpsc::Sender<Item>) {
    loop {
        let piece = tokio::select! {
            piece = rest.next() => piece,
            () = up.closed() => return,
        };
        let item = match piece {
            Ok(Some(bytes)) => Item::Data { text: false, bytes },
            Ok(None) => Item::Close { code: 0 },
            Err(_) => Item::Close { code: ABNORMAL },
        };
        let last = matches!(item, Item::Close { .. });
        if up.send(item).await.is_err() || last {
            return;
        }
    }
}
