//! The ready file: tells whoever started the coordinator that it serves, and where.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Serialize;

use super::first::write;

/// Its contents.
#[derive(Debug, Serialize)]
pub(super) struct ReadyFile {
    pub(super) mesh: SocketAddr,
    pub(super) api: String,
    pub(super) gateway: String,
    pub(super) ca: PathBuf,
    pub(super) token: PathBuf,
    pub(super) pid: u32,
}

impl ReadyFile {
    /// Writes it, if it is wanted.
    pub(super) fn publish(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let absolute = |path: &Path| std::path::absolute(path);
        let whole = Self {
            ca: absolute(&self.ca)?,
            token: absolute(&self.token)?,
            api: self.api.clone(),
            gateway: self.gateway.clone(),
            ..*self
        };
        write(path, serde_json::to_string(&whole)?.as_bytes(), 0o644)
    }
}
