//! The bytes: who may read and write which, and what is collected.

use std::{collections::BTreeSet, io::Read as _, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use hop3_common::{
    api::ArtifactKind,
    chunks,
    codes::{Code, Problem},
    id::{Digest, InstanceId, NodeId},
    spec::Stdin,
    wire::TaskResult,
};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{BlobRead, wasm};
use crate::{Core, services};

/// Bytes read from disk at a time.
const READ_BYTES: usize = 64 << 10;
/// Blocks that wait for a slow reader of a blob.
const BLOCKS_MAX: usize = 4;
/// Blobs that nothing names are kept this long: their report or record may be on its way.
const UNNAMED_KEPT: Duration = Duration::from_secs(3600);
/// What of a checkpoint is neither memory nor key-value data: globals, tables, timers, streams with
/// what they have not sent, the ends of calls.
const CHECKPOINT_EXTRA_BYTES: u64 = 64 << 20;
/// A blob of a checkpoint that a newer one took the place of is kept so long: a node may be reading
/// it.
const SUPERSEDED_KEPT: Duration = Duration::from_secs(300);
/// Bytes of results that one node may store before reports name them.
const UNCLAIMED_BYTES_MAX: u64 = 4 << 30;

/// A blob store's error as a problem that travels.
pub(crate) fn problem(error: &chunks::Error) -> Problem {
    let code = match error {
        chunks::Error::NotFound { .. } => Code::ArtifactUnknown,
        chunks::Error::TooLarge { .. } => Code::TooLarge,
        chunks::Error::HashMismatch { .. } | chunks::Error::SizeMismatch { .. } => {
            Code::DigestMismatch
        }
        chunks::Error::Busy { .. } => Code::Busy,
        chunks::Error::OutOfRange { .. } => Code::InvalidField,
        _ => Code::Storage,
    };
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Problem::new(code, message)
}

/// Runs blocking file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Problem::new(
            Code::Internal,
            format!("file work failed: {error}"),
        )),
    }
}

/// The bytes of a blob from `offset`, read ahead by a few blocks.
pub(crate) async fn read(core: &Core, digest: &Digest, offset: u64) -> Result<BlobRead, Problem> {
    let (blobs, digest) = (core.blobs.clone(), *digest);
    let open = move || blobs.reader(&digest, offset).map_err(|e| problem(&e));
    let mut reader = blocking(open).await?;
    let size = reader.size();
    let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(BLOCKS_MAX);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut block = vec![0; READ_BYTES];
            let read = reader.read(&mut block).map(|n| {
                block.truncate(n);
                Bytes::from(block)
            });
            let last = !matches!(&read, Ok(block) if !block.is_empty());
            if matches!(&read, Ok(block) if block.is_empty())
                || sender.blocking_send(read).is_err()
                || last
            {
                return;
            }
        }
    });
    let blocks = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    Ok(BlobRead {
        reader: Box::pin(StreamReader::new(blocks)),
        size,
    })
}

/// How many artifacts there are, and their bytes.
pub(crate) fn totals(core: &Core) -> (u64, u64) {
    let index = core.artifacts.read();
    let bytes = index.by_digest.values().map(|record| record.bytes).sum();
    (index.by_digest.len() as u64, bytes)
}

/// Whether `node` may read the blob: modules and models, the inputs of its own tasks, checkpoints
/// of instances that it owns or will.
pub(crate) fn may_get(core: &Core, node: &NodeId, digest: &Digest) -> Result<(), Problem> {
    let known = core.artifacts.get(digest);
    let code = known
        .as_ref()
        .is_some_and(|record| record.kind != ArtifactKind::Data);
    let is_input = || {
        let instances = core.nodes.ledger().instances(node);
        let tasks = instances.iter().filter_map(InstanceId::as_task);
        tasks
            .filter_map(|id| core.tasks.get(&id))
            .any(|task| matches!(&task.body.spec.stdin, Stdin::Artifact(input) if input == digest))
    };
    let is_state = || services::checkpoint_blobs(core, Some(node)).contains(digest);
    if code || (known.is_some() && is_input()) || is_state() {
        return Ok(());
    }
    let message = format!("node `{node}` has no use for blob {digest}, or there is none");
    Err(Problem::new(Code::ArtifactUnknown, message))
}

