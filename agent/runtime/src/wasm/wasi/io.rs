//! Reading, writing and seeking.

use std::io::IoSlice;

use rustix::io::{ReadWriteFlags, pread, pwrite, pwritev2};

use super::super::cancel::Stop;
use super::super::stdio::WriteError;
use super::Cx;
use super::abi::{Done, Errno, Fault, fdflag, right};
use super::fds::{FileFd, Kind};
use super::mem::{Mem, Range};

pub(super) fn fd_read(cx: &mut Cx<'_>, fd: u32, iovs: u32, count: u32, out: u32) -> Done {
    let ranges = cx.mem.iovecs(iovs, count)?;
    cx.mem.range(out, 4)?;
    let open = cx.host.fds.get_mut(fd)?;
    let flags = open.flags;
    let readable = open.need(right::FD_READ);
    let n = match &mut open.kind {
        Kind::Stdin => read_stream(cx, flags, &ranges)?,
        Kind::File(file) => {
            readable?;
            let n = read_at(&mut cx.mem, file, &ranges, file.position)?;
            file.position += n as u64;
            n
        }
        Kind::Dir(_) => return Err(Errno::Isdir.into()),
        Kind::Stdout | Kind::Stderr => return Err(Errno::Badf.into()),
    };
    put_count(cx, out, n)
}

pub(super) fn fd_write(cx: &mut Cx<'_>, fd: u32, iovs: u32, count: u32, out: u32) -> Done {
    let ranges = cx.mem.iovecs(iovs, count)?;
    cx.mem.range(out, 4)?;
    let open = cx.host.fds.get_mut(fd)?;
    let flags = open.flags;
    let n = match &mut open.kind {
        Kind::Stdout | Kind::Stderr => write_stream(cx, fd, flags, &ranges)?,
        Kind::File(_) => write_file(cx, fd, &ranges, None)?,
        Kind::Dir(_) => return Err(Errno::Isdir.into()),
        Kind::Stdin => return Err(Errno::Badf.into()),
    };
    put_count(cx, out, n)
}

