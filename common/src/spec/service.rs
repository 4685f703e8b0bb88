//! Services: long-lived work that handles requests, messages and timers.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};
use utoipa::ToSchema;

use super::{
    Invalid,
    placement::{Placement, Resources, check_label_key},
    quantity::{ByteSize, CpuMilli, Millis},
    task::{VolumeGrant, check_environment, check_volumes},
};
use crate::{id::ServiceName, ownership::LEASE_MS};

/// Replicas of a service without state: each is an instance on some node.
pub const REPLICAS_MAX: u32 = 256;
/// Shards of a keyed service.
pub const SHARDS_MAX: u32 = 256;
/// Topics a service receives or may publish to, and services it may call.
pub const LINKS_MAX: usize = 64;
/// Checkpoints kept of one instance.
pub const CHECKPOINTS_KEPT_MAX: u32 = 100;
/// Largest request or reply: it travels in one frame.
pub const BODY_BYTES_MAX: u64 = 8 << 20;

/// What a service keeps between calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing: any number of replicas, any of which may answer.
    #[default]
    None,
    /// One instance with state.
    Single,
    /// A fixed number of shards, each with the state of its keys.
    Keyed,
}

/// How far an acknowledged change survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Until the process ends: a restart begins from the last checkpoint.
    Memory,
    /// On the node's disk before it is acknowledged.
    #[default]
    Node,
    /// At the coordinator too before it is acknowledged.
    Replicated,
}

/// What an instance does while its node cannot reach the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnPartition {
    /// It stops when its lease ends, and goes on elsewhere with its state.
    Fence,
    /// It goes on for as long as it is alone; nobody else takes its place.
    Continue,
}

/// When checkpoints are made, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSpec {
    /// Time between checkpoints, while there is something new; 0 = only on request and at moves.
    pub every: Millis,
    /// How many are kept.
    pub keep: u32,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self {
            every: Millis::secs(60),
            keep: 3,
        }
    }
}

/// Where the key of a request to a keyed service comes from: `path/1` (the first segment of the
/// path) or `header/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFrom {
    /// A segment of the path, from 1.
    Path(u8),
    /// A header, by its lower-case name.
    Header(String),
}

crate::schema::text_schema!(KeyFrom, "Where a request's key is: path/N or header/NAME");

impl Default for KeyFrom {
    fn default() -> Self {
        Self::Path(1)
    }
}
impl FromStr for KeyFrom {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the place of a key: write path/1 or header/NAME");
        match text.split_once('/') {
            Some(("path", n)) => match n.parse() {
                Ok(n @ 1..=16) => Ok(Self::Path(n)),
                _ => Err(wrong()),
            },
            Some(("header", name)) => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
                    return Err(wrong());
                }
                Ok(Self::Header(name.to_ascii_lowercase()))
            }
            _ => Err(wrong()),
        }
    }
}
impl fmt::Display for KeyFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(n) => write!(f, "path/{n}"),
            Self::Header(name) => write!(f, "header/{name}"),
        }
    }
}
impl Serialize for KeyFrom {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for KeyFrom {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A topic, like `plant/line-1/temperature`; in a subscription or grant also all below one:
/// `plant/*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(String);

crate::schema::text_schema!(Topic, "A topic: a/b/c, or a/* for all below");

impl Topic {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for all topics below one.
    #[must_use]
    pub fn is_pattern(&self) -> bool {
        self.0.ends_with("/*")
    }

