//! Artifacts: immutable blobs with names. A record says what there is, the blob store has the
//! bytes.
//!
//! Invariants
//! - A record exists only after its blob is durable and was checked; a refused upload leaves
//!   nothing.
//! - An artifact that something uses is not removed.
//!
//! References: `sha256:<hex>`, a unique prefix of the hex of at least 6 digits, or a name. A name
//! wins over a prefix. The newest push of a name has it.

mod abi;
mod blobs;
pub mod onnx;
mod upload;
mod wasi;
pub mod wasm;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use hop3_common::{
    api::{ArtifactKind, ArtifactView},
    codes::{Code, Problem},
    id::Digest,
    spec::nearest,
};

pub(crate) use blobs::{
    check_service, claimed, claimed_bytes, collect, may_get, may_put, read, stored, totals,
};
pub use upload::ArtifactUpload;
pub(crate) use upload::begin;

use crate::{
    Core, models,
    records::{ArtifactRecord, Batch, Records},
    services, tasks,
};

/// Shortest prefix of a digest that stands for it, in hex digits.
const PREFIX_DIGITS_MIN: usize = 6;
/// Most names of an artifact.
const NAMES_MAX: usize = 16;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most artifacts.
pub(crate) const ARTIFACTS_MAX: usize = 10_000;
/// Most users named in a view or a refusal.
const USED_BY_MAX: usize = 5;

/// Bytes of a blob, from the asked offset to its end.
pub struct BlobRead {
    /// The bytes.
    pub reader: tasks::ByteStream,
    /// The size of the whole blob.
    pub size: u64,
}

/// All artifacts.
pub(crate) struct Artifacts {
    index: RwLock<Index>,
    /// Held shared by whoever begins to use an artifact, alone by whoever removes one.
    gate: tokio::sync::RwLock<()>,
    pub(crate) uploads: Arc<tokio::sync::Semaphore>,
}

#[derive(Default)]
struct Index {
    by_digest: BTreeMap<Digest, Arc<ArtifactRecord>>,
    by_name: BTreeMap<String, Digest>,
}

impl Artifacts {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let mut index = Index::default();
        for (_, record) in records.all::<ArtifactRecord>().await? {
            index.insert(record);
        }
        Ok(Self {
            index: RwLock::new(index),
            gate: tokio::sync::RwLock::default(),
            uploads: Arc::new(tokio::sync::Semaphore::new(upload::UPLOADS_MAX)),
        })
    }

    pub(crate) fn gate(&self) -> &tokio::sync::RwLock<()> {
        &self.gate
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<ArtifactRecord>> {
        self.read().by_digest.get(digest).cloned()
    }
}

impl Index {
    fn insert(&mut self, record: ArtifactRecord) {
        for name in &record.names {
            self.by_name.insert(name.clone(), record.digest);
        }
        self.by_digest.insert(record.digest, Arc::new(record));
    }
}

/// The artifact that `reference` names.
pub(crate) fn resolve(core: &Core, reference: &str) -> Result<Arc<ArtifactRecord>, Problem> {
    let index = core.artifacts.read();
    let by_name = index.by_name.get(reference).copied();
    let digest = by_name.or_else(|| reference.parse().ok());
    if let Some(record) = digest.and_then(|digest| index.by_digest.get(&digest)) {
        return Ok(record.clone());
    }
    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    let is_prefix = hex.len() >= PREFIX_DIGITS_MIN && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let starts = |digest: &Digest| is_prefix && digest.hex().starts_with(&hex.to_lowercase());
    let mut found = index.by_digest.iter().filter(|(digest, _)| starts(digest));
    match (found.next(), found.count()) {
        (Some((_, record)), 0) => Ok(record.clone()),
        (Some(_), more) => {
            let message = format!("`{reference}` begins the digests of {} artifacts", more + 1);
            Err(Problem::new(Code::Ambiguous, message))
        }
        (None, _) => {
            let shown: String = reference.chars().take(80).collect();
            let near = nearest(&shown, index.by_name.keys().map(String::as_str));
            let hint = near
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            let message = format!("there is no artifact `{shown}`{hint}");
            Err(Problem::new(Code::ArtifactUnknown, message))
        }
    }
}

/// As [`resolve`], of one kind.
pub(crate) fn resolve_kind(
    core: &Core,
    reference: &str,
    kind: ArtifactKind,
) -> Result<Arc<ArtifactRecord>, Problem> {
    let record = resolve(core, reference)?;
    if record.kind == kind {
        return Ok(record);
    }
    let (code, wanted) = match kind {
        ArtifactKind::Wasm => (Code::NotWasm, "a Wasm module"),
        _ => (Code::NotOnnx, "an ONNX model"),
    };
    let found = format!("{:?}", record.kind).to_lowercase();
    let message = format!("artifact `{reference}` was pushed as {found}, not as {wanted}");
    Err(Problem::new(code, message))
}

