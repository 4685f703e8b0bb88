//! Join tokens: the one line that an operator pastes on a new node.
//!
//! `hop3-join-1.` and base-32 of: token id, one-use secret, CA pin, mesh, coordinator addresses,
//! CRC-32. The checksum tells a mistyped line from a refused one before any packet is sent.
//! Letters may be in either case and white space (a wrapped line) is skipped.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    CoordinatorAddr,
    key::KeyHash,
    secret::{TokenId, TokenSecret},
};
use crate::id::MeshId;

/// Longest token line, in characters: eight of the longest addresses fit.
pub const TOKEN_CHARS_MAX: usize = 4096;
/// Most coordinator addresses in a token.
pub const COORDINATORS_MAX: usize = 8;

const PREFIX: &str = "hop3-join-";
const VERSION: &str = "1";
const CHECKSUM_BYTES: usize = 4;

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not begin like one.
    #[error("this is not a join token: it begins with `{PREFIX}{VERSION}.`")]
    NotAToken,
    /// Of another version.
    #[error("this join token is of version {version}; this hop3 reads version {VERSION}: upgrade")]
    Version {
        /// The version.
        version: String,
    },
    /// Longer than any token.
    #[error("this join token is too long: at most {TOKEN_CHARS_MAX} characters")]
    TooLong,
    /// Its checksum or alphabet is wrong.
    #[error("mistyped join token: copy the whole line again")]
    Mistyped,
    /// Well formed, but with impossible contents.
    #[error("this join token's contents are not valid: {reason}; make a new one")]
    Contents {
        /// What is wrong.
        reason: &'static str,
    },
}

/// A join token. `Display` gives the line with the secret in it: print it once, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    id: TokenId,
    secret: TokenSecret,
    ca_pin: KeyHash,
    mesh: MeshId,
    coordinators: Vec<CoordinatorAddr>,
}

