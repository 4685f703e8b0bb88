//! The ledger file: who owned what on this node, kept a second time, apart from the store.
//!
//! ```text
//! <data>/ledger.a, ledger.b    an A/B file of: sealed( version 1 · postcard [(instance, entry)] )
//! ```
//!
//! Every fact is in two places: in the store's record of its instance, of one commit with the
//! assignment and the report that belong to it, and here. Facts only grow, so what holds is the
//! later of the two ([`LedgerEntry::join`]); to lose one, both places must lose it. The store
//! alone does not see it when its newest commits were damaged (they look like a write that was cut
//! off), nor when its directory was put back from an older copy: this file does.
//!
//! **Order.** Of a batch of steps the store's commits come first, then one write of this file,
//! then the acts: first steps of runs, reports, answers. A crash in between leaves the file behind
//! by what nobody acted on, case by case:
//! - *assignment, begin of a run*: the record has the assignment with its token; the run begins
//!   again under the next one. (The file first would leave an epoch without its assignment.)
//! - *sealing*: mark and report are of one commit, so the report of the seal is sent later. (The
//!   file first would leave the mark alone: a move would end as a stop, without its state.)
//! - *stop, forget*: the record says so; the file learns it at the next start.
//! - *a forgotten one too many*: it is in the file and not in the store: remembered once more.
//!
//! **What is found at a start.**
//! - *no file* (made by an older release, or moved away): the store's facts are taken over.
//! - *one slot does not verify*: a write that was cut off, which the store was ahead of; or damage
//!   to the newer slot, and the store has what was lost. Only if the store lost its newest commits
//!   too is something gone; against that each run that may begin leaves [`INCARNATIONS_SKIPPED`]
//!   numbers out. Which epochs were sealed cannot be told here: the store's record decides.
//! - *neither slot verifies*: [`Error::Lost`], nothing is started.
//! - *the file is ahead*: the store lost commits. An epoch whose assignment is missing does not
//!   run, an older assignment neither; the coordinator sends the missing one again.
//!
//! Limits: all that the core may hold fits the file, by a bound at compile time; more is refused
//! by the core ([`INSTANCES_MAX`]) or the oldest forgotten ([`TOMBSTONES_MAX`]). Every write is of
//! the whole file: 40 bytes for each instance.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hop3_common::{
    id::{INSTANCE_BYTES_MAX, InstanceId},
    ownership::{Incarnation, LedgerEntry},
    store::{
        self, Cipher, MasterKey,
        ab::{AB_BYTES_MAX, AbFile},
        crypt::Purpose,
        disk::Disk,
    },
};

use super::core::{INSTANCES_MAX, Stored, TOMBSTONES_MAX};

/// Name of the pair of files.
pub const LEDGER: &str = "ledger";
/// Incarnations left out when facts may have been lost: more than one batch of steps begins.
pub const INCARNATIONS_SKIPPED: u64 = 1 << 16;

const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"agent ledger";
/// Name with its length, three numbers of up to ten bytes.
const ENTRY_BYTES_MAX: usize = 2 + INSTANCE_BYTES_MAX + 3 * 10;
const _: () = assert!((INSTANCES_MAX + TOMBSTONES_MAX) * ENTRY_BYTES_MAX + 64 <= AB_BYTES_MAX);

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of it can be read.
    #[error(
        "the ledger of this node cannot be read ({LEDGER}.a and {LEDGER}.b in {}). It says which \
         epochs this node gave up: none of its instances is started. Restore the whole data \
         directory from a backup; or, if nothing but the two files is damaged, move both away and \
         start again: their facts are then taken from the records in `store`", dir.display()
    )]
    Lost {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with it.
        #[source]
        source: store::Error,
    },
    /// It is of a newer release.
    #[error(
        "the ledger in {} has format {found}, this program knows {VERSION}: run the newer release",
        dir.display()
    )]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// Its format.
        found: u8,
    },
    /// The disk, or another key.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    file: Arc<Mutex<AbFile>>,
    cipher: Cipher,
    entries: BTreeMap<InstanceId, LedgerEntry>,
    /// The file is behind `entries`.
    changed: bool,
    /// Whether there was a file.
    found: bool,
    /// The slot that did not verify.
    damaged: Option<PathBuf>,
}