/// Who uses which artifact.
fn used(core: &Core) -> BTreeMap<Digest, Vec<String>> {
    let mut used = tasks::artifacts_used(core);
    for (digest, by) in models::artifacts_used(core) {
        used.entry(digest).or_default().extend(by);
    }
    for (digest, by) in services::artifacts_used(core) {
        used.entry(digest).or_default().extend(by);
    }
    used
}

fn view_of(record: &ArtifactRecord, used: &BTreeMap<Digest, Vec<String>>) -> ArtifactView {
    let used_by = used.get(&record.digest);
    ArtifactView {
        digest: record.digest,
        names: record.names.clone(),
        kind: record.kind,
        bytes: record.bytes,
        created: record.created,
        used_by: used_by
            .map(|by| by.iter().take(USED_BY_MAX).cloned().collect())
            .unwrap_or_default(),
    }
}

pub(crate) fn view(core: &Core, reference: &str) -> Result<ArtifactView, Problem> {
    Ok(view_of(&*resolve(core, reference)?, &used(core)))
}

pub(crate) fn views(core: &Core) -> Vec<ArtifactView> {
    let used = used(core);
    let mut views: Vec<_> = core
        .artifacts
        .read()
        .by_digest
        .values()
        .map(|record| view_of(record, &used))
        .collect();
    views.sort_by_key(|view| std::cmp::Reverse((view.created, view.digest)));
    views
}

/// Records an artifact whose blob is durable. Its name is taken from whoever had it.
pub(crate) async fn add(
    core: &Core,
    digest: Digest,
    kind: ArtifactKind,
    name: Option<String>,
    bytes: u64,
    now: hop3_common::id::UnixMs,
) -> Result<ArtifactView, Problem> {
    let gate = core.artifacts.gate.write().await;
    let (record, loser) = {
        let index = core.artifacts.read();
        let known = index
            .by_digest
            .get(&digest)
            .map(|record| (**record).clone());
        if known.is_none() && index.by_digest.len() >= ARTIFACTS_MAX {
            let message = format!("there are {ARTIFACTS_MAX} artifacts: remove some");
            return Err(Problem::new(Code::TooLarge, message));
        }
        let new = ArtifactRecord {
            digest,
            kind,
            names: Vec::new(),
            bytes,
            created: now,
        };
        let mut record = known.unwrap_or(new);
        // Pushed as data before, and now checked as something better.
        record.kind = if kind == ArtifactKind::Data {
            record.kind
        } else {
            kind
        };
        let loser = name.as_ref().and_then(|name| {
            let owner = index.by_name.get(name).filter(|owner| **owner != digest)?;
            let mut loser = (**index.by_digest.get(owner)?).clone();
            loser.names.retain(|other| other != name);
            Some(loser)
        });
        if let Some(name) = name
            && !record.names.contains(&name)
        {
            if record.names.len() == NAMES_MAX {
                record.names.remove(0);
            }
            record.names.push(name);
        }
        (record, loser)
    };
    let mut batch = Batch::new().put(&digest.hex(), &record)?;
    if let Some(loser) = &loser {
        batch = batch.put(&loser.digest.hex(), loser)?;
    }
    core.records.commit(batch).await?;
    {
        let mut index = core.artifacts.write();
        let dropped: BTreeSet<String> = index
            .by_digest
            .get(&digest)
            .map(|before| {
                before
                    .names
                    .iter()
                    .filter(|n| !record.names.contains(n))
                    .cloned()
                    .collect()
            })
            .unwrap_or_default();
        index.by_name.retain(|name, _| !dropped.contains(name));
        if let Some(loser) = loser {
            index.insert(loser);
        }
        index.insert(record.clone());
    }
    drop(gate);
    // A name may mean another module from now on.
    core.nodes.changed();
    Ok(view_of(&record, &used(core)))
}

/// Checks a name: what can be typed, and is no digest.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:+".contains(&b);
    let ok = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with("sha256:")
        && name != "."
        && name != "..";
    if ok {
        return Ok(());
    }
    let message = format!(
        "`name` must have 1 to {NAME_BYTES_MAX} letters, digits and `-_./:+`, and not begin with \
         `sha256:`"
    );
    Err(Problem::new(Code::InvalidField, message))
}

/// Removes an artifact that nothing uses, record and blob.
pub(crate) async fn remove(core: &Core, reference: &str) -> Result<(), Problem> {
    let gate = core.artifacts.gate.write().await;
    let record = resolve(core, reference)?;
    if let Some(by) = used(core).get(&record.digest).filter(|by| !by.is_empty()) {
        let more = by.len().saturating_sub(USED_BY_MAX);
        let names = by
            .iter()
            .take(USED_BY_MAX)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let message = format!("artifact `{reference}` is used by {names}{more}");
        return Err(Problem::new(Code::ArtifactInUse, message));
    }
    core.records
        .commit(Batch::new().delete::<ArtifactRecord>(&record.digest.hex())?)
        .await?;
    {
        let mut index = core.artifacts.write();
        index.by_digest.remove(&record.digest);
        index.by_name.retain(|_, digest| *digest != record.digest);
    }
    drop(gate);
    core.nodes.changed();
    // The bytes may also be a task's result: the collector knows.
    Ok(())
}
