//! Inputs that may be what kills the agent: those that were in hand at several crashes in a row are
//! not given to their guest again.
//!
//! ```text
//! in-hand     32 bytes for each call that runs: the input's fingerprint, or zeros
//! suspects    fingerprints that were in hand at crashes, and at how many in a row
//! ```
//!
//! Both must survive the process, not the machine: the first is shared memory, so that a note costs no
//! system call, the second is written without syncs. A call that
//! ends, well or not, clears its input of all suspicion. A fingerprint is a keyed hash over the
//! instance, its module and the input, so that mended code gets its chance, and the files tell
//! nothing.
//!
//! Limits: [`SLOTS`] calls at once (one more is not noted), [`SUSPECTS_MAX`] suspects.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use hop3_common::{
    codes::{Code, Problem},
    id::{Digest, InstanceId},
    store::{crypt::Mac, disk::FILE_MODE},
};
use hop3_runtime::{service::Input, shared::SharedWords};

/// Crashes in a row after which an input is not given to its guest again.
pub const STRIKES: u8 = 3;
/// Calls that are noted at once.
pub const SLOTS: usize = 256;
/// Suspects remembered; those of the fewest crashes go first.
pub const SUSPECTS_MAX: usize = 256;
/// Bytes of a body or message that count for the fingerprint, beside its length.
const BODY_BYTES: usize = 64 << 10;

const BYTES: usize = 32;
const WORDS: usize = BYTES / size_of::<u64>();
type Fingerprint = [u8; BYTES];
const NOBODY: Fingerprint = [0; BYTES];

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct Suspects(Arc<Inner>);

struct Inner {
    mac: Mac,
    in_hand: Option<SharedWords>,
    free: Mutex<Vec<usize>>,
    path: PathBuf,
    known: Mutex<HashMap<Fingerprint, u8>>,
    /// `known` is not empty.
    any: AtomicBool,
}

/// A call that runs.
pub struct InHand<'a> {
    suspects: &'a Inner,
    fingerprint: Fingerprint,
    slot: Option<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Changed in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Suspects {
    /// Reads in `dir` what was in hand when the agent last ended, and begins anew. What cannot be
    /// read or written is done without: a full disk keeps no service from starting.
    #[must_use]
    pub fn open(dir: &Path, mac: Mac) -> Self {
        let path = dir.join("suspects");
        let mut known = read(&path);
        let in_hand = take_over(&dir.join("in-hand"), &path, &mut known);
        let in_hand = in_hand
            .inspect_err(|error| {
                tracing::warn!(%error, "inputs in hand cannot be noted: none is suspected");
            })
            .ok();
        Self(Arc::new(Inner {
            mac,
            in_hand,
            free: Mutex::new((0..SLOTS).collect()),
            path,
            any: AtomicBool::new(!known.is_empty()),
            known: Mutex::new(known),
        }))
    }

    /// Notes that an input is in hand, until what this gives is dropped.
    ///
    /// # Errors
    /// [`Code::InputQuarantined`].
    pub fn enter(
        &self,
        instance: &InstanceId,
        module: &Digest,
        input: &Input,
    ) -> Result<InHand<'_>, Problem> {
        let inner = &*self.0;
        let fingerprint = fingerprint(&inner.mac, instance, module, input);
        if inner.any.load(Ordering::Relaxed) {
            let strikes = lock(&inner.known).get(&fingerprint).copied();
            if let Some(strikes) = strikes.filter(|strikes| *strikes >= STRIKES) {
                let message = format!(
                    "this input was in hand at {strikes} crashes of the agent in a row, and is not \
                     given to {instance} again until its module changes"
                );
                return Err(Problem::new(Code::InputQuarantined, message));
            }
        }
        let slot = lock(&inner.free).pop();
        if let Some(slot) = slot {
            inner.write(slot, &fingerprint);
        }
        Ok(InHand {
            suspects: inner,
            fingerprint,
            slot,
        })
    }
}

