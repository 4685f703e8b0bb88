//! The state that one run's host calls work on, and how it is set up.

use std::path::PathBuf;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use wasmtime::Memory;

use super::super::cancel::Wait;
use super::super::clock::GuestClock;
use super::super::meter::Meter;
use super::super::random::GuestRandom;
use super::super::stdio::{Output, Stdin};
use super::abi::{fdflag, right};
use super::dirs::Listing;
use super::fds::{DirFd, Fd, Fds, Kind};

/// Arguments, and environment variables: what a command line needs, with room.
const STRINGS_MAX: usize = 4_096;
/// Bytes of all arguments, and of the environment.
const STRINGS_BYTES_MAX: usize = 1024 * 1024;
/// Volumes of one guest.
const VOLUMES_MAX: usize = 16;
/// Bytes of a volume's path in the guest.
const GUEST_PATH_BYTES_MAX: usize = 256;

/// What a guest may touch beyond its standard streams: nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// Host directories, in the order in which the guest finds them.
    pub volumes: Vec<Volume>,
}

/// A host directory that a guest may use. Nothing outside of it can be reached through it,
/// whatever symbolic links are in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where the guest finds it, absolute, like `/data`.
    pub guest_path: String,
    /// The directory.
    pub host_dir: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// Everything that a run is given.
pub(crate) struct Setup {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) stdin: Arc<dyn Stdin>,
    pub(crate) stdout: Arc<dyn Output>,
    pub(crate) stderr: Arc<dyn Output>,
    pub(crate) clock: GuestClock,
    pub(crate) random: GuestRandom,
    pub(crate) meter: Meter,
}

/// The input of a run is not acceptable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{what}: {why}")]
    Input { what: String, why: &'static str },
    #[error("volume {guest_path}: cannot open {}", .host_dir.display())]
    Volume {
        guest_path: String,
        host_dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The state of one run. But for the open files all of it is plain data.
pub(crate) struct Host {
    pub(crate) meter: Meter,
    /// The guest's memory, once it is instantiated.
    pub(crate) memory: Option<Memory>,
    pub(super) fds: Fds,
    pub(super) listing: Option<Listing>,
    pub(super) args: Vec<Vec<u8>>,
    pub(super) env: Vec<Vec<u8>>,
    pub(super) stdin: Arc<dyn Stdin>,
    pub(super) stdout: Arc<dyn Output>,
    pub(super) stderr: Arc<dyn Output>,
    pub(crate) clock: GuestClock,
    pub(crate) random: GuestRandom,
}

/// Store data that has a [`Host`] in it.
pub(crate) trait HasHost: 'static {
    fn host_mut(&mut self) -> &mut Host;
}

impl HasHost for Host {
    fn host_mut(&mut self) -> &mut Host {
        self
    }
}

impl Host {
    /// Checks the input and opens the volumes.
    pub(crate) fn new(setup: Setup, grants: &Grants) -> Result<Self, HostError> {
        let fds = open_volumes(grants)?;
        let env = setup
            .env
            .into_iter()
            .map(|(name, value)| match name.contains('=') {
                true => Err(invalid(
                    format!("environment variable {name:?}"),
                    "`=` in its name",
                )),
                false => Ok(format!("{name}={value}")),
            });
        let env = env.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            meter: setup.meter,
            memory: None,
            fds,
            listing: None,
            args: c_strings("argument", setup.args)?,
            env: c_strings("environment variable", env)?,
            stdin: setup.stdin,
            stdout: setup.stdout,
            stderr: setup.stderr,
            clock: setup.clock,
            random: setup.random,
        })
    }

    /// Closes everything that the guest opened and opens again what it closed, so that no
    /// descriptor outlives a call. Costs nothing if it touched none.
    pub(crate) fn reset_files(&mut self, grants: &Grants) -> Result<(), HostError> {
        self.listing = None;
        if self.fds.is_touched() {
            self.fds = open_volumes(grants)?;
        }
        Ok(())
    }

    /// Opens the volumes, closing whatever is open.
    pub(crate) fn open_files(&mut self, grants: &Grants) -> Result<(), HostError> {
        self.listing = None;
        self.fds = open_volumes(grants)?;
        Ok(())
    }

    /// How long a call on a stream with these flags may block.
    pub(super) fn stream_wait(&self, flags: u16) -> Wait {
        let mut wait = self.meter.wait().clone();
        if flags & fdflag::NONBLOCK != 0 {
            wait.deadline = Some(std::time::Instant::now());
        }
        wait
    }
}

