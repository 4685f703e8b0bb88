//! What [`crate::export!`] exports: reads the input, calls the handler, writes the answer.

use crate::{Error, Message, Request, Service, Timer, log};

/// What a handler returns when it failed; any number but 0 says so.
const FAILED: i32 = 1;

fn ended(handler: &str, result: Result<(), Error>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            log::error(format!("{handler}: {error}"));
            FAILED
        }
    }
}

/// `hop3_init`.
pub fn init<S: Service>() -> i32 {
    // Elsewhere standard error has what a panic says, and is the log.
    #[cfg(all(target_arch = "wasm32", not(target_os = "wasi")))]
    std::panic::set_hook(Box::new(|panic| log::error(panic.to_string())));
    ended("init", S::init())
}

/// `hop3_request`.
pub fn request<S: Service>() -> i32 {
    let response = S::request(Request::read());
    ended("request", response.and_then(|response| response.write()))
}

/// `hop3_message`.
pub fn message<S: Service>() -> i32 {
    // A kind of a later host: not for this module.
    ended("message", Message::read().map_or(Ok(()), S::message))
}

/// `hop3_timer`.
pub fn timer<S: Service>() -> i32 {
    ended("timer", S::timer(Timer::read()))
}

/// `hop3_upgrade`.
pub fn upgrade<S: Service>(from: i32) -> i32 {
    ended("upgrade", S::upgrade(from.cast_unsigned()))
}

/// `hop3_schema`.
pub fn schema<S: Service>() -> i32 {
    S::SCHEMA.cast_signed()
}
