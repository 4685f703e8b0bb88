#![allow(clippy::unwrap_used)]
use hop3_common::{
    ownership::Epoch,
    spec::Retry,
    store::{MasterKey, MemoryStore, powercut::SimDisk},
    wire::{Event, TaskWork},
};

use super::*;

/// Notes what it is told.
#[derive(Default)]
pub(super) struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn note(&self, what: &str, instance: &InstanceId, token: Token) {
        self.0
            .lock()
            .unwrap()
            .push(format!("{what} {instance} {token}"));
    }

    /// What `what` was told, in order.
    pub(super) fn of(&self, what: &str) -> Vec<String> {
        let notes = self.0.lock().unwrap();
        let of = |note: &String| note.strip_prefix(what).map(|rest| rest.trim().to_owned());
        notes.iter().filter_map(of).collect()
    }

    async fn until(&self, what: &str) {
        let there = async {
            while !self
                .0
                .lock()
                .unwrap()
                .iter()
                .any(|note| note.starts_with(what))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), there)
            .await
            .unwrap();
    }
}

impl Executor for Notes {
    fn start(&self, assignment: Arc<Assignment>, token: Token) {
        self.note("start", &assignment.instance, token);
    }
    fn go(&self, instance: &InstanceId, token: Token) {
        self.note("go", instance, token);
    }
    fn cancel(&self, instance: &InstanceId, token: Token) {
        self.note("cancel", instance, token);
    }
    fn deliver(&self, instance: &InstanceId, token: Token, _outputs: Vec<Output>) {
        self.note("deliver", instance, token);
    }
    fn seal(&self, instance: &InstanceId, token: Token) {
        self.note("seal", instance, token);
    }
    fn checkpoint(&self, instance: &InstanceId, token: Token) {
        self.note("checkpoint", instance, token);
    }
    fn discard(&self, instance: &InstanceId) {
        self.note("discard", instance, Token::default());
    }
}

fn assignment(args: Vec<String>) -> Input {
    let task = samples::task(Retry::Never);
    let work = Work::Task(TaskWork { args, ..task });
    samples::assign("task/a".parse().unwrap(), 1, work)
}

pub(super) fn ledger(disk: &SimDisk) -> Result<Ledger, ledger::Error> {
    let disk = Arc::new(disk.clone());
    let key = MasterKey::from_bytes([1; 32]);
    Ledger::open(disk, std::path::Path::new("/sim"), &key)
}

async fn open(store: &Arc<dyn MetaStore>) -> (Handle, Arc<Notes>) {
    open_with(store, &SimDisk::default()).await
}

pub(super) async fn open_with(store: &Arc<dyn MetaStore>, disk: &SimDisk) -> (Handle, Arc<Notes>) {
    let ledger = ledger(disk).unwrap();
    let (supervisor, handle) = Supervisor::open(store.clone(), ledger).await.unwrap();
    let notes = Arc::new(Notes::default());
    tokio::spawn(supervisor.run(notes.clone()));
    (handle, notes)
}

#[tokio::test]
async fn a_large_assignment_survives_a_restart_and_acknowledged_reports_do_not() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
    let (handle, notes) = open(&store).await;
    // Larger than one record.
    let args: Vec<String> = (0..60).map(|n| format!("{n:01024}")).collect();
    handle.step(assignment(args)).await.unwrap();
    notes.until("start task/a 1.1").await;
    let (handle, notes) = open(&store).await;
    notes.until("start task/a 1.2").await;
    let instance: InstanceId = "task/a".parse().unwrap();
    let token = handle.inventory().await.unwrap()[0].token;
    handle
        .progress(&instance, token, Progress::Finished(Event::Stopped))
        .await;
    handle.inventory().await.unwrap();
    assert_eq!(handle.next_unsent().unwrap().0, 1);
    assert!(handle.next_unsent().is_none());
    handle.acked(1).await.unwrap();
    handle
        .step(Input::Forget {
            instance,
            epoch: Epoch(1),
        })
        .await
        .unwrap();
    assert!(handle.inventory().await.unwrap().is_empty());
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let outbox = records::load_outbox(&*store, [0; 16]).await.unwrap();
            if (outbox.acked(), outbox.last()) == (1, 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_assignment_too_large_to_keep_is_refused_in_words() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
    let (handle, _notes) = open(&store).await;
    handle
        .step(assignment(vec!["x".repeat(records::ASSIGNMENT_BYTES_MAX)]))
        .await
        .unwrap();
    assert!(handle.inventory().await.unwrap().is_empty());
    let (_, report) = handle.next_unsent().unwrap();
    assert!(matches!(report.event, Event::Failed(problem) if problem.message.contains("exceeds")));
}

#[tokio::test]
async fn an_outbox_of_another_past_is_numbered_anew() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryStore::new());
    let (handle, _notes) = open(&store).await;
    for name in ["task/a", "task/b"] {
        let stop = Input::Stop {
            instance: name.parse().unwrap(),
            epoch: Epoch(1),
        };
        handle.step(stop).await.unwrap();
    }
    let before = handle.outbox_id();
    assert!(handle.connected(9).await.unwrap().is_err());
    handle.renumber([7; 16]).await.unwrap();
    assert_ne!(handle.outbox_id(), before);
    assert!(handle.connected(0).await.unwrap().is_ok());
    assert_eq!(handle.next_unsent().unwrap().0, 1);
    let stored = records::load_outbox(&*store, [0; 16]).await.unwrap();
    assert_eq!((stored.id(), stored.last()), ([7; 16], 2));
}
