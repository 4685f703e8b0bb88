//! The store's directory and its blobs.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BlobReader, Error, Result,
    segment::{BlobKeys, HEADER_BYTES, Header, file_bytes},
};
use crate::{
    id::Digest,
    store::{
        MasterKey,
        disk::{Disk, DiskFile, OsDisk},
    },
};

const KEY_CHECK_FILE: &str = "key.check";

/// A directory of blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlobStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    blobs: PathBuf,
    partial: PathBuf,
    temp: PathBuf,
    keys: BlobKeys,
}

impl BlobStore {
    /// Opens the store in `dir`, making it if there is none.
    ///
    /// # Errors
    /// [`Error::WrongKey`] for a store that was made under another key; [`Error::Io`].
    pub fn open(dir: &Path, key: &MasterKey) -> Result<Self> {
        Self::open_on(Arc::new(OsDisk), dir, key)
    }

    /// As [`BlobStore::open`], on another file layer; tests put faults there.
    ///
    /// # Errors
    /// As [`BlobStore::open`].
    pub fn open_on(disk: Arc<dyn Disk>, dir: &Path, key: &MasterKey) -> Result<Self> {
        let keys = BlobKeys::new(key);
        let inner = Inner {
            disk,
            blobs: dir.join("blobs"),
            partial: dir.join("partial"),
            temp: dir.join("tmp"),
            keys,
        };
        let disk = &*inner.disk;
        let make = |path: &Path| {
            let made = disk.create_dir(path);
            made.map_err(|e| Error::io("create", path, e))
        };
        make(dir)?;
        check_key(disk, dir, &inner.keys)?;
        [&inner.blobs, &inner.partial, &inner.temp]
            .into_iter()
            .try_for_each(|d| make(d))?;
        // A killed process leaves blobs whose names are not durable yet.
        let synced = disk.sync_dir(&inner.blobs);
        synced.map_err(|e| Error::io("flush directory", &inner.blobs, e))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Whether the blob is here.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.disk.info(&self.blob_path(digest)).is_ok()
    }

