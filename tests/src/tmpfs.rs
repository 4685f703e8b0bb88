//! A disk so small that it can be filled.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Written at a time.
const PIECE_BYTES: usize = 64 << 10;
/// What is mounted, before the id of the process that did.
const SOURCE: &str = "hop3-test-";
/// The file that fills it.
const FILLER: &str = "filler";

/// A file system in memory. It is unmounted when this goes, whoever still has files open there;
/// what a killed test left is at the next.
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `bytes` at `dir`, with what is in `dir` now. Needs root.
    ///
    /// # Panics
    /// It cannot be mounted.
    #[must_use]
    pub fn mount(dir: PathBuf, bytes: u64) -> Self {
        let made = fs::create_dir_all(&dir);
        made.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let before = dir.with_extension("before");
        let moved = fs::rename(&dir, &before).and_then(|()| fs::create_dir(&dir));
        moved.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        sweep();
        let size = format!("size={bytes},mode=0700");
        let source = format!("{SOURCE}{}", std::process::id());
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, &source])
            .arg(&dir));
        // From here on it is unmounted if anything fails.
        let disk = Self { dir };
        let all = before.join(".");
        run(Command::new("cp").arg("-a").arg(all).arg(&disk.dir));
        disk
    }

    fn filler(&self) -> PathBuf {
        self.dir.join(FILLER)
    }

    /// Writes until nothing more fits.
    ///
    /// # Panics
    /// Something else goes wrong.
    pub fn fill(&self) {
        let path = self.filler();
        let fill = || {
            let mut file = File::options().create(true).append(true).open(&path)?;
            let mut piece = &[0x33; PIECE_BYTES][..];
            while !piece.is_empty() {
                match file.write(piece) {
                    // What did not fit whole may fit in part.
                    Ok(written) if written < piece.len() => piece = &piece[..piece.len() / 2],
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => {
                        piece = &piece[..piece.len() / 2];
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        fill().unwrap_or_else(|error: std::io::Error| panic!("{}: {error}", path.display()));
    }

    /// Removes what [`fill`](Self::fill) wrote.
    ///
    /// # Panics
    /// It cannot.
    pub fn free(&self) {
        let path = self.filler();
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// Unmounts what processes left that are gone.
fn sweep() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let pid = words.next().and_then(|source| source.strip_prefix(SOURCE));
        let gone = pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
        if let (true, Some(dir)) = (gone, words.next()) {
            let _ = Command::new("umount").arg("-l").arg(dir).status();
        }
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let ran = command.output();
    let well = |ran: &Output| ran.status.success();
    assert!(ran.as_ref().is_ok_and(well), "{command:?}: {ran:?}");
}
