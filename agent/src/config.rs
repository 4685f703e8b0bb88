//! The agent's configuration: file, then `HOP3_AGENT_*`, then flags; checked once, then fixed.
//!
//! Unknown fields are errors. Every error names the field and says what to write instead.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Env, Format as _, Serialized, Toml},
};
use hop3_common::{
    id::NodeId,
    spec::{ByteSize, Millis, placement},
};
use serde::{Deserialize, Serialize};

/// Prefix of environment variables; `__` separates levels (`HOP3_AGENT_VOLUMES__DATA__PATH`).
pub const ENV_PREFIX: &str = "HOP3_AGENT_";
/// Most volumes and most data tags that a node offers: they travel in every `Hello`.
pub const OFFERS_MAX: usize = 64;
/// Most tasks at once: each is a thread and an instance of the engine's pool.
pub const TASKS_MAX: u32 = 1024;

/// Time between signs of life: with the answer about 120 bytes. Within 30 s, after which most NATs
/// forget UDP; short enough that a dead node is noticed within three quarters of a minute.
const KEEP_ALIVE: Millis = Millis::secs(10);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source cannot be read, or has an unknown or ill-typed field.
    #[error("the configuration cannot be read: {0}")]
    Read(Box<figment::Error>),
    /// A field has a value that cannot be.
    #[error("configuration: `{field}` {problem}")]
    Field {
        /// The field (`volumes.data.path`).
        field: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

/// What the command line says.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Overrides {
    /// `--data-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: Option<PathBuf>,
    tasks_max: Option<u32>,
    guest_memory_max: Option<Amount>,
    blob_cache: Option<Amount>,
    code_cache: Option<Amount>,
    models_max: Option<u32>,
    keep_alive: Option<Millis>,
    data: Vec<String>,
    volumes: BTreeMap<String, RawVolume>,
    gateway: Option<RawGateway>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGateway {
    listen: SocketAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVolume {
    path: PathBuf,
    #[serde(default)]
    writable: bool,
}

/// Bytes, as a number or with a unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Amount {
    Bytes(u64),
    Text(String),
}

/// A host directory offered to guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The directory.
    pub path: PathBuf,
    /// Whether a grant may ask to change it.
    pub writable: bool,
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Everything that the agent keeps.
    pub data_dir: PathBuf,
    /// Tasks at once; by default twice the CPUs, at least 4.
    pub tasks_max: u32,
    /// Largest linear memory of a guest; `None` = by the machine.
    pub guest_memory_max: Option<ByteSize>,
    /// Bytes kept of artifacts and results that nothing refers to.
    pub blob_cache: ByteSize,
    /// Bytes kept of compiled modules.
    pub code_cache: ByteSize,
    /// Model processes at once.
    pub models_max: u32,
    /// Time between signs of life. Four without an answer, and the session is lost.
    pub keep_alive: Millis,
    /// Data tags: what data is near.
    pub data: Vec<String>,
    /// Directories offered to guests.
    pub volumes: BTreeMap<String, Volume>,
    /// Where programs of this machine reach the services; `None`: nowhere.
    pub gateway: Option<SocketAddr>,
}

/// Where files are when nothing says otherwise: `$HOP3_HOME/agent`, else the system's places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The configuration file, read if it exists.
    pub file: PathBuf,
}

impl Places {
    /// The places under `home` (`HOP3_HOME`), or the system's.
    #[must_use]
    pub fn of(home: Option<&Path>) -> Self {
        match home {
            Some(home) => Self {
                data_dir: home.join("agent"),
                file: home.join("agent.toml"),
            },
            None => Self {
                data_dir: "/var/lib/hop3-agent".into(),
                file: "/etc/hop3/agent.toml".into(),
            },
        }
    }
}

/// Reads and checks the configuration. `file` must exist if given.
///
/// # Errors
/// [`Error`].
pub fn load(file: Option<&Path>, places: &Places, flags: &Overrides) -> Result<Config, Error> {
    let toml = match file {
        Some(file) => Toml::file_exact(file),
        None => Toml::file_exact(&places.file),
    };
    let mut figment = Figment::new();
    if file.is_some() || places.file.is_file() {
        figment = figment.merge(toml);
    }
    let env = Env::prefixed(ENV_PREFIX).ignore(&["config"]).split("__");
    let raw = figment
        .merge(env)
        .merge(Serialized::defaults(flags))
        .extract::<Raw>()
        .map_err(|e| Error::Read(Box::new(e)))?;
    validate(raw, places)
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field {
        field: field.into(),
        problem: problem.into(),
    }
}

fn bytes(
    name: &str,
    amount: Option<Amount>,
    default: ByteSize,
    range: std::ops::RangeInclusive<u64>,
) -> Result<ByteSize, Error> {
    let size = match amount {
        None => return Ok(default),
        Some(Amount::Bytes(n)) => ByteSize(n),
        Some(Amount::Text(text)) => text
            .parse()
            .map_err(|e: hop3_common::spec::quantity::Error| field(name, e.to_string()))?,
    };
    if !range.contains(&size.0) {
        let (min, max) = (ByteSize(*range.start()), ByteSize(*range.end()));
        return Err(field(
            name,
            format!("is {size}: it must be from {min} to {max}"),
        ));
    }
    Ok(size)
}

