//! A backup becomes a data directory.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Error, Owner, STORE, Summary, export, files, frames::Opener, local, records::Whole};
use crate::store::{LocalStore, MasterKey, Options, crypt::MASTER_KEY_BYTES, disk};

type Input = Opener<BufReader<File>>;

/// Restores `backup` as the data directory `dir`, which is empty or not there, with its master key
/// at `key_file`. Blocks.
///
/// # Errors
/// [`Error`]; `dir` is as it was.
pub fn restore(
    owner: Owner,
    backup: &Path,
    seal: &MasterKey,
    dir: &Path,
    key_file: &Path,
) -> Result<Summary, Error> {
    demand_empty(dir)?;
    // All of it, before anything is made.
    let mut input = open(backup, seal)?;
    head(owner, &mut input)?;
    io::copy(&mut input, &mut io::sink()).map_err(Error::from_read)?;

    let parent = disk::parent(dir);
    disk::create_dir(parent).map_err(|e| Error::io(format!("make {}", parent.display()))(e))?;
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(format!(".restore-{}", std::process::id()));
    let new = Beside(parent.join(name));
    disk::create_dir(&new.0).map_err(|e| Error::io(format!("make {}", new.0.display()))(e))?;
    let mut input = open(backup, seal)?;
    let key = head(owner, &mut input)?;
    // A key file elsewhere is made where the configuration says.
    let inside = key_file.strip_prefix(dir).map(|name| new.0.join(name));
    let key_at = inside.as_deref().unwrap_or(key_file);
    let made = put_key(key_at, &key)?;
    let restored = fill(owner, backup, seal, &key, &new.0).and_then(|summary| {
        let done = files::sync(&new.0).and_then(|()| fs::rename(&new.0, dir));
        done.and_then(|()| disk::sync_dir(parent))
            .map_err(|e| Error::io(format!("put {} in its place", dir.display()))(e))?;
        Ok(summary)
    });
    if restored.is_err() && made && inside.is_err() {
        let _ = fs::remove_file(key_file);
    }
    restored
}

/// The directory that is being made; gone unless it was renamed.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn demand_empty(dir: &Path) -> Result<(), Error> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::NotEmpty { path: dir.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(format!("read {}", dir.display()))(e)),
    }
}

fn open(backup: &Path, seal: &MasterKey) -> Result<Input, Error> {
    let file = File::open(backup);
    let file = file.map_err(|e| Error::io(format!("open {}", backup.display()))(e))?;
    Opener::new(BufReader::new(file), seal)
}

/// Whose it is; gives its master key.
fn head(owner: Owner, input: &mut Input) -> Result<MasterKey, Error> {
    let mut code = [0];
    input.read_exact(&mut code).map_err(Error::from_read)?;
    if code != [owner.code()] {
        return Err(Error::Damaged("it is of another kind of directory"));
    }
    let mut key = Zeroizing::new([0; MASTER_KEY_BYTES]);
    input.read_exact(&mut *key).map_err(Error::from_read)?;
    Ok(MasterKey::from_bytes(*key))
}

/// Makes the key file; whether it was not there before.
fn put_key(path: &Path, key: &MasterKey) -> Result<bool, Error> {
    let failed = |e| Error::io(format!("write {}", path.display()))(e);
    match MasterKey::from_file(path) {
        Ok(there) if there.expose() == key.expose() => return Ok(false),
        Ok(_) => {
            return Err(failed(io::Error::other(
                "another key is there; move it away, or set another key_file",
            )));
        }
        Err(_) if !path.exists() => {}
        Err(error) => return Err(error.into()),
    }
    disk::create_dir(disk::parent(path)).map_err(failed)?;
    let mut file = files::create(path, disk::FILE_MODE).map_err(failed)?;
    let written = file.write_all(key.expose()).and_then(|()| file.sync_all());
    written.map_err(failed)?;
    Ok(true)
}

fn fill(
    owner: Owner,
    backup: &Path,
    seal: &MasterKey,
    key: &MasterKey,
    dir: &Path,
) -> Result<Summary, Error> {
    let begin = || {
        let mut input = open(backup, seal).map_err(io::Error::other)?;
        head(owner, &mut input).map_err(io::Error::other)?;
        Ok(input)
    };
    let mut records = Whole::new(begin).map_err(Error::from_read)?;
    let (store, _) = LocalStore::open(&dir.join(STORE), key, Options::default())?;
    let imported = local::block_on(export::import(&store, &mut records))?;
    drop(store);
    let mut rest = records.into_rest().map_err(Error::from_read)?;
    let (files, bytes) = files::read(dir, &mut rest)?;
    Ok(Summary {
        records: imported.records,
        files,
        bytes,
    })
}
