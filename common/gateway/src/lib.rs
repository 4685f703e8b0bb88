//! Where clients of services come in. Coordinator and agents embed it; each brings a [`Router`]
//! that knows its instances.
//!
//! ```text
//! client ── HTTP/1.1, HTTP/2, WebSocket ── Gateway ── Router ── Instance (a node away, or here)
//! ```
//!
//! Invariants
//! - A request is delivered once. An attempt that surely did not begin ([`Attempt::NotDelivered`])
//!   is repeated, at the instance that is there then, until the deadline. One whose outcome is not
//!   known ([`Attempt::Unknown`]) is repeated only if that changes nothing: it is `GET`, `HEAD` or
//!   `OPTIONS`, or has an `Idempotency-Key`; else the client is told exactly that.
//! - Requests that wait are bounded, each with its deadline; those of one connection keep their
//!   order.
//! - A client's stream survives moves and restarts of its instance: data is numbered both ways
//!   and repeated from the last acknowledged on.

mod counters;
mod delivery;
mod http;
mod policy;
mod reply;
mod stream;
#[cfg(test)]
mod tests;
mod waiting;

use std::{sync::Arc, time::Instant};

use hop3_common::{
    codes::Problem,
    id::ServiceName,
    spec::{KeyFrom, Millis, State},
    wire::{ClientDown, ClientUp, ServiceReply, ServiceRequest},
};

pub use counters::Snapshot;
pub use delivery::{ANSWER_GRACE, Delivered, Gateway, Options};
pub use policy::target;
pub use waiting::{WAITING_BYTES_MAX, WAITING_MAX, WAITING_PER_SERVICE_MAX};

/// What a gateway must know of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Its name.
    pub name: ServiceName,
    /// What it keeps.
    pub state: State,
    /// How many instances it has.
    pub count: u32,
    /// Where a request's key is.
    pub key: KeyFrom,
    /// Served without a token.
    pub public: bool,
    /// Time that a request may take.
    pub deadline: Millis,
    /// Largest request body in one piece, bytes.
    pub request_bytes_max: u64,
}

/// One attempt to deliver a request.
#[derive(Debug)]
pub enum Attempt {
    /// Answered.
    Replied(ServiceReply),
    /// It surely did not begin: the instance is not there, starts, is sealed, or has no room.
    NotDelivered(Problem),
    /// It may have happened, or not, or in part.
    Unknown(Problem),
    /// It began and failed for good: its state is as before.
    Failed(Problem),
}

/// An instance that can be asked.
#[async_trait::async_trait]
pub trait Instance: Send + Sync + 'static {
    /// Which replica or shard.
    fn index(&self) -> u32;
    /// Requests in flight, to choose the least busy by.
    fn in_flight(&self) -> u32;
    /// Asks once.
    async fn call(&self, request: &ServiceRequest, deadline: Instant) -> Attempt;
    /// Attaches to a client stream of the instance; `first` is its `Attach` frame. The answer
    /// begins with `Attached` or `Refused`.
    async fn attach(&self, first: ClientUp, deadline: Instant) -> Result<Box<dyn Link>, Problem>;
}

/// An attached client stream. Dropping it detaches.
#[async_trait::async_trait]
pub trait Link: Send {
    /// Sends a frame; waits for room.
    async fn send(&mut self, frame: ClientUp) -> Result<(), Problem>;
    /// The next frame; `None` when the link broke or ended. Cancel-safe.
    async fn recv(&mut self) -> Option<ClientDown>;
}

/// Who could take a request now.
pub enum Pick {
    /// These (in any order); the gateway takes the least busy.
    Ready(Vec<Arc<dyn Instance>>),
    /// Nobody at the moment: it starts, moves, or its node is away. Why, for people.
    Wait(String),
}

/// Knows services and their instances.
#[async_trait::async_trait]
pub trait Router: Send + Sync + 'static {
    /// The service, or why there is none.
    fn service(&self, name: &ServiceName) -> Result<Arc<ServiceInfo>, Problem>;
    /// Who could take a request for replica or shard `index` (`None`: any).
    fn pick(&self, name: &ServiceName, index: Option<u32>) -> Pick;
    /// A number that grows with every change of services and instances.
    fn version(&self) -> u64;
    /// Returns when [`version`](Self::version) is above `seen`.
    async fn changed(&self, seen: u64);
    /// Whether this token may use services that are not public.
    fn authenticate(&self, token: &str) -> Result<(), Problem>;
}
