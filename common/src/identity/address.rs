//! Where a coordinator listens: `host:port`, as an operator writes it.

use std::{fmt, str::FromStr};

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize, de};

/// Longest host, in bytes (DNS).
const HOST_BYTES_MAX: usize = 253;

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address: write host:port, 192.0.2.1:port or [2001:db8::1]:port")]
pub struct Error {
    /// The refused text, shortened.
    pub text: String,
}

/// A coordinator's address: a DNS name or an IP address, and a port other than 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoordinatorAddr {
    host: Box<str>,
    port: u16,
}

impl CoordinatorAddr {
    /// The DNS name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for CoordinatorAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let bracketed = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            let host = bracketed.unwrap_or(host);
            // Brackets are for IPv6 and IPv6 is for brackets.
            let known = host.len() <= HOST_BYTES_MAX
                && bracketed.is_some() == host.contains(':')
                && ServerName::try_from(host).is_ok();
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port
                .parse()
                .ok()
                .filter(|&port: &u16| port != 0 && digits)?;
            known.then(|| Self {
                host: host.into(),
                port,
            })
        };
        parse().ok_or_else(|| Error {
            text: text.chars().take(80).collect(),
        })
    }
}

impl fmt::Display for CoordinatorAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for CoordinatorAddr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for CoordinatorAddr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_have_one_form() {
        for good in [
            "hop3.example:7443",
            "127.0.0.1:1",
            "[::1]:65535",
            "localhost:80",
        ] {
            let addr: CoordinatorAddr = good.parse().unwrap();
            assert_eq!(addr.to_string(), good);
        }
        assert_eq!("[::1]:7".parse::<CoordinatorAddr>().unwrap().host(), "::1");
        let long = format!("{}:1", "a.".repeat(200));
        for bad in [
            "", "x", ":1", "x:", "x:0", "x:65536", "x:+1", "::1:7", "[x]:1", "a b:1", "*.x:1",
            &long,
        ] {
            assert!(bad.parse::<CoordinatorAddr>().is_err(), "{bad}");
        }
    }
}