    /// Whether `topic` is this one, or below it.
    #[must_use]
    pub fn covers(&self, topic: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => topic.len() > prefix.len() && topic.starts_with(prefix),
            None => self.0 == topic,
        }
    }
}
impl FromStr for Topic {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let plain = text.strip_suffix("/*").unwrap_or(text);
        let segments = plain.split('/').all(|part| !part.is_empty());
        if check_label_key(plain).is_err() || !segments {
            return Err(format!(
                "`{text}` is not a topic: write a/b/c, or a/* for all below a"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Serialize for Topic {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// What one instance may use. A limit that is hit fails the call, not the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceLimits {
    /// Linear memory.
    pub memory: ByteSize,
    /// Keys and values of the key-value data together.
    pub kv: ByteSize,
    /// CPU time of one call.
    pub cpu_time: Millis,
    /// Time that a request may take, waiting included.
    pub deadline: Millis,
    /// Largest request body.
    pub request: ByteSize,
    /// Largest reply, and what one call may send, publish and log, each.
    pub reply: ByteSize,
    /// Timers set at once.
    pub timers: u32,
    /// Client streams (server-sent events, WebSockets) open at once.
    pub streams: u32,
    /// Requests and messages that wait for the instance.
    pub queue: u32,
    /// Host calls per second of a running handler.
    pub host_calls_per_s: u32,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(64),
            kv: ByteSize::mib(16),
            cpu_time: Millis::secs(1),
            deadline: Millis::secs(10),
            request: ByteSize::mib(1),
            reply: ByteSize::mib(1),
            timers: 1_000,
            streams: 1_000,
            queue: 1_024,
            host_calls_per_s: 1_000_000,
        }
    }
}

/// How a service is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The Wasm module: an artifact's name or digest.
    pub module: String,
    /// What it keeps between calls. Cannot be changed.
    #[serde(default)]
    pub state: State,
    /// Instances of a service without state.
    #[serde(default = "one")]
    pub replicas: u32,
    /// Instances of a keyed service. Cannot be changed.
    #[serde(default = "four")]
    pub shards: u32,
    /// Where a request's key is, for a keyed service.
    #[serde(default)]
    pub key: KeyFrom,
    /// How far an acknowledged change survives, where there is state.
    #[serde(default)]
    pub durability: Durability,
    /// What it does while its node cannot reach the coordinator, where there is state. By
    /// default `fence` with `durability: replicated`, else `continue`.
    #[serde(default)]
    pub on_partition: Option<OnPartition>,
    /// How long a fenced instance may go on without hearing from the coordinator: about the
    /// time until it goes on elsewhere.
    #[serde(default = "lease")]
    pub lease: Millis,
    /// When checkpoints are made, where there is state.
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// Environment of the guest.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Topics whose messages it receives.
    #[serde(default)]
    pub subscribe: Vec<Topic>,
    /// Topics it may publish to.
    #[serde(default)]
    pub publish: Vec<Topic>,
    /// Services it may call.
    #[serde(default)]
    pub calls: Vec<ServiceName>,
    /// Directories of the node that it may use. With state, they pin the instance to its node.
    #[serde(default)]
    pub volumes: Vec<VolumeGrant>,
    /// Whether the gateway serves it without a token.
    #[serde(default)]
    pub public: bool,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
    /// What it is promised.
    #[serde(default = "small")]
    pub resources: Resources,
    /// What it may use.
    #[serde(default)]
    pub limits: ServiceLimits,
}

fn one() -> u32 {
    1
}
fn four() -> u32 {
    4
}
fn lease() -> Millis {
    Millis::secs(3)
}
/// Many small services share a node.
fn small() -> Resources {
    Resources {
        cpu: CpuMilli(10),
        memory: ByteSize::mib(4),
        ..Resources::default()
    }
}

impl ServiceSpec {
    /// A service with everything at its default.
    #[must_use]
    pub fn new(module: impl Into<String>) -> Self {
        Self {
            module: module.into(),
            state: State::None,
            replicas: one(),
            shards: four(),
            key: KeyFrom::default(),
            durability: Durability::default(),
            on_partition: None,
            lease: lease(),
            checkpoint: CheckpointSpec::default(),
            env: BTreeMap::new(),
            subscribe: Vec::new(),
            publish: Vec::new(),
            calls: Vec::new(),
            volumes: Vec::new(),
            public: false,
            placement: Placement::default(),
            resources: small(),
            limits: ServiceLimits::default(),
        }
    }

    /// How many instances it has.
    #[must_use]
    pub fn instances(&self) -> u32 {
        match self.state {
            State::None => self.replicas,
            State::Single => 1,
            State::Keyed => self.shards,
        }
    }

    /// The lease of its instances, if they are fenced.
    #[must_use]
    pub fn fence(&self) -> Option<Millis> {
        let by_default = match self.durability {
            Durability::Replicated => OnPartition::Fence,
            Durability::Memory | Durability::Node => OnPartition::Continue,
        };
        let policy = self.on_partition.unwrap_or(by_default);
        (self.stateful() && policy == OnPartition::Fence).then_some(self.lease)
    }

    /// Whether its instances have state.
    #[must_use]
    pub fn stateful(&self) -> bool {
        self.state != State::None
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.module.is_empty() {
            return Err(Invalid::new(
                "spec.module",
                "is empty: name an artifact or its digest",
            ));
        }
        if self.replicas > REPLICAS_MAX {
            let problem = format!("must be at most {REPLICAS_MAX}");
            return Err(Invalid::new("spec.replicas", problem));
        }
        if self.stateful() && self.replicas != 1 {
            let problem = "only a service with `state: none` has replicas";
            return Err(Invalid::new("spec.replicas", problem));
        }
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            let problem = format!("must be from 1 to {SHARDS_MAX}");
            return Err(Invalid::new("spec.shards", problem));
        }
        if !(1..=CHECKPOINTS_KEPT_MAX).contains(&self.checkpoint.keep) {
            let problem = format!("must be from 1 to {CHECKPOINTS_KEPT_MAX}");
            return Err(Invalid::new("spec.checkpoint.keep", problem));
        }
        if !matches!(self.checkpoint.every.0, 0 | 100..=86_400_000) {
            let problem = "must be 0, or from 100ms to 1d";
            return Err(Invalid::new("spec.checkpoint.every", problem));
        }
        self.check_partition()?;
        self.check_links()?;
        check_environment(&self.env)?;
        check_volumes(&self.volumes)?;
        self.limits.check()?;
        self.placement.check()
    }

