//! Store and ledger after power cuts, together and each without the other.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use hop3_common::{
    codes::{Code, Problem},
    ownership::Epoch,
    store::{
        LocalStore, MasterKey, MemoryStore, Options,
        ab::AbFile,
        disk::Disk as _,
        powercut::{Report as Tried, Rng, SimDisk, is_long, seed},
    },
    wire::Event,
};

use super::{
    samples::{self, made},
    tests::ledger as open_ledger,
    *,
};

fn id(n: usize) -> InstanceId {
    format!("service/s/{n}").parse().unwrap()
}

fn assign(n: usize, epoch: Epoch) -> Input {
    let work = samples::service();
    samples::assign(id(n), epoch.0, Work::Service(Box::new(work)))
}

/// What the world saw, and how much the disk had recorded by then.
#[derive(Debug, Default)]
struct Seen {
    runs: Vec<(usize, InstanceId, Token)>,
    given_up: Vec<(usize, InstanceId, Epoch)>,
    /// Asked to end, or for their final checkpoint.
    asked: Vec<(InstanceId, Token, bool)>,
}

type Running = tokio::task::JoinHandle<Result<(), store::Error>>;

/// An executor that notes what it is told.
#[derive(Clone)]
struct World(SimDisk, Arc<Mutex<Seen>>);

impl World {
    fn seen<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        act(&mut self.1.lock().unwrap())
    }

    /// Reads the reports as a session would.
    fn take_reports(&self, handle: &Handle) {
        while let Some((_, report)) = handle.next_unsent() {
            if crate::session::outbox::is_terminal(&report.event) {
                let given_up = (self.0.recorded(), report.instance, report.token.epoch);
                let sealed = matches!(report.event, Event::Sealed(_) | Event::Stopped);
                self.seen(|seen| seen.given_up.extend(sealed.then_some(given_up)));
            }
        }
    }
}

impl Executor for World {
    fn start(&self, assignment: Arc<Assignment>, token: Token) {
        let run = (self.0.recorded(), assignment.instance.clone(), token);
        self.seen(|seen| seen.runs.push(run));
    }
    fn seal(&self, instance: &InstanceId, token: Token) {
        self.seen(|seen| seen.asked.push((instance.clone(), token, true)));
    }
    fn go(&self, _: &InstanceId, _: Token) {}
    fn cancel(&self, instance: &InstanceId, token: Token) {
        self.seen(|seen| seen.asked.push((instance.clone(), token, false)));
    }
    fn deliver(&self, _: &InstanceId, _: Token, _: Vec<Output>) {}
    fn checkpoint(&self, _: &InstanceId, _: Token) {}
    fn discard(&self, _: &InstanceId) {}
}

/// The store of a disk, its index gone: journals are found by the same `dir`.
fn store(dir: &Path, disk: &SimDisk) -> Arc<dyn MetaStore> {
    let _ = std::fs::remove_dir_all(dir);
    let options = Options {
        disk: Arc::new(disk.clone()),
        ..Options::default()
    };
    let key = MasterKey::from_bytes([1; 32]);
    Arc::new(LocalStore::open(dir, &key, options).unwrap().0)
}

async fn open(store: Arc<dyn MetaStore>, disk: &SimDisk) -> (Handle, World, Running) {
    let (supervisor, handle) = Supervisor::open(store, open_ledger(disk).unwrap())
        .await
        .unwrap();
    let world = World(disk.clone(), Arc::default());
    let running = tokio::spawn(supervisor.run(Arc::new(world.clone())));
    handle.inventory().await.unwrap();
    (handle, world, running)
}

/// Ends a supervisor; its store is closed then.
async fn close(handle: Handle, running: Running) {
    drop(handle);
    running.await.unwrap().unwrap();
}

const INSTANCES: usize = 3;

