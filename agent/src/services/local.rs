//! The gateway of this machine: programs here reach the services of this node, coordinator or
//! not. It listens on loopback only, since it speaks without encryption; services that are not
//! public want the token in [`TOKEN_FILE`], which whoever may read the data directory can read.
//!
//! What is known is what has an instance here; of a keyed service the other shards too, over the
//! coordinator. Everything else is the coordinator's gateway's.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, ServiceName},
    store::disk::FILE_MODE,
    wire::{CallResult, ClientDown, ClientUp, ServiceReply, ServiceRequest},
};
use hop3_gateway::{Attempt, Gateway, Instance, Link, Options, Pick, Router, ServiceInfo};
use hop3_runtime::wasm::CancelToken;
use tokio::{net::TcpListener, sync::oneshot};

use super::{Services, actor::Actor, client, inbox::Ask, route};

/// The token's file in the data directory.
pub const TOKEN_FILE: &str = "gateway.token";
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 256;

/// The token in `dir`, made if there is none.
///
/// # Errors
/// The disk's.
pub fn token(dir: &Path) -> io::Result<String> {
    let path = dir.join(TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let secret: [u8; 32] = rand::random();
    let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    // Whole or not there: a start that is killed leaves no half token.
    let temp = dir.join(format!("{TOKEN_FILE}.tmp"));
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true);
    let mut file = file.mode(FILE_MODE).open(&temp)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&temp, &path)?;
    Ok(token)
}

/// Client streams open at once: programs of one machine.
const STREAMS_MAX: u64 = 1_000;

/// Serves the gateway on `listener`, until dropped.
///
/// # Errors
/// The system's.
pub async fn serve(listener: TcpListener, services: Services, token: &str) -> io::Result<()> {
    let router = Arc::new(LocalRouter::new(services, token));
    let options = Options {
        streams_max: STREAMS_MAX,
        ..Options::default()
    };
    axum::serve(listener, Gateway::new(router, options).http()).await
}

/// See the module.
pub struct LocalRouter {
    services: Services,
    /// Digests are compared, so that time tells nothing about the token.
    token: Digest,
}

impl LocalRouter {
    /// A router to the services of this node.
    #[must_use]
    pub fn new(services: Services, token: &str) -> Self {
        let token = Digest::of(token.as_bytes());
        Self { services, token }
    }
}

#[async_trait::async_trait]
impl Router for LocalRouter {
    fn service(&self, name: &ServiceName) -> Result<Arc<ServiceInfo>, Problem> {
        let here = self.services.of(name);
        let newest = here.iter().max_by_key(|actor| actor.work().revision);
        let Some(actor) = newest else {
            if self.services.keeps(name) {
                // The agent has just begun, or the instance is between two runs.
                let message = format!("service `{name}` has its state here and does not run now");
                return Err(Problem::new(Code::ServiceNotReady, message));
            }
            let message = format!(
                "service `{name}` has no instance on this node: ask the coordinator's gateway"
            );
            return Err(Problem::new(Code::ServiceUnknown, message));
        };
        let work = actor.work();
        Ok(Arc::new(ServiceInfo {
            name: name.clone(),
            state: work.state,
            count: work.count,
            key: work.key.clone(),
            public: work.public,
            deadline: work.limits.deadline,
            request_bytes_max: work.limits.request.0,
        }))
    }

    fn pick(&self, name: &ServiceName, index: Option<u32>) -> Pick {
        let here = self.services.of(name);
        let wanted = |actor: &&Arc<Actor>| index.is_none_or(|n| actor.work().index == n);
        let mut ready: Vec<Arc<dyn Instance>> = Vec::new();
        for actor in here.iter().filter(wanted).filter(|actor| actor.serves()) {
            ready.push(Arc::new(Here(actor.clone())));
        }
        let elsewhere = here.iter().find(|_| self.services.0.outgoing.stands());
        if let (true, Some(index), Some(_)) = (ready.is_empty(), index, elsewhere)
            && here.iter().filter(wanted).count() == 0
        {
            ready.push(Arc::new(There {
                services: self.services.clone(),
                name: name.clone(),
                index,
                in_flight: AtomicU32::new(0),
            }));
        }
        if ready.is_empty() {
            return Pick::Wait(format!(
                "`{name}` starts, moves, or is not on this node now"
            ));
        }
        Pick::Ready(ready)
    }

    fn version(&self) -> u64 {
        *self.services.version().borrow()
    }

    async fn changed(&self, seen: u64) {
        let mut version = self.services.version();
        // The sender lives as long as the services.
        let _ = version.wait_for(|version| *version > seen).await;
    }

