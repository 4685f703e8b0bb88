//! The agent's end of one child process: pipes that never block longer than a deadline.
//!
//! Dropping a [`Child`] kills it and takes its exit status, so none is left behind.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{self, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

use super::{
    HostOptions, ModelError,
    error::reason,
    host::{MEMORY_ARGUMENT, PLANS_ARGUMENT},
    spawner,
    wire::{self, PREFIX_BYTES, Reply},
};

/// How much of what a child says on standard error is kept: its end.
const COMPLAINT_BYTES_MAX: usize = 4096;
/// Read at once.
const PIECE_BYTES: usize = 64 << 10;
/// What Rust says before it aborts for want of memory.
const ALLOCATION_COMPLAINT: &str = "memory allocation of";

/// How an exchange with a child failed. The child is no good any more.
#[derive(Debug)]
pub(super) enum Broken {
    /// No whole answer by then.
    Late,
    /// It died of its memory limit.
    Memory,
    /// It died otherwise.
    Died {
        signal: Option<i32>,
        code: Option<i32>,
        message: String,
    },
    /// Its engine panicked: told by itself before it ended.
    Panicked(ModelError),
    /// It answered nonsense.
    Protocol(String),
    /// The system failed us.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        Broken::Io(e)
    }
}

pub(super) struct Child {
    process: process::Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: Option<ChildStderr>,
    complaint: Vec<u8>,
}

impl Child {
    pub(super) fn spawn(options: &HostOptions) -> io::Result<Self> {
        let mut command = Command::new(&options.program);
        command
            .args(&options.args)
            .args([MEMORY_ARGUMENT, &options.memory_bytes_max.to_string()])
            .args([PLANS_ARGUMENT, &options.plans_max.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = spawner::spawn(command)?;
        let streams = (
            process.stdin.take(),
            process.stdout.take(),
            process.stderr.take(),
        );
        let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
            let _ = process.kill();
            let _ = process.wait();
            return Err(io::Error::other("a piped stream is missing"));
        };
        let child = Self {
            process,
            stdin,
            stdout,
            stderr: Some(stderr),
            complaint: Vec::new(),
        };
        set_nonblocking(&child.stdin)?;
        set_nonblocking(&child.stdout)?;
        child.stderr.iter().try_for_each(set_nonblocking)?;
        Ok(child)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended, as far as is known now.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// Sends frames, then waits for one reply. A reply that comes before all is sent ends it too.
    pub(super) fn exchange(
        &mut self,
        mut frames: impl Iterator<Item = Vec<u8>>,
        until: Instant,
    ) -> Result<Reply, Broken> {
        let mut sending = Vec::new();
        let mut sent = 0;
        let mut heard = Vec::new();
        loop {
            if sent == sending.len() {
                sending = frames.next().unwrap_or_default();
                sent = 0;
            }
            let can_send = self.wait(sent < sending.len(), until)?;
            if can_send {
                match self.stdin.write(&sending[sent..]) {
                    Ok(n) => sent += n,
                    Err(e) if is_transient(&e) => {}
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(self.ended()),
                    Err(e) => return Err(e.into()),
                }
            }
            self.drain_stderr();
            if self.hear(&mut heard)? {
                return wire::decode(&heard[PREFIX_BYTES..])
                    .map_err(|e| Broken::Protocol(e.to_string()));
            }
        }
    }

    /// Waits until something can be done; tells whether that is sending.
    fn wait(&self, wants_to_send: bool, until: Instant) -> Result<bool, Broken> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Late);
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = vec![PollFd::new(&self.stdout, PollFlags::IN)];
        if let Some(stderr) = &self.stderr {
            fds.push(PollFd::new(stderr, PollFlags::IN));
        }
        if wants_to_send {
            fds.push(PollFd::new(&self.stdin, PollFlags::OUT));
        }
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(Broken::Late),
            Ok(_) => Ok(wants_to_send && fds.last().is_some_and(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(Broken::Io(e.into())),
        }
    }

    /// Reads what there is of a frame, never past its end. True once it is whole.
    fn hear(&mut self, heard: &mut Vec<u8>) -> Result<bool, Broken> {
        loop {
            let wanted = match heard.first_chunk::<PREFIX_BYTES>() {
                None => PREFIX_BYTES,
                Some(prefix) => {
                    let body = wire::body_bytes(*prefix);
                    PREFIX_BYTES + body.map_err(|e| Broken::Protocol(e.to_string()))?
                }
            };
            let begin = heard.len();
            if begin == wanted && begin > PREFIX_BYTES {
                return Ok(true);
            }
            if begin == wanted {
                return Err(Broken::Protocol("an empty frame".into()));
            }
            // Grows by pieces that have really come, whatever the prefix promises.
            heard.resize(wanted.min(begin + PIECE_BYTES), 0);
            let result = self.stdout.read(&mut heard[begin..]);
            heard.truncate(begin + result.as_ref().map_or(0, |n| *n));
            match result {
                Ok(0) => return Err(self.ended()),
                Ok(_) => {}
                Err(e) if is_transient(&e) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Keeps the end of what there is on standard error.
    fn drain_stderr(&mut self) {
        let Some(stderr) = &mut self.stderr else {
            return;
        };
        let mut piece = [0; 1024];
        loop {
            match stderr.read(&mut piece) {
                Ok(n) if n > 0 => {
                    self.complaint.extend_from_slice(&piece[..n]);
                    let excess = self.complaint.len().saturating_sub(COMPLAINT_BYTES_MAX);
                    self.complaint.drain(..excess);
                }
                Err(e) if is_transient(&e) => return,
                _ => {
                    self.stderr = None;
                    return;
                }
            }
        }
    }

    /// The stream ended: the child is dying or dead. Says of what.
    fn ended(&mut self) -> Broken {
        // It has no other way to close its output than to end; if it found one, it ends now. The
        // status of a death that has begun does not change by this.
        let _ = self.process.kill();
        let status = match self.process.wait() {
            Ok(status) => status,
            Err(e) => return Broken::Io(e),
        };
        self.drain_stderr();
        let message = String::from_utf8_lossy(&self.complaint);
        if status.signal() == Some(libc::SIGABRT) && message.contains(ALLOCATION_COMPLAINT) {
            return Broken::Memory;
        }
        Broken::Died {
            signal: status.signal(),
            code: status.code(),
            message: reason(&message),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_transient(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn set_nonblocking(stream: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(stream)?;
    Ok(rustix::fs::fcntl_setfl(stream, flags | OFlags::NONBLOCK)?)
}