pub(super) fn fd_pread(
    cx: &mut Cx<'_>,
    fd: u32,
    iovs: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Done {
    let ranges = cx.mem.iovecs(iovs, count)?;
    cx.mem.range(out, 4)?;
    let file = cx.host.fds.file(fd, right::FD_READ | right::FD_SEEK)?;
    let n = read_at(&mut cx.mem, file, &ranges, offset)?;
    put_count(cx, out, n)
}

pub(super) fn fd_pwrite(
    cx: &mut Cx<'_>,
    fd: u32,
    iovs: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Done {
    let ranges = cx.mem.iovecs(iovs, count)?;
    cx.mem.range(out, 4)?;
    cx.host.fds.file(fd, right::FD_WRITE | right::FD_SEEK)?;
    let n = write_file(cx, fd, &ranges, Some(offset))?;
    put_count(cx, out, n)
}

pub(super) fn fd_seek(cx: &mut Cx<'_>, fd: u32, delta: i64, whence: u32, out: u32) -> Done {
    cx.mem.range(out, 8)?;
    let file = cx.host.fds.file(fd, right::FD_SEEK)?;
    let base = match whence {
        0 => 0,
        1 => file.position,
        2 => file.file.metadata()?.len(),
        _ => return Err(Errno::Inval.into()),
    };
    let position = base
        .checked_add_signed(delta)
        .filter(|p| i64::try_from(*p).is_ok());
    let position = position.ok_or(Errno::Inval)?;
    if let Kind::File(file) = &mut cx.host.fds.get_mut(fd)?.kind {
        file.position = position;
    }
    Ok(cx.mem.put_u64(out, position)?)
}

pub(super) fn fd_tell(cx: &mut Cx<'_>, fd: u32, out: u32) -> Done {
    let position = cx.host.fds.file(fd, right::FD_TELL)?.position;
    Ok(cx.mem.put_u64(out, position)?)
}

/// Bytes moved are at most `IO_BYTES_MAX`, which fits.
fn put_count(cx: &mut Cx<'_>, out: u32, n: usize) -> Done {
    Ok(cx.mem.put_u32(out, u32::try_from(n).unwrap_or(u32::MAX))?)
}

/// Reads into the first buffer only: waiting for more would hold back what is there.
fn read_stream(cx: &mut Cx<'_>, flags: u16, ranges: &[Range]) -> Result<usize, Fault> {
    let Some(first) = ranges.first() else {
        return Ok(0);
    };
    let wait = cx.host.stream_wait(flags);
    let read = cx.host.stdin.read(cx.mem.bytes_mut(*first), &wait);
    read.map_err(|stop| stopped(stop, flags))
}

fn write_stream(cx: &mut Cx<'_>, fd: u32, flags: u16, ranges: &[Range]) -> Result<usize, Fault> {
    let wait = cx.host.stream_wait(flags);
    let host = &mut *cx.host;
    let stream = match host.fds.get(fd)?.kind {
        Kind::Stderr => &host.stderr,
        _ => &host.stdout,
    };
    let mut total = 0;
    for range in ranges {
        let bytes = cx.mem.bytes(*range);
        let allowed = host.meter.output_left(bytes.len());
        if allowed == 0 {
            return Err(host.meter.output_exceeded(bytes.len()).into());
        }
        let n = match stream.write(&bytes[..allowed], &wait) {
            Ok(n) => n.min(allowed),
            Err(WriteError::Closed) => return Err(Errno::Pipe.into()),
            // What was written already must be reported; the guest comes back for the rest.
            Err(WriteError::Stop(Stop::Deadline)) if total > 0 => break,
            Err(WriteError::Stop(stop)) => return Err(stopped(stop, flags)),
        };
        host.meter.wrote_output(n);
        total += n;
        if n < bytes.len() {
            break;
        }
    }
    Ok(total)
}

fn stopped(stop: Stop, flags: u16) -> Fault {
    match stop {
        Stop::Deadline if flags & fdflag::NONBLOCK != 0 => Errno::Again.into(),
        stop => stop.into(),
    }
}

fn read_at(
    mem: &mut Mem<'_>,
    file: &FileFd,
    ranges: &[Range],
    offset: u64,
) -> Result<usize, Fault> {
    let mut total = 0;
    for range in ranges {
        let at = offset.checked_add(total as u64).ok_or(Errno::Inval)?;
        let n = pread(&file.file, mem.bytes_mut(*range), at)?;
        total += n;
        if n < range.len() {
            break;
        }
    }
    Ok(total)
}

/// Writes at `offset`, or where the file's position (or its end, if appending) is.
fn write_file(
    cx: &mut Cx<'_>,
    fd: u32,
    ranges: &[Range],
    offset: Option<u64>,
) -> Result<usize, Fault> {
    let open = cx.host.fds.get_mut(fd)?;
    open.need(right::FD_WRITE)?;
    let flags = open.flags;
    let Kind::File(file) = &mut open.kind else {
        return Err(Errno::Badf.into());
    };
    let append = offset.is_none() && flags & fdflag::APPEND != 0;
    let mut at = offset.unwrap_or(file.position);
    let mut total = 0;
    for range in ranges {
        let bytes = cx.mem.bytes(*range);
        let n = if append {
            pwritev2(
                &file.file,
                &[IoSlice::new(bytes)],
                0,
                ReadWriteFlags::APPEND,
            )?
        } else {
            pwrite(&file.file, bytes, at)?
        };
        total += n;
        at = at.checked_add(n as u64).ok_or(Errno::Fbig)?;
        if n < bytes.len() {
            break;
        }
    }
    if offset.is_none() {
        file.position = if append {
            file.file.metadata()?.len()
        } else {
            at
        };
    }
    if flags & (fdflag::DSYNC | fdflag::SYNC) != 0 {
        rustix::fs::fdatasync(&file.file)?;
    }
    Ok(total)
}