    fn authenticate(&self, token: &str) -> Result<(), Problem> {
        if token.len() <= TOKEN_BYTES_MAX && Digest::of(token.as_bytes()) == self.token {
            return Ok(());
        }
        let message = format!("the token is not the one in `{TOKEN_FILE}` of the agent's data");
        Err(Problem::new(Code::Unauthenticated, message))
    }
}

/// An instance of this node.
struct Here(Arc<Actor>);

#[async_trait::async_trait]
impl Instance for Here {
    fn index(&self) -> u32 {
        self.0.work().index
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.0.in_flight()).unwrap_or(u32::MAX)
    }

    async fn call(&self, request: &ServiceRequest, deadline: Instant) -> Attempt {
        let (tell, told) = oneshot::channel();
        let cancel = CancelToken::new();
        let ask = Ask {
            until: deadline,
            cancel: cancel.clone(),
            // Whoever asked may have gone.
            reply: Box::new(move |result| drop(tell.send(result))),
        };
        self.0.request(request.clone(), ask);
        let _given_up = CancelOnDrop(cancel);
        match told.await {
            Ok(result) => attempt(result),
            Err(_) => Attempt::Unknown(Problem::new(
                Code::OutcomeUnknown,
                "the instance ended while it handled the request",
            )),
        }
    }

    async fn attach(&self, first: ClientUp, _deadline: Instant) -> Result<Box<dyn Link>, Problem> {
        let ClientUp::Attach { stream, received } = first else {
            let message = "a client stream begins with an attach";
            return Err(Problem::new(Code::Protocol, message));
        };
        let down = client::Attached::new(&self.0, stream, received)?;
        let up = down.up();
        Ok(Box::new(LocalLink { up, down }))
    }
}

/// Whoever asked does not wait any more: what has not begun need not, what runs may end.
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

struct LocalLink {
    up: client::Up,
    down: client::Attached,
}

#[async_trait::async_trait]
impl Link for LocalLink {
    async fn send(&mut self, frame: ClientUp) -> Result<(), Problem> {
        self.up.take(frame).await
    }

    async fn recv(&mut self) -> Option<ClientDown> {
        self.down.next().await
    }
}

/// A shard on another node, over the coordinator.
struct There {
    services: Services,
    name: ServiceName,
    index: u32,
    in_flight: AtomicU32,
}

#[async_trait::async_trait]
impl Instance for There {
    fn index(&self) -> u32 {
        self.index
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    async fn call(&self, request: &ServiceRequest, deadline: Instant) -> Attempt {
        let (tell, told) = oneshot::channel();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let done = Box::new(move |result: Result<ServiceReply, Problem>| drop(tell.send(result)));
        let outgoing = &self.services.0.outgoing;
        outgoing.call(None, self.name.clone(), request.clone(), deadline, done);
        let answer = told.await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match answer {
            Ok(result) => attempt(result.map(CallResult::Service)),
            Err(_) => Attempt::Unknown(Problem::new(
                Code::OutcomeUnknown,
                "the agent goes down while the request is under way",
            )),
        }
    }

    async fn attach(&self, _first: ClientUp, _deadline: Instant) -> Result<Box<dyn Link>, Problem> {
        let message = "client streams of instances elsewhere: use the coordinator's gateway";
        Err(Problem::new(Code::StreamGone, message))
    }
}

/// What an answer says about whether the request happened.
fn attempt(result: Result<CallResult, Problem>) -> Attempt {
    match route::service_reply(result) {
        Ok(reply) => Attempt::Replied(reply),
        Err(problem) if route::surely_not_begun(&problem) => Attempt::NotDelivered(problem),
        Err(problem) => match problem.code {
            Code::Unavailable => Attempt::NotDelivered(problem),
            Code::OutcomeUnknown => Attempt::Unknown(problem),
            _ => Attempt::Failed(problem),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let made = token(dir.path()).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(token(dir.path()).unwrap(), made);
        let path = dir.path().join(TOKEN_FILE);
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_surely_did_not_begin_may_be_repeated() {
        let problem = |code| attempt(Err(Problem::new(code, "")));
        for code in [
            Code::NotHere,
            Code::ServiceNotReady,
            Code::Busy,
            Code::Unavailable,
        ] {
            assert!(matches!(problem(code), Attempt::NotDelivered(_)), "{code}");
        }
        assert!(matches!(problem(Code::OutcomeUnknown), Attempt::Unknown(_)));
        assert!(matches!(problem(Code::HandlerFailed), Attempt::Failed(_)));
    }
}
