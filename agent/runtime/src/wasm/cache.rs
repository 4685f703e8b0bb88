//! Compiled code on disk, trusted only under this machine's own key.
//!
//! Native code is arbitrary code, so a file counts only if a keyed BLAKE3 MAC over its header
//! and code is right; anything else (torn, corrupted, forged, of another key or engine) is no
//! worse than a missing file: the caller compiles again and replaces it. Files are not synced,
//! since a torn one fails its MAC. Bounded in bytes; the least recently used go first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::module::ModuleDigest;

/// Largest compiled module: what a 32 MiB module grows to, with margin.
const CODE_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// First bytes of a file, format version included.
const MAGIC: &[u8; 8] = b"HOP3CWA\x01";
const MAC_AT: usize = 8 + 32 + 32 + 8;
const HEADER_BYTES: usize = MAC_AT + 32;
const HEX: &[u8; 16] = b"0123456789abcdef";
const SUFFIX: &str = ".cwa";
const TEMP_SUFFIX: &str = ".tmp";

/// Compiled modules in one directory that only this process uses.
pub struct CompiledCache {
    dir: PathBuf,
    key: [u8; 32],
    bytes_max: u64,
    temp_id: AtomicU64,
}

/// Code whose MAC was right. Made only here, so that only checked code can be loaded.
pub(crate) struct Verified {
    file: Vec<u8>,
}

impl Verified {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.file[HEADER_BYTES..]
    }
}

/// What the cache has for a module.
pub(crate) enum Lookup {
    Hit(Verified),
    Miss,
    /// There is a file, but it must not be used; why, in words.
    Unusable(&'static str),
}

impl CompiledCache {
    /// Opens (and makes, for the owner only) `dir`; `mac_key` must be secret and the machine's
    /// own. At most `bytes_max` bytes are kept.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(dir: impl Into<PathBuf>, mac_key: [u8; 32], bytes_max: u64) -> io::Result<Self> {
        let dir = dir.into();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            // Left by a crash between writing and renaming.
            if has_suffix(&path, TEMP_SUFFIX) {
                let _ = fs::remove_file(path);
            }
        }
        let key = blake3::derive_key("hop3 2026 compiled wasm cache file", &mac_key);
        let cache = Self {
            dir,
            key,
            bytes_max,
            temp_id: AtomicU64::new(0),
        };
        cache.evict();
        Ok(cache)
    }

    /// Looks for the code of `digest` made for `engine` and checks it.
    pub(crate) fn get(&self, engine: &[u8; 32], digest: &ModuleDigest) -> Lookup {
        let path = self.path(engine, digest);
        let (open, file) = match read_bounded(&path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Lookup::Miss,
            Err(_) => return Lookup::Unusable("unreadable or too large"),
        };
        if file.len() < HEADER_BYTES || file[..8] != MAGIC[..] {
            return Lookup::Unusable("truncated or not a cache file");
        }
        let header = header(engine, digest, file.len() - HEADER_BYTES);
        let mac = <[u8; 32]>::try_from(&file[MAC_AT..HEADER_BYTES]).unwrap_or_default();
        // `Hash` compares in constant time.
        if self.mac(&header, &file[HEADER_BYTES..]) != blake3::Hash::from_bytes(mac)
            || file[..MAC_AT] != header
        {
            return Lookup::Unusable("wrong MAC: corrupted, forged, or of another key or engine");
        }
        // Its time says how recently it was used. Its owner needs no right to write for that.
        let _ = open.set_modified(SystemTime::now());
        Lookup::Hit(Verified { file })
    }

    /// Writes `code` in place of whatever was there, then makes room.
    ///
    /// # Errors
    /// The file cannot be written; nothing is left behind.
    pub(crate) fn put(
        &self,
        engine: &[u8; 32],
        digest: &ModuleDigest,
        code: &[u8],
    ) -> io::Result<()> {
        if code.len() as u64 > CODE_BYTES_MAX.min(self.bytes_max) {
            return Ok(());
        }
        let header = header(engine, digest, code.len());
        let mac = self.mac(&header, code);
        let n = self.temp_id.fetch_add(1, Ordering::Relaxed);
        let temp = self
            .dir
            .join(format!("{}-{n}{TEMP_SUFFIX}", std::process::id()));
        let written = write_new(&temp, &[&header, mac.as_bytes(), code])
            .and_then(|()| fs::rename(&temp, self.path(engine, digest)));
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        self.evict();
        written
    }

    fn mac(&self, header: &[u8], code: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key)
            .update(header)
            .update(code)
            .finalize()
    }

    fn path(&self, engine: &[u8; 32], digest: &ModuleDigest) -> PathBuf {
        let (module, engine) = (hex(digest), hex(&engine[..8]));
        self.dir.join(format!("{module}-{engine}{SUFFIX}"))
    }

    /// Removes the least recently used files until the rest fits. Best effort.
    fn evict(&self) {
        let mut files = self.files().unwrap_or_default();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.bytes_max {
                return;
            }
            if fs::remove_file(path).is_ok() {
                total -= bytes;
            }
        }
    }

    /// The files, with time of last use and size.
    fn files(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_file() && has_suffix(&path, SUFFIX) {
                files.push((
                    meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                    meta.len(),
                    path,
                ));
            }
        }
        Ok(files)
    }
}

impl std::fmt::Debug for CompiledCache {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledCache")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn header(engine: &[u8; 32], digest: &ModuleDigest, code_bytes: usize) -> [u8; MAC_AT] {
    let mut header = [0; MAC_AT];
    header[..8].copy_from_slice(MAGIC);
    header[8..40].copy_from_slice(engine);
    header[40..72].copy_from_slice(digest);
    header[72..].copy_from_slice(&(code_bytes as u64).to_le_bytes());
    header
}

/// The file and its contents.
fn read_bounded(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let most = CODE_BYTES_MAX + HEADER_BYTES as u64;
    if bytes > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut contents = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact(&mut contents)?;
    Ok((file, contents))
}

fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.ends_with(suffix))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = |byte: u8| [byte >> 4, byte & 15].map(|half| char::from(HEX[usize::from(half)]));
    bytes.iter().flat_map(|byte| digits(*byte)).collect()
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
