//! What is known and set about open descriptors.

use std::os::fd::AsFd;

use cap_std::fs::{Metadata, MetadataExt};
use rustix::fs::{FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::Cx;
use super::abi::{Done, Errno, fdflag, filetype, right};
use super::fds::Kind;

pub(super) fn fd_close(cx: &mut Cx<'_>, fd: u32) -> Done {
    cx.host.fds.remove(fd)?;
    forget_listing(cx, fd);
    Ok(())
}

pub(super) fn fd_renumber(cx: &mut Cx<'_>, from: u32, to: u32) -> Done {
    cx.host.fds.renumber(from, to)?;
    forget_listing(cx, from);
    forget_listing(cx, to);
    Ok(())
}

/// The number may come to mean another directory.
fn forget_listing(cx: &mut Cx<'_>, fd: u32) {
    cx.host.listing.take_if(|listing| listing.fd == fd);
}

/// Advice is checked and not needed.
pub(super) fn fd_advise(cx: &mut Cx<'_>, fd: u32, _offset: u64, _len: u64, advice: u32) -> Done {
    cx.host.fds.file(fd, 0)?;
    if advice > 5 {
        Err(Errno::Inval.into())
    } else {
        Ok(())
    }
}

pub(super) fn fd_allocate(cx: &mut Cx<'_>, fd: u32, offset: u64, len: u64) -> Done {
    let file = cx.host.fds.file(fd, right::FD_ALLOCATE)?;
    Ok(rustix::fs::fallocate(
        &file.file,
        FallocateFlags::empty(),
        offset,
        len,
    )?)
}

pub(super) fn fd_datasync(cx: &mut Cx<'_>, fd: u32) -> Done {
    match &cx.host.fds.get(fd)?.kind {
        Kind::File(file) => Ok(rustix::fs::fdatasync(&file.file)?),
        Kind::Dir(dir) => Ok(rustix::fs::fdatasync(&dir.dir)?),
        _ => Err(Errno::Inval.into()),
    }
}

pub(super) fn fd_sync(cx: &mut Cx<'_>, fd: u32) -> Done {
    match &cx.host.fds.get(fd)?.kind {
        Kind::File(file) => Ok(rustix::fs::fsync(&file.file)?),
        Kind::Dir(dir) => Ok(rustix::fs::fsync(&dir.dir)?),
        _ => Err(Errno::Inval.into()),
    }
}

pub(super) fn fd_fdstat_get(cx: &mut Cx<'_>, fd: u32, out: u32) -> Done {
    let open = cx.host.fds.get(fd)?;
    let mut stat = [0; 24];
    stat[0] = open.filetype();
    stat[2..4].copy_from_slice(&open.flags.to_le_bytes());
    stat[8..16].copy_from_slice(&open.rights.to_le_bytes());
    stat[16..24].copy_from_slice(&open.inheriting.to_le_bytes());
    Ok(cx.mem.put(out, &stat)?)
}

pub(super) fn fd_fdstat_set_flags(cx: &mut Cx<'_>, fd: u32, flags: u32) -> Done {
    let flags = flags_of(flags)?;
    cx.host.fds.get_mut(fd)?.flags = flags;
    Ok(())
}

/// The flags of a descriptor, all known.
pub(super) fn flags_of(flags: u32) -> Result<u16, Errno> {
    let flags = u16::try_from(flags).map_err(|_| Errno::Inval)?;
    if flags & !fdflag::ALL != 0 {
        Err(Errno::Inval)
    } else {
        Ok(flags)
    }
}

/// Rights can be given up, never gained.
pub(super) fn fd_fdstat_set_rights(cx: &mut Cx<'_>, fd: u32, base: u64, inheriting: u64) -> Done {
    let open = cx.host.fds.get_mut(fd)?;
    if base & !open.rights != 0 || inheriting & !open.inheriting != 0 {
        return Err(Errno::Notcapable.into());
    }
    (open.rights, open.inheriting) = (base, inheriting);
    Ok(())
}

pub(super) fn fd_filestat_get(cx: &mut Cx<'_>, fd: u32, out: u32) -> Done {
    let open = cx.host.fds.get(fd)?;
    let stat = match &open.kind {
        Kind::File(file) => filestat(&file.file.metadata()?, file.volume),
        Kind::Dir(dir) => filestat(&dir.dir.dir_metadata()?, dir.volume),
        _ => [0; 64],
    };
    Ok(cx.mem.put(out, &stat)?)
}

pub(super) fn fd_filestat_set_size(cx: &mut Cx<'_>, fd: u32, size: u64) -> Done {
    let file = cx.host.fds.file(fd, right::FD_FILESTAT_SET_SIZE)?;
    Ok(rustix::fs::ftruncate(&file.file, size)?)
}

pub(super) fn fd_filestat_set_times(
    cx: &mut Cx<'_>,
    fd: u32,
    atim: u64,
    mtim: u64,
    flags: u32,
) -> Done {
    let open = cx.host.fds.get(fd)?;
    open.need(right::FD_FILESTAT_SET_TIMES)?;
    match &open.kind {
        Kind::File(file) => set_times(&file.file, atim, mtim, flags),
        Kind::Dir(dir) => set_times(&dir.dir, atim, mtim, flags),
        _ => Err(Errno::Inval.into()),
    }
}

/// Sets the times of an open file as `fstflags` says.
pub(super) fn set_times(file: impl AsFd, atim: u64, mtim: u64, flags: u32) -> Done {
    let time = |set, now, ns: u64| match (flags & set != 0, flags & now != 0) {
        (true, true) => Err(Errno::Inval),
        (true, false) => Ok(Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).map_err(|_| Errno::Inval)?,
            tv_nsec: i64::try_from(ns % 1_000_000_000).map_err(|_| Errno::Inval)?,
        }),
        (false, true) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        }),
        (false, false) => Ok(Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        }),
    };
    if flags > 15 {
        return Err(Errno::Inval.into());
    }
    let times = Timestamps {
        last_access: time(1, 2, atim)?,
        last_modification: time(4, 8, mtim)?,
    };
    Ok(rustix::fs::futimens(file, &times)?)
}

/// A `filestat`. The device is the volume's number: the host's own says nothing to a guest.
pub(super) fn filestat(meta: &Metadata, volume: u32) -> [u8; 64] {
    let ns = |seconds: i64, nanos: i64| {
        let seconds = u64::try_from(seconds).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(nanos).unwrap_or(0))
    };
    let mut stat = [0; 64];
    let mut put = |at: usize, value: u64| {
        stat[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    put(0, u64::from(volume) + 1);
    put(8, meta.ino());
    put(24, meta.nlink());
    put(32, meta.len());
    put(40, ns(meta.atime(), meta.atime_nsec()));
    put(48, ns(meta.mtime(), meta.mtime_nsec()));
    put(56, ns(meta.ctime(), meta.ctime_nsec()));
    stat[16] = filetype_of(meta.file_type());
    stat
}

pub(super) fn filetype_of(kind: cap_std::fs::FileType) -> u8 {
    if kind.is_dir() {
        filetype::DIRECTORY
    } else if kind.is_file() {
        filetype::REGULAR
    } else if kind.is_symlink() {
        filetype::SYMLINK
    } else {
        filetype::UNKNOWN
    }
}