/// The descriptors that a guest finds at its start.
fn open_volumes(grants: &Grants) -> Result<Fds, HostError> {
    let mut fds = Fds::new();
    for (n, volume) in volumes(grants)?.enumerate() {
        let number = u32::try_from(n).unwrap_or(u32::MAX);
        let fd = open_volume(volume, number)?;
        let room = fds.insert(fd);
        debug_assert!(room.is_ok(), "fewer volumes than descriptors");
    }
    fds.untouched();
    Ok(fds)
}

fn invalid(what: String, why: &'static str) -> HostError {
    HostError::Input { what, why }
}

fn volumes(grants: &Grants) -> Result<impl Iterator<Item = &Volume>, HostError> {
    if grants.volumes.len() > VOLUMES_MAX {
        return Err(invalid("volumes".into(), "more than 16"));
    }
    for (n, volume) in grants.volumes.iter().enumerate() {
        let path = volume.guest_path.as_str();
        let why = if !path.starts_with('/') {
            "the guest path must be absolute"
        } else if path.len() > GUEST_PATH_BYTES_MAX || path.contains('\0') {
            "the guest path is too long or has a NUL"
        } else if path.split('/').any(|part| part == "..") {
            "the guest path must not contain `..`"
        } else if grants.volumes[..n]
            .iter()
            .any(|other| other.guest_path == path)
        {
            "the guest path is granted twice"
        } else {
            continue;
        };
        return Err(invalid(format!("volume {path:?}"), why));
    }
    Ok(grants.volumes.iter())
}

fn open_volume(volume: &Volume, number: u32) -> Result<Fd, HostError> {
    let dir = Dir::open_ambient_dir(&volume.host_dir, ambient_authority()).map_err(|source| {
        HostError::Volume {
            guest_path: volume.guest_path.clone(),
            host_dir: volume.host_dir.clone(),
            source,
        }
    })?;
    let read_only = volume.read_only;
    let rights = if read_only {
        right::DIR & !right::CHANGES_DIR
    } else {
        right::DIR
    };
    // Writing to files is refused when they are opened (`EROFS`), not hidden, so that a
    // program learns at once and by the right name.
    let inheriting = if read_only {
        right::ALL & !right::CHANGES_DIR
    } else {
        right::ALL
    };
    let preopen = Some(volume.guest_path.clone());
    let dir = DirFd {
        dir,
        volume: number,
        read_only,
        preopen,
    };
    Ok(Fd {
        kind: Kind::Dir(dir),
        flags: 0,
        rights,
        inheriting,
    })
}

/// NUL-terminated, within bounds.
fn c_strings(what: &str, strings: Vec<String>) -> Result<Vec<Vec<u8>>, HostError> {
    if strings.len() > STRINGS_MAX {
        return Err(invalid(format!("{what}s"), "more than 4,096"));
    }
    let bytes: usize = strings.iter().map(|s| s.len() + 1).sum();
    if bytes > STRINGS_BYTES_MAX {
        return Err(invalid(format!("{what}s"), "more than 1 MiB together"));
    }
    let terminated = |string: String| {
        if string.contains('\0') {
            return Err(invalid(format!("{what} {string:?}"), "contains a NUL"));
        }
        let mut bytes = string.into_bytes();
        bytes.push(0);
        Ok(bytes)
    };
    strings.into_iter().map(terminated).collect()
}
