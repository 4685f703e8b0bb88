//! What is durable, what is not, and the images that come of it.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use super::{Event, SimDisk};
use crate::store::disk::parent;

/// What a disk writes whole or not at all, in bytes.
const SECTOR_BYTES: usize = 512;
/// With at most this many changes that are not durable, every combination of them is an image.
const EVERY_CHANGES_MAX: usize = 4;

/// A small seeded random source (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A change of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Write(usize, Box<[u8]>),
    Size(usize),
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Size(size) => bytes.resize(*size, 0),
            Self::Write(at, new) => {
                bytes.resize(bytes.len().max(at + new.len()), 0);
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
        }
    }

    /// Applies a write of which each sector is there, or is not, or is garbage.
    fn apply_torn(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        let Self::Write(at, new) = self else {
            return self.apply(bytes);
        };
        let end = at + new.len();
        // The length may be there without the data.
        if rng.one_in(2) {
            bytes.resize(bytes.len().max(end), 0);
        }
        let mut from = *at;
        while from < end {
            let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
            let fate = rng.below(4);
            if fate < 3 {
                bytes.resize(bytes.len().max(to), 0);
            }
            match fate {
                0 | 1 => bytes[from..to].copy_from_slice(&new[from - at..to - at]),
                2 => bytes[from..to].fill_with(|| rng.number() as u8),
                _ => {}
            }
            from = to;
        }
    }
}

/// A change of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameChange {
    Set(PathBuf, usize),
    Unset(PathBuf),
    Move(PathBuf, PathBuf, usize),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Set(path, id) => drop(names.insert(path.clone(), *id)),
            Self::Unset(path) => drop(names.remove(path)),
            Self::Move(from, to, id) => {
                // Another file may have this name by now, if changes between are missing.
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
        }
    }

    fn dir(&self) -> &std::path::Path {
        match self {
            Self::Set(path, _) | Self::Unset(path) | Self::Move(_, path, _) => parent(path),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct File {
    durable: Vec<u8>,
    /// Since the last sync; `true`: a sync of it failed, and no other will do it.
    changes: Vec<(Change, bool)>,
}

impl File {
    pub(super) fn seen(&self) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        self.changes.iter().for_each(|(c, _)| c.apply(&mut bytes));
        bytes
    }

    fn sync(&mut self) {
        for (change, forgotten) in std::mem::take(&mut self.changes) {
            if !forgotten {
                change.apply(&mut self.durable);
            }
        }
    }

    fn image(&self, fate: Fate, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (n, (change, _)) in self.changes.iter().enumerate() {
            match fate {
                Fate::Dropped => {}
                Fate::Kept => change.apply(&mut bytes),
                Fate::Lengths => match change {
                    Change::Write(at, new) => bytes.resize(bytes.len().max(at + new.len()), 0),
                    Change::Size(size) => bytes.resize(*size, 0),
                },
                Fate::Prefix(whole) if n < whole => change.apply(&mut bytes),
                Fate::Prefix(whole) if n == whole => change.apply_torn(&mut bytes, rng),
                Fate::Prefix(_) => {}
                Fate::Any => match rng.below(4) {
                    0 => {}
                    1 => change.apply_torn(&mut bytes, rng),
                    _ => change.apply(&mut bytes),
                },
            }
        }
        bytes
    }
}

/// What becomes of the changes of a file.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Dropped,
    Kept,
    /// The lengths without the data.
    Lengths,
    /// The first so many, and the next one torn.
    Prefix(usize),
    /// Each on its own.
    Any,
}

/// A disk at the moment of a power cut: what is durable and what is not.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    pub(super) files: Vec<File>,
    /// As seen.
    pub(super) names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
}

