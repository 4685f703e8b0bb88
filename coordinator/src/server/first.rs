//! What the first start makes and later ones find: the CA, the admin token, the files for people.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use hop3_common::{
    id::{MeshId, UnixMs},
    identity::CertificateAuthority,
};

use crate::{
    access,
    config::Config,
    records::{Batch, MESH_KEY, MeshRecord, Records},
};

/// The mesh's name where none is chosen.
const MESH_DEFAULT: &str = "hop3";

/// What is there once the first start is done.
pub(super) struct First {
    pub(super) ca: CertificateAuthority,
    pub(super) ca_path: PathBuf,
    pub(super) token_path: PathBuf,
}

/// Where the admin token is.
#[must_use]
pub fn admin_token_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.token")
}

pub(super) async fn start(records: &Records, config: &Config) -> Result<First> {
    let now = UnixMs::now();
    let ca = match records.get::<MeshRecord>(MESH_KEY).await? {
        Some(record) => {
            if let Some(wanted) = config
                .mesh
                .as_ref()
                .filter(|wanted| **wanted != record.mesh)
            {
                bail!(
                    "this data directory is mesh `{}`'s, not `{wanted}`'s: a mesh keeps its name; \
                     choose another data_dir for another mesh",
                    record.mesh
                );
            }
            CertificateAuthority::from_pem(&record.ca_pem, &record.key_pem)
                .context("the stored CA does not load: restore a backup")?
        }
        None => create(records, config, now).await?,
    };
    let ca_path = config.data_dir.join("ca.pem");
    write(&ca_path, ca.certificate().to_pem().as_bytes(), 0o644)?;
    let token_path = admin_token_path(&config.data_dir);
    if !access::has_admin(records).await? || !token_path.is_file() {
        // A token whose text is lost is worth nothing: a new one takes its place.
        reset_token(records, &config.data_dir).await?;
    }
    Ok(First {
        ca,
        ca_path,
        token_path,
    })
}

async fn create(records: &Records, config: &Config, now: UnixMs) -> Result<CertificateAuthority> {
    let default = || MESH_DEFAULT.parse::<MeshId>();
    let mesh = config.mesh.clone().map_or_else(default, Ok)?;
    let ca = CertificateAuthority::create(&mesh, now)?;
    let (ca_pem, key_pem) = ca.to_pem();
    let record = MeshRecord {
        mesh,
        ca_pem,
        key_pem: key_pem.to_string(),
        created: now,
    };
    records.commit(Batch::new().put(MESH_KEY, &record)?).await?;
    tracing::info!(mesh = %record.mesh, "made the mesh's CA");
    Ok(ca)
}

/// Makes a new admin token and writes its file.
pub(super) async fn reset_token(records: &Records, data_dir: &Path) -> Result<PathBuf> {
    let token = access::reset_admin(records, UnixMs::now()).await?;
    let path = admin_token_path(data_dir);
    write(&path, format!("{token}\n").as_bytes(), 0o600)?;
    Ok(path)
}

/// Writes a file whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temp = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        let _ = fs::remove_file(&temp);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)?;
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            File::open(dir)?.sync_all()?;
        }
        Ok::<(), std::io::Error>(())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