impl JoinToken {
    /// A token for the mesh of this CA, whose coordinators listen at `coordinators`.
    ///
    /// # Errors
    /// [`Error::Contents`] for none or more than [`COORDINATORS_MAX`] addresses.
    pub fn mint(
        id: TokenId,
        secret: TokenSecret,
        ca: &super::CaCertificate,
        coordinators: Vec<CoordinatorAddr>,
    ) -> Result<Self, Error> {
        let (ca_pin, mesh) = (ca.pin(), ca.mesh().clone());
        Self {
            id,
            secret,
            ca_pin,
            mesh,
            coordinators,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, Error> {
        match self.coordinators.len() {
            0 => Err(Error::Contents {
                reason: "it names no coordinator",
            }),
            1..=COORDINATORS_MAX => Ok(self),
            _ => Err(Error::Contents {
                reason: "it names more than eight coordinators",
            }),
        }
    }

    /// The token's name.
    #[must_use]
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The one-use secret.
    #[must_use]
    pub fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// SHA-256 of the CA's key.
    #[must_use]
    pub fn ca_pin(&self) -> KeyHash {
        self.ca_pin
    }

    /// The mesh to join.
    #[must_use]
    pub fn mesh(&self) -> &MeshId {
        &self.mesh
    }

    /// Where to knock, in order.
    #[must_use]
    pub fn coordinators(&self) -> &[CoordinatorAddr] {
        &self.coordinators
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough room at once, so that growing leaves no copies of the secret behind.
        let payload = postcard::to_extend(self, Vec::with_capacity(TOKEN_CHARS_MAX));
        let mut payload = Zeroizing::new(payload.map_err(|_| fmt::Error)?);
        let checksum = crc32fast::hash(&payload);
        payload.extend_from_slice(&checksum.to_le_bytes());
        let mut text = Zeroizing::new(BASE32_NOPAD.encode(&payload));
        text.make_ascii_lowercase();
        write!(f, "{PREFIX}{VERSION}.{}", *text)
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self, Error> {
        if line.len() > TOKEN_CHARS_MAX {
            return Err(Error::TooLong);
        }
        let mut text = Zeroizing::new(String::with_capacity(line.len()));
        text.extend(line.chars().filter(|c| !c.is_whitespace()));
        let head = text.get(..PREFIX.len()).ok_or(Error::NotAToken)?;
        if !head.eq_ignore_ascii_case(PREFIX) {
            return Err(Error::NotAToken);
        }
        let (version, body) = text[PREFIX.len()..]
            .split_once('.')
            .ok_or(Error::NotAToken)?;
        if version != VERSION {
            let known = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
            let version = version.chars().take(10).collect();
            return Err(if known {
                Error::Version { version }
            } else {
                Error::NotAToken
            });
        }
        let mut upper = Zeroizing::new(body.to_owned());
        upper.make_ascii_uppercase();
        let decoded = BASE32_NOPAD
            .decode(upper.as_bytes())
            .map_err(|_| Error::Mistyped)?;
        let decoded = Zeroizing::new(decoded);
        let (payload, checksum) = decoded
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(Error::Mistyped)?;
        if crc32fast::hash(payload).to_le_bytes() != *checksum {
            return Err(Error::Mistyped);
        }
        match postcard::take_from_bytes::<Self>(payload) {
            Ok((token, [])) => token.checked(),
            Ok(_) => Err(Error::Contents {
                reason: "there are bytes after its end",
            }),
            Err(_) => Err(Error::Contents {
                reason: "it does not decode",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::{id::UnixMs, identity::CertificateAuthority};

    fn minted(coordinators: &[&str]) -> Result<JoinToken, Error> {
        let mesh = "home".parse().unwrap();
        let ca = CertificateAuthority::create(&mesh, UnixMs(1_760_000_000_000)).unwrap();
        let coordinators = coordinators
            .iter()
            .map(|addr| addr.parse().unwrap())
            .collect();
        let (id, secret) = (
            TokenId::generate().unwrap(),
            TokenSecret::generate().unwrap(),
        );
        JoinToken::mint(id, secret, ca.certificate(), coordinators)
    }

    #[test]
    fn a_token_survives_the_paste() {
        let token = minted(&["hop3.example:7443", "[2001:db8::1]:7443"]).unwrap();
        let line = token.to_string();
        assert!(line.starts_with("hop3-join-1."));
        assert!(line.len() < 300, "one line to paste: {}", line.len());
        assert_eq!(line.parse::<JoinToken>().unwrap(), token);
        let wrapped = format!("  {}\r\n{}\n", &line[..100], &line[100..]);
        assert_eq!(wrapped.parse::<JoinToken>().unwrap(), token);
        assert_eq!(line.to_uppercase().parse::<JoinToken>().unwrap(), token);
        assert_eq!(
            token.id().to_string().parse::<TokenId>().unwrap(),
            token.id()
        );
    }

    #[test]
    fn the_number_of_coordinators_is_bounded() {
        assert!(matches!(minted(&[]), Err(Error::Contents { .. })));
        let label = "x".repeat(61);
        let host = |i: usize| format!("{}.h{i}:65535", [label.as_str(); 4].join("."));
        let hosts: Vec<_> = (0..9).map(host).collect();
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        assert!(matches!(minted(&hosts), Err(Error::Contents { .. })));
        let longest = minted(&hosts[..8]).unwrap();
        assert_eq!(longest.to_string().parse::<JoinToken>().unwrap(), longest);
    }

    #[test]
    fn what_is_no_token_says_so() {
        let line = minted(&["a:1"]).unwrap().to_string();
        let parse = |text: &str| text.parse::<JoinToken>().unwrap_err();
        for bad in [
            "",
            "hello",
            "hop3-join-",
            "hop3-join-1",
            "hop3-join-x.aaaa",
            "ü3-join-1.aa",
        ] {
            assert_eq!(parse(bad), Error::NotAToken, "{bad}");
        }
        let newer = line.replacen("-1.", "-2.", 1);
        assert_eq!(
            parse(&newer),
            Error::Version {
                version: "2".into()
            }
        );
        assert_eq!(parse(&line[..line.len() - 1]), Error::Mistyped);
        assert_eq!(parse(&format!("{line}a")), Error::Mistyped);
        assert_eq!(parse("hop3-join-1."), Error::Mistyped);
        assert_eq!(parse(&"x".repeat(TOKEN_CHARS_MAX + 1)), Error::TooLong);
    }

    #[test]
    fn a_right_checksum_over_wrong_contents_is_refused() {
        for payload in [&b""[..], b"hello", &[0xff; 64]] {
            let mut payload = payload.to_vec();
            payload.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
            let line = format!("hop3-join-1.{}", BASE32_NOPAD.encode(&payload));
            assert!(matches!(
                line.parse::<JoinToken>(),
                Err(Error::Contents { .. })
            ));
        }
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let shown = format!("{:?}", minted(&["a:1"]).unwrap());
        assert!(shown.contains("redacted"), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_mistyped_letter_is_noticed(at in 0usize..10_000, letter in "[a-z2-7]") {
            let line = minted(&["hop3.example:7443"]).unwrap().to_string();
            let at = PREFIX.len() + 2 + at % (line.len() - PREFIX.len() - 2);
            let mut typo = line.clone();
            typo.replace_range(at..=at, &letter);
            prop_assume!(typo != line);
            prop_assert_eq!(typo.parse::<JoinToken>(), Err(Error::Mistyped));
        }

        #[test]
        fn any_text_is_answered(text in "(hop3-join-1\\.)?\\PC{0,200}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
