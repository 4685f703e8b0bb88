//! What can go wrong: in a handler, and at the host.

use std::fmt;

/// Why a handler failed. Its text goes to the service's log; nothing of the call remains.
///
/// Any error becomes one by `?`, those of the host ([`HostError`]) too.
pub struct Error(String);

impl Error {
    /// With a text that says what happened, and where.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// Not itself a `std::error::Error`, so that this can be.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            source = inner.source();
        }
        Self(text)
    }
}

/// What the host refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such thing: a stream that is closed, for one.
    Absent,
    /// The manifest does not grant it (`spec.publish`, `spec.calls`).
    NotGranted,
    /// Over a limit of the manifest (`spec.limits`).
    Limit,
    /// Not in this handler: only a request has a reply.
    NotNow,
    /// Not acceptable: a status, the name of a header, an empty key.
    Invalid,
    /// A number that this version of the SDK does not know.
    Other(i64),
}

impl HostError {
    pub(crate) fn of(number: i64) -> Self {
        match number {
            -1 => Self::Absent,
            -2 => Self::NotGranted,
            -3 => Self::Limit,
            -4 => Self::NotNow,
            -5 => Self::Invalid,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not there"),
            Self::NotGranted => {
                f.write_str("not granted: name it in `spec.publish` or `spec.calls`")
            }
            Self::Limit => f.write_str("over a limit: see `spec.limits`"),
            Self::NotNow => f.write_str("not now: only a request has a reply"),
            Self::Invalid => f.write_str("not acceptable"),
            Self::Other(number) => write!(f, "the host answered {number}"),
        }
    }
}

impl std::error::Error for HostError {}

/// The host's answer: a count, or an error.
pub(crate) fn check(answer: i32) -> Result<u32, HostError> {
    u32::try_from(answer).map_err(|_| HostError::of(answer.into()))
}

/// As [`check`], for numbers of streams and calls.
pub(crate) fn check_number(answer: i64) -> Result<u64, HostError> {
    u64::try_from(answer).map_err(|_| HostError::of(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_in_the_text() {
        fn parse(text: &str) -> Result<u8, Error> {
            Ok(text.parse()?)
        }
        assert!(parse("7").is_ok_and(|n| n == 7));
        assert!(parse("x").is_err_and(|error| error.to_string().contains("invalid digit")));
        let host: Error = HostError::NotGranted.into();
        assert!(host.to_string().contains("spec.publish"));
    }

    #[test]
    fn the_hosts_numbers_have_names() {
        assert_eq!(check(5), Ok(5));
        assert_eq!(check(-3), Err(HostError::Limit));
        assert_eq!(check_number(-9), Err(HostError::Other(-9)));
    }
}
