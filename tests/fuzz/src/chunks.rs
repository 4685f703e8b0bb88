//! Blobs and partial blobs: damaged files give an error or exactly the contents.

use std::{io::Read as _, path::PathBuf, sync::LazyLock};

use hop3_common::{
    chunks::{BlobStore, Error},
    id::Digest,
    store::MasterKey,
};
use tempfile::TempDir;

use crate::input::Input;

/// Two whole segments and a bit.
const LARGE_BYTES: usize = 140_000;

/// A store, and the files of one small and one large blob as they were written.
struct Shelf {
    _dir: TempDir,
    store: BlobStore,
    blobs: [Blob; 2],
    partial: PathBuf,
}

struct Blob {
    contents: Vec<u8>,
    digest: Digest,
    path: PathBuf,
    file: Vec<u8>,
}

static SHELF: LazyLock<Shelf> = LazyLock::new(|| {
    // In memory where there is such a place: the store flushes what it commits.
    let shm = std::path::Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm),
        false => tempfile::tempdir(),
    };
    let dir = dir.unwrap();
    let key = MasterKey::from_bytes([5; 32]);
    let store = BlobStore::open(dir.path(), &key).unwrap();
    let blobs = [300, LARGE_BYTES].map(|len| {
        let contents: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
        let digest = Digest::of(&contents);
        let mut partial = store.resume(&digest, contents.len() as u64).unwrap();
        partial.append(&contents).unwrap();
        partial.commit().unwrap();
        let path = dir.path().join("blobs").join(digest.hex());
        let file = std::fs::read(&path).unwrap();
        Blob {
            contents,
            digest,
            path,
            file,
        }
    });
    let partial = dir.path().join("partial");
    Shelf {
        _dir: dir,
        store,
        blobs,
        partial,
    }
});

/// The file of a blob, whole or partial, with changes: places, bytes, a new length.
pub fn chunks(data: &[u8]) -> bool {
    let shelf = &*SHELF;
    let mut input = Input(data);
    let mode = input.u8();
    let blob = &shelf.blobs[usize::from(mode & 1)];
    let file = match mode & 4 {
        0 => patched(&blob.file, &mut input),
        _ => input.0.to_vec(),
    };
    if mode & 2 == 0 {
        read(shelf, blob, &file, mode)
    } else {
        resume(shelf, blob, &file)
    }
}

/// `file` with a new length (in 32,768ths of its own; 0 leaves it) and bytes changed by `xor`.
fn patched(file: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut out = file.to_vec();
    let part = usize::from(input.u16());
    if part > 0 {
        out.resize(file.len() * part / 32_768, 0);
    }
    while !input.is_empty() {
        let place = input.u64() as usize % file.len();
        let xor = input.u8();
        if let Some(byte) = out.get_mut(place) {
            *byte ^= xor;
        }
    }
    out
}

fn read(shelf: &Shelf, blob: &Blob, file: &[u8], mode: u8) -> bool {
    std::fs::write(&blob.path, file).unwrap();
    let whole = match shelf.store.read(&blob.digest, LARGE_BYTES as u64) {
        Ok(contents) => {
            assert!(contents == blob.contents, "other contents under that name");
            true
        }
        Err(Error::Corrupt { .. }) => false,
        Err(error) => panic!("damage is called so: {error}"),
    };
    // From the middle on: what is given before an error is right, too.
    let offset = blob.contents.len() / 256 * usize::from(mode);
    let offset = offset.min(blob.contents.len());
    if let Ok(mut reader) = shelf.store.reader(&blob.digest, offset as u64) {
        let mut got = Vec::new();
        let end = reader.read_to_end(&mut got);
        assert!(blob.contents[offset..].starts_with(&got));
        assert!(end.is_err() || got.len() == blob.contents.len() - offset);
    }
    whole
}

/// Whatever is in a partial file: the transfer goes on and ends with the right contents.
fn resume(shelf: &Shelf, blob: &Blob, file: &[u8]) -> bool {
    let path = shelf.partial.join(format!("{}.part", blob.digest.hex()));
    std::fs::write(&path, file).unwrap();
    let size = blob.contents.len() as u64;
    let mut partial = shelf.store.resume(&blob.digest, size).unwrap();
    let offset = partial.offset() as usize;
    partial.append(&blob.contents[offset..]).unwrap();
    assert!(partial.complete());
    let committed = partial
        .commit()
        .expect("verified segments and the rest are the blob");
    assert_eq!(committed, blob.digest);
    let contents = shelf.store.read(&blob.digest, size).unwrap();
    assert!(contents == blob.contents);
    offset > 0
}

/// Seeds of [`chunks`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let patch = |mode: u8, part: u16, changes: &[(u64, u8)]| {
        let mut out = vec![mode];
        out.extend(part.to_le_bytes());
        for (place, xor) in changes {
            out.extend(place.to_le_bytes());
            out.push(*xor);
        }
        out
    };
    let raw = |mode: u8| [vec![mode], SHELF.blobs[0].file.clone()].concat();
    vec![
        ("ok-small".into(), patch(0, 0, &[])),
        ("ok-large".into(), patch(1, 0, &[])),
        ("ok-partial".into(), patch(3, 20_000, &[])),
        ("ok-more-behind".into(), patch(3, 40_000, &[])),
        ("ok-whole-partial".into(), patch(3, 0, &[])),
        ("ok-bad-second-segment".into(), patch(3, 0, &[(70_000, 1)])),
        ("bad-header".into(), patch(0, 0, &[(41, 0xff)])),
        ("bad-last-segment".into(), patch(1, 0, &[(135_000, 0x80)])),
        ("bad-cut".into(), patch(1, 15_000, &[])),
        ("bad-no-header".into(), raw(4)[..60].to_vec()),
        ("bad-empty-partial".into(), vec![6]),
    ]
}
