//! A join token's name and its one-use secret.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize, de};
use zeroize::Zeroizing;

use super::{Error, token};

/// Separates this hash from every other use of BLAKE3.
const SECRET_CONTEXT: &str = "hop3 identity join-token secret v1";

/// A token's public name: 80 random bits, 16 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; 10]);

impl TokenId {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(*random()?))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}
impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for TokenId {
    type Err = token::Error;
    fn from_str(text: &str) -> Result<Self, token::Error> {
        let bytes = BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .ok();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(token::Error::Mistyped)
    }
}
impl Serialize for TokenId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A token's one-use secret: 256 random bits. Wiped when dropped; `Debug` does not show it.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 32]>);

impl TokenSecret {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        random().map(Self)
    }

    /// What a coordinator stores of it.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key(SECRET_CONTEXT, &*self.0))
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash()
    }
}
impl Eq for TokenSecret {}
impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(redacted)")
    }
}
impl Serialize for TokenSecret {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}
impl<'de> Deserialize<'de> for TokenSecret {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <[u8; 32]>::deserialize(d).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

/// A domain-separated hash of a [`TokenSecret`]. Equality takes the same time whatever differs.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash([u8; 32]);

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        // blake3 compares hashes in constant time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}
impl Eq for SecretHash {}
impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| Error::Crypto {
            operation: "draw a token",
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn secrets_differ_and_debug_does_not_show_them() {
        let (a, b) = (
            TokenSecret::generate().unwrap(),
            TokenSecret::generate().unwrap(),
        );
        assert!(a != b && a == a.clone() && a.hash() != b.hash() && a.hash() == a.hash());
        let bytes = format!("{:?}", *a.0);
        let shown = format!("{a:?} {:?}", a.hash());
        assert!(shown.contains("redacted"));
        assert!(!shown.contains(&bytes[1..20]) && !shown.contains(&format!("{:?}", a.hash().0)));
    }

    #[test]
    fn ids_have_one_short_text() {
        let id = TokenId::generate().unwrap();
        assert_eq!(id.to_string().len(), 16);
        assert_eq!(id.to_string().parse::<TokenId>().unwrap(), id);
        for bad in ["", "abc", &"a".repeat(17), &"1".repeat(16)] {
            assert!(bad.parse::<TokenId>().is_err());
        }
    }
}
