//! Mark and sweep: removes what no one refers to and what interrupted transfers left.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use super::{BlobStore, Error, Result, store::digest_of_name, writer::lock_file};
use crate::{id::Digest, store::disk::Disk};

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Partial blobs and temporary files of no one.
    pub rests: u64,
    /// Space given back, in bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Removes blobs that `keep` does not want, and rests of interrupted transfers, if they were
    /// last written at least `min_age` ago.
    ///
    /// The age (by the system's clock; a time in the future counts as new) protects blobs whose
    /// record is not written yet, but a clock may jump: `keep` should know of blobs in flight.
    /// Transfers under way are never touched.
    ///
    /// # Errors
    /// [`Error::Io`]; what was removed before stays removed.
    pub fn gc(&self, keep: impl Fn(&Digest) -> bool, min_age: Duration) -> Result<Collected> {
        let mut collected = Collected::default();
        let (disk, now) = (&**self.disk(), SystemTime::now());
        each_old_file(disk, self.blobs_dir(), now, min_age, |name, path, bytes| {
            if digest_of_name(name).is_some_and(|digest| !keep(&digest)) {
                collected.blobs += 1;
                collected.bytes += bytes;
                return remove(disk, path);
            }
            Ok(())
        })?;
        for dir in [self.partial_dir(), self.temp_dir()] {
            each_old_file(disk, dir, now, min_age, |_, path, bytes| {
                let Ok(file) = disk.open(path) else {
                    return Ok(());
                };
                if lock_file(&*file, path)? {
                    collected.rests += 1;
                    collected.bytes += bytes;
                    return remove(disk, path);
                }
                Ok(())
            })?;
        }
        Ok(collected)
    }
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.remove(path).map_err(|e| Error::io("remove", path, e))
}

fn each_old_file(
    disk: &dyn Disk,
    dir: &Path,
    now: SystemTime,
    min_age: Duration,
    mut act: impl FnMut(&str, &Path, u64) -> Result<()>,
) -> Result<()> {
    for name in disk.list(dir).map_err(|e| Error::io("list", dir, e))? {
        let path = dir.join(&name);
        // It may have been renamed or removed meanwhile.
        let Ok(info) = disk.info(&path) else { continue };
        let age = info.modified.and_then(|at| now.duration_since(at).ok());
        if age.is_some_and(|age| age >= min_age) {
            act(&name, &path, info.bytes)?;
        }
    }
    Ok(())
}
