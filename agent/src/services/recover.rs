//! Where the state of an instance comes from when it starts: this node's own checkpoint and log,
//! or the checkpoint of the assignment, whichever is newer.
//!
//! Who made it decides first: a lower run never has anything newer. A damaged or missing part is
//! an error that names it; an older state is never taken silently.

use std::sync::Arc;

use hop3_common::{
    codes::Problem,
    id::InstanceId,
    wire::{Checkpoint, Output, changes},
};
use hop3_runtime::service::Image;
use tokio::task::spawn_blocking;

use super::{
    ahead::{Ahead, Ready},
    kept::KeptRecord,
    lock,
    log::{Head, Log},
    storage::{Shelf, panicked, storage},
};
use crate::blobs::{Blobs, Pin};

/// Largest part of a checkpoint, bytes: all that a service may have, with room.
const PART_BYTES_MAX: u64 = 3 << 29;

/// The state that a run begins with.
pub struct Recovered {
    pub(super) image: Image,
    pub(super) base: (Output, Image),
    pub(super) record: KeptRecord,
    pub(super) log: Option<Log>,
    /// A guest that was made ready in an earlier state of it.
    pub(super) guest: Option<Ready>,
    /// Until the record is stored.
    pub(super) pins: Vec<Pin>,
}

impl Recovered {
    /// The state.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }
}

/// Where the state of an instance comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// There is none.
    Nowhere,
    /// This node's own.
    Here,
    /// The checkpoint of the assignment.
    There,
    /// Whichever is newer: they are of the same run.
    Newer,
}

/// Decides by who made what: a lower run never has anything newer.
fn source(record: Option<&KeptRecord>, restore: Option<&Checkpoint>) -> Source {
    let record = record.filter(|record| !record.made.is_empty());
    match (record, restore) {
        (None, None) => Source::Nowhere,
        (None, Some(_)) => Source::There,
        (Some(_), None) => Source::Here,
        (Some(record), Some(restore)) => match record.owner.cmp(&restore.token) {
            std::cmp::Ordering::Less => Source::There,
            std::cmp::Ordering::Equal => Source::Newer,
            std::cmp::Ordering::Greater => Source::Here,
        },
    }
}

/// Finds the state of an instance: this node's own, or the assignment's `restore`, whose parts
/// are fetched; `None` for a new one.
///
/// # Errors
/// What is damaged or missing. An older state is never taken silently.
pub(super) async fn recover(
    shelf: &Arc<Shelf>,
    instance: &InstanceId,
    restore: Option<&Checkpoint>,
) -> Result<Option<Recovered>, Problem> {
    let record = shelf.kept.get(instance);
    match (source(record.as_ref(), restore), record, restore) {
        (Source::Here, Some(record), _) => here(shelf, instance, record).await.map(Some),
        (Source::Newer, Some(record), Some(restore)) => {
            let found = here(shelf, instance, record.clone()).await?;
            if found.image.seq() >= restore.seq {
                return Ok(Some(found));
            }
            there(shelf, Some(record), restore).await.map(Some)
        }
        (Source::There, record, Some(restore)) => there(shelf, record, restore).await.map(Some),
        _ => Ok(None),
    }
}

/// This node's own state: the newest checkpoint and its log.
async fn here(
    shelf: &Arc<Shelf>,
    instance: &InstanceId,
    record: KeptRecord,
) -> Result<Recovered, Problem> {
    let (shelf, instance) = (shelf.clone(), instance.clone());
    let read = spawn_blocking(move || {
        let newest = record
            .made
            .first()
            .ok_or_else(|| storage("no checkpoint"))?;
        let read = read_parts(&shelf.blobs, &newest.parts, None);
        let (base, mut image) = read.map_err(|what| unreadable(newest, &instance, &what))?;
        let mut log = None;
        if let Some(id) = record.log {
            let path = shelf.path(&instance, id);
            let parts = newest.parts.clone();
            let begin = |head: Head| {
                let fits = head.base == parts && head.instance == instance;
                let wrong = || storage(format!("the log {} is another's", path.display()));
                fits.then_some(()).ok_or_else(wrong)
            };
            let each = |delta: &[u8]| {
                let applied = image.apply(delta);
                let what = |e| storage(format!("a change in {}: {e}", path.display()));
                image = applied.map_err(what)?;
                Ok(())
            };
            let cipher = shelf.cipher.clone();
            let opened =
                Log::recover::<Head, Problem>(&*shelf.disk, &path, cipher, id, begin, each);
            let (opened, torn) = opened?;
            if let Some(torn) = torn {
                let bytes = torn.bytes;
                tracing::info!(%instance, bytes, "a torn end of its log was cut: never acknowledged");
            }
            log = Some(opened);
        }
        Ok(Recovered {
            image,
            base,
            record,
            log,
            guest: None,
            pins: Vec::new(),
        })
    });
    read.await.map_err(panicked)?
}

