//! Shuts a process in before it reads anything untrusted: what remains is memory within a limit,
//! reading standard input, writing standard output and error, and ending.
//!
//! Invariants once [`jail`] has returned `Ok`: no file or socket can be opened, no process or
//! thread started, no memory made executable, no signal sent but `SIGABRT` to itself; any try
//! ends the process with `SIGSYS`. Inherited descriptors beyond 2 are useless, since `read` and
//! `write` are allowed on 0 and on 1, 2 only. The process dies with the thread that started it.

use std::{collections::BTreeMap, io};

use rustix::{
    process::{Resource, Rlimit, Signal},
    thread::set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// How much nicer than the agent the child runs: inference must not starve heartbeats.
const NICE: i32 = 5;
/// Open files: the three standard streams.
const FILES_MAX: u64 = 3;

/// Shuts the calling process in. It must have one thread only: the filter holds for that one.
/// `memory_bytes_max` is address space on top of what the process has now.
///
/// # Errors
/// If the system refuses any part; the process must then end without reading untrusted input.
pub fn jail(memory_bytes_max: u64) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    limit(Resource::Core, 0)?;
    limit(
        Resource::As,
        address_space_bytes()?.saturating_add(memory_bytes_max),
    )?;
    limit(Resource::Nofile, FILES_MAX)?;
    // Only ever less urgent; a system that refuses that leaves us as urgent as the agent.
    let _ = rustix::process::nice(NICE);
    set_no_new_privs(true)?;
    let filter = filter().map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    Ok(rustix::process::setrlimit(resource, limit)?)
}

/// What the process has mapped now: the binary, libraries, stack.
fn address_space_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm
        .split(' ')
        .next()
        .and_then(|pages| pages.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self/statm is unreadable"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // Always harmless: memory within the limit, time, own signal handling, the end.
    for call in [
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_getrandom,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ] {
        rules.insert(call, Vec::new());
    }
    let (read, write) = (libc::SYS_read, libc::SYS_write);
    rules.insert(read, vec![SeccompRule::new(vec![is(0, 0)?])?]);
    let streams = [1, 2].map(|fd| SeccompRule::new(vec![is(0, fd)?]));
    rules.insert(write, streams.into_iter().collect::<Result<_, _>>()?);
    let (prot, flags) = (2, 3);
    let anonymous = masked(flags, libc::MAP_ANONYMOUS, libc::MAP_ANONYMOUS)?;
    let rule = SeccompRule::new(vec![not_executable(prot)?, anonymous])?;
    rules.insert(libc::SYS_mmap, vec![rule]);
    rules.insert(
        libc::SYS_mprotect,
        vec![SeccompRule::new(vec![not_executable(prot)?])?],
    );
    // `abort` after a failed allocation.
    let abort = is(2, u64::from(libc::SIGABRT.unsigned_abs()))?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![abort])?]);

    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?
    .try_into()
}

fn is(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn masked(
    argument: u8,
    mask: i32,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    let op = SeccompCmpOp::MaskedEq(u64::from(mask.unsigned_abs()));
    let value = u64::from(value.unsigned_abs());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value)
}

fn not_executable(argument: u8) -> Result<SeccompCondition, seccompiler::BackendError> {
    masked(argument, libc::PROT_EXEC, 0)
}
