//! WASI preview 1, virtualised: every function of it exists, so that ordinary C and Rust
//! programs link; files only inside granted volumes, no sockets, clock and randomness as the
//! caller gives them.
//!
//! Each call is counted, gets the guest's memory as a checked view, and either gives the guest
//! an error code or ends the run. No call moves more than a bounded number of bytes.

mod abi;
mod dirs;
mod env;
mod fds;
mod host;
mod io;
mod mem;
mod meta;
mod paths;
mod poll;

use wasmtime::{Caller, Extern, Linker};

use self::abi::{Done, Fault};
use self::mem::Mem;
use super::meter::Halt;

pub use self::host::{Grants, Volume};
pub(crate) use self::host::{HasHost, Host, HostError, Setup};

/// The import module of WASI preview 1.
pub(super) const MODULE: &str = "wasi_snapshot_preview1";

/// What one host call works on.
struct Cx<'a> {
    mem: Mem<'a>,
    host: &'a mut Host,
}

/// Names, types and implementations of the functions that answer with an error code.
macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),*) = $function:path;)*) => {
        /// The names that guests may import from [`MODULE`].
        pub(super) const NAMES: &[&str] = &["proc_exit", $(stringify!($name)),*];

        /// Offers all functions to guests.
        pub(crate) fn add_to<T: HasHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
            linker.func_wrap(MODULE, "proc_exit", |code: i32| -> wasmtime::Result<()> {
                Err(Halt::Exit(code).into())
            })?;
            $(linker.func_wrap(
                MODULE,
                stringify!($name),
                |mut caller: Caller<'_, T>, $($arg: $ty),*| {
                    call(&mut caller, |cx| $function(cx, $($arg),*))
                },
            )?;)*
            Ok(())
        }
    };
}

functions! {
    args_get(argv: u32, buf: u32) = env::args_get;
    args_sizes_get(count: u32, bytes: u32) = env::args_sizes_get;
    environ_get(environ: u32, buf: u32) = env::environ_get;
    environ_sizes_get(count: u32, bytes: u32) = env::environ_sizes_get;
    clock_res_get(id: u32, out: u32) = env::clock_res_get;
    clock_time_get(id: u32, precision: u64, out: u32) = env::clock_time_get;
    random_get(buf: u32, len: u32) = env::random_get;
    sched_yield() = env::sched_yield;
    proc_raise(signal: u32) = env::proc_raise;
    poll_oneoff(subs: u32, events: u32, count: u32, out: u32) = poll::poll_oneoff;
    fd_read(fd: u32, iovs: u32, count: u32, out: u32) = io::fd_read;
    fd_write(fd: u32, iovs: u32, count: u32, out: u32) = io::fd_write;
    fd_pread(fd: u32, iovs: u32, count: u32, offset: u64, out: u32) = io::fd_pread;
    fd_pwrite(fd: u32, iovs: u32, count: u32, offset: u64, out: u32) = io::fd_pwrite;
    fd_seek(fd: u32, delta: i64, whence: u32, out: u32) = io::fd_seek;
    fd_tell(fd: u32, out: u32) = io::fd_tell;
    fd_advise(fd: u32, offset: u64, len: u64, advice: u32) = meta::fd_advise;
    fd_allocate(fd: u32, offset: u64, len: u64) = meta::fd_allocate;
    fd_close(fd: u32) = meta::fd_close;
    fd_datasync(fd: u32) = meta::fd_datasync;
    fd_sync(fd: u32) = meta::fd_sync;
    fd_fdstat_get(fd: u32, out: u32) = meta::fd_fdstat_get;
    fd_fdstat_set_flags(fd: u32, flags: u32) = meta::fd_fdstat_set_flags;
    fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64) = meta::fd_fdstat_set_rights;
    fd_filestat_get(fd: u32, out: u32) = meta::fd_filestat_get;
    fd_filestat_set_size(fd: u32, size: u64) = meta::fd_filestat_set_size;
    fd_filestat_set_times(fd: u32, atim: u64, mtim: u64, flags: u32)
        = meta::fd_filestat_set_times;
    fd_prestat_get(fd: u32, out: u32) = dirs::fd_prestat_get;
    fd_prestat_dir_name(fd: u32, path: u32, len: u32) = dirs::fd_prestat_dir_name;
    fd_readdir(fd: u32, buf: u32, len: u32, cookie: u64, out: u32) = dirs::fd_readdir;
    fd_renumber(from: u32, to: u32) = meta::fd_renumber;
    path_open(fd: u32, lookup: u32, path: u32, len: u32, oflags: u32, rights: u64,
        inheriting: u64, flags: u32, out: u32) = paths::path_open;
    path_create_directory(fd: u32, path: u32, len: u32) = paths::path_create_directory;
    path_filestat_get(fd: u32, lookup: u32, path: u32, len: u32, out: u32)
        = paths::path_filestat_get;
    path_filestat_set_times(fd: u32, lookup: u32, path: u32, len: u32, atim: u64, mtim: u64,
        flags: u32) = paths::path_filestat_set_times;
    path_link(fd: u32, lookup: u32, path: u32, len: u32, to_fd: u32, to: u32, to_len: u32)
        = paths::path_link;
    path_readlink(fd: u32, path: u32, len: u32, buf: u32, buf_len: u32, out: u32)
        = paths::path_readlink;
    path_remove_directory(fd: u32, path: u32, len: u32) = paths::path_remove_directory;
    path_rename(fd: u32, path: u32, len: u32, to_fd: u32, to: u32, to_len: u32)
        = paths::path_rename;
    path_symlink(target: u32, target_len: u32, fd: u32, path: u32, len: u32)
        = paths::path_symlink;
    path_unlink_file(fd: u32, path: u32, len: u32) = paths::path_unlink_file;
    sock_accept(fd: u32, flags: u32, out: u32) = env::sock_accept;
    sock_recv(fd: u32, iovs: u32, count: u32, flags: u32, out: u32, out_flags: u32)
        = env::sock_recv;
    sock_send(fd: u32, iovs: u32, count: u32, flags: u32, out: u32) = env::sock_send;
    sock_shutdown(fd: u32, how: u32) = env::sock_shutdown;
}

/// Counts the call, gives it the guest's memory, and turns its fault into what the guest sees.
fn call<T: HasHost>(
    caller: &mut Caller<'_, T>,
    function: impl FnOnce(&mut Cx<'_>) -> Done,
) -> wasmtime::Result<i32> {
    caller.data_mut().host_mut().meter.host_call()?;
    let memory = match caller.data_mut().host_mut().memory {
        Some(memory) => Some(memory),
        // Only while the module's own start function runs.
        None => caller.get_export("memory").and_then(Extern::into_memory),
    };
    let (bytes, host) = match memory {
        Some(memory) => {
            let (bytes, data) = memory.data_and_store_mut(caller);
            (bytes, data.host_mut())
        }
        None => (&mut [][..], caller.data_mut().host_mut()),
    };
    match function(&mut Cx {
        mem: Mem(bytes),
        host,
    }) {
        Ok(()) => Ok(0),
        Err(Fault::Errno(errno)) => Ok(i32::from(errno as u16)),
        Err(Fault::Halt(halt)) => Err(halt.into()),
    }
}
