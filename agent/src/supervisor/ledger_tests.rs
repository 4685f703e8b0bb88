#![allow(clippy::unwrap_used)]
use std::path::Path;

use hop3_common::{
    ownership::Epoch,
    spec::Retry,
    store::{
        MasterKey, MemoryStore,
        disk::Disk as _,
        powercut::{Fault, SimDisk},
    },
    wire::Event,
};

use super::{
    samples,
    tests::{Notes, ledger, open_with},
    *,
};

const SLOTS: [&str; 2] = ["/sim/ledger.a", "/sim/ledger.b"];

fn id(name: &str) -> InstanceId {
    format!("task/{name}").parse().unwrap()
}

fn assign(name: &str, epoch: u64) -> Input {
    let work = samples::task(Retry::OnNodeLoss);
    samples::assign(id(name), epoch, Work::Task(work))
}

fn stop(name: &str, epoch: u64) -> Input {
    Input::Stop {
        instance: id(name),
        epoch: Epoch(epoch),
    }
}

fn forget(name: &str, epoch: u64) -> Input {
    Input::Forget {
        instance: id(name),
        epoch: Epoch(epoch),
    }
}

fn memory() -> Arc<dyn MetaStore> {
    Arc::new(MemoryStore::new())
}

/// Everything that was asked for is durable, and acted on.
async fn settle(handle: &Handle) -> Vec<Held> {
    handle.inventory().await.unwrap()
}

async fn starts(handle: &Handle, notes: &Notes) -> Vec<String> {
    settle(handle).await;
    notes.of("start")
}

async fn steps(handle: &Handle, inputs: impl IntoIterator<Item = Input>) {
    for input in inputs {
        handle.step(input).await.unwrap();
        settle(handle).await;
    }
}

/// Changes one byte of a slot.
fn damage(disk: &SimDisk, slot: &str) {
    let mut bytes = disk.contents(Path::new(slot)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    disk.plant(Path::new(slot), &bytes);
}

/// The slot of the newest value: generations are told in bytes 8 to 16.
fn newest(disk: &SimDisk) -> &'static str {
    let generation = |slot: &&&str| disk.contents(Path::new(slot)).map(|b| b[8..16].to_vec());
    SLOTS.iter().max_by_key(generation).unwrap()
}

#[tokio::test]
async fn a_store_of_before_the_file_is_taken_over_once() {
    let (store, disk) = (memory(), SimDisk::default());
    let (handle, _) = open_with(&store, &disk).await;
    steps(&handle, [assign("a", 3), assign("b", 1), stop("c", 5)]).await;
    // As an older release left it.
    let disk = SimDisk::default();
    let (handle, notes) = open_with(&store, &disk).await;
    assert_eq!(starts(&handle, &notes).await, ["task/a 3.2", "task/b 1.2"]);
    // Now the file alone knows it all, the forgotten ones too.
    let (handle, notes) = open_with(&memory(), &disk).await;
    assert!(settle(&handle).await.is_empty());
    steps(&handle, [assign("a", 2), assign("c", 5), assign("a", 3)]).await;
    steps(&handle, [assign("c", 6)]).await;
    assert_eq!(notes.of("start"), ["task/a 3.3", "task/c 6.1"]);
}

#[tokio::test]
async fn a_store_that_was_put_back_does_not_bring_back_what_was_given_up() {
    let (old, disk) = (Arc::new(MemoryStore::new()), SimDisk::default());
    let store: Arc<dyn MetaStore> = old.clone();
    let (handle, _) = open_with(&store, &disk).await;
    let begun = ["stopped", "forgotten", "moved"].map(|name| assign(name, 1));
    steps(&handle, begun).await;
    // From here on only the file remembers.
    let copy = copy_of(&store).await;
    steps(&handle, [stop("stopped", 1), stop("forgotten", 1)]).await;
    steps(&handle, [forget("forgotten", 1), assign("moved", 2)]).await;
    let (handle, notes) = open_with(&copy, &disk).await;
    let held = settle(&handle).await;
    assert_eq!(notes.of("start"), [""; 0], "{held:?}");
    // What it holds of the moved one is old: the coordinator sends the assignment again.
    let moved = held.iter().find(|held| held.instance == id("moved"));
    assert_eq!(moved.unwrap().token.epoch, Epoch(1));
    steps(&handle, [assign("moved", 1), assign("stopped", 1)]).await;
    steps(&handle, [assign("moved", 2), assign("moved", 2)]).await;
    assert_eq!(notes.of("start"), ["task/moved 2.1"]);
    // The store has learnt it.
    let (handle, notes) = open_with(&copy, &SimDisk::default()).await;
    assert_eq!(starts(&handle, &notes).await, ["task/moved 2.2"]);
}

