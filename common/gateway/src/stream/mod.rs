//! Client streams: server-sent events, WebSockets, streamed bodies. [`machine`] has the numbers,
//! [`relay`] the links.

mod machine;
mod relay;

pub(crate) use machine::Item;
#[cfg(test)]
pub(crate) use machine::{Machine, WINDOW_BYTES};
pub(crate) use relay::{Client, Down, Opened};
