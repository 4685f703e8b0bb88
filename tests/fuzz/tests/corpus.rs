//! Replays the corpus of every fuzz target, and seeded mutations of it.
//!
//! `HOP3_LONG=1` tries fifty times as many; `HOP3_SEED=n` begins elsewhere, or again where a
//! failure was: the message says where, and which file has the input. `HOP3_WRITE_SEEDS=1` writes
//! the seeds that are not in the corpus yet (those with random keys differ each time, so what is
//! there stays).
#![allow(clippy::print_stdout)]
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use hop3_fuzz::{
    TARGETS, Target, find,
    mutate::{INPUT_BYTES_MAX, Rng, mutated},
};

/// Mutations of each target's corpus.
const ROUNDS: u64 = 3_000;
const ROUNDS_LONG: u64 = 50 * ROUNDS;
/// Bytes of the whole corpus.
const CORPUS_BYTES_MAX: u64 = 300 << 10;
/// What a target may ever have in memory, KiB: inputs of at most 1 MiB, the program itself, and
/// room.
const PEAK_KIB_MAX: u64 = 256 << 10;

fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The files of a target's corpus, in order.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let Ok(dir) = fs::read_dir(corpus_dir().join(target.name)) else {
        return Vec::new();
    };
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = dir.map(|entry| read(entry.unwrap())).collect();
    files.sort();
    files
}

fn write_seeds(target: &Target) {
    let dir = corpus_dir().join(target.name);
    fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in (target.seeds)() {
        let path = dir.join(name);
        if !path.exists() {
            fs::write(path, bytes).unwrap();
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

/// The most memory that this process ever had, KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap().trim_end_matches("kB").trim().parse().unwrap()
}

/// Runs a body; on failure keeps the input and says how to see it again.
fn run(target: &Target, bytes: &[u8], whence: &str) -> bool {
    let before = peak_kib();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.body)(bytes)));
    let peak = peak_kib();
    let grew = peak > PEAK_KIB_MAX && peak > before;
    if let (Ok(taken), false) = (&outcome, grew) {
        return *taken;
    }
    let name = format!("fuzz-{}-{}", target.name, whence.replace([' ', '='], "-"));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    let what = match outcome {
        Ok(_) => format!("took {peak} KiB of memory, more than {PEAK_KIB_MAX}"),
        Err(_) => "broke a promise (above)".to_owned(),
    };
    panic!(
        "target {} {what} with {whence}. The input of {} bytes is {}: once it is mended, put it \
         into tests/fuzz/corpus/{}/",
        target.name,
        bytes.len(),
        path.display(),
        target.name,
    );
}

/// What a file's name promises of it.
fn check(name: &str, taken: bool) {
    assert!(taken || !name.starts_with("ok"), "{name} was refused");
    assert!(!taken || !name.starts_with("bad"), "{name} was taken");
}

fn replay(name: &str) {
    let target = find(name);
    if number("HOP3_WRITE_SEEDS").is_some() {
        write_seeds(&target);
    }
    // The generator must go on making what the target takes, too.
    for (name, bytes) in (target.seeds)() {
        let taken = run(&target, &bytes, &format!("new seed {name}"));
        check(&name, taken);
    }
    let corpus = corpus(&target);
    assert!(
        !corpus.is_empty(),
        "no corpus: HOP3_WRITE_SEEDS=1 makes one"
    );
    for (name, bytes) in &corpus {
        let taken = run(&target, bytes, &format!("file {name}"));
        check(name, taken);
    }
    let seed = number("HOP3_SEED").unwrap_or(1);
    let rounds = match std::env::var_os("HOP3_LONG") {
        Some(_) => ROUNDS_LONG,
        None => ROUNDS,
    };
    let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
    let mut taken = 0;
    for round in 0..rounds {
        let bytes = mutated(&mut Rng::new(seed, round), &inputs);
        assert!(bytes.len() <= INPUT_BYTES_MAX);
        let whence = format!("HOP3_SEED={seed} round {round}");
        taken += u64::from(run(&target, &bytes, &whence));
    }
    println!(
        "{name}: {} files, {rounds} mutations, {taken} taken",
        inputs.len()
    );
    assert!(
        taken > 0,
        "no mutation was taken: the target sees refusals only"
    );
}

/// One test per target, and a test that none is missing.
macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed_and_no_corpus_is_left_over() {
            let replayed = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            let targets: BTreeSet<_> = TARGETS.iter().map(|of| of.name.to_owned()).collect();
            assert_eq!(replayed, targets);
            let dirs = fs::read_dir(corpus_dir()).unwrap();
            let dirs = dirs.map(|dir| dir.unwrap().file_name().into_string().unwrap());
            assert_eq!(dirs.collect::<BTreeSet<_>>(), targets);
            let libfuzzer = Path::new(env!("CARGO_MANIFEST_DIR")).join("libfuzzer/fuzz_targets");
            let stems = fs::read_dir(libfuzzer).unwrap();
            let stems = stems.map(|file| {
                let path = file.unwrap().path();
                path.file_stem().unwrap().to_str().unwrap().to_owned()
            });
            assert_eq!(stems.collect::<BTreeSet<_>>(), targets);
        }
    };
}

replayed! {
    frames messages telemetry attach records journal chunks manifests texts tensors identity
    gateway image delta wasm onnx model_frames log
}

#[test]
fn the_corpus_stays_small() {
    let sizes = TARGETS
        .iter()
        .flat_map(corpus)
        .map(|(_, bytes)| bytes.len() as u64);
    let bytes: u64 = sizes.sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn mutations_are_the_same_everywhere() {
    let corpus = [b"some words".to_vec(), b"1234567890".to_vec()];
    let all = |seed| -> Vec<u8> {
        let one = |round| mutated(&mut Rng::new(seed, round), &corpus);
        (0..200).flat_map(one).collect()
    };
    assert_eq!(all(7), all(7));
    assert_ne!(all(7), all(8));
}
