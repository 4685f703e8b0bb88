//! Kills and moves under client load, with a checker that knows every acknowledgement.
//!
//! The seed of a run is printed; `HOP3_SEED` repeats its order of faults.

use hop3_tests::{Mesh, counting, counting::Clients, eventually, is_long};

/// Kills in CI, and in the long run.
const KILLS: u64 = 20;
const KILLS_LONG: u64 = 300;
/// Planned moves.
const MOVES: u64 = 100;

/// A small generator of our own, so that a seed means the same for ever (xorshift64*).
struct Seeded(u64);

impl Seeded {
    fn new() -> Self {
        let given = std::env::var("HOP3_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = given.unwrap_or_else(|| now.map_or(1, |now| now.as_nanos() as u64) | 1);
        eprintln!("HOP3_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_when_anything_is_killed() {
    let nodes = [("edge-1", "edge"), ("edge-2", "edge")];
    let mut mesh = Mesh::start(&nodes);
    counting::deploy(&mesh, "state: keyed\n  shards: 4");
    let mut seeded = Seeded::new();
    let clients = Clients::start(&mesh, "counters", 8, false);
    let kills = if is_long() { KILLS_LONG } else { KILLS };
    let mut coordinators = 0;
    for _ in 0..kills {
        clients.progress();
        match seeded.below(3) {
            0 => {
                mesh.coordinator.kill();
                mesh.start_coordinator();
                coordinators += 1;
            }
            n => {
                let (name, _) = nodes[n as usize - 1];
                mesh.kill_agent(name);
                mesh.start_agent(name);
            }
        }
    }
    clients.progress();
    let repeated = clients
        .seen
        .repeated
        .load(std::sync::atomic::Ordering::Relaxed);
    let acknowledged = clients.stop();
    let total = counting::check(&mesh, "counters", &acknowledged);
    eprintln!(
        "faults: kills={kills} of_the_coordinator={coordinators} acknowledged={total} lost=0 \
         attempts_repeated={repeated}"
    );
}

#[test]
fn a_hundred_moves_under_load_reach_no_client() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    counting::deploy(&mesh, "state: single");
    let clients = Clients::start(&mesh, "counters", 8, true);
    for n in 0..MOVES {
        let before = clients.acknowledged();
        let to = if mesh.node_of("counters", 0) == "edge-1" {
            "edge-2"
        } else {
            "edge-1"
        };
        mesh.hop3(&["service", "migrate", "counters", "--to", to, "--watch"])
            .ok();
        assert_eq!(mesh.node_of("counters", 0), to, "move {n}");
        eventually("clients get on", || {
            (clients.acknowledged() > before).then_some(())
        });
    }
    let slowest = clients
        .seen
        .slowest_ms
        .load(std::sync::atomic::Ordering::Relaxed);
    let acknowledged = clients.stop();
    let total = counting::check(&mesh, "counters", &acknowledged);
    eprintln!("moves: {MOVES}, {total} changes acknowledged, the slowest after {slowest} ms");
}
