//! Services over HTTP/1.1 and HTTP/2: `ANY /{service}/…` is delivered to an instance of the
//! service, which sees the path without the service's name.
//!
//! `GET /healthz` says that the gateway serves, without a token (a service of that name cannot be
//! reached). A request to a service that is not public carries a token, in `Authorization:
//! Bearer …`, `Hop3-Token: …`, or a WebSocket's subprotocol `hop3.bearer.…`; the guest never sees
//! it. `Hop3-Request-Deadline: 500ms` shortens the service's deadline, `Idempotency-Key` makes a
//! request repeatable, and the answer's `Hop3-Instance` names the instance.
//!
//! A body larger than the service takes in one piece goes on as a client stream if the guest
//! opens one, else the answer is 413 (or the guest's own, if that is an error).

mod body;
mod head;
mod problem;
mod respond;
mod websocket;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Method},
    response::{IntoResponse as _, Response},
};
use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
};
use tokio::time::{Instant, timeout_at};

use crate::{Delivered, Gateway, ServiceInfo, reply::invalid};

/// Where a gateway says that it serves.
const HEALTH: &str = "/healthz";

impl Gateway {
    /// The gateway as a service of HTTP, to be served over TLS or merged into a server.
    pub fn http(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }
}

async fn answer(State(gateway): State<Gateway>, request: Request) -> Response {
    if request.uri().path() == HEALTH && matches!(*request.method(), Method::GET | Method::HEAD) {
        return "ok\n".into_response();
    }
    match handle(&gateway, request).await {
        Ok(response) => response,
        Err(problem) => problem::response(&problem),
    }
}

async fn handle(gateway: &Gateway, request: Request) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let (mut parts, body) = request.into_parts();
    let (name, path) = head::split(&parts.uri)?;
    let info = admit(gateway, &name, &parts.headers)?;
    let upgrade = websocket::wanted(&mut parts).await?;
    let (mut request, deadline) = head::request(&parts, path, upgrade.is_some())?;
    let time = Duration::from_millis(info.deadline.0);
    let until = arrived + deadline.map_or(time, |deadline| deadline.min(time));

    let rest = if upgrade.is_some() {
        None
    } else {
        let max = usize::try_from(info.request_bytes_max).unwrap_or(usize::MAX);
        let read = timeout_at(until, body::read(body, max)).await;
        let late = |_| Problem::new(Code::Deadline, "the request's body did not come in time");
        let (beginning, rest) = read.map_err(late)??;
        request.body = beginning;
        request.more = rest.is_some();
        rest
    };
    let left = until.saturating_duration_since(Instant::now());
    let delivered = gateway.deliver(&name, None, &request, Some(left)).await?;
    let opened = gateway.opened(&name, &delivered);
    let Delivered { reply, index } = delivered;

    match (upgrade, opened) {
        (Some(upgrade), Some(opened)) if reply.status == 101 => {
            let mut response = websocket::accept(upgrade, &parts.headers, &reply, opened)?;
            let headers = response.headers_mut();
            headers.insert(&respond::INSTANCE, index.into());
            Ok(response)
        }
        _ if reply.status == 101 => Err(invalid("status 101 answers no WebSocket request")),
        (_, Some(opened)) => respond::streamed(&parts.method, &reply, index, opened, rest),
        (_, None) if rest.is_some() && reply.status < 400 => Err(too_large(&info)),
        (_, None) => respond::whole(&parts.method, &reply, index),
    }
}

/// The service, if the client may use it. Who may not is not told which services there are.
fn admit(
    gateway: &Gateway,
    name: &ServiceName,
    headers: &HeaderMap,
) -> Result<Arc<ServiceInfo>, Problem> {
    let router = &gateway.inner.router;
    let found = router.service(name);
    if !found.as_ref().is_ok_and(|info| info.public) {
        let token = head::token(headers).ok_or_else(|| {
            let message = "this service needs a header `Authorization: Bearer <API token>`";
            Problem::new(Code::Unauthenticated, message)
        })?;
        router.authenticate(token)?;
    }
    found
}

fn too_large(info: &ServiceInfo) -> Problem {
    let message = format!(
        "service `{}` takes request bodies of at most {} bytes (`spec.limits.request`), and opened \
         no stream for the rest",
        info.name, info.request_bytes_max
    );
    Problem::new(Code::TooLarge, message)
}
