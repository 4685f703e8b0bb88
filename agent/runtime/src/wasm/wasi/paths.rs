//! Working with paths inside granted directories. `cap-std` keeps every path inside its
//! directory, symbolic links included; here comes who may change what.

use std::os::unix::ffi::OsStrExt;

use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt};
use rustix::fs::OFlags;

use super::Cx;
use super::abi::{Done, Errno, Fault, SYMLINK_FOLLOW, oflag, right};
use super::fds::{DirFd, Fd, FileFd, Kind};
use super::meta::{filestat, flags_of, set_times};

#[allow(clippy::too_many_arguments, reason = "preview 1 has them")]
pub(super) fn path_open(
    cx: &mut Cx<'_>,
    fd: u32,
    lookup: u32,
    path: u32,
    len: u32,
    oflags: u32,
    rights: u64,
    inheriting: u64,
    flags: u32,
    out: u32,
) -> Done {
    cx.mem.range(out, 4)?;
    let flags = flags_of(flags)?;
    let path = cx.mem.path(path, len)?;
    cx.host.fds.has_room()?;
    let from = cx.host.fds.dir(fd)?;
    let granted = cx.host.fds.get(fd)?.inheriting;
    if lookup & SYMLINK_FOLLOW == 0 && is_symlink(&from.dir, path) {
        return Err(Errno::Loop.into());
    }
    let writes = rights & granted & right::WRITES_FILE != 0;
    let kind = open(from, path, oflags, rights & right::FD_READ != 0, writes)?;
    let possible = match &kind {
        Kind::Dir(dir) if dir.read_only => right::DIR & !right::CHANGES_DIR,
        Kind::Dir(_) => right::DIR,
        _ => right::FILE,
    };
    let rights = rights & granted & possible;
    let opened = Fd {
        kind,
        flags,
        rights,
        inheriting: inheriting & granted,
    };
    let number = cx.host.fds.insert(opened)?;
    Ok(cx.mem.put_u32(out, number)?)
}

/// Opens a regular file or a directory, nothing else.
fn open(from: &DirFd, path: &str, oflags: u32, reads: bool, writes: bool) -> Result<Kind, Fault> {
    let [creates, wants_dir, exclusive, truncates] =
        [oflag::CREAT, oflag::DIRECTORY, oflag::EXCL, oflag::TRUNC].map(|flag| oflags & flag != 0);
    let as_dir = |dir| {
        let (volume, read_only) = (from.volume, from.read_only);
        Kind::Dir(DirFd {
            dir,
            volume,
            read_only,
            preopen: None,
        })
    };
    if wants_dir {
        if creates || exclusive || truncates {
            return Err(Errno::Inval.into());
        }
        return Ok(as_dir(from.dir.open_dir(path)?));
    }
    if from.read_only && (writes || truncates || exclusive) {
        return Err(Errno::Rofs.into());
    }
    let file = if from.read_only {
        open_file(&from.dir, path, OpenOptions::new().read(true)).map_err(|error| match error {
            Errno::Noent if creates => Errno::Rofs,
            error => error,
        })?
    } else {
        let mut options = OpenOptions::new();
        options
            .read(reads || !writes)
            .write(writes || creates || truncates)
            .create(creates && !exclusive)
            .create_new(creates && exclusive)
            .truncate(truncates);
        open_file(&from.dir, path, &mut options)?
    };
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Ok(as_dir(Dir::from_std_file(file.into_std())));
    }
    if !kind.is_file() {
        return Err(Errno::Notsup.into());
    }
    Ok(Kind::File(FileFd {
        file,
        volume: from.volume,
        position: 0,
    }))
}

/// Never blocks: a pipe in a granted directory must not hold a guest's thread.
fn open_file(dir: &Dir, path: &str, options: &mut OpenOptions) -> Result<File, Errno> {
    let nonblock = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits();
    options.custom_flags(i32::try_from(nonblock).unwrap_or(0));
    Ok(dir.open_with(path, options)?)
}

fn is_symlink(dir: &Dir, path: &str) -> bool {
    dir.symlink_metadata(path)
        .is_ok_and(|meta| meta.is_symlink())
}

pub(super) fn path_create_directory(cx: &mut Cx<'_>, fd: u32, path: u32, len: u32) -> Done {
    let path = cx.mem.path(path, len)?;
    Ok(cx.host.fds.writable_dir(fd)?.dir.create_dir(path)?)
}

