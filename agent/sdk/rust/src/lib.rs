//! What Hop3 services are written against.
//!
//! A service is a type with handlers. [`export!`] makes a Wasm module of it; `hop3 new` makes a
//! whole project.
//!
//! ```
//! use hop3_guest::{Error, Request, Response, Service, kv};
//!
//! struct Counter;
//!
//! impl Service for Counter {
//!     fn request(request: Request) -> Result<Response, Error> {
//!         match (request.method(), &request.segments()[..]) {
//!             ("GET", ["count"]) => {
//!                 let count: u64 = kv::get("count")?.unwrap_or(0);
//!                 Ok(Response::text(count.to_string()))
//!             }
//!             ("POST", ["count"]) => {
//!                 let count = kv::get("count")?.unwrap_or(0_u64) + 1;
//!                 kv::set("count", &count)?;
//!                 Ok(Response::text(count.to_string()))
//!             }
//!             _ => Ok(Response::not_found()),
//!         }
//!     }
//! }
//!
//! hop3_guest::export!(Counter);
//!
//! // Without Wasm, the same code runs against an in-memory host.
//! let mut host = hop3_guest::testing::Host::<Counter>::new();
//! assert_eq!(host.request("POST", "/count", b"").reply().text(), "1");
//! assert_eq!(host.request("POST", "/count", b"").reply().text(), "2");
//! ```
//!
//! One call at a time, to its end: no threads, no locks, no waiting. What lies in memory (for
//! instance in a `thread_local!`) and in [`kv`] is the service's state: it survives restarts and
//! moves, and a handler that fails, traps or hits a limit leaves no trace in it. What a handler
//! wants to happen ([`publish`], [`call`](call()), [`stream`], its response) happens after it
//! returned `Ok` and its change is durable.
//!
//! Numbers and names of the interface are in `agent/sdk/ABI.md`. This crate has no dependencies;
//! `unsafe` is in one module. It compiles for `wasm32-wasip1`, `wasm32-unknown-unknown`, and for
//! the host, where [`testing`] stands in for Hop3.
#![deny(unsafe_code, missing_docs)]

mod error;
mod http;
pub mod instance;
pub mod json;
pub mod kv;
pub mod log;
mod message;
mod request;
mod response;
#[doc(hidden)]
pub mod run;
pub mod stream;
mod sys;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod timer;

pub use error::{Error, HostError};
pub use message::{CallEnded, Message, Reply, StreamClosed, StreamData, TopicMessage};
pub use request::Request;
pub use response::Response;
pub use stream::Stream;
pub use timer::Timer;

/// Handlers of a service. All have a default; one that does nothing is as if it were not there.
pub trait Service {
    /// Version of the form of the state. Raise it when new code cannot use what older code left,
    /// and write [`upgrade`](Service::upgrade).
    const SCHEMA: u32 = 1;

    /// Once, on a new instance, before anything else. Not after a restart or a move.
    ///
    /// # Errors
    /// The instance does not start.
    fn init() -> Result<(), Error> {
        Ok(())
    }

    /// A request.
    ///
    /// # Errors
    /// The caller is told that the handler failed; the text goes to the service's log. For an
    /// answer that says what is wrong with the request, return a [`Response`].
    fn request(request: Request) -> Result<Response, Error> {
        let _ = request;
        Ok(Response::not_found())
    }

    /// A topic's message, data or the end of a client stream, or the end of a call.
    ///
    /// # Errors
    /// The text goes to the service's log.
    fn message(message: Message) -> Result<(), Error> {
        let _ = message;
        Ok(())
    }

    /// A timer is due. It is no longer set.
    ///
    /// # Errors
    /// The text goes to the service's log.
    fn timer(timer: Timer) -> Result<(), Error> {
        let _ = timer;
        Ok(())
    }

    /// The state is of version `from`, and this code is of [`SCHEMA`](Service::SCHEMA): brings it
    /// into the new form.
    ///
    /// # Errors
    /// The state is refused, and stays as it is for the older code. That is what the default does.
    fn upgrade(from: u32) -> Result<(), Error> {
        let to = Self::SCHEMA;
        Err(Error::new(format!(
            "state of version {from} cannot become version {to}: Service::upgrade is not written"
        )))
    }
}

/// Publishes `payload` on `topic`, which the manifest must grant (`spec.publish`).
///
/// # Errors
/// [`HostError::NotGranted`], or over the limit of what one call may send.
pub fn publish(topic: &str, payload: impl AsRef<[u8]>) -> Result<(), HostError> {
    error::check(sys::publish(topic.as_bytes(), payload.as_ref())).map(drop)
}

/// Calls another service, which the manifest must grant (`spec.calls`). Gives the call's number;
/// how it ended comes as [`Message::Called`] with that number.
///
/// # Errors
/// [`HostError::NotGranted`], or over the limit of what one call may send.
pub fn call(
    service: &str,
    method: &str,
    path: &str,
    body: impl AsRef<[u8]>,
) -> Result<u64, HostError> {
    let [service, method, path] = [service, method, path].map(str::as_bytes);
    error::check_number(sys::call(service, method, path, body.as_ref()))
}

/// Milliseconds since 1970, on the clock of the node.
#[must_use]
pub fn now_ms() -> u64 {
    u64::try_from(sys::now_ms()).unwrap_or(0)
}

/// Exports a [`Service`]'s handlers. Once per module.
#[macro_export]
macro_rules! export {
    ($service:ty) => {
        const _: () = {
            // Exported names would collide on the host, where nobody calls them.
            #[cfg(not(target_arch = "wasm32"))]
            const _: fn() -> i32 = $crate::run::request::<$service>;

            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_init")]
            extern "C" fn init() -> i32 {
                $crate::run::init::<$service>()
            }
            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_request")]
            extern "C" fn request() -> i32 {
                $crate::run::request::<$service>()
            }
            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_message")]
            extern "C" fn message() -> i32 {
                $crate::run::message::<$service>()
            }
            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_timer")]
            extern "C" fn timer() -> i32 {
                $crate::run::timer::<$service>()
            }
            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_upgrade")]
            extern "C" fn upgrade(from: i32) -> i32 {
                $crate::run::upgrade::<$service>(from)
            }
            #[cfg(target_arch = "wasm32")]
            #[unsafe(export_name = "hop3_schema")]
            extern "C" fn schema() -> i32 {
                $crate::run::schema::<$service>()
            }
        };
    };
}
