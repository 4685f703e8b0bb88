//! The coordinator's configuration: a TOML file, under `HOP3_COORDINATOR_*` variables, under flags.
//!
//! Text becomes [`Raw`] (strict: an unknown field is an error), [`Raw::validate`] makes a
//! [`Config`]; errors name the field and the fix. Pure but for [`load`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use figment::{
    Figment,
    providers::{Env, Format as _, Serialized, Toml},
};
use hop3_common::{
    id::MeshId,
    identity::{COORDINATOR_NAMES_MAX, CoordinatorAddr, LEAF_TTL_S_MAX},
    spec::{ByteSize, Millis},
};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Prefix of environment variables.
pub const ENV_PREFIX: &str = "HOP3_COORDINATOR_";
/// Where things are unless said otherwise.
const DATA_DIR: &str = "/var/lib/hop3-coordinator";
/// Most addresses in a join token.
const ADVERTISE_MAX: usize = 8;
/// Largest artifact that may be allowed.
const ARTIFACT_BYTES_MAX: u64 = 64 << 30;

/// What may be set, as text. Absent = default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// The mesh's name, chosen at the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// Directory of all state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// UDP address for agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_listen: Option<String>,
    /// TCP address of the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_listen: Option<String>,
    /// TCP address of the gateway, where clients of services come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_listen: Option<String>,
    /// Hosts (and ports) under which agents reach it; they are in join tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advertise: Vec<String>,
    /// More names in the API's certificate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_name: Vec<String>,
    /// A node away for longer is lost (`30s`).
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub lost_after: Option<Millis>,
    /// Life of node certificates (`1d`).
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub certificate_ttl: Option<Millis>,
    /// Largest artifact (`1GiB`).
    #[serde(deserialize_with = "amount", skip_serializing_if = "Option::is_none")]
    pub artifact_max: Option<ByteSize>,
    /// The placement strategy where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// The file with the key that encrypts the store; `master.key` in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The mesh's name; absent = the stored one, or `hop3` at the first start.
    pub mesh: Option<MeshId>,
    /// Directory of all state.
    pub data_dir: PathBuf,
    /// UDP address for agents.
    pub mesh_listen: SocketAddr,
    /// TCP address of the API.
    pub api_listen: SocketAddr,
    /// TCP address of the gateway.
    pub gateway_listen: SocketAddr,
    /// Under which addresses agents reach it. No port = that of the mesh's socket.
    pub advertise: Vec<Advertised>,
    /// More names in the API's certificate.
    pub api_names: Vec<ServerName<'static>>,
    /// A node away for longer is lost, milliseconds.
    pub lost_after_ms: u64,
    /// Life of node certificates, seconds.
    pub certificate_ttl_s: u64,
    /// Largest artifact, bytes.
    pub artifact_bytes_max: u64,
    /// The placement strategy where none is named.
    pub strategy: Option<String>,
    /// The file with the store's key.
    pub key_file: PathBuf,
}

/// A host with or without its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// Its port.
    pub port: Option<u16>,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what a configuration looks like.
    #[error("the configuration is not valid: {0}")]
    Form(#[source] Box<figment::Error>),
    /// A field has an impossible value.
    #[error("`{field}` {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong and what to write.
        problem: String,
    },
    /// The file is not there.
    #[error("there is no configuration file {}", .0.display())]
    Missing(PathBuf),
}

/// An amount as text with its unit, or as a plain number (TOML's are signed).
fn amount<'de, D: Deserializer<'de>, T: FromStr>(from: D) -> Result<Option<T>, D::Error>
where
    T::Err: fmt::Display,
{
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "write a number, or text with a unit such as 30s or 1GiB"
    )]
    enum Written {
        Number(u64),
        Text(String),
    }
    let text = match Written::deserialize(from)? {
        Written::Number(number) => number.to_string(),
        Written::Text(text) => text,
    };
    text.parse().map(Some).map_err(de::Error::custom)
}