impl Cut {
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Data { file, change } => self.files[*file].changes.push((change.clone(), false)),
            Event::Sync { file } => self.files[*file].sync(),
            Event::SyncFailed { file } => {
                for (change, forgotten) in &mut self.files[*file].changes {
                    *forgotten |= matches!(change, Change::Write(..));
                }
            }
            Event::Name(change) => {
                if let NameChange::Set(_, id) = change {
                    self.files
                        .resize(self.files.len().max(id + 1), File::default());
                }
                change.apply(&mut self.names);
                self.name_changes.push(change.clone());
            }
            Event::SyncDir { dir } => {
                let names = &mut self.durable_names;
                self.name_changes.retain(|change| {
                    let here = change.dir() == dir;
                    if here {
                        change.apply(names);
                    }
                    !here
                });
            }
        }
    }

    /// The disk when nothing is left but what is durable.
    #[must_use]
    pub fn dropped(&self) -> SimDisk {
        self.image(&mut |_| false, &mut |_| Fate::Dropped, &mut Rng::new(0))
    }

    /// The disk when everything got there.
    #[must_use]
    pub fn kept(&self) -> SimDisk {
        self.image(&mut |_| true, &mut |_| Fate::Kept, &mut Rng::new(0))
    }

    /// Different disks that the power cut may leave: every combination of whole changes when
    /// those are few, then random ones, torn and reordered, up to `max`.
    #[must_use]
    pub fn images(&self, rng: &mut Rng, max: usize) -> Vec<SimDisk> {
        let mut known = HashSet::new();
        let mut images = Vec::new();
        let mut add = |image: SimDisk| {
            if images.len() < max && known.insert(image.fingerprint()) {
                images.push(image);
            }
        };
        add(self.dropped());
        add(self.kept());
        let data: usize = self.reachable().map(|f| f.changes.len()).sum();
        let names = self.name_changes.len();
        if data + names == 0 {
            return images;
        }
        for lengths in [true, false] {
            let fate = if lengths {
                Fate::Lengths
            } else {
                Fate::Dropped
            };
            add(self.image(&mut |_| true, &mut |_| fate, rng));
            let fate = if lengths { Fate::Lengths } else { Fate::Kept };
            add(self.image(&mut |_| false, &mut |_| fate, rng));
        }
        if data + names <= EVERY_CHANGES_MAX {
            for mask in 0..1_usize << (data + names) {
                add(self.subset(mask));
            }
        }
        for _ in 0..2 * max {
            add(self.random(rng));
        }
        images
    }

    /// One disk that the power cut may leave, at random.
    #[must_use]
    pub fn random(&self, rng: &mut Rng) -> SimDisk {
        let (mut coins, mut fates) = (Rng::new(rng.number()), Rng::new(rng.number()));
        let all = fates.one_in(3).then(|| fates.one_in(2));
        let mut keep = |_| all.unwrap_or_else(|| coins.one_in(2));
        let mut fate = |changes: usize| match fates.below(8) {
            0 => Fate::Dropped,
            1 => Fate::Kept,
            2 => Fate::Lengths,
            3 | 4 => Fate::Prefix(fates.below(changes)),
            _ => Fate::Any,
        };
        self.image(&mut keep, &mut fate, rng)
    }

    /// Files that have a name, before or after.
    fn reachable(&self) -> impl Iterator<Item = &File> {
        let named: HashSet<usize> = (self.names.values().chain(self.durable_names.values()))
            .copied()
            .collect();
        let files = self.files.iter().enumerate();
        files.filter_map(move |(id, file)| named.contains(&id).then_some(file))
    }

    /// The image with exactly the changes of `mask`, each whole.
    fn subset(&self, mask: usize) -> SimDisk {
        let mut bit = 0;
        let mut taken = || {
            bit += 1;
            mask >> (bit - 1) & 1 == 1
        };
        let mut names = self.durable_names.clone();
        for change in &self.name_changes {
            if taken() {
                change.apply(&mut names);
            }
        }
        let named: HashSet<usize> = (self.names.values().chain(self.durable_names.values()))
            .copied()
            .collect();
        let mut files = self.files.clone();
        for (id, file) in files.iter_mut().enumerate() {
            let changes = std::mem::take(&mut file.changes);
            for (change, _) in changes.iter().filter(|_| named.contains(&id)) {
                if taken() {
                    change.apply(&mut file.durable);
                }
            }
        }
        SimDisk::from_cut(Self::durable(files, names))
    }

    fn image(
        &self,
        keep: &mut dyn FnMut(usize) -> bool,
        fate: &mut dyn FnMut(usize) -> Fate,
        rng: &mut Rng,
    ) -> SimDisk {
        let mut names = self.durable_names.clone();
        for (n, change) in self.name_changes.iter().enumerate() {
            if keep(n) {
                change.apply(&mut names);
            }
        }
        let image = |file: &File| File {
            durable: match file.changes.len() {
                0 => file.durable.clone(),
                changes => file.image(fate(changes), rng),
            },
            changes: Vec::new(),
        };
        let files = self.files.iter().map(image).collect();
        SimDisk::from_cut(Self::durable(files, names))
    }

    fn durable(files: Vec<File>, names: BTreeMap<PathBuf, usize>) -> Self {
        Self {
            files,
            durable_names: names.clone(),
            names,
            name_changes: Vec::new(),
        }
    }
}

impl SimDisk {
    /// A hash of names and contents.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.with(|sim| {
            let mut hasher = blake3::Hasher::new();
            for (path, id) in &sim.now.names {
                hasher.update(path.as_os_str().as_encoded_bytes());
                hasher.update(&(sim.seen[*id].len() as u64).to_le_bytes());
                hasher.update(&sim.seen[*id]);
            }
            *hasher.finalize().as_bytes()
        })
    }
}
