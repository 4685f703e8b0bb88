//! Which mesh the CLI talks to: `$HOP3_HOME/context.toml`, mode 0600.
//!
//! Tokens stay in files of their own; the context names them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::args::Cli;

/// Largest file of ours that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A mesh and how to reach it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://HOST:PORT`.
    pub api: String,
    /// The gateway to services, `https://HOST:PORT`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The CA certificate that the API's certificate chains to.
    pub ca_file: PathBuf,
    /// The API token.
    pub token_file: PathBuf,
}

/// Where all of the CLI's files are: `$HOP3_HOME`, else `~/.hop3`.
pub fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("HOP3_HOME").filter(|home| !home.is_empty()) {
        return std::path::absolute(home).context("HOP3_HOME");
    }
    let home = std::env::home_dir().filter(|home| home.is_absolute());
    Ok(home
        .ok_or_else(|| anyhow!("no home directory: set HOP3_HOME"))?
        .join(".hop3"))
}

/// Makes a directory that only its owner can read.
pub fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    let temp = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a small text file.
pub fn read_small(path: &Path) -> Result<String> {
    let size = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    anyhow::ensure!(
        size <= FILE_BYTES_MAX,
        "{} is too large to be what it should",
        path.display()
    );
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Context {
    fn path() -> Result<PathBuf> {
        Ok(home()?.join("context.toml"))
    }

    /// The context of this call: flags and environment over the file.
    pub fn resolve(cli: &Cli) -> Result<Self> {
        let path = Self::path()?;
        let stored = if path.exists() {
            let text = read_small(&path)?;
            Some(toml::from_str::<Self>(&text).with_context(|| format!("{}", path.display()))?)
        } else {
            None
        };
        let missing = |what: &str| {
            anyhow!(
                "no mesh to talk to ({what}): start one with `hop3 dev`, or choose one with \
                 `hop3 context set https://HOST:7431 --ca-file ca.pem --token-file admin.token`"
            )
        };
        let pick = |flag: &Option<PathBuf>, stored: Option<&PathBuf>, what: &str| {
            flag.clone()
                .or_else(|| stored.cloned())
                .ok_or_else(|| missing(what))
        };
        let stored = stored.as_ref();
        Ok(Self {
            gateway: stored
                .filter(|_| cli.api.is_none())
                .and_then(|stored| stored.gateway.clone()),
            api: cli
                .api
                .clone()
                .or_else(|| stored.map(|s| s.api.clone()))
                .ok_or_else(|| missing("no --api"))?,
            ca_file: pick(&cli.ca_file, stored.map(|s| &s.ca_file), "no --ca-file")?,
            token_file: pick(
                &cli.token_file,
                stored.map(|s| &s.token_file),
                "no --token-file",
            )?,
        })
    }

    /// Makes this the context from now on.
    pub fn save(&self) -> Result<()> {
        let path = Self::path()?;
        private_dir(path.parent().unwrap_or(Path::new(".")))?;
        write_private(&path, &toml::to_string(self)?)
    }
}
