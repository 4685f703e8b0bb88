#![allow(clippy::unwrap_used)]
use hop3_common::ownership::Incarnation;

use super::*;

fn token(epoch: u64, incarnation: u64) -> Token {
    Token {
        epoch: Epoch(epoch),
        incarnation: Incarnation(incarnation),
    }
}

fn base(token: Token, seq: u64) -> Checkpoint {
    let part = Output {
        digest: Digest([seq as u8; 32]),
        bytes: 10,
    };
    Checkpoint {
        token,
        seq,
        at: UnixMs(1),
        schema: 1,
        parts: vec![part],
    }
}

fn change(seq: u64) -> ReplicaChange {
    ReplicaChange {
        seq,
        delta: format!("change {seq}").into_bytes().into(),
    }
}

fn wrote(stream: u64, seq: u64) -> ReplicaWrite {
    ReplicaWrite::Change {
        stream,
        change: change(seq),
    }
}

struct Rig {
    dir: tempfile::TempDir,
    key: MasterKey,
    blobs: BlobStore,
    id: InstanceId,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = MasterKey::from_bytes([4; 32]);
        Self {
            blobs: BlobStore::open(&dir.path().join("blobs"), &key).unwrap(),
            dir,
            key,
            id: "service/s/0".parse().unwrap(),
        }
    }

    fn open(&self) -> Replicas {
        Replicas::open(&self.dir.path().join("replicas"), &self.key).unwrap()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("replicas"))
            .unwrap()
            .count()
    }

    /// The deltas of a sealed replica's last part.
    fn deltas(&self, made: &Checkpoint) -> Vec<String> {
        let part = made.parts.last().unwrap();
        let bytes = self.blobs.read(&part.digest, 1 << 20).unwrap();
        let deltas = changes::decode(&bytes).unwrap().unwrap();
        let text = |delta: &&[u8]| String::from_utf8(delta.to_vec()).unwrap();
        deltas.iter().map(text).collect()
    }
}

#[test]
fn what_was_acknowledged_is_in_the_checkpoint_after_a_restart() {
    let rig = Rig::new();
    let replicas = rig.open();
    let run = token(1, 1);
    let begin = |stream, seq, since| ReplicaWrite::Base {
        stream,
        checkpoint: base(run, seq),
        since,
    };
    replicas.write(&rig.id, run, begin(1, 3, None)).unwrap();
    for seq in 4..=6 {
        let write = wrote(1, seq);
        replicas.write(&rig.id, run, write).unwrap();
    }
    // A newer checkpoint takes the place of the changes that it contains.
    replicas
        .write(&rig.id, run, begin(2, 5, Some(change(6))))
        .unwrap();
    replicas.write(&rig.id, run, wrote(2, 7)).unwrap();
    assert_eq!(rig.files(), 1);
    drop(replicas);
    let replicas = rig.open();
    assert_eq!(replicas.standing(&rig.id).unwrap().end.seq, 7);
    assert_eq!(replicas.references(), [Digest([5; 32])].into());
    let made = replicas.seal(&rig.id, &rig.blobs).unwrap().unwrap();
    assert_eq!((made.seq, made.token), (7, run));
    assert_eq!(made.parts[0], base(run, 5).parts[0]);
    assert_eq!(rig.deltas(&made), ["change 6", "change 7"]);
    let late = replicas.write(&rig.id, run, wrote(2, 8));
    assert_eq!(late.unwrap_err().code, Code::NotHere, "it is sealed");
    // It was not handed over after all: the next run goes on.
    let next = token(1, 2);
    let again = ReplicaWrite::Base {
        stream: 1,
        checkpoint: base(next, 7),
        since: None,
    };
    replicas.write(&rig.id, next, again).unwrap();
    replicas.forget(&rig.id, Epoch(0));
    assert_eq!(rig.files(), 1, "it is a newer owner's");
    replicas.forget(&rig.id, Epoch(1));
    assert_eq!((rig.files(), replicas.standing(&rig.id)), (0, None));
}

#[test]
fn runs_before_the_newest_and_runs_without_a_beginning_write_nothing() {
    let rig = Rig::new();
    let replicas = rig.open();
    let write = |token, write| replicas.write(&rig.id, token, write);
    let begin = |token, seq| ReplicaWrite::Base {
        stream: 1,
        checkpoint: base(token, seq),
        since: None,
    };
    assert!(write(token(1, 1), wrote(1, 1)).is_err());
    write(token(1, 2), begin(token(1, 2), 4)).unwrap();
    assert!(write(token(1, 1), begin(token(1, 1), 9)).is_err());
    assert!(write(token(1, 1), wrote(1, 5)).is_err());
    assert!(write(token(1, 3), wrote(1, 5)).is_err());
    assert!(
        write(token(1, 3), begin(token(1, 3), 3)).is_err(),
        "less than it has"
    );
    assert!(write(token(1, 2), wrote(1, 3)).is_err());
    write(token(1, 2), wrote(1, 5)).unwrap();
    assert_eq!(replicas.standing(&rig.id).unwrap().end.seq, 5);
}

#[test]
fn of_two_logs_the_further_stays_and_a_torn_one_is_cut() {
    let rig = Rig::new();
    let replicas = rig.open();
    let run = token(1, 1);
    let begin = |stream| ReplicaWrite::Base {
        stream,
        checkpoint: base(run, 1),
        since: None,
    };
    replicas.write(&rig.id, run, begin(1)).unwrap();
    let dir = rig.dir.path().join("replicas");
    let old = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
    let kept = std::fs::read(old.path()).unwrap();
    replicas.write(&rig.id, run, begin(2)).unwrap();
    let late = replicas.write(&rig.id, run, begin(1));
    assert_eq!(
        late.unwrap_err().code,
        Code::NotHere,
        "of an earlier stream"
    );
    assert!(replicas.write(&rig.id, run, wrote(1, 2)).is_err());
    replicas.write(&rig.id, run, wrote(2, 2)).unwrap();
    // The machine stopped before the old one was gone; and it tore what was being written.
    std::fs::write(old.path(), kept).unwrap();
    std::fs::write(dir.join(format!("service_s_0.{:032x}.new", 7)), b"HOP3").unwrap();
    drop(replicas);
    let replicas = rig.open();
    assert_eq!(rig.files(), 1);
    assert_eq!(replicas.standing(&rig.id).unwrap().end.seq, 2);
}

#[test]
fn a_damaged_replica_is_reported_and_nothing_goes_on_from_it() {
    let rig = Rig::new();
    let replicas = rig.open();
    let run = token(1, 1);
    let begin = |run, seq| ReplicaWrite::Base {
        stream: 1,
        checkpoint: base(run, seq),
        since: None,
    };
    replicas.write(&rig.id, run, begin(run, 1)).unwrap();
    for seq in 2..5 {
        let write = wrote(1, seq);
        replicas.write(&rig.id, run, write).unwrap();
    }
    drop(replicas);
    let dir = rig.dir.path().join("replicas");
    let log = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(log.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(log.path(), bytes).unwrap();
    let replicas = rig.open();
    let refused = replicas.seal(&rig.id, &rig.blobs).unwrap_err();
    assert!(refused.message.contains("damaged"), "{}", refused.message);
    // The node that has the state writes it anew.
    let next = token(1, 2);
    replicas.write(&rig.id, next, begin(next, 5)).unwrap();
    assert_eq!(replicas.seal(&rig.id, &rig.blobs).unwrap().unwrap().seq, 5);
}