/// Whether `node` may store a blob of this size: output of its own tasks, state of its own services,
/// within their limits.
pub(crate) fn may_put(core: &Core, node: &NodeId, size: u64) -> Result<(), Problem> {
    let refuse = |code, why: String| Err(Problem::new(code, format!("node `{node}` {why}")));
    let found = core.nodes.find(node)?;
    // What it holds, not what it is wanted to: a task may have been cancelled meanwhile.
    let held: Vec<_> = found.live().held.keys().cloned().collect();
    let tasks = held
        .iter()
        .filter_map(|id| core.tasks.get(&id.as_task()?))
        .map(|task| task.body.spec.limits.output.0);
    let states = held.iter().filter_map(|id| {
        let (name, _) = id.as_service()?;
        let service = core.services.get(&name)?;
        let limits = &service.record.spec.limits;
        let state = limits.memory.0.saturating_add(limits.kv.0);
        Some(state.saturating_add(CHECKPOINT_EXTRA_BYTES))
    });
    let Some(limit) = tasks.chain(states).max() else {
        return refuse(
            Code::Forbidden,
            "holds no task or service whose output or state this could be".into(),
        );
    };
    if size > limit {
        let why = format!("may store at most {limit} bytes, the largest limit of what it runs");
        return refuse(Code::TooLarge, why);
    }
    if found.unclaimed_bytes.load(Relaxed).saturating_add(size) > UNCLAIMED_BYTES_MAX {
        let why = format!("stored {UNCLAIMED_BYTES_MAX} bytes that no report names");
        return refuse(Code::TooLarge, why);
    }
    Ok(())
}

/// `node` stored a blob.
pub(crate) fn stored(core: &Core, node: &NodeId, size: u64) {
    if let Some(node) = core.nodes.get(node) {
        node.unclaimed_bytes.fetch_add(size, Relaxed);
    }
}

/// A report named the blobs of a result.
pub(crate) fn claimed(core: &Core, node: Option<&NodeId>, result: &TaskResult) {
    let Some(node) = node.and_then(|node| core.nodes.get(node)) else {
        return;
    };
    let outputs = [result.stdout, result.stderr];
    let bytes: u64 = outputs
        .into_iter()
        .flatten()
        .map(|output| output.bytes)
        .sum();
    claimed_bytes(core, &node.id, bytes);
}

/// A report named blobs of so many bytes.
pub(crate) fn claimed_bytes(core: &Core, node: &NodeId, bytes: u64) {
    let Some(node) = core.nodes.get(node) else {
        return;
    };
    let less = |before: u64| Some(before.saturating_sub(bytes));
    let _ = node.unclaimed_bytes.fetch_update(Relaxed, Relaxed, less);
}

/// Whether the artifact is a module that agents can run as a service. Answers whether it can take
/// over the state of another build.
pub(crate) async fn check_service(core: &Core, digest: &Digest) -> Result<bool, Problem> {
    let (blobs, digest) = (core.blobs.clone(), *digest);
    let check = move || {
        let mut reader = blobs.reader(&digest, 0).map_err(|e| problem(&e))?;
        let mut module = Vec::new();
        reader
            .by_ref()
            .take(wasm::MODULE_BYTES_MAX)
            .read_to_end(&mut module)
            .map_err(|error| {
                Problem::new(Code::Storage, format!("blob {digest} is not read: {error}"))
            })?;
        wasm::check_service(&module)
    };
    blocking(check).await
}

/// Removes blobs that neither an artifact nor a kept result names.
pub(crate) async fn collect(core: &Core) -> Result<(), Problem> {
    let mut keep: BTreeSet<Digest> = core.artifacts.read().by_digest.keys().copied().collect();
    for task in core.tasks.read().by_id.values() {
        let result = task.state.result.as_ref();
        let outputs = result
            .map(|result| [result.stdout, result.stderr])
            .unwrap_or_default();
        keep.extend(outputs.into_iter().flatten().map(|output| output.digest));
    }
    // Taken before the records are looked at: what is stored again from now on is put back.
    let superseded = core.services.take_superseded();
    keep.extend(services::checkpoint_blobs(core, None));
    let left: BTreeSet<Digest> = superseded.difference(&keep).copied().collect();
    let (blobs, gone) = (core.blobs.clone(), left.clone());
    let gc = move || {
        let kept = |digest: &Digest| keep.contains(digest) || !gone.contains(digest);
        let mut collected = blobs.gc(kept, SUPERSEDED_KEPT).map_err(|e| problem(&e))?;
        let unnamed = blobs
            .gc(|digest| keep.contains(digest), UNNAMED_KEPT)
            .map_err(|e| problem(&e))?;
        collected.blobs += unnamed.blobs;
        collected.rests += unnamed.rests;
        collected.bytes += unnamed.bytes;
        Ok(collected)
    };
    let collected = blocking(gc).await?;
    // What no report named within that time is gone.
    core.nodes
        .all()
        .iter()
        .for_each(|node| node.unclaimed_bytes.store(0, Relaxed));
    // Those that were too young are looked at again.
    let young = left
        .into_iter()
        .filter(|digest| core.blobs.contains(digest));
    core.services.supersede(young);
    if collected.blobs + collected.rests > 0 {
        tracing::info!(
            blobs = collected.blobs,
            bytes = collected.bytes,
            "collected"
        );
    }
    Ok(())
}