/// All records, in a store of its own.
async fn copy_of(store: &Arc<dyn MetaStore>) -> Arc<dyn MetaStore> {
    let copy = memory();
    let page = store.range(hop3_common::store::Range::prefix("")).await;
    for entry in page.unwrap().entries {
        let txn = hop3_common::store::Txn::new().put(entry.key, entry.value);
        copy.commit(txn).await.unwrap();
    }
    copy
}

#[tokio::test]
async fn with_one_slot_damaged_the_store_is_asked_and_incarnations_are_left_out() {
    for slot in SLOTS {
        let (store, disk) = (memory(), SimDisk::default());
        let (handle, _) = open_with(&store, &disk).await;
        steps(&handle, [assign("a", 1), assign("b", 1), assign("c", 1)]).await;
        steps(&handle, [stop("b", 1), assign("c", 2)]).await;
        let lost_newest = newest(&disk) == slot;
        damage(&disk, slot);
        let (handle, notes) = open_with(&store, &disk).await;
        // The second was stopped, maybe by the write that is lost: the store knows.
        let started = starts(&handle, &notes).await;
        let told = format!("{slot}, the newest: {lost_newest}");
        assert_eq!(started, ["task/a 1.65538", "task/c 2.65537"], "{told}");
        // Said once: the next write makes the slot whole.
        let (handle, notes) = open_with(&store, &disk).await;
        let started = starts(&handle, &notes).await;
        assert_eq!(started, ["task/a 1.65539", "task/c 2.65538"], "{told}");
    }
}

#[tokio::test]
async fn with_both_slots_damaged_nothing_is_started_and_the_error_says_what_to_do() {
    let (store, disk) = (memory(), SimDisk::default());
    let (handle, _) = open_with(&store, &disk).await;
    steps(&handle, [assign("a", 1), assign("b", 1), stop("b", 1)]).await;
    SLOTS.iter().for_each(|slot| damage(&disk, slot));
    let error = ledger(&disk).unwrap_err();
    assert!(matches!(error, ledger::Error::Lost { .. }), "{error}");
    for said in ["ledger.a", "ledger.b", "/sim", "move both away", "backup"] {
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    // As it says.
    for slot in SLOTS {
        disk.remove(Path::new(slot)).unwrap();
    }
    let (handle, notes) = open_with(&store, &disk).await;
    assert_eq!(starts(&handle, &notes).await, ["task/a 1.2"]);
}

#[tokio::test]
async fn what_waits_together_is_written_once_and_what_changes_no_owner_not_at_all() {
    let (store, disk) = (memory(), SimDisk::default());
    let (handle, _) = open_with(&store, &disk).await;
    for n in 0..100 {
        steps(&handle, [assign(&format!("t{n}"), 1)]).await;
    }
    let one_by_one = disk.syncs();
    assert!((100..=102).contains(&one_by_one), "{one_by_one}");
    // A start of the agent: a hundred runs begin.
    let opened = disk.syncs() + 2;
    let (handle, notes) = open_with(&store, &disk).await;
    assert_eq!(starts(&handle, &notes).await.len(), 100);
    assert_eq!(disk.syncs(), opened + 1);
    let token = settle(&handle).await[0].token;
    for progress in [
        Progress::Preparing,
        Progress::Prepared {
            fetch_us: 0,
            load_us: 0,
        },
        Progress::Finished(Event::Stopped),
    ] {
        handle.progress(&id("t0"), token, progress).await;
    }
    settle(&handle).await;
    assert_eq!(disk.syncs(), opened + 1);
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_nothing_acts_meanwhile() {
    let (store, disk) = (memory(), SimDisk::default());
    let (handle, notes) = open_with(&store, &disk).await;
    settle(&handle).await;
    disk.fail(
        disk.operations(),
        Fault::Error(std::io::ErrorKind::StorageFull),
    );
    let failed = disk.operations() + 1;
    handle.step(assign("a", 1)).await.unwrap();
    let there = async {
        while disk.operations() < failed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there)
        .await
        .unwrap();
    assert_eq!(notes.of("start"), [""; 0]);
    assert_eq!(starts(&handle, &notes).await, ["task/a 1.1"]);
}

#[tokio::test]
async fn it_is_sealed_and_another_key_or_format_is_refused() {
    let (store, disk) = (memory(), SimDisk::default());
    let (handle, _) = open_with(&store, &disk).await;
    steps(&handle, [assign("secret-name", 1)]).await;
    let bytes = disk.contents(Path::new(SLOTS[0])).unwrap();
    let clear = b"secret-name";
    assert!(!bytes.windows(clear.len()).any(|window| window == clear));
    let other = MasterKey::from_bytes([2; 32]);
    let opened = Ledger::open(Arc::new(disk.clone()), Path::new("/sim"), &other);
    let wrong = matches!(
        opened,
        Err(ledger::Error::Store(store::Error::WrongKey { .. }))
    );
    assert!(wrong, "{opened:?}");
}