    fn check_partition(&self) -> Result<(), Invalid> {
        if !LEASE_MS.contains(&self.lease.0) {
            let problem = "must be from 1s to 1m";
            return Err(Invalid::new("spec.lease", problem));
        }
        let (durability, policy) = (self.durability, self.on_partition);
        if policy == Some(OnPartition::Fence) && durability != Durability::Replicated {
            let problem = "`fence` needs `durability: replicated`: elsewhere there would be no \
                           state to go on with";
            return Err(Invalid::new("spec.on_partition", problem));
        }
        if self.fence().is_some() && !self.volumes.is_empty() {
            let problem = "a directory of the node pins the instance there, so it cannot go on \
                           elsewhere: write `on_partition: continue`, or do without volumes";
            return Err(Invalid::new("spec.volumes", problem));
        }
        Ok(())
    }

    fn check_links(&self) -> Result<(), Invalid> {
        let lists = [
            ("spec.subscribe", self.subscribe.len()),
            ("spec.publish", self.publish.len()),
            ("spec.calls", self.calls.len()),
        ];
        for (field, len) in lists {
            if len > LINKS_MAX {
                let problem = format!("has more than {LINKS_MAX} entries");
                return Err(Invalid::new(field, problem));
            }
        }
        Ok(())
    }
}

impl ServiceLimits {
    fn check(&self) -> Result<(), Invalid> {
        let ranges = [
            ("memory", self.memory.0, 64 << 10, 1 << 30, "64KiB to 1GiB"),
            ("kv", self.kv.0, 0, 256 << 20, "0 to 256MiB"),
            ("cpu_time", self.cpu_time.0, 1, 3_600_000, "1ms to 1h"),
            ("deadline", self.deadline.0, 1, 3_600_000, "1ms to 1h"),
            ("request", self.request.0, 0, BODY_BYTES_MAX, "0 to 8MiB"),
            ("reply", self.reply.0, 0, BODY_BYTES_MAX, "0 to 8MiB"),
            ("timers", self.timers.into(), 0, 100_000, "0 to 100000"),
            ("streams", self.streams.into(), 0, 10_000, "0 to 10000"),
            ("queue", self.queue.into(), 1, 65_536, "1 to 65536"),
            (
                "host_calls_per_s",
                self.host_calls_per_s.into(),
                1,
                1_000_000_000,
                "1 to 1000000000",
            ),
        ];
        for (field, value, min, max, range) in ranges {
            if !(min..=max).contains(&value) {
                let field = format!("spec.limits.{field}");
                return Err(Invalid::new(field, format!("must be from {range}")));
            }
        }
        Ok(())
    }
}

/// The shard that owns `key`, of `shards`: the same everywhere and for ever. BLAKE3's first 8
/// bytes, little-endian, modulo.
#[must_use]
pub fn shard_of(key: &[u8], shards: u32) -> u32 {
    let hash = blake3::hash(key);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    let shard = u64::from_le_bytes(first) % u64::from(shards.max(1));
    u32::try_from(shard).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn topics_cover_what_is_below_them() {
        let topic = |text: &str| text.parse::<Topic>().unwrap();
        assert!(topic("a/b").covers("a/b") && !topic("a/b").covers("a/b/c"));
        assert!(topic("a/*").covers("a/b/c") && !topic("a/*").covers("a/"));
        assert!(!topic("a/*").covers("ab") && topic("a/*").is_pattern());
        for bad in ["", "/a", "a//b", "a/", "*", "a b", "a/*/c"] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_come_from_path_or_header() {
        for text in ["path/1", "path/16", "header/x-device"] {
            assert_eq!(text.parse::<KeyFrom>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "path",
            "path/0",
            "path/17",
            "header/",
            "header/a b",
            "query/x",
        ] {
            assert!(bad.parse::<KeyFrom>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_are_fixed_for_ever() {
        let shards = ["", "a", "b", "sensor-17"].map(|key| shard_of(key.as_bytes(), 8));
        assert_eq!(
            shards,
            ["", "a", "b", "sensor-17"].map(|key| shard_of(key.as_bytes(), 8))
        );
        assert_eq!(shard_of(b"a", 1), 0);
        let mut seen = [0u32; 8];
        for n in 0..8_000u32 {
            seen[shard_of(format!("key-{n}").as_bytes(), 8) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
    }

    #[test]
    fn what_types_do_not_check_is_checked() {
        let wrong = |change: fn(&mut ServiceSpec)| {
            let mut spec = ServiceSpec::new("m");
            spec.check().unwrap();
            change(&mut spec);
            spec.check().unwrap_err().field
        };
        assert_eq!(wrong(|s| s.module.clear()), "spec.module");
        assert_eq!(wrong(|s| s.replicas = 1_000), "spec.replicas");
        let two = |s: &mut ServiceSpec| (s.state, s.replicas) = (State::Single, 2);
        assert_eq!(wrong(two), "spec.replicas");
        assert_eq!(wrong(|s| s.shards = 0), "spec.shards");
        assert_eq!(wrong(|s| s.checkpoint.keep = 0), "spec.checkpoint.keep");
        assert_eq!(
            wrong(|s| s.checkpoint.every = Millis(1)),
            "spec.checkpoint.every"
        );
        assert_eq!(wrong(|s| s.limits.queue = 0), "spec.limits.queue");
        assert_eq!(
            wrong(|s| s.limits.memory = ByteSize(1)),
            "spec.limits.memory"
        );
    }
}
