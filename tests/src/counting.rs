//! Clients that count, and a checker that knows every acknowledgement.
//!
//! Each client owns one key of a `counters` service and adds 1 to it again and again, each time
//! under an idempotency key of its own, until it is acknowledged; the answer is the new value. So
//! value and acknowledgements must agree at every answer: a lost change shows as a value too low,
//! one applied twice as a value too high.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{Mesh, Web, eventually, guest, web::block_on};

/// Longest time that one change may take, faults included.
const CHANGE_MAX: Duration = Duration::from_secs(120);

/// Changes that must be acknowledged between two faults: the mesh really works in between.
const PROGRESS: u64 = 20;

/// Applies the `counters` service, with more lines of its spec, and waits until it is ready.
pub fn deploy(mesh: &Mesh, spec: &str) {
    deploy_as(mesh, "counters", spec);
}

/// The same, under another name.
pub fn deploy_as(mesh: &Mesh, name: &str, spec: &str) {
    let path = guest("counters").display().to_string();
    mesh.hop3(&["artifact", "push", &path]).ok();
    let manifest = format!("kind: Service\nname: {name}\nspec:\n  module: counters\n  {spec}\n");
    mesh.apply(&manifest).ok();
}

/// Waits until the only instance of `counters` serves on `node`.
pub fn serves_on(mesh: &Mesh, node: &str) {
    eventually(&format!("it serves on {node}"), || {
        let service = mesh.service("counters");
        let instance = &service["instances"][0];
        (instance["status"] == "ready" && instance["node"] == node).then_some(())
    });
}

/// What the clients saw together.
#[derive(Debug, Default)]
pub struct Seen {
    /// Changes acknowledged.
    pub acknowledged: AtomicU64,
    /// Attempts that got no answer, or one that says to try again.
    pub repeated: AtomicU64,
    /// Longest time from the first attempt to the acknowledgement, ms.
    pub slowest_ms: AtomicU64,
}

/// Running clients.
pub struct Clients {
    stop: Arc<AtomicBool>,
    /// What they saw so far.
    pub seen: Arc<Seen>,
    threads: Vec<JoinHandle<(String, u64)>>,
}

impl Clients {
    /// Starts `count` clients of `service`. With `patient`, an answer other than 200 is a failure
    /// of the test: nothing that happens may reach clients.
    #[must_use]
    pub fn start(mesh: &Mesh, service: &str, count: usize, patient: bool) -> Self {
        Self::start_at(|| Web::new(mesh), service, "client", count, patient)
    }

    /// The same at another gateway, with keys of another `name`.
    #[must_use]
    pub fn start_at(
        web: impl Fn() -> Web,
        service: &str,
        name: &str,
        count: usize,
        patient: bool,
    ) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let client = |n: usize| {
            let (web, stop, seen) = (web(), stop.clone(), seen.clone());
            let (service, key) = (service.to_owned(), format!("{name}-{n}"));
            std::thread::spawn(move || {
                web.enter();
                let count = block_on(drive(&web, &service, &key, &stop, &seen, patient));
                (key, count)
            })
        };
        let threads = (0..count).map(client).collect();
        Self {
            stop,
            seen,
            threads,
        }
    }

    /// Changes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.seen.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until more changes are acknowledged.
    pub fn progress(&self) {
        let before = self.acknowledged();
        eventually("clients get on", || {
            (self.acknowledged() >= before + PROGRESS).then_some(())
        });
    }

    /// Ends them; each key with its number of acknowledged changes.
    ///
    /// # Panics
    /// A client found a value that does not agree with what was acknowledged.
    #[must_use]
    pub fn stop(self) -> Vec<(String, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(JoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|_| panic!("a client found a wrong value")))
            .collect()
    }
}

async fn drive(
    web: &Web,
    service: &str,
    key: &str,
    stop: &AtomicBool,
    seen: &Seen,
    patient: bool,
) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let value = add(web, service, key, count, seen, patient).await;
        count += 1;
        assert_eq!(value, count, "{key}: the value after change {count}");
        seen.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    count
}

/// Adds 1 until it is acknowledged; the new value.
async fn add(web: &Web, service: &str, key: &str, n: u64, seen: &Seen, patient: bool) -> u64 {
    let begun = Instant::now();
    let path = format!("/{service}/{key}/add?n=1");
    loop {
        let request = web.request("POST", &path);
        let request = request.header("idempotency-key", format!("{key}-{n}"));
        let answer = web.send(request).await;
        match &answer {
            Ok(answer) if answer.status == 200 => {
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                seen.slowest_ms.fetch_max(took, Ordering::Relaxed);
                let value = answer.text.trim().parse();
                return value.unwrap_or_else(|_| panic!("{key}: not a number: {answer:?}"));
            }
            _ if patient => panic!("{key}: a client was reached: {answer:?}"),
            // No connection, or: not ready, unknown, late. Again, under the same key.
            Err(_) => {}
            Ok(answer) => assert!(answer.status >= 500, "{key}: {answer:?}"),
        }
        seen.repeated.fetch_add(1, Ordering::Relaxed);
        assert!(
            begun.elapsed() < CHANGE_MAX,
            "{key}: change {n}: {answer:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks for the value of every key; how far they are from what was acknowledged, in all.
#[must_use]
pub fn differences(mesh: &Mesh, service: &str, acknowledged: &[(String, u64)]) -> u64 {
    let web = Web::new(mesh);
    let difference = |(key, count): &(String, u64)| {
        let value: u64 = crate::eventually(&format!("{service}/{key} answers"), || {
            let answer = block_on(web.get(&format!("/{service}/{key}"))).ok()?;
            (answer.status == 200).then(|| answer.text.trim().parse().ok())?
        });
        value.abs_diff(*count)
    };
    acknowledged.iter().map(difference).sum()
}

/// Every key has the value that was acknowledged. Answers how many changes were, in all.
///
/// # Panics
/// One has not.
pub fn check(mesh: &Mesh, service: &str, acknowledged: &[(String, u64)]) -> u64 {
    let wrong = differences(mesh, service, acknowledged);
    let total = acknowledged.iter().map(|(_, count)| count).sum();
    eprintln!("{service}: acknowledged={total} lost_or_doubled={wrong}");
    assert_eq!(
        wrong, 0,
        "changes lost or doubled; acknowledged: {acknowledged:?}"
    );
    total
}
