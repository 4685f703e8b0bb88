//! The guest's descriptors. Positions and flags are ours, not the kernel's, so that a table
//! is data. Bounded; the lowest free number is given, as POSIX has it.

use cap_std::fs::{Dir, File};

use super::abi::{Errno, filetype, right};

/// Descriptors of one guest: each may hold one of the agent's.
pub(super) const FDS_MAX: usize = 128;

/// What a descriptor stands for.
pub(super) enum Kind {
    Stdin,
    Stdout,
    Stderr,
    Dir(DirFd),
    File(FileFd),
}

/// An open directory inside a volume.
pub(super) struct DirFd {
    pub(super) dir: Dir,
    pub(super) volume: u32,
    pub(super) read_only: bool,
    /// The path under which it was granted, if it was.
    pub(super) preopen: Option<String>,
}

/// An open regular file inside a volume.
pub(super) struct FileFd {
    pub(super) file: File,
    pub(super) volume: u32,
    pub(super) position: u64,
}

/// One descriptor.
pub(super) struct Fd {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) rights: u64,
    pub(super) inheriting: u64,
}

impl Fd {
    pub(super) fn filetype(&self) -> u8 {
        match self.kind {
            // Not a character device, so that a C library buffers it.
            Kind::Stdin | Kind::Stdout | Kind::Stderr => filetype::UNKNOWN,
            Kind::Dir(_) => filetype::DIRECTORY,
            Kind::File(_) => filetype::REGULAR,
        }
    }

    pub(super) fn need(&self, rights: u64) -> Result<(), Errno> {
        if self.rights & rights == rights {
            Ok(())
        } else {
            Err(Errno::Notcapable)
        }
    }
}

/// All descriptors of one guest.
pub(super) struct Fds {
    open: Vec<Option<Fd>>,
    /// Whether any of it may have changed since [`untouched`](Self::untouched).
    touched: bool,
}

impl Fds {
    /// Standard input, output and error at 0, 1, 2.
    pub(super) fn new() -> Self {
        let stdio = |kind, right| {
            let rights = right | right::POLL_FD_READWRITE | 1 << 3 | 1 << 21;
            Some(Fd {
                kind,
                flags: 0,
                rights,
                inheriting: 0,
            })
        };
        let open = vec![
            stdio(Kind::Stdin, right::FD_READ),
            stdio(Kind::Stdout, right::FD_WRITE),
            stdio(Kind::Stderr, right::FD_WRITE),
        ];
        let touched = false;
        Self { open, touched }
    }

    /// From now on, [`is_touched`](Self::is_touched) tells of changes.
    pub(super) fn untouched(&mut self) {
        self.touched = false;
    }

    /// Whether a descriptor may have been opened, closed, moved or changed.
    pub(super) fn is_touched(&self) -> bool {
        self.touched
    }

    pub(super) fn insert(&mut self, fd: Fd) -> Result<u32, Errno> {
        self.touched = true;
        let free = self
            .open
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.open.len());
        if free >= FDS_MAX {
            return Err(Errno::Mfile);
        }
        if free == self.open.len() {
            self.open.push(None);
        }
        self.open[free] = Some(fd);
        u32::try_from(free).map_err(|_| Errno::Mfile)
    }

    /// Whether one more fits: asked before anything is opened or created for it.
    pub(super) fn has_room(&self) -> Result<(), Errno> {
        let open = self.open.iter().filter(|fd| fd.is_some()).count();
        if open < FDS_MAX {
            Ok(())
        } else {
            Err(Errno::Mfile)
        }
    }

    pub(super) fn get(&self, fd: u32) -> Result<&Fd, Errno> {
        self.open
            .get(fd as usize)
            .and_then(Option::as_ref)
            .ok_or(Errno::Badf)
    }

    pub(super) fn get_mut(&mut self, fd: u32) -> Result<&mut Fd, Errno> {
        self.touched = true;
        self.open
            .get_mut(fd as usize)
            .and_then(Option::as_mut)
            .ok_or(Errno::Badf)
    }

    pub(super) fn remove(&mut self, fd: u32) -> Result<Fd, Errno> {
        self.touched = true;
        self.open
            .get_mut(fd as usize)
            .and_then(Option::take)
            .ok_or(Errno::Badf)
    }

    /// Moves `from` onto the open descriptor `to`, which is closed.
    pub(super) fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.get(to)?;
        let moved = self.remove(from)?;
        *self.open.get_mut(to as usize).ok_or(Errno::Badf)? = Some(moved);
        Ok(())
    }

    pub(super) fn dir(&self, fd: u32) -> Result<&DirFd, Errno> {
        match &self.get(fd)?.kind {
            Kind::Dir(dir) => Ok(dir),
            _ => Err(Errno::Notdir),
        }
    }

    /// A directory in which things may be changed.
    pub(super) fn writable_dir(&self, fd: u32) -> Result<&DirFd, Errno> {
        let dir = self.dir(fd)?;
        if dir.read_only {
            Err(Errno::Rofs)
        } else {
            Ok(dir)
        }
    }

    /// A file, with all of these rights.
    pub(super) fn file(&self, fd: u32, rights: u64) -> Result<&FileFd, Errno> {
        let fd = self.get(fd)?;
        match &fd.kind {
            Kind::File(file) => fd.need(rights).map(|()| file),
            Kind::Dir(_) => Err(Errno::Isdir),
            _ => Err(Errno::Spipe),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn any_fd() -> Fd {
        Fd {
            kind: Kind::Stdin,
            flags: 0,
            rights: 0,
            inheriting: 0,
        }
    }

    #[test]
    fn the_table_is_bounded_and_reuses_the_lowest_number() {
        let mut fds = Fds::new();
        for n in 3..FDS_MAX as u32 {
            assert_eq!(fds.insert(any_fd()), Ok(n));
        }
        assert_eq!(fds.insert(any_fd()), Err(Errno::Mfile));
        assert_eq!(fds.has_room(), Err(Errno::Mfile));
        assert!(fds.remove(7).is_ok());
        assert_eq!(fds.remove(7).err(), Some(Errno::Badf));
        assert_eq!(fds.insert(any_fd()), Ok(7));
        assert_eq!(fds.get(u32::MAX).err(), Some(Errno::Badf));
        assert_eq!(fds.renumber(7, 1_000), Err(Errno::Badf));
        assert_eq!(fds.renumber(7, 8), Ok(()));
        assert_eq!(fds.get(7).err(), Some(Errno::Badf));
    }

    #[test]
    fn file_and_directory_rights_do_not_mix() {
        assert_eq!(right::FILE & right::FD_READDIR, 0);
        assert_eq!(
            right::FILE & right::CHANGES_DIR,
            right::FD_FILESTAT_SET_TIMES
        );
        assert_eq!(right::FILE & right::WRITES_FILE, right::WRITES_FILE);
        assert_eq!(right::DIR & right::WRITES_FILE, 0);
    }
}