/// Assignments, moves, seals, stops, crashes of runs; in batches of different size.
async fn work(handle: &Handle, world: &World, rng: &mut Rng, steps: usize) {
    let mut epochs = [Epoch(0); INSTANCES];
    for _ in 0..steps {
        for _ in 0..=rng.below(3) {
            let n = rng.below(INSTANCES);
            let (instance, epoch) = (id(n), epochs[n]);
            let live = |seen: &mut Seen| {
                let runs = seen.runs.iter().rev();
                runs.clone().find(|run| run.1 == id(n)).map(|run| run.2)
            };
            let input = match rng.below(10) {
                0..=2 => {
                    epochs[n] = epoch.next();
                    assign(n, epochs[n])
                }
                3 | 4 => Input::Seal { instance, epoch },
                5 => Input::Stop { instance, epoch },
                6 => Input::Forget { instance, epoch },
                _ => match (world.seen(|seen| seen.asked.pop()), world.seen(live)) {
                    (Some((instance, token, seal)), _) => Input::Run {
                        instance,
                        token,
                        progress: Progress::Finished(if seal {
                            Event::Sealed(made(token))
                        } else {
                            Event::Stopped
                        }),
                    },
                    (None, Some(token)) => Input::Run {
                        instance,
                        token,
                        // By itself: nothing is given up.
                        progress: Progress::Finished(Event::Failed(Problem::new(
                            Code::TaskLost,
                            "trapped",
                        ))),
                    },
                    (None, None) => continue,
                },
            };
            handle.step(input).await.unwrap();
        }
        handle.inventory().await.unwrap();
        world.take_reports(handle);
    }
}

/// Nothing runs that was given up, and no token comes again: by itself, or told to.
async fn check(store: Arc<dyn MetaStore>, disk: &SimDisk, seen: &Seen, at: usize, context: &str) {
    let (handle, world, running) = open(store, disk).await;
    let newest = seen.runs.iter().map(|run| run.2.epoch.0).max();
    for epoch in 1..=newest.unwrap_or(0) + 1 {
        for n in 0..INSTANCES {
            handle.step(assign(n, Epoch(epoch))).await.unwrap();
        }
        handle.inventory().await.unwrap();
        let runs = world.seen(|seen| std::mem::take(&mut seen.runs));
        for (_, instance, token) in runs {
            let of = |other: &InstanceId, told: usize| *other == instance && told <= at;
            for (told, other, before) in &seen.runs {
                let again = of(other, *told) && token <= *before;
                assert!(!again, "{context}: {instance} {token} after {before}");
            }
            for (told, other, epoch) in &seen.given_up {
                let again = of(other, *told) && token.epoch <= *epoch;
                assert!(!again, "{context}: {instance} {token} runs, was given up");
            }
            // So that the next epoch can begin.
            let progress = Progress::Finished(Event::Stopped);
            handle.progress(&instance, token, progress).await;
        }
    }
    close(handle, running).await;
}

fn slots() -> [&'static Path; 2] {
    ["/sim/ledger.a", "/sim/ledger.b"].map(Path::new)
}

/// Harms one slot of the ledger, if there are two that are whole.
fn damage(disk: &SimDisk, rng: &mut Rng) {
    let opened = AbFile::open(Arc::new(disk.clone()), Path::new("/sim"), ledger::LEDGER);
    if opened.is_ok_and(|(file, _)| file.damaged().is_some()) {
        return;
    }
    if let [Some(a), Some(b)] = slots().map(|slot| disk.contents(slot)) {
        let which = rng.below(2);
        let mut bytes = if which == 0 { a } else { b };
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
            disk.plant(slots()[which], &bytes);
        }
    }
}

#[tokio::test]
async fn a_power_cut_at_any_operation_brings_back_no_run_and_no_epoch() {
    let (workloads, images) = if is_long() { (120, 4) } else { (18, 1) };
    let mut tried = Tried::default();
    let mut given_up = 0;
    for workload in seed()..seed() + workloads {
        let (disk, mut rng) = (SimDisk::default(), Rng::new(workload));
        let dir = tempfile::tempdir().unwrap();
        let (handle, world, running) = open(store(dir.path(), &disk), &disk).await;
        work(&handle, &world, &mut rng, 20).await;
        close(handle, running).await;
        let seen = world.seen(std::mem::take);
        given_up += seen.given_up.len();
        for (at, cut) in disk.cuts() {
            for image in cut.images(&mut rng, images) {
                let context = format!("HOP3_SEED={workload}, cut after {at}");
                // Without the store: the file alone.
                let alone: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
                let copy = image.killed();
                check(alone, &copy, &seen, at, &format!("{context}, no store")).await;
                tried.images += 1;
                // Both, or the store with a harmed file, or without one.
                if !rng.one_in(4) {
                    continue;
                }
                let what = ["whole", "slot harmed", "no file"][rng.below(3)];
                match what {
                    "slot harmed" => damage(&image, &mut rng),
                    "no file" => slots()
                        .into_iter()
                        .for_each(|slot| drop(image.remove(slot))),
                    _ => {}
                }
                let both = store(dir.path(), &image);
                check(both, &image, &seen, at, &format!("{context}, {what}")).await;
                tried.images += 1;
            }
        }
        tried.workloads += 1;
    }
    assert!(given_up > 20, "{given_up} were given up: too few to tell");
    tried.print("ledger");
}
