//! The master key on disk: a file of 32 bytes, mode 0600, in a directory of mode 0700.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use zeroize::Zeroizing;

use super::{
    Error, MasterKey,
    crypt::MASTER_KEY_BYTES,
    disk::{self, DIR_MODE, FILE_MODE},
};

/// Permission bits that a key file must not have: anything for others, writing by the group.
const FORBIDDEN_MODE: u32 = 0o077;

impl MasterKey {
    /// Reads the key of `path`, or makes one there if there is none.
    ///
    /// The file appears whole or not at all, and is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::KeyFile`] for a file of wrong length or one that others may read (with the fix);
    /// [`Error::Io`] when it cannot be read or written.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match Self::from_file(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(path)
            }
            other => other,
        }
    }

    /// Reads the key of an existing file, for example a systemd credential.
    ///
    /// # Errors
    /// As [`MasterKey::load_or_create`]; a missing file is [`Error::Io`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::KeyFile {
            path: path.into(),
            reason,
        };
        let mut file = File::open(path).map_err(|e| Error::io("open key file", path, e))?;
        let meta = file
            .metadata()
            .map_err(|e| Error::io("inspect key file", path, e))?;
        if !meta.is_file() {
            return Err(refuse("it is not a file".into()));
        }
        if meta.mode() & FORBIDDEN_MODE != 0 {
            return Err(refuse(format!(
                "its mode {:04o} lets others read it; run `chmod 600 {}`, and replace the key if \
                 others had access to this machine",
                meta.mode() & 0o7777,
                path.display()
            )));
        }
        if meta.len() != MASTER_KEY_BYTES as u64 {
            return Err(refuse(format!(
                "it has {} bytes instead of {MASTER_KEY_BYTES}; restore it from a backup",
                meta.len()
            )));
        }
        let mut bytes = Zeroizing::new([0; MASTER_KEY_BYTES]);
        file.read_exact(&mut *bytes)
            .map_err(|e| Error::io("read key file", path, e))?;
        Ok(Self::from_bytes(*bytes))
    }
}

fn create(path: &Path) -> Result<MasterKey, Error> {
    let dir = disk::parent(path);
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIR_MODE);
    builder
        .create(dir)
        .map_err(|e| Error::io("create directory", dir, e))?;
    let key = MasterKey::generate()?;
    let suffix = getrandom::u64().map_err(Error::Random)?;
    let temp = path.with_extension(format!("{suffix:016x}.tmp"));
    let result = write_new(&temp, key.expose())
        // Fails if another process was faster: its key then counts.
        .and_then(|()| match fs::hard_link(&temp, path) {
            Ok(()) => Ok(key),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => MasterKey::from_file(path),
            Err(e) => Err(Error::io("create key file", path, e)),
        });
    let _ = fs::remove_file(&temp);
    let key = result?;
    disk::sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
    Ok(key)
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(|e| Error::io("create", path, e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets/master.key");
        let made = MasterKey::load_or_create(&path).unwrap();
        let read = MasterKey::load_or_create(&path).unwrap();
        assert_eq!(made.expose(), read.expose());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&dir.path().join("secrets")), 0o700);
        assert_eq!(fs::read_dir(dir.path().join("secrets")).unwrap().count(), 1);
    }

    #[test]
    fn readable_by_others_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        MasterKey::load_or_create(&path).unwrap();
        for bits in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            let error = MasterKey::load_or_create(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn wrong_length_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        write_new(&path, &[1; 31]).unwrap();
        let error = MasterKey::load_or_create(&path).unwrap_err();
        assert!(
            error.to_string().contains("31 bytes instead of 32"),
            "{error}"
        );
        assert_eq!(fs::read(&path).unwrap(), [1; 31]);
    }

    #[test]
    fn racing_creators_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || *MasterKey::load_or_create(&path).unwrap().expose())
            })
            .collect();
        let keys: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(keys.iter().all(|key| key == &keys[0]));
        assert_eq!(fs::read(&path).unwrap(), keys[0]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
