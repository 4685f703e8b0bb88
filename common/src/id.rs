//! Names and numbers that identify things. Every id is a newtype with one text form; parsing is
//! the only way in, so an id that exists is valid.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};
use utoipa::ToSchema;

/// Longest name of a node, model, volume or label key, in bytes (a DNS label).
pub const NAME_BYTES_MAX: usize = 63;
/// Longest instance id, in bytes (`model/<name>/<replica>` with room).
pub const INSTANCE_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a name.
    #[error(
        "`{text}` is not a valid name: use 1 to {NAME_BYTES_MAX} lower-case letters, digits and \
         dashes, beginning and ending with a letter or digit"
    )]
    Name {
        /// The refused text, shortened.
        text: String,
    },
    /// Not a digest.
    #[error("`{text}` is not a digest: it looks like sha256:<64 hex digits>")]
    Digest {
        /// The refused text, shortened.
        text: String,
    },
    /// Not an instance or task id.
    #[error("`{text}` is not a valid {what} id")]
    Id {
        /// Which id was expected.
        what: &'static str,
        /// The refused text, shortened.
        text: String,
    },
}

fn short(text: &str) -> String {
    let mut s: String = text.chars().take(80).collect();
    if s.len() < text.len() {
        s.push('…');
    }
    s
}

fn is_name(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= NAME_BYTES_MAX
        && bytes.iter().all(|&b| alnum(b) || b == b'-')
        && alnum(bytes[0])
        && alnum(bytes[bytes.len() - 1])
}

/// Serde through the text form, shared by every id below.
macro_rules! text_serde {
    ($ty:ident) => {
        impl Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

macro_rules! name_id {
    ($(#[$doc:meta])* $ty:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
        #[schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
        pub struct $ty(Box<str>);

        impl $ty {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $ty {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                if is_name(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(Error::Name { text: short(text) })
                }
            }
        }
        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $ty {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        text_serde!($ty);
    };
}

name_id! {
    /// A node's name, unique in its mesh.
    NodeId
}
name_id! {
    /// A mesh's name: the trust domain of its certificates.
    MeshId
}
name_id! {
    /// A model's name.
    ModelName
}
name_id! {
    /// A service's name.
    ServiceName
}
name_id! {
    /// A task's id: `t` and 11 random base-32 characters.
    TaskId
}

impl TaskId {
    /// A task id from 8 random bytes (55 bits are used).
    #[must_use]
    pub fn from_random(random: u64) -> Self {
        Self(base32_id('t', random))
    }
}

/// `prefix` and 11 lower-case base-32 characters of the low 55 bits (no look-alikes `0 1 l o`).
#[must_use]
pub fn base32_id(prefix: char, random: u64) -> Box<str> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let chars = (0..11).map(|i| char::from(ALPHABET[(random >> (i * 5)) as usize & 31]));
    std::iter::once(prefix)
        .chain(chars)
        .collect::<String>()
        .into_boxed_str()
}

/// One copy of a task, model or service: `task/<task id>`, `model/<name>/<replica>` or
/// `service/<name>/<replica or shard>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String)]
pub struct InstanceId(Box<str>);

impl InstanceId {
    /// The instance of a task.
    #[must_use]
    pub fn task(task: &TaskId) -> Self {
        Self(format!("task/{task}").into())
    }

    /// The `replica`-th instance of a model.
    #[must_use]
    pub fn model(name: &ModelName, replica: u32) -> Self {
        Self(format!("model/{name}/{replica}").into())
    }

    /// The `index`-th replica or shard of a service.
    #[must_use]
    pub fn service(name: &ServiceName, index: u32) -> Self {
        Self(format!("service/{name}/{index}").into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The task this is an instance of.
    #[must_use]
    pub fn as_task(&self) -> Option<TaskId> {
        self.0.strip_prefix("task/")?.parse().ok()
    }

    /// The model and replica this is an instance of.
    #[must_use]
    pub fn as_model(&self) -> Option<(ModelName, u32)> {
        let (name, replica) = self.0.strip_prefix("model/")?.split_once('/')?;
        Some((name.parse().ok()?, replica.parse().ok()?))
    }
}

impl InstanceId {
    /// The service and the replica or shard of it that this is.
    #[must_use]
    pub fn as_service(&self) -> Option<(ServiceName, u32)> {
        let (name, index) = self.0.strip_prefix("service/")?.split_once('/')?;
        Some((name.parse().ok()?, index.parse().ok()?))
    }
}

impl FromStr for InstanceId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts_ok = text.split('/').all(is_name);
        if text.len() <= INSTANCE_BYTES_MAX && text.contains('/') && parts_ok {
            Ok(Self(text.into()))
        } else {
            Err(Error::Id {
                what: "instance",
                text: short(text),
            })
        }
    }
}
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_serde!(InstanceId);

/// SHA-256 of an artifact or result, written `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^sha256:[0-9a-f]{64}$")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hex digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first 12 hex digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..6])
    }
}
impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text
            .strip_prefix("sha256:")
            .and_then(|hex| {
                data_encoding::HEXLOWER_PERMISSIVE
                    .decode(hex.as_bytes())
                    .ok()
            })
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(Self)
            .ok_or_else(|| Error::Digest { text: short(text) })
    }
}
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}…", self.short())
    }
}
// Text for people (JSON, YAML), 32 raw bytes on the wire and on disk.
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(self)
        } else {
            self.0.serialize(s)
        }
    }
}
impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            String::deserialize(d)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(d).map(Self)
        }
    }
}

/// Milliseconds since the Unix epoch. For people and certificates; never for ownership.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

impl UnixMs {
    /// The system's clock. Shells call this; pure code takes the value.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Whole seconds.
    #[must_use]
    pub fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// `self - earlier`, 0 if the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time and `ms` more.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "edge-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "é",
            "../x",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_round_trip_as_text_and_as_bytes() {
        let digest = Digest::of(b"hop3");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(postcard::to_allocvec(&digest).unwrap().len(), 32);
        assert!("sha256:00".parse::<Digest>().is_err());
        assert!(digest.hex().parse::<Digest>().is_err());
    }

    #[test]
    fn instances_name_what_they_are_copies_of() {
        let task = TaskId::from_random(0x0123_4567_89ab_cdef);
        let instance = InstanceId::task(&task);
        assert_eq!(
            instance
                .to_string()
                .parse::<InstanceId>()
                .unwrap()
                .as_task(),
            Some(task)
        );
        let name: ModelName = "digits".parse().unwrap();
        assert_eq!(InstanceId::model(&name, 3).as_model(), Some((name, 3)));
        for bad in ["task", "task/", "/x", "task/../x", "task/A"] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }
}
