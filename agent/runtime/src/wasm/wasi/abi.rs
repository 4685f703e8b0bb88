//! WASI preview 1 numbers: errors, rights, flags.

use std::io;

use rustix::io::Errno as Os;

use super::super::cancel::Stop;
use super::super::meter::Halt;

/// An error that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Errno {
    Acces = 2,
    Again = 6,
    Badf = 8,
    Busy = 10,
    Dquot = 19,
    Exist = 20,
    Fault = 21,
    Fbig = 22,
    Ilseq = 25,
    Inval = 28,
    Io = 29,
    Isdir = 31,
    Loop = 32,
    Mfile = 33,
    Mlink = 34,
    Nametoolong = 37,
    Noent = 44,
    Nomem = 48,
    Nospc = 51,
    Notdir = 54,
    Notempty = 55,
    Notsup = 58,
    Overflow = 61,
    Perm = 63,
    Pipe = 64,
    Rofs = 69,
    Spipe = 70,
    Txtbsy = 74,
    Xdev = 75,
    Notcapable = 76,
}

impl From<Os> for Errno {
    fn from(os: Os) -> Self {
        match os {
            Os::ACCESS => Self::Acces,
            Os::AGAIN => Self::Again,
            Os::BADF => Self::Badf,
            Os::BUSY => Self::Busy,
            Os::DQUOT => Self::Dquot,
            Os::EXIST => Self::Exist,
            Os::FBIG => Self::Fbig,
            Os::INVAL => Self::Inval,
            Os::ISDIR => Self::Isdir,
            Os::LOOP => Self::Loop,
            Os::MFILE | Os::NFILE => Self::Mfile,
            Os::MLINK => Self::Mlink,
            Os::NAMETOOLONG => Self::Nametoolong,
            Os::NOENT => Self::Noent,
            Os::NOMEM => Self::Nomem,
            Os::NOSPC => Self::Nospc,
            Os::NOTDIR => Self::Notdir,
            Os::NOTEMPTY => Self::Notempty,
            Os::NOTSUP => Self::Notsup,
            Os::OVERFLOW => Self::Overflow,
            Os::PERM => Self::Perm,
            Os::ROFS => Self::Rofs,
            Os::SPIPE => Self::Spipe,
            Os::TXTBSY => Self::Txtbsy,
            Os::XDEV => Self::Xdev,
            _ => Self::Io,
        }
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        match (Os::from_io_error(&error), error.kind()) {
            (Some(os), _) => os.into(),
            // How cap-std says that a path leads out of its directory.
            (None, io::ErrorKind::PermissionDenied) => Self::Notcapable,
            (None, io::ErrorKind::InvalidInput) => Self::Inval,
            (None, io::ErrorKind::NotFound) => Self::Noent,
            (None, _) => Self::Io,
        }
    }
}

/// Why a host call did not do what was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// The guest gets an error code and goes on.
    Errno(Errno),
    /// The run ends.
    Halt(Halt),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Errno(error.into())
    }
}

impl From<Os> for Fault {
    fn from(error: Os) -> Self {
        Self::Errno(error.into())
    }
}

impl From<Halt> for Fault {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        Self::Halt(stop.into())
    }
}

pub(super) type Done = Result<(), Fault>;

pub(super) mod right {
    pub(crate) const FD_READ: u64 = 1 << 1;
    pub(crate) const FD_SEEK: u64 = 1 << 2;
    pub(crate) const FD_TELL: u64 = 1 << 5;
    pub(crate) const FD_WRITE: u64 = 1 << 6;
    pub(crate) const FD_ALLOCATE: u64 = 1 << 8;
    pub(crate) const PATH_CREATE_DIRECTORY: u64 = 1 << 9;
    pub(crate) const PATH_CREATE_FILE: u64 = 1 << 10;
    pub(crate) const PATH_LINK_TARGET: u64 = 1 << 12;
    pub(crate) const FD_READDIR: u64 = 1 << 14;
    pub(crate) const PATH_RENAME_SOURCE: u64 = 1 << 16;
    pub(crate) const PATH_RENAME_TARGET: u64 = 1 << 17;
    pub(crate) const PATH_FILESTAT_SET_SIZE: u64 = 1 << 19;
    pub(crate) const PATH_FILESTAT_SET_TIMES: u64 = 1 << 20;
    pub(crate) const FD_FILESTAT_SET_SIZE: u64 = 1 << 22;
    pub(crate) const FD_FILESTAT_SET_TIMES: u64 = 1 << 23;
    pub(crate) const PATH_SYMLINK: u64 = 1 << 24;
    pub(crate) const PATH_REMOVE_DIRECTORY: u64 = 1 << 25;
    pub(crate) const PATH_UNLINK_FILE: u64 = 1 << 26;
    pub(crate) const POLL_FD_READWRITE: u64 = 1 << 27;

    /// Every right of preview 1 but those of sockets.
    pub(crate) const ALL: u64 = (1 << 28) - 1;
    /// Changes a file's contents or length.
    pub(crate) const WRITES_FILE: u64 = FD_WRITE | FD_ALLOCATE | FD_FILESTAT_SET_SIZE;
    /// Those that make sense on a file: not the `path_*` ones, not reading directories.
    pub(crate) const FILE: u64 = ALL & !(((1 << 21) - 1) & !((1 << 9) - 1)) & !(7 << 24);
    /// Those that make sense on a directory.
    pub(crate) const DIR: u64 = ALL & !(FD_READ | FD_SEEK | FD_TELL | WRITES_FILE);
    /// Those that a read-only directory does not have.
    pub(crate) const CHANGES_DIR: u64 = PATH_CREATE_DIRECTORY
        | PATH_CREATE_FILE
        | PATH_LINK_TARGET
        | PATH_RENAME_SOURCE
        | PATH_RENAME_TARGET
        | PATH_FILESTAT_SET_SIZE
        | PATH_FILESTAT_SET_TIMES
        | FD_FILESTAT_SET_TIMES
        | PATH_SYMLINK
        | PATH_REMOVE_DIRECTORY
        | PATH_UNLINK_FILE;
}

pub(super) mod filetype {
    pub(crate) const UNKNOWN: u8 = 0;
    pub(crate) const DIRECTORY: u8 = 3;
    pub(crate) const REGULAR: u8 = 4;
    pub(crate) const SYMLINK: u8 = 7;
}

pub(super) mod oflag {
    pub(crate) const CREAT: u32 = 1;
    pub(crate) const DIRECTORY: u32 = 2;
    pub(crate) const EXCL: u32 = 4;
    pub(crate) const TRUNC: u32 = 8;
}

pub(super) mod fdflag {
    pub(crate) const APPEND: u16 = 1;
    pub(crate) const DSYNC: u16 = 2;
    pub(crate) const NONBLOCK: u16 = 4;
    pub(crate) const SYNC: u16 = 16;
    pub(crate) const ALL: u16 = 31;
}

/// `lookupflags`: follow a symbolic link at the end of the path.
pub(super) const SYMLINK_FOLLOW: u32 = 1;

pub(super) mod clock {
    pub(crate) const REALTIME: u32 = 0;
    pub(crate) const MONOTONIC: u32 = 1;
    pub(crate) const PROCESS_CPU: u32 = 2;
    pub(crate) const THREAD_CPU: u32 = 3;
}