fn validate(raw: Raw, places: &Places) -> Result<Config, Error> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let tasks_max = raw.tasks_max.unwrap_or((cpus * 2).max(4));
    if !(1..=TASKS_MAX).contains(&tasks_max) {
        return Err(field("tasks_max", format!("must be from 1 to {TASKS_MAX}")));
    }
    let models_max = raw.models_max.unwrap_or(8);
    if !(1..=64).contains(&models_max) {
        return Err(field("models_max", "must be from 1 to 64"));
    }
    let keep_alive = raw.keep_alive.unwrap_or(KEEP_ALIVE);
    if !(Millis(500)..=Millis::secs(25)).contains(&keep_alive) {
        return Err(field(
            "keep_alive",
            "must be from 500ms to 25s: NATs forget after 30s",
        ));
    }
    let data_dir = raw.data_dir.unwrap_or_else(|| places.data_dir.clone());
    if !data_dir.is_absolute() {
        let shown = data_dir.display();
        return Err(field(
            "data_dir",
            format!("is `{shown}`: give an absolute path"),
        ));
    }
    const GIB: u64 = 1 << 30;
    let guest_memory_max = match raw.guest_memory_max {
        None => None,
        some => Some(bytes(
            "guest_memory_max",
            some,
            ByteSize(0),
            1 << 20..=4 * GIB,
        )?),
    };
    let blob_cache = bytes(
        "blob_cache",
        raw.blob_cache,
        ByteSize(4 * GIB),
        16 << 20..=1 << 50,
    )?;
    let code_cache = bytes(
        "code_cache",
        raw.code_cache,
        ByteSize(GIB / 2),
        1 << 20..=1 << 40,
    )?;
    Ok(Config {
        data_dir,
        tasks_max,
        guest_memory_max,
        blob_cache,
        code_cache,
        models_max,
        keep_alive,
        data: data_tags(raw.data)?,
        volumes: volumes(raw.volumes)?,
        gateway: gateway(raw.gateway)?,
    })
}

fn data_tags(tags: Vec<String>) -> Result<Vec<String>, Error> {
    if tags.len() > OFFERS_MAX {
        return Err(field("data", format!("has more than {OFFERS_MAX} tags")));
    }
    for tag in &tags {
        placement::check_label_key(tag).map_err(|why| field("data", why.to_string()))?;
    }
    Ok(tags)
}

fn gateway(raw: Option<RawGateway>) -> Result<Option<SocketAddr>, Error> {
    let listen = raw.map(|gateway| gateway.listen);
    match listen {
        Some(listen) if !listen.ip().is_loopback() => Err(field(
            "gateway.listen",
            format!(
                "is `{listen}`: only this machine may come in here, since it speaks without \
                 encryption; write 127.0.0.1 or [::1], and let others use the coordinator's gateway"
            ),
        )),
        listen => Ok(listen),
    }
}

fn volumes(raw: BTreeMap<String, RawVolume>) -> Result<BTreeMap<String, Volume>, Error> {
    if raw.len() > OFFERS_MAX {
        return Err(field(
            "volumes",
            format!("has more than {OFFERS_MAX} entries"),
        ));
    }
    let mut volumes = BTreeMap::new();
    for (name, RawVolume { path, writable }) in raw {
        // Volume names have the form of all names.
        if let Err(error) = name.parse::<NodeId>() {
            return Err(field(format!("volumes.{name}"), error.to_string()));
        }
        let at = format!("volumes.{name}.path");
        if !path.is_absolute() {
            return Err(field(at, "must be an absolute path"));
        }
        if !path.is_dir() {
            let shown = path.display();
            return Err(field(
                at,
                format!("`{shown}` is not a directory: create it first"),
            ));
        }
        volumes.insert(name, Volume { path, writable });
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Result<Config, Error> {
        let places = Places::of(Some(Path::new("/home/x/.hop3")));
        let raw = Figment::from(Toml::string(text)).extract::<Raw>();
        validate(raw.map_err(|e| Error::Read(Box::new(e)))?, &places)
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = parsed("").unwrap();
        assert_eq!(config.data_dir, Path::new("/home/x/.hop3/agent"));
        assert!(config.tasks_max >= 4);
        assert_eq!(Places::of(None).data_dir, Path::new("/var/lib/hop3-agent"));
    }

    #[test]
    fn everything_can_be_said() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "data_dir = '/d'\ntasks_max = 3\nguest_memory_max = '64MiB'\nblob_cache = 33554432\n\
             data = ['cam']\n[volumes.videos]\npath = '{}'\nwritable = true\n",
            dir.path().display()
        );
        let config = parsed(&text).unwrap();
        assert_eq!(config.tasks_max, 3);
        assert_eq!(config.guest_memory_max, Some(ByteSize::mib(64)));
        assert_eq!(config.blob_cache, ByteSize::mib(32));
        assert!(config.volumes["videos"].writable);
        let config = parsed("[gateway]\nlisten = '127.0.0.1:7000'").unwrap();
        assert_eq!(config.gateway.unwrap().port(), 7000);
    }

    #[test]
    fn errors_name_the_field() {
        for (text, named) in [
            ("tasks_max = 0", "`tasks_max`"),
            ("data_dir = 'x'", "`data_dir`"),
            ("blob_cache = '3 apples'", "`blob_cache`"),
            ("blob_cache = '1KiB'", "`blob_cache`"),
            ("data = ['no such tag!']", "`data`"),
            ("[volumes.Bad]\npath = '/'", "`volumes.Bad`"),
            ("[volumes.x]\npath = 'rel'", "`volumes.x.path`"),
            ("[volumes.x]\npath = '/no/such/dir'", "create it first"),
            ("task_max = 3", "task_max"),
            ("[volumes.x]\npath = '/'\nread = 1", "read"),
            ("models_max = 100", "`models_max`"),
            ("keep_alive = '1m'", "`keep_alive`"),
            ("[gateway]\nlisten = '0.0.0.0:80'", "`gateway.listen`"),
            ("[gateway]\nlisten = 'here'", "listen"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
