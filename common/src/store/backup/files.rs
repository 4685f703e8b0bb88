//! The files beside the store, as they are.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use super::{Error, NAME_BYTES_MAX, STORE};
use crate::store::disk;

/// Deepest directory that is looked into.
const DEPTH_MAX: usize = 16;

/// A new file, for its owner unless `mode` says more.
pub(super) fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
}

/// Writes every file of `dir` but the store's, the key's and temporary ones; how many, and their
/// bytes.
pub(super) fn write(
    dir: &Path,
    key_file: &Path,
    out: &mut impl Write,
) -> Result<(u64, u64), Error> {
    let mut found = Vec::new();
    let key = fs::canonicalize(key_file).map_err(Error::io("find the key file"))?;
    find(dir, Path::new(""), 0, &mut found)?;
    found.sort();
    let (mut files, mut bytes) = (0, 0);
    for name in found {
        let path = dir.join(&name);
        if fs::canonicalize(&path).is_ok_and(|path| path == key) {
            continue;
        }
        bytes += file(&path, &name, out)?;
        files += 1;
    }
    out.write_all(&[0]).map_err(Error::io("write the backup"))?;
    Ok((files, bytes))
}

fn find(dir: &Path, under: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let here = dir.join(under);
    let failed = || Error::io(format!("read {}", here.display()));
    for entry in fs::read_dir(&here).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let name = under.join(entry.file_name());
        let kind = entry.file_type().map_err(failed())?;
        let temporary = name.extension().is_some_and(|end| end == "tmp") || name.ends_with("tmp");
        if temporary || name == Path::new(STORE) {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_MAX {
            find(dir, &name, depth + 1, found)?;
        } else if kind.is_file() {
            found.push(name);
        }
    }
    Ok(())
}

fn file(path: &Path, name: &Path, out: &mut impl Write) -> Result<u64, Error> {
    let text = name.to_str().filter(|name| name.len() <= NAME_BYTES_MAX);
    let text = text.ok_or_else(|| Error::Name { path: path.into() })?;
    let failed = || Error::io(format!("read {}", path.display()));
    let mut file = File::open(path).map_err(failed())?;
    let meta = file.metadata().map_err(failed())?;
    let mut head = vec![1];
    head.extend_from_slice(&(text.len() as u16).to_le_bytes());
    head.extend_from_slice(text.as_bytes());
    head.extend_from_slice(&(meta.mode() & 0o777).to_le_bytes());
    head.extend_from_slice(&meta.len().to_le_bytes());
    let written = out.write_all(&head);
    written.map_err(Error::io("write the backup"))?;
    let copied = io::copy(&mut (&mut file).take(meta.len()), out);
    let copied = copied.map_err(|e| Error::io(format!("copy {}", path.display()))(e))?;
    if copied != meta.len() {
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(failed()(cut));
    }
    Ok(copied)
}

/// Makes the files of a backup in `dir`; how many, and their bytes.
pub(super) fn read(dir: &Path, input: &mut impl Read) -> Result<(u64, u64), Error> {
    let (mut files, mut bytes) = (0, 0);
    while let Some(len) = one(dir, input)? {
        files += 1;
        bytes += len;
    }
    Ok((files, bytes))
}

fn one(dir: &Path, input: &mut impl Read) -> Result<Option<u64>, Error> {
    let mut read = |buf: &mut [u8]| input.read_exact(buf).map_err(Error::from_read);
    let (mut kind, mut len, mut mode, mut size) = ([0], [0; 2], [0; 4], [0; 8]);
    read(&mut kind)?;
    if kind == [0] {
        return Ok(None);
    }
    read(&mut len)?;
    let mut name = vec![0; usize::from(u16::from_le_bytes(len))];
    read(&mut name)?;
    read(&mut mode)?;
    read(&mut size)?;
    let name = String::from_utf8(name).unwrap_or_default();
    let plain = |part| matches!(part, Component::Normal(_));
    if kind != [1] || name.is_empty() || !Path::new(&name).components().all(plain) {
        return Err(Error::Damaged("a file in it has no usable name"));
    }
    let (path, size) = (dir.join(&name), u64::from_le_bytes(size));
    let parent = disk::parent(&path);
    if !parent.is_dir() {
        let made = disk::create_dir(parent);
        made.map_err(|e| Error::io(format!("make {}", parent.display()))(e))?;
    }
    let failed = |e| Error::io(format!("write {}", path.display()))(e);
    let mut file = create(&path, u32::from_le_bytes(mode) & 0o777).map_err(failed)?;
    let copied = io::copy(&mut input.take(size), &mut file);
    let copied = copied.map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => Error::from_read(e),
        _ => failed(e),
    })?;
    if copied != size {
        return Err(Error::Damaged("it ends too early"));
    }
    file.sync_all().map_err(failed)?;
    Ok(Some(size))
}

/// Makes the names in `dir` and below it durable.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        }
    }
    disk::sync_dir(dir)
}
