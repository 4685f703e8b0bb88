//! Arguments, environment, clocks, randomness, and what we do not offer.

use super::super::outcome::micros;
use super::Cx;
use super::abi::{Done, Errno, Fault, clock};
use super::mem::IO_BYTES_MAX;

pub(super) fn args_sizes_get(cx: &mut Cx<'_>, count: u32, bytes: u32) -> Done {
    sizes(&cx.host.args).and_then(|sizes| put_sizes(cx, sizes, count, bytes))
}

pub(super) fn environ_sizes_get(cx: &mut Cx<'_>, count: u32, bytes: u32) -> Done {
    sizes(&cx.host.env).and_then(|sizes| put_sizes(cx, sizes, count, bytes))
}

pub(super) fn args_get(cx: &mut Cx<'_>, argv: u32, buf: u32) -> Done {
    let strings = std::mem::take(&mut cx.host.args);
    let done = put_strings(cx, &strings, argv, buf);
    cx.host.args = strings;
    done
}

pub(super) fn environ_get(cx: &mut Cx<'_>, environ: u32, buf: u32) -> Done {
    let strings = std::mem::take(&mut cx.host.env);
    let done = put_strings(cx, &strings, environ, buf);
    cx.host.env = strings;
    done
}

fn sizes(strings: &[Vec<u8>]) -> Result<(u32, u32), Fault> {
    let bytes: usize = strings.iter().map(Vec::len).sum();
    let fits = |n| u32::try_from(n).map_err(|_| Errno::Overflow);
    Ok((fits(strings.len())?, fits(bytes)?))
}

fn put_sizes(cx: &mut Cx<'_>, sizes: (u32, u32), count: u32, bytes: u32) -> Done {
    cx.mem.put_u32(count, sizes.0)?;
    Ok(cx.mem.put_u32(bytes, sizes.1)?)
}

fn put_strings(cx: &mut Cx<'_>, strings: &[Vec<u8>], mut pointers: u32, mut buf: u32) -> Done {
    for string in strings {
        cx.mem.put_u32(pointers, buf)?;
        cx.mem.put(buf, string)?;
        pointers = pointers.checked_add(4).ok_or(Errno::Fault)?;
        let len = u32::try_from(string.len()).map_err(|_| Errno::Overflow)?;
        buf = buf.checked_add(len).ok_or(Errno::Fault)?;
    }
    Ok(())
}

pub(super) fn clock_res_get(cx: &mut Cx<'_>, id: u32, out: u32) -> Done {
    let ns = match id {
        clock::REALTIME | clock::MONOTONIC => 1,
        clock::PROCESS_CPU | clock::THREAD_CPU => 1_000,
        _ => return Err(Errno::Inval.into()),
    };
    Ok(cx.mem.put_u64(out, ns)?)
}

pub(super) fn clock_time_get(cx: &mut Cx<'_>, id: u32, _precision: u64, out: u32) -> Done {
    let ns = now(cx, id)?;
    Ok(cx.mem.put_u64(out, ns)?)
}

/// The reading of a clock, nanoseconds. CPU clocks show the guest's own use since its start;
/// where time is virtual they show that, lest the host's shine through.
pub(super) fn now(cx: &mut Cx<'_>, id: u32) -> Result<u64, Errno> {
    match id {
        clock::REALTIME => Ok(cx.host.clock.realtime_ns()),
        clock::MONOTONIC => Ok(cx.host.clock.monotonic_ns()),
        clock::PROCESS_CPU | clock::THREAD_CPU => match &mut cx.host.clock {
            super::super::clock::GuestClock::Host => {
                Ok(micros(cx.host.meter.cpu()).saturating_mul(1_000))
            }
            virtual_time => Ok(virtual_time.monotonic_ns()),
        },
        _ => Err(Errno::Inval),
    }
}

/// Must fill the whole buffer, hence bounded.
pub(super) fn random_get(cx: &mut Cx<'_>, buf: u32, len: u32) -> Done {
    if len > IO_BYTES_MAX {
        return Err(Errno::Inval.into());
    }
    let range = cx.mem.range(buf, len)?;
    cx.host
        .random
        .fill(cx.mem.bytes_mut(range))
        .map_err(|_| Errno::Io)?;
    Ok(())
}

pub(super) fn sched_yield(_cx: &mut Cx<'_>) -> Done {
    std::thread::yield_now();
    Ok(())
}

/// There are no signals.
pub(super) fn proc_raise(_cx: &mut Cx<'_>, _signal: u32) -> Done {
    Err(Errno::Notsup.into())
}

fn no_sockets(cx: &Cx<'_>, fd: u32) -> Done {
    cx.host.fds.get(fd)?;
    Err(Errno::Notsup.into())
}

pub(super) fn sock_accept(cx: &mut Cx<'_>, fd: u32, _flags: u32, _out: u32) -> Done {
    no_sockets(cx, fd)
}

pub(super) fn sock_recv(
    cx: &mut Cx<'_>,
    fd: u32,
    _iovs: u32,
    _count: u32,
    _flags: u32,
    _out: u32,
    _out_flags: u32,
) -> Done {
    no_sockets(cx, fd)
}

pub(super) fn sock_send(
    cx: &mut Cx<'_>,
    fd: u32,
    _iovs: u32,
    _count: u32,
    _flags: u32,
    _out: u32,
) -> Done {
    no_sockets(cx, fd)
}

pub(super) fn sock_shutdown(cx: &mut Cx<'_>, fd: u32, _how: u32) -> Done {
    no_sockets(cx, fd)
}