impl Inner {
    fn write(&self, slot: usize, fingerprint: &Fingerprint) {
        let Some(in_hand) = &self.in_hand else { return };
        let slot = in_hand.words().iter().skip(slot * WORDS);
        let (words, _) = fingerprint.as_chunks::<8>();
        for (word, bytes) in slot.zip(words) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// It ended, and the agent lives.
    fn clear(&self, fingerprint: &Fingerprint) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut known = lock(&self.known);
        if known.remove(fingerprint).is_none() {
            return;
        }
        self.any.store(!known.is_empty(), Ordering::Relaxed);
        if let Err(error) = write(&self.path, &known) {
            tracing::debug!(%error, "that an input is not suspect any more was not noted");
        }
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.suspects.write(slot, &NOBODY);
            lock(&self.suspects.free).push(slot);
        }
        self.suspects.clear(&self.fingerprint);
    }
}

/// Counts what was in hand among the suspects, and clears the file.
fn take_over(
    in_hand: &Path,
    suspects: &Path,
    known: &mut HashMap<Fingerprint, u8>,
) -> io::Result<SharedWords> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.mode(FILE_MODE).open(in_hand)?;
    let mut struck = Vec::new();
    (&mut file)
        .take((SLOTS * BYTES) as u64)
        .read_to_end(&mut struck)?;
    let (struck, _) = struck.as_chunks::<BYTES>();
    for fingerprint in struck.iter().filter(|struck| **struck != NOBODY) {
        let strikes = known.entry(*fingerprint).or_default();
        *strikes = strikes.saturating_add(1);
        if *strikes == STRIKES {
            tracing::error!(
                crashes = STRIKES,
                "an input was in hand at several crashes of the agent: it is refused now"
            );
        }
    }
    while known.len() > SUSPECTS_MAX {
        let least = known.iter().min_by_key(|(_, strikes)| **strikes);
        let least = least.map(|(fingerprint, _)| *fingerprint);
        least.and_then(|least| known.remove(&least));
    }
    write(suspects, known)?;
    // What is noted twice by a crash in between counts twice: rather that than not at all.
    file.write_all_at(&[0; SLOTS * BYTES], 0)?;
    SharedWords::map(&file, SLOTS * WORDS)
}

fn read(path: &Path) -> HashMap<Fingerprint, u8> {
    let bytes = fs::read(path).unwrap_or_default();
    let (entries, _) = bytes.as_chunks::<{ BYTES + 1 }>();
    let entries = entries.iter().take(SUSPECTS_MAX).map(|entry| {
        let mut fingerprint = NOBODY;
        fingerprint.copy_from_slice(&entry[..BYTES]);
        (fingerprint, entry[BYTES])
    });
    entries.collect()
}

fn write(path: &Path, known: &HashMap<Fingerprint, u8>) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(known.len() * (BYTES + 1));
    for (fingerprint, strikes) in known {
        bytes.extend_from_slice(fingerprint);
        bytes.push(*strikes);
    }
    let temp = path.with_extension("tmp");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let file = options.mode(FILE_MODE).open(&temp)?;
    file.write_all_at(&bytes, 0)?;
    fs::rename(&temp, path)
}

fn fingerprint(mac: &Mac, instance: &InstanceId, module: &Digest, input: &Input) -> Fingerprint {
    let (head, number, body): (&str, u64, &[u8]) = match input {
        Input::Request {
            method, path, body, ..
        } => {
            return of(
                mac,
                instance,
                module,
                &[method.as_bytes(), path.as_bytes()],
                body,
            );
        }
        Input::Topic { topic, payload, .. } => (topic, 0, payload),
        Input::StreamData { stream, bytes, .. } => ("data", *stream, bytes),
        Input::StreamClosed { stream, code } => ("closed", *stream ^ u64::from(*code) << 48, &[]),
        Input::CallEnded { call, result } => {
            let body = result
                .as_ref()
                .map_or_else(String::as_bytes, |reply| &reply.body);
            ("call", *call, body)
        }
        Input::Timer { timer } => ("timer", *timer, &[]),
    };
    let number = number.to_le_bytes();
    of(mac, instance, module, &[head.as_bytes(), &number], body)
}

