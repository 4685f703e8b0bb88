//! Granted directories and reading directories.
//!
//! A listing is taken at cookie 0, sorted (so that it is the same on every machine), and kept
//! for the descriptor that was read last; another descriptor's turn takes it anew.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;

use super::Cx;
use super::abi::{Done, Errno, Fault, filetype, right};
use super::fds::{DirFd, Kind};
use super::mem::IO_BYTES_MAX;
use super::meta::filetype_of;

/// Entries of a directory that a guest can list: at 256 bytes a name, 4 MiB.
const ENTRIES_MAX: usize = 16_384;

/// The entries of the directory that was read last.
pub(super) struct Listing {
    pub(super) fd: u32,
    entries: Vec<Entry>,
}

struct Entry {
    name: Vec<u8>,
    inode: u64,
    filetype: u8,
}

pub(super) fn fd_prestat_get(cx: &mut Cx<'_>, fd: u32, out: u32) -> Done {
    let name = preopen(cx, fd)?;
    let len = u32::try_from(name.len()).map_err(|_| Errno::Nametoolong)?;
    cx.mem.put_u32(out, 0)?;
    Ok(cx
        .mem
        .put_u32(out.checked_add(4).ok_or(Errno::Fault)?, len)?)
}

pub(super) fn fd_prestat_dir_name(cx: &mut Cx<'_>, fd: u32, path: u32, len: u32) -> Done {
    let name = preopen(cx, fd)?;
    if name.len() > len as usize {
        return Err(Errno::Nametoolong.into());
    }
    Ok(cx.mem.put(path, name.as_bytes())?)
}

fn preopen(cx: &Cx<'_>, fd: u32) -> Result<String, Errno> {
    match &cx.host.fds.get(fd)?.kind {
        Kind::Dir(DirFd {
            preopen: Some(name),
            ..
        }) => Ok(name.clone()),
        _ => Err(Errno::Badf),
    }
}

pub(super) fn fd_readdir(
    cx: &mut Cx<'_>,
    fd: u32,
    buf: u32,
    len: u32,
    cookie: u64,
    out: u32,
) -> Done {
    let range = cx.mem.range(buf, len.min(IO_BYTES_MAX))?;
    cx.mem.range(out, 4)?;
    cx.host.fds.get(fd)?.need(right::FD_READDIR)?;
    let dir = cx.host.fds.dir(fd)?;
    let kept = cx
        .host
        .listing
        .take()
        .filter(|kept| cookie != 0 && kept.fd == fd);
    let listing = match kept {
        Some(kept) => kept,
        None => Listing {
            fd,
            entries: read(dir)?,
        },
    };
    let first = usize::try_from(cookie)
        .unwrap_or(usize::MAX)
        .min(listing.entries.len());
    let buffer = cx.mem.bytes_mut(range);
    let mut used = 0;
    for (n, entry) in listing.entries.iter().enumerate().skip(first) {
        let dirent = entry.dirent(n as u64 + 1);
        // The last one may be cut: a full buffer says that there is more.
        for part in [&dirent[..], &entry.name] {
            let fits = part.len().min(buffer.len() - used);
            buffer[used..used + fits].copy_from_slice(&part[..fits]);
            used += fits;
        }
        if used == buffer.len() {
            break;
        }
    }
    cx.host.listing = Some(listing);
    Ok(cx
        .mem
        .put_u32(out, u32::try_from(used).unwrap_or(u32::MAX))?)
}

fn read(dir: &DirFd) -> Result<Vec<Entry>, Fault> {
    let special = |name: &[u8]| Entry {
        name: name.to_vec(),
        inode: 0,
        filetype: filetype::DIRECTORY,
    };
    let mut entries = Vec::new();
    for entry in dir.dir.entries()? {
        let entry = entry?;
        if entries.len() == ENTRIES_MAX {
            return Err(Errno::Overflow.into());
        }
        entries.push(Entry {
            name: entry.file_name().as_bytes().to_vec(),
            inode: entry.ino(),
            filetype: entry.file_type().map_or(filetype::UNKNOWN, filetype_of),
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries.splice(0..0, [special(b"."), special(b"..")]);
    Ok(entries)
}

impl Entry {
    fn dirent(&self, next: u64) -> [u8; 24] {
        let mut dirent = [0; 24];
        dirent[..8].copy_from_slice(&next.to_le_bytes());
        dirent[8..16].copy_from_slice(&self.inode.to_le_bytes());
        let len = u32::try_from(self.name.len()).unwrap_or(u32::MAX);
        dirent[16..20].copy_from_slice(&len.to_le_bytes());
        dirent[20] = self.filetype;
        dirent
    }
}