    /// The size of a blob's contents, in bytes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Io`].
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        self.open_blob(digest).map(|(_, header)| header.size)
    }

    /// Reads a blob's contents from `offset` (in bytes) to the end.
    ///
    /// Memory: two segments. What it gives is verified; damage is an [`io::Error`] with an
    /// [`Error::Corrupt`] inside.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::OutOfRange`], [`Error::Io`].
    pub fn reader(&self, digest: &Digest, offset: u64) -> Result<BlobReader> {
        let (file, header) = self.open_blob(digest)?;
        if offset > header.size {
            let (digest, size) = (*digest, header.size);
            return Err(Error::OutOfRange {
                digest,
                offset,
                size,
            });
        }
        Ok(BlobReader::new(file, self.0.keys.clone(), header, offset))
    }

    /// All of a blob's contents, if they are not larger than `limit` bytes.
    ///
    /// # Errors
    /// As [`BlobStore::reader`], and [`Error::TooLarge`].
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let mut reader = self.reader(digest, 0)?;
        if reader.remaining() > limit {
            return Err(Error::TooLarge { limit });
        }
        let mut out = Vec::with_capacity(usize::try_from(reader.remaining()).unwrap_or(0));
        match reader.read_to_end(&mut out) {
            Ok(_) => Ok(out),
            Err(e) => Err(e
                .downcast::<Error>()
                .unwrap_or_else(|e| Error::io("read", &self.blob_path(digest), e))),
        }
    }

    /// The digests of all blobs, sorted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<Digest>> {
        let dir = &self.0.blobs;
        let fail = |e| Error::io("list", dir, e);
        let mut digests = Vec::new();
        let names = self.0.disk.list(dir).map_err(fail)?;
        digests.extend(names.iter().filter_map(|name| digest_of_name(name)));
        digests.sort_unstable();
        Ok(digests)
    }

    /// Removes a blob; says whether there was one. Open readers are not disturbed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<bool> {
        let path = self.blob_path(digest);
        match self.0.disk.remove(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", &path, e)),
        }
    }

    /// Makes a blob young again for [`BlobStore::gc`]; says whether it is here. Call it before
    /// making a record that refers to a blob which was here already.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn touch(&self, digest: &Digest) -> Result<bool> {
        let path = self.blob_path(digest);
        match self.0.disk.touch(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("touch", &path, e)),
        }
    }

    fn open_blob(&self, digest: &Digest) -> Result<(Box<dyn DiskFile>, Header)> {
        let path = self.blob_path(digest);
        let file = self.0.disk.open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NotFound { digest: *digest },
            _ => Error::io("open", &path, e),
        })?;
        let size = file.size().map_err(|e| Error::io("inspect", &path, e))?;
        let header = read_header(&*file, &self.0.keys, size);
        match header.map_err(|e| Error::io("read", &path, e))? {
            Some(header) if header.digest == *digest && file_bytes(header.size) == Some(size) => {
                Ok((file, header))
            }
            _ => Err(Error::Corrupt {
                digest: *digest,
                segment: None,
            }),
        }
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.0.disk
    }

    pub(super) fn keys(&self) -> &BlobKeys {
        &self.0.keys
    }

    pub(super) fn blobs_dir(&self) -> &Path {
        &self.0.blobs
    }

    pub(super) fn partial_dir(&self) -> &Path {
        &self.0.partial
    }

    pub(super) fn temp_dir(&self) -> &Path {
        &self.0.temp
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.hex())
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.0.partial.join(format!("{}.part", digest.hex()))
    }

    /// Flushes a whole, verified file and gives it its name. After an error the file must not be
    /// flushed again and trusted.
    pub(super) fn install(
        &self,
        file: &mut dyn DiskFile,
        from: &Path,
        digest: &Digest,
    ) -> Result<()> {
        let (to, dir) = (self.blob_path(digest), &self.0.blobs);
        file.sync().map_err(|e| Error::io("flush", from, e))?;
        let renamed = self.0.disk.rename(from, &to);
        renamed.map_err(|e| Error::io("rename", from, e))?;
        self.0.disk.sync_dir(dir).map_err(|e| {
            // Who finds it would take it for durable.
            let _ = self.0.disk.remove(&to);
            Error::io("flush directory", dir, e)
        })
    }
}

/// The digest that a file name of `blobs/` stands for.
pub(super) fn digest_of_name(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}")
        .parse()
        .ok()
        .filter(|d: &Digest| d.hex() == hex)
}

/// The header of a file of `size` bytes, if it has an authentic one.
pub(super) fn read_header(
    file: &dyn DiskFile,
    keys: &BlobKeys,
    size: u64,
) -> io::Result<Option<Header>> {
    if size < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(keys.decode_header(&bytes))
}

/// Compares the key with the one of the first open.
fn check_key(disk: &dyn Disk, dir: &Path, keys: &BlobKeys) -> Result<()> {
    let path = dir.join(KEY_CHECK_FILE);
    let expected = keys.key_check();
    let found = disk.open(&path).and_then(|file| {
        let mut found = [0; 32];
        if file.size()? == found.len() as u64 {
            file.read_exact_at(&mut found, 0)?;
        }
        Ok(found)
    });
    match found {
        Ok(found) if found == expected => Ok(()),
        Ok(_) => Err(Error::WrongKey { path: dir.into() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let temp = dir.join(format!("{KEY_CHECK_FILE}.tmp"));
            let written = disk.create(&temp).and_then(|mut file| {
                file.write_all_at(&expected, 0)?;
                file.sync()?;
                disk.rename(&temp, &path)?;
                disk.sync_dir(dir)
            });
            written.map_err(|e| Error::io("write", &path, e))
        }
        Err(e) => Err(Error::io("read", &path, e)),
    }
}