fn of(
    mac: &Mac,
    instance: &InstanceId,
    module: &Digest,
    [first, second]: &[&[u8]; 2],
    body: &[u8],
) -> Fingerprint {
    let length = body.len().to_le_bytes();
    let body = &body[..body.len().min(BODY_BYTES)];
    mac.of(&[
        instance.as_str().as_bytes(),
        &module.0,
        first,
        second,
        &length,
        body,
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::store::{MasterKey, crypt::Purpose};

    use super::*;

    fn open(dir: &Path) -> Suspects {
        let mac = MasterKey::from_bytes([5; 32]).mac(Purpose::Suspects);
        Suspects::open(dir, mac)
    }

    fn timer(timer: u64) -> Input {
        Input::Timer { timer }
    }

    /// The agent dies with these in hand.
    fn crash(dir: &Path, timers: &[u64]) {
        let suspects = open(dir);
        let instance = "service/s/0".parse().unwrap();
        for n in timers {
            if let Ok(in_hand) = suspects.enter(&instance, &Digest([1; 32]), &timer(*n)) {
                std::mem::forget(in_hand);
            }
        }
    }

    fn refused(dir: &Path, module: u8, n: u64) -> bool {
        let instance = "service/s/0".parse().unwrap();
        let suspects = open(dir);
        let entered = suspects.enter(&instance, &Digest([module; 32]), &timer(n));
        let refused = entered.is_err();
        std::mem::forget(entered);
        refused
    }

    #[test]
    fn what_was_in_hand_at_three_crashes_is_refused_and_its_neighbours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..u64::from(STRIKES) {
            crash(dir.path(), &[7, 100 + n]);
        }
        assert!(refused(dir.path(), 1, 7));
        assert!(!refused(dir.path(), 2, 7), "another module");
        assert!(!refused(dir.path(), 1, 100));
        assert!(refused(dir.path(), 1, 7), "also later");
    }

    #[test]
    fn who_ends_once_is_suspect_no_more() {
        let dir = tempfile::tempdir().unwrap();
        crash(dir.path(), &[7]);
        crash(dir.path(), &[7]);
        let suspects = open(dir.path());
        let instance = "service/s/0".parse().unwrap();
        drop(
            suspects
                .enter(&instance, &Digest([1; 32]), &timer(7))
                .unwrap(),
        );
        drop(suspects);
        crash(dir.path(), &[7]);
        crash(dir.path(), &[7]);
        assert!(!refused(dir.path(), 1, 7));
    }

    #[test]
    fn inputs_are_told_apart() {
        let mac = MasterKey::from_bytes([5; 32]).mac(Purpose::Suspects);
        let (a, b) = (
            "service/a/0".parse().unwrap(),
            "service/b/0".parse().unwrap(),
        );
        let request = |path: &str, body: &'static [u8]| Input::Request {
            method: "POST".into(),
            path: path.into(),
            headers: vec![],
            body: body.into(),
            more: false,
            from: None,
        };
        let module = Digest([1; 32]);
        let all = [
            fingerprint(&mac, &a, &module, &request("/x", b"")),
            fingerprint(&mac, &a, &module, &request("/x", b"1")),
            fingerprint(&mac, &a, &module, &request("/y", b"")),
            fingerprint(&mac, &b, &module, &request("/x", b"")),
            fingerprint(&mac, &a, &module, &timer(0)),
            fingerprint(&mac, &a, &module, &timer(1)),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn many_are_bounded_and_damage_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let many: Vec<u64> = (0..SLOTS as u64 + 10).collect();
        crash(dir.path(), &many);
        let later: Vec<u64> = (1_000..1_200).collect();
        crash(dir.path(), &later);
        drop(open(dir.path()));
        let size = fs::metadata(dir.path().join("suspects")).unwrap().len();
        assert_eq!(size, (SUSPECTS_MAX * (BYTES + 1)) as u64);
        fs::write(dir.path().join("suspects"), b"rubbish").unwrap();
        fs::write(dir.path().join("in-hand"), b"rubbish").unwrap();
        assert!(!refused(dir.path(), 1, 7));
    }
}
