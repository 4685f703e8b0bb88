//! `poll_oneoff`: sleeping, and waiting for standard input.
//!
//! Files are always ready, and so is output (a write may still block for back-pressure).

use std::time::Instant;

use super::super::cancel::{Stop, Wait};
use super::super::clock::GuestClock;
use super::super::stdio::Readiness;
use super::Cx;
use super::abi::{Done, Errno, Fault, clock};
use super::env::now;
use super::fds::Kind;

/// Subscriptions of one call.
const SUBSCRIPTIONS_MAX: u32 = 256;
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;

struct Subscription {
    userdata: [u8; 8],
    tag: u8,
    want: Want,
}

enum Want {
    /// After this many nanoseconds.
    Timer(u64),
    /// When standard input can be read.
    Stdin,
    /// Nothing: the answer is known.
    Now(Result<Readiness, Errno>),
}

pub(super) fn poll_oneoff(cx: &mut Cx<'_>, subs: u32, events: u32, count: u32, out: u32) -> Done {
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::Inval.into());
    }
    cx.mem.range(events, count * 32)?;
    cx.mem.range(out, 4)?;
    let mut wanted = Vec::with_capacity(count as usize);
    for n in 0..count {
        let at = subs.checked_add(n * 48).ok_or(Errno::Fault)?;
        let raw = cx.mem.array(at)?;
        wanted.push(parse(cx, &raw)?);
    }
    let (slept_ns, stdin) = wait_for(cx, &wanted)?;
    let mut written = 0;
    for sub in &wanted {
        let result = match &sub.want {
            Want::Timer(ns) if *ns <= slept_ns => Ok(Readiness {
                bytes: 0,
                end: false,
            }),
            Want::Stdin => match stdin {
                Some(readiness) => Ok(readiness),
                None => continue,
            },
            Want::Now(result) => *result,
            Want::Timer(_) => continue,
        };
        cx.mem.put(events + written * 32, &event(sub, result))?;
        written += 1;
    }
    Ok(cx.mem.put_u32(out, written)?)
}

fn parse(cx: &mut Cx<'_>, raw: &[u8; 48]) -> Result<Subscription, Fault> {
    let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let (tag, fd) = (raw[8], word(16));
    let want = match tag {
        CLOCK => match word(16) {
            id @ (clock::REALTIME | clock::MONOTONIC) => {
                let absolute = raw[40] & 1 != 0;
                let passed = if absolute { now(cx, id)? } else { 0 };
                Want::Timer(long(24).saturating_sub(passed))
            }
            _ => Want::Now(Err(Errno::Inval)),
        },
        FD_READ | FD_WRITE => ready(cx, fd, tag),
        _ => return Err(Errno::Inval.into()),
    };
    let mut userdata = [0; 8];
    userdata.copy_from_slice(&raw[..8]);
    Ok(Subscription {
        userdata,
        tag,
        want,
    })
}

fn ready(cx: &Cx<'_>, fd: u32, tag: u8) -> Want {
    let open = match cx.host.fds.get(fd) {
        Ok(open) => open,
        Err(errno) => return Want::Now(Err(errno)),
    };
    let bytes = match (&open.kind, tag) {
        (Kind::Stdin, FD_READ) => return Want::Stdin,
        (Kind::File(file), FD_READ) => file
            .file
            .metadata()
            .map_or(0, |meta| meta.len().saturating_sub(file.position)),
        (Kind::File(_) | Kind::Stdout | Kind::Stderr, FD_WRITE) => 1,
        _ => return Want::Now(Err(Errno::Badf)),
    };
    Want::Now(Ok(Readiness { bytes, end: false }))
}

/// Waits for the first thing wanted. Gives the guest time that passed in nanoseconds, and
/// whether standard input is ready.
fn wait_for(cx: &mut Cx<'_>, wanted: &[Subscription]) -> Result<(u64, Option<Readiness>), Fault> {
    let timers = wanted.iter().filter_map(|sub| match sub.want {
        Want::Timer(ns) => Some(ns),
        _ => None,
    });
    let first_ns = timers.min();
    let stdin = wanted.iter().any(|sub| matches!(sub.want, Want::Stdin));
    let known = wanted.iter().any(|sub| matches!(sub.want, Want::Now(_)));
    if known {
        let at_once = Some(Instant::now());
        return Ok((
            0,
            if stdin {
                stdin_ready(cx, at_once)?
            } else {
                None
            },
        ));
    }
    if stdin && matches!(cx.host.clock, GuestClock::Virtual(_)) && first_ns.is_some() {
        // Virtual time does not pass while real input is awaited: look, then let it pass.
        if let Some(ready) = stdin_ready(cx, Some(Instant::now()))? {
            return Ok((0, Some(ready)));
        }
    }
    let started = Instant::now();
    let until = match first_ns {
        None => None,
        Some(ns) => match cx.host.clock.sleep(ns) {
            Ok(None) => return Ok((ns, None)),
            Ok(until) => until,
            Err(_beyond) => None,
        },
    };
    let readiness = if stdin {
        stdin_ready(cx, until)?
    } else {
        let wait = cx.host.meter.wait();
        wait.cancel.sleep_until(earlier(until, wait.deadline))?;
        None
    };
    if readiness.is_none() {
        cx.host.meter.wait().check()?;
    }
    let slept_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // A timer that was waited out has passed, whatever the rounding.
    let timer_ns = if readiness.is_none() {
        first_ns.unwrap_or(0)
    } else {
        0
    };
    Ok((slept_ns.max(timer_ns), readiness))
}

/// Waits for standard input until `until`, or the run's own deadline.
fn stdin_ready(cx: &Cx<'_>, until: Option<Instant>) -> Result<Option<Readiness>, Fault> {
    let own = cx.host.meter.wait();
    let wait = Wait {
        cancel: own.cancel.clone(),
        deadline: earlier(until, own.deadline),
    };
    match cx.host.stdin.ready(&wait) {
        Ok(readiness) => Ok(Some(readiness)),
        Err(Stop::Cancelled) => Err(Stop::Cancelled.into()),
        Err(Stop::Deadline) => Ok(None),
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

fn event(sub: &Subscription, result: Result<Readiness, Errno>) -> [u8; 32] {
    let mut event = [0; 32];
    event[..8].copy_from_slice(&sub.userdata);
    event[10] = sub.tag;
    match result {
        Ok(readiness) => {
            event[16..24].copy_from_slice(&readiness.bytes.to_le_bytes());
            event[24] = u8::from(readiness.end && readiness.bytes == 0);
        }
        Err(errno) => event[8..10].copy_from_slice(&(errno as u16).to_le_bytes()),
    }
    event
}