pub(super) fn path_filestat_get(
    cx: &mut Cx<'_>,
    fd: u32,
    lookup: u32,
    path: u32,
    len: u32,
    out: u32,
) -> Done {
    let path = cx.mem.path(path, len)?;
    let from = cx.host.fds.dir(fd)?;
    let meta = if lookup & SYMLINK_FOLLOW != 0 {
        from.dir.metadata(path)?
    } else {
        from.dir.symlink_metadata(path)?
    };
    let stat = filestat(&meta, from.volume);
    Ok(cx.mem.put(out, &stat)?)
}

#[allow(clippy::too_many_arguments, reason = "preview 1 has them")]
pub(super) fn path_filestat_set_times(
    cx: &mut Cx<'_>,
    fd: u32,
    lookup: u32,
    path: u32,
    len: u32,
    atim: u64,
    mtim: u64,
    flags: u32,
) -> Done {
    let path = cx.mem.path(path, len)?;
    let from = cx.host.fds.writable_dir(fd)?;
    if lookup & SYMLINK_FOLLOW == 0 && is_symlink(&from.dir, path) {
        return Err(Errno::Notsup.into());
    }
    match open(from, path, 0, true, false)? {
        Kind::File(file) => set_times(&file.file, atim, mtim, flags),
        Kind::Dir(dir) => set_times(&dir.dir, atim, mtim, flags),
        _ => Err(Errno::Inval.into()),
    }
}

/// Both ends must be writable: a link is a way to write.
#[allow(clippy::too_many_arguments, reason = "preview 1 has them")]
pub(super) fn path_link(
    cx: &mut Cx<'_>,
    fd: u32,
    lookup: u32,
    path: u32,
    len: u32,
    to_fd: u32,
    to: u32,
    to_len: u32,
) -> Done {
    if lookup & SYMLINK_FOLLOW != 0 {
        return Err(Errno::Inval.into());
    }
    let (path, to) = (cx.mem.path(path, len)?, cx.mem.path(to, to_len)?);
    let from = cx.host.fds.writable_dir(fd)?;
    let target = cx.host.fds.writable_dir(to_fd)?;
    Ok(from.dir.hard_link(path, &target.dir, to)?)
}

pub(super) fn path_readlink(
    cx: &mut Cx<'_>,
    fd: u32,
    path: u32,
    len: u32,
    buf: u32,
    buf_len: u32,
    out: u32,
) -> Done {
    cx.mem.range(out, 4)?;
    let range = cx.mem.range(buf, buf_len)?;
    let path = cx.mem.path(path, len)?;
    let target = cx.host.fds.dir(fd)?.dir.read_link(path)?;
    let bytes = target.as_os_str().as_bytes();
    let n = bytes.len().min(range.len());
    cx.mem.bytes_mut(range)[..n].copy_from_slice(&bytes[..n]);
    Ok(cx.mem.put_u32(out, u32::try_from(n).unwrap_or(u32::MAX))?)
}

pub(super) fn path_remove_directory(cx: &mut Cx<'_>, fd: u32, path: u32, len: u32) -> Done {
    let path = cx.mem.path(path, len)?;
    Ok(cx.host.fds.writable_dir(fd)?.dir.remove_dir(path)?)
}

pub(super) fn path_unlink_file(cx: &mut Cx<'_>, fd: u32, path: u32, len: u32) -> Done {
    let path = cx.mem.path(path, len)?;
    Ok(cx.host.fds.writable_dir(fd)?.dir.remove_file(path)?)
}

pub(super) fn path_rename(
    cx: &mut Cx<'_>,
    fd: u32,
    path: u32,
    len: u32,
    to_fd: u32,
    to: u32,
    to_len: u32,
) -> Done {
    let (path, to) = (cx.mem.path(path, len)?, cx.mem.path(to, to_len)?);
    let from = cx.host.fds.writable_dir(fd)?;
    let target = cx.host.fds.writable_dir(to_fd)?;
    Ok(from.dir.rename(path, &target.dir, to)?)
}

pub(super) fn path_symlink(
    cx: &mut Cx<'_>,
    target: u32,
    target_len: u32,
    fd: u32,
    path: u32,
    len: u32,
) -> Done {
    let (target, path) = (cx.mem.path(target, target_len)?, cx.mem.path(path, len)?);
    Ok(cx.host.fds.writable_dir(fd)?.dir.symlink(target, path)?)
}
