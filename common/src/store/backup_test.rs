#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, io::Write as _, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::store::{Key, Range, Txn};

struct Place {
    dir: tempfile::TempDir,
    seal: MasterKey,
}

impl Place {
    /// A data directory with records and files, more than one frame of each.
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            seal: MasterKey::from_bytes([9; 32]),
        };
        let data = place.data();
        fs::create_dir_all(data.join("blobs/blobs/ab")).unwrap();
        fs::create_dir_all(data.join("blobs/tmp")).unwrap();
        fs::write(data.join("blobs/blobs/ab/cd"), vec![7; 200_000]).unwrap();
        fs::write(data.join("blobs/blobs/empty"), "").unwrap();
        fs::write(data.join("blobs/tmp/half"), "half").unwrap();
        fs::write(data.join("admin.token"), "secret").unwrap();
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(data.join("admin.token"), owner_only).unwrap();
        let store = place.store(&data);
        for n in 0..60 {
            let key = Key::new(format!("k{n}")).unwrap();
            let put = Txn::new().put(key, vec![n as u8; 3_000]);
            store.commit_blocking(put).unwrap();
        }
        place
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn backup(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    fn store(&self, data: &Path) -> LocalStore {
        let key = MasterKey::load_or_create(&data.join("master.key")).unwrap();
        LocalStore::open(&data.join(STORE), &key, Options::default())
            .unwrap()
            .0
    }

    fn write(&self) -> Result<Summary, Error> {
        let (data, key) = (self.data(), self.data().join("master.key"));
        to_file(&self.backup(), |out| {
            write(Owner::Coordinator, &data, &key, &self.seal, out)
        })
    }

    fn restore(&self, to: &str) -> Result<Summary, Error> {
        let dir = self.dir.path().join(to);
        let key = dir.join("master.key");
        restore(Owner::Coordinator, &self.backup(), &self.seal, &dir, &key)
    }

    /// The names beside the data directory.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(|e| name(e).into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn records(store: &LocalStore) -> BTreeMap<Key, Vec<u8>> {
    let page = store.range_blocking(&Range::prefix("")).unwrap();
    let entries = page.entries.into_iter();
    entries.map(|e| (e.key, e.value.to_vec())).collect()
}

#[test]
fn what_is_restored_is_what_was_there() {
    let place = Place::new();
    let made = place.write().unwrap();
    assert_eq!((made.records, made.files, made.bytes), (60, 3, 200_006));
    let sealed = fs::read(place.backup()).unwrap();
    assert!(!sealed.windows(6).any(|window| window == b"secret"));
    assert_eq!(
        fs::metadata(place.backup()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // An empty directory is as good as none.
    fs::create_dir(place.dir.path().join("there")).unwrap();
    for to in ["there", "new"] {
        assert_eq!(place.restore(to).unwrap(), made);
        let new = place.dir.path().join(to);
        let [old_store, new_store] = [place.data(), new.clone()].map(|dir| place.store(&dir));
        assert_eq!(records(&old_store), records(&new_store));
        for name in [
            "admin.token",
            "blobs/blobs/ab/cd",
            "blobs/blobs/empty",
            "master.key",
        ] {
            let [old, new] = [place.data(), new.clone()].map(|dir| dir.join(name));
            assert_eq!(fs::read(&old).unwrap(), fs::read(&new).unwrap(), "{name}");
            let mode = |path| fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(old), mode(new), "{name}");
        }
        assert!(!new.join("blobs/tmp").exists());
    }
    assert_eq!(place.names(), ["backup", "data", "new", "there"]);
}

#[test]
fn a_backup_that_is_damaged_anywhere_restores_nothing() {
    let place = Place::new();
    place.write().unwrap();
    let whole = fs::read(place.backup()).unwrap();
    let frame = frames::FRAME_BYTES + crate::store::crypt::SEAL_OVERHEAD_BYTES;
    let mut tried = 0;
    let mut refused = |bytes: &[u8], what: &str| {
        fs::write(place.backup(), bytes).unwrap();
        let error = place.restore("new").unwrap_err();
        let typed = matches!(error, Error::Damaged(_) | Error::WrongKey);
        assert!(
            typed && error.to_string().contains("nothing was restored"),
            "{what}: {error}"
        );
        assert_eq!(place.names(), ["backup", "data"], "{what}");
        tried += 1;
    };
    let edges = (0..6).map(|n| 24 + n * frame);
    for at in edges.chain([0, 7, 8, 23, 100, 90_000, whole.len() - 1]) {
        if at < whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            refused(&bytes, &format!("changed at {at}"));
            refused(&whole[..at], &format!("cut at {at}"));
        }
    }
    let longer = [&whole[..], &[0]].concat();
    refused(&longer, "longer");
    let (first, second) = (24..24 + frame, 24 + frame..24 + 2 * frame);
    let exchanged = [
        &whole[..24],
        &whole[second.clone()],
        &whole[first],
        &whole[second.end..],
    ];
    refused(&exchanged.concat(), "two frames exchanged");
    let left_out = [&whole[..second.start], &whole[second.end..]].concat();
    refused(&left_out, "a frame left out");
    assert!(tried > 20, "{tried}");
    fs::write(place.backup(), &whole).unwrap();
    place.restore("new").unwrap();
}

#[test]
fn wrong_keys_places_and_owners_are_refused_in_words() {
    let mut place = Place::new();
    let store = place.store(&place.data());
    let error = place.write().unwrap_err();
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    drop(store);
    assert_eq!(place.names(), ["data"]);
    place.write().unwrap();
    let before = fs::read(place.backup()).unwrap();
    let error = place.write().unwrap_err();
    assert!(matches!(&error, Error::Io { .. }), "{error}");
    assert!(fs::read(place.backup()).unwrap() == before);
    let error = place.restore("data").unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
    place.seal = MasterKey::from_bytes([8; 32]);
    let error = place.restore("new").unwrap_err();
    assert!(matches!(error, Error::WrongKey), "{error}");
    place.seal = MasterKey::from_bytes([9; 32]);
    // A key of another directory is where this one's would go.
    let elsewhere = place.dir.path().join("other.key");
    let mut file = files::create(&elsewhere, 0o600).unwrap();
    file.write_all(&[5; 32]).unwrap();
    let to = place.dir.path().join("new");
    let (backup, seal) = (place.backup(), &place.seal);
    let error = restore(Owner::Coordinator, &backup, seal, &to, &elsewhere).unwrap_err();
    assert!(error.to_string().contains("other.key"), "{error}");
    assert_eq!(fs::read(&elsewhere).unwrap(), [5; 32]);
    assert_eq!(place.names(), ["backup", "data", "other.key"]);
    let missing = place.dir.path().join("none");
    let error = write(Owner::Coordinator, &missing, &elsewhere, seal, Vec::new()).unwrap_err();
    assert!(
        matches!(error, Error::Absent { .. }) && !missing.exists(),
        "{error}"
    );
}