fn wrong(field: &'static str, problem: impl Into<String>) -> Error {
    Error::Field {
        field,
        problem: problem.into(),
    }
}

/// Reads file, environment and flags.
///
/// # Errors
/// [`Error`].
pub fn load(file: Option<&Path>, flags: Raw) -> Result<Config, Error> {
    let mut figment = Figment::new();
    if let Some(file) = file {
        if !file.is_file() {
            return Err(Error::Missing(file.to_owned()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    let raw: Raw = figment
        .merge(Env::prefixed(ENV_PREFIX))
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|error| Error::Form(Box::new(error)))?;
    raw.validate()
}

impl Raw {
    /// The configuration, if all fields are possible.
    ///
    /// # Errors
    /// [`Error::Field`].
    pub fn validate(self) -> Result<Config, Error> {
        let data_dir = self.data_dir.unwrap_or_else(|| DATA_DIR.into());
        if data_dir.as_os_str().is_empty() {
            return Err(wrong("data_dir", "is empty: name a directory"));
        }
        let lost_after_ms = self.lost_after.unwrap_or(Millis::secs(30)).0;
        if !(1_000..=24 * 3_600_000).contains(&lost_after_ms) {
            return Err(wrong("lost_after", "must be from 1s to 24h"));
        }
        let certificate_ttl_s = self.certificate_ttl.unwrap_or(Millis::secs(24 * 3600)).0 / 1000;
        if !(10..=LEAF_TTL_S_MAX).contains(&certificate_ttl_s) {
            return Err(wrong("certificate_ttl", "must be from 10s to 366d"));
        }
        let artifact_bytes_max = self.artifact_max.unwrap_or(ByteSize(1 << 30)).0;
        if !(1 << 20..=ARTIFACT_BYTES_MAX).contains(&artifact_bytes_max) {
            return Err(wrong("artifact_max", "must be from 1MiB to 64GiB"));
        }
        if self.advertise.len() > ADVERTISE_MAX {
            return Err(wrong(
                "advertise",
                format!("has more than {ADVERTISE_MAX} entries"),
            ));
        }
        // Our own names and the advertised ones come on top.
        if self.api_name.len() > COORDINATOR_NAMES_MAX - ADVERTISE_MAX - 8 {
            return Err(wrong("api_name", "has more than 16 entries"));
        }
        let mesh = self.mesh.map(|mesh| mesh.parse()).transpose();
        let advertise = self
            .advertise
            .iter()
            .map(|text| advertised(text))
            .collect::<Result<_, _>>();
        let names = self.api_name.iter().map(|text| {
            ServerName::try_from(text.clone()).map_err(|_| {
                wrong(
                    "api_name",
                    format!("`{text}` is no host name or IP address"),
                )
            })
        });
        Ok(Config {
            mesh: mesh.map_err(|e: hop3_common::id::Error| wrong("mesh", format!(": {e}")))?,
            mesh_listen: listen("mesh_listen", self.mesh_listen, 7430)?,
            api_listen: listen("api_listen", self.api_listen, 7431)?,
            gateway_listen: listen("gateway_listen", self.gateway_listen, 7432)?,
            advertise: advertise?,
            api_names: names.collect::<Result<_, _>>()?,
            lost_after_ms,
            certificate_ttl_s,
            artifact_bytes_max,
            strategy: self.strategy,
            key_file: self.key_file.unwrap_or_else(|| data_dir.join("master.key")),
            data_dir,
        })
    }
}

fn listen(field: &'static str, text: Option<String>, port: u16) -> Result<SocketAddr, Error> {
    let Some(text) = text else {
        return Ok(SocketAddr::from(([0, 0, 0, 0], port)));
    };
    let parsed = text.parse().ok();
    parsed.ok_or_else(|| {
        wrong(
            field,
            format!("`{text}` is not an address: write IP:PORT, like 0.0.0.0:{port}"),
        )
    })
}

/// `host`, `host:port`, `1.2.3.4`, `[::1]:port` or `::1`.
fn advertised(text: &str) -> Result<Advertised, Error> {
    if let Ok(address) = text.parse::<CoordinatorAddr>() {
        return Ok(Advertised {
            host: address.host().to_owned(),
            port: Some(address.port()),
        });
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    let is_host = bare.parse::<IpAddr>().is_ok() || ServerName::try_from(bare).is_ok();
    if is_host {
        return Ok(Advertised {
            host: bare.to_owned(),
            port: None,
        });
    }
    Err(wrong(
        "advertise",
        format!("`{text}` is not an address: write HOST or HOST:PORT"),
    ))
}

impl Advertised {
    /// With the mesh's port where it has none.
    #[must_use]
    pub fn address(&self, mesh_port: u16) -> Option<CoordinatorAddr> {
        let port = self.port.unwrap_or(mesh_port);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        format!("{host}:{port}").parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::result_large_err)]
    use super::*;

    fn raw(toml: &str) -> Result<Config, String> {
        let raw: Raw = Figment::new()
            .merge(Toml::string(toml))
            .extract()
            .map_err(|error| error.to_string())?;
        raw.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_needed() {
        let config = raw("").unwrap();
        assert_eq!(config.mesh_listen.to_string(), "0.0.0.0:7430");
        assert_eq!(config.api_listen.to_string(), "0.0.0.0:7431");
        assert_eq!(config.gateway_listen.to_string(), "0.0.0.0:7432");
        assert_eq!(
            (config.lost_after_ms, config.certificate_ttl_s),
            (30_000, 86_400)
        );
        assert_eq!(config.key_file, config.data_dir.join("master.key"));
    }

    #[test]
    fn values_have_units_and_addresses_ports_or_not() {
        let amounts = raw("lost_after = '5s'\ncertificate_ttl = 60000\nartifact_max = '2GiB'");
        let amounts = amounts.unwrap();
        assert_eq!(
            (amounts.lost_after_ms, amounts.certificate_ttl_s),
            (5_000, 60)
        );
        assert_eq!(amounts.artifact_bytes_max, 2 << 30);
        let config = raw("advertise = ['a.b', '::1', 'c:9']").unwrap();
        let addresses: Vec<_> = config
            .advertise
            .iter()
            .map(|a| a.address(7430).unwrap().to_string())
            .collect();
        assert_eq!(addresses, ["a.b:7430", "[::1]:7430", "c:9"]);
    }

    #[test]
    fn errors_name_the_field_and_the_fix() {
        let cases = [
            ("mesh_listn = ''", "mesh_listn"),
            (
                "mesh_listen = 'here'",
                "`mesh_listen` `here` is not an address",
            ),
            ("mesh = 'Not A Name'", "`mesh`"),
            ("lost_after = '1ms'", "`lost_after` must be from 1s"),
            ("lost_after = 'soon'", "lost_after"),
            ("certificate_ttl = '9999d'", "`certificate_ttl`"),
            ("advertise = ['a b']", "`advertise`"),
            ("api_name = ['*?']", "`api_name`"),
            ("artifact_max = 7", "`artifact_max`"),
        ];
        for (toml, says) in cases {
            let error = raw(toml).unwrap_err();
            assert!(error.contains(says), "{toml}: {error}");
        }
    }

    #[test]
    fn flags_win_over_the_file_and_a_missing_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        assert!(matches!(
            load(Some(&file), Raw::default()),
            Err(Error::Missing(_))
        ));
        std::fs::write(&file, "mesh = 'from-file'\nstrategy = 'best-fit'").unwrap();
        let flags = Raw {
            mesh: Some("from-flag".into()),
            ..Raw::default()
        };
        let config = load(Some(&file), flags).unwrap();
        assert_eq!(config.mesh.unwrap().as_str(), "from-flag");
        assert_eq!(config.strategy.as_deref(), Some("best-fit"));
    }
}