/// A checkpoint from elsewhere.
async fn there(
    shelf: &Arc<Shelf>,
    record: Option<KeptRecord>,
    restore: &Checkpoint,
) -> Result<Recovered, Problem> {
    let mut pins = Vec::new();
    for part in &restore.parts {
        pins.push(shelf.blobs.fetch(part.digest, part.bytes).await?);
    }
    let mut record = record.unwrap_or_default();
    record.made.insert(0, restore.clone());
    // The old log is of an older state; it goes when the record that names it is replaced.
    let (shelf, restore) = (shelf.clone(), restore.clone());
    let read = spawn_blocking(move || {
        let mut ahead =
            lock(&shelf.ahead).take_if(|ahead| restore.parts.first() == Some(&ahead.base.0));
        let guest = ahead.as_mut().and_then(|ahead| ahead.guest.take());
        let read = read_parts(&shelf.blobs, &restore.parts, ahead);
        let (base, image) = read.map_err(|what| unreadable(&restore, &"the assignment", &what))?;
        Ok(Recovered {
            image,
            base,
            record,
            log: None,
            guest,
            pins,
        })
    });
    read.await.map_err(panicked)?
}

type Whole = ((Output, Image), Image);

fn unreadable(checkpoint: &Checkpoint, of: &dyn std::fmt::Display, what: &str) -> Problem {
    let (seq, token) = (checkpoint.seq, checkpoint.token);
    storage(format!(
        "checkpoint {seq} (run {token}) of {of} cannot be read: {what}; the instance does not start \
         from an older one by itself"
    ))
}

/// Reads the parts of a checkpoint, but for what of it is in `ahead`: all that went ahead, or at
/// least the base, where the difference to it has grown since. Blocks.
pub(super) fn read_parts(
    blobs: &Blobs,
    parts: &[Output],
    ahead: Option<Ahead>,
) -> Result<Whole, String> {
    let (known, mut whole) = match ahead {
        Some(ahead) if parts.starts_with(&ahead.parts) => {
            (ahead.parts.len(), Some((ahead.base, ahead.image)))
        }
        Some(Ahead { base, .. }) if parts.first() == Some(&base.0) => {
            let image = base.1.clone();
            (1, Some((base, image)))
        }
        _ => (0, None),
    };
    for part in &parts[known..] {
        let read = blobs.store().read(&part.digest, PART_BYTES_MAX);
        let bytes = read.map_err(|e| e.to_string())?;
        whole = Some(match whole {
            None => {
                let image = Image::decode(&bytes).map_err(|e| e.to_string())?;
                ((*part, image.clone()), image)
            }
            Some((base, image)) => (base, applied(image, &bytes)?),
        });
    }
    whole.ok_or_else(|| "it has no parts".into())
}

/// The image after a part that follows the base: one change, or a replica's.
fn applied(mut image: Image, part: &[u8]) -> Result<Image, String> {
    let deltas = match changes::decode(part) {
        Some(deltas) => deltas.map_err(|cut| cut.to_string())?,
        None => vec![part],
    };
    for delta in deltas {
        image = image.apply(delta).map_err(|e| e.to_string())?;
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use hop3_common::{
        id::UnixMs,
        ownership::{Epoch, Incarnation, Token},
    };

    use super::*;

    fn made(epoch: u64, seq: u64) -> Checkpoint {
        Checkpoint {
            token: token(epoch),
            seq,
            at: UnixMs(0),
            schema: 1,
            parts: vec![],
        }
    }

    fn token(epoch: u64) -> Token {
        Token {
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
        }
    }

    #[test]
    fn the_newer_run_has_the_state() {
        let owned = |epoch| KeptRecord {
            owner: token(epoch),
            log: None,
            made: vec![made(epoch, 5)],
        };
        assert_eq!(source(None, None), Source::Nowhere);
        assert_eq!(source(Some(&KeptRecord::default()), None), Source::Nowhere);
        assert_eq!(source(None, Some(&made(1, 9))), Source::There);
        assert_eq!(source(Some(&owned(1)), None), Source::Here);
        // A move that was given up: the source has what it was sealed with.
        assert_eq!(source(Some(&owned(1)), Some(&made(1, 5))), Source::Newer);
        // It was elsewhere meanwhile.
        assert_eq!(source(Some(&owned(1)), Some(&made(2, 9))), Source::There);
        // It ran here under a newer epoch already.
        assert_eq!(source(Some(&owned(3)), Some(&made(2, 9))), Source::Here);
    }
}