impl Ledger {
    /// Opens the ledger in `dir`, which must exist. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, key: &MasterKey) -> Result<Self, Error> {
        let lost = |source| Error::Lost {
            dir: dir.into(),
            source,
        };
        let (file, value) = match AbFile::open(disk, dir, LEDGER) {
            Err(error @ store::Error::Corrupt { .. }) => return Err(lost(error)),
            other => other?,
        };
        let cipher = key.cipher(Purpose::Ledger);
        let mut entries = BTreeMap::new();
        if let Some(sealed) = &value {
            let path = dir.join(format!("{LEDGER}.a"));
            let plain = cipher.open(CONTEXT, sealed);
            let plain = plain.map_err(|_| store::Error::WrongKey { path: path.clone() })?;
            let decoded = match plain.split_first() {
                Some((&VERSION, body)) => postcard::from_bytes::<Vec<_>>(body).ok(),
                Some((&found, _)) => {
                    let dir = dir.into();
                    return Err(Error::Version { dir, found });
                }
                None => None,
            };
            let affected = "its facts cannot be decoded".into();
            let decoded = decoded.ok_or_else(|| {
                lost(store::Error::Corrupt {
                    path,
                    offset: 0,
                    affected,
                })
            })?;
            entries.extend(decoded);
        }
        Ok(Self {
            damaged: file.damaged().map(Path::to_path_buf),
            file: Arc::new(Mutex::new(file)),
            cipher,
            entries,
            changed: false,
            found: value.is_some(),
        })
    }

    /// Joins what the store's records say with what the file says. Names those of which the
    /// records say less than is given.
    pub(super) fn join(&self, stored: &mut Vec<(InstanceId, Stored, u16)>) -> Vec<InstanceId> {
        let (mut missing, mut behind) = (self.entries.clone(), Vec::new());
        for (id, stored, _) in stored.iter_mut() {
            let file = missing.remove(id).unwrap_or_default();
            let runs = matches!(stored, Stored::Held { outcome: None, .. });
            let entry = stored.ledger_mut();
            let before = *entry;
            *entry = before.join(file);
            if *entry != before {
                behind.push(id.clone());
            }
            if runs {
                self.skip(entry);
            }
        }
        let orders = stored.iter().filter_map(|(_, stored, _)| match stored {
            Stored::Tombstone { order, .. } => Some(order + 1),
            Stored::Held { .. } => None,
        });
        let first = orders.max().unwrap_or(0);
        for ((id, mut ledger), order) in missing.into_iter().zip(first..) {
            self.skip(&mut ledger);
            behind.push(id.clone());
            stored.push((id, Stored::Tombstone { ledger, order }, 0));
        }
        self.report(stored.len(), behind.len());
        behind
    }

    fn skip(&self, entry: &mut LedgerEntry) {
        if self.damaged.is_some() && entry.begin().is_ok() {
            entry.incarnation = Incarnation(entry.incarnation.0 + INCARNATIONS_SKIPPED);
        }
    }

    fn report(&self, known: usize, behind: usize) {
        if let Some(slot) = &self.damaged {
            tracing::warn!(
                slot = %slot.display(),
                "a write of the ledger was cut off, or the slot is damaged: the records of the \
                 store are asked, and incarnations are left out"
            );
        }
        if !self.found && known > 0 {
            tracing::info!(
                known,
                "there is no ledger file: made from the store's records"
            );
        }
        if behind > 0 {
            tracing::warn!(
                behind,
                "the ledger knows newer epochs or runs than the store: what the store lost does \
                 not run before the coordinator assigns it again"
            );
        }
    }

    /// Takes over everything that is known.
    pub(super) fn replace(&mut self, entries: BTreeMap<InstanceId, LedgerEntry>) {
        self.changed |= self.entries != entries;
        self.entries = entries;
    }

    /// Takes over what is known of one instance.
    pub(super) fn note(&mut self, id: &InstanceId, entry: Option<LedgerEntry>) {
        let before = match entry {
            Some(entry) => self.entries.insert(id.clone(), entry),
            None => self.entries.remove(id),
        };
        self.changed |= before != entry;
    }

    /// Makes what was noted durable, with one write; none if nothing changed.
    ///
    /// # Errors
    /// As [`AbFile::write`]; it may be tried again.
    pub(super) async fn write(&mut self) -> Result<(), store::Error> {
        if !self.changed {
            return Ok(());
        }
        let entries: Vec<_> = self.entries.iter().collect();
        let plain = postcard::to_extend(&entries, vec![VERSION]);
        let plain = plain.expect("names and numbers can be encoded");
        let sealed = self.cipher.seal(CONTEXT, &plain)?;
        let file = Arc::clone(&self.file);
        let write = move || {
            // A write that panicked left the other slot as it was.
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write(&sealed)
        };
        let written = tokio::task::spawn_blocking(write).await;
        let _durable = written.map_err(|_| store::Error::Closed)??;
        self.changed = false;
        Ok(())
    }
}
