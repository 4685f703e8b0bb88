//! What must hold while a node is cut off and both sides live, however it is cut off: fenced
//! services go on elsewhere with one owner, others go on where they are.

use std::time::{Duration, Instant};

use crate::{Mesh, Web, counting, counting::Clients, eventually, is_long};

/// Cut both ways; what the node sends; what it is sent.
const CUTS: [(bool, bool); 3] = [(true, true), (true, false), (false, true)];
/// Clients.
const CLIENTS: usize = 4;
/// Whoever may answer does in a few milliseconds; all else waits for an owner for much longer.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the first partition lasts in the long run: well past `lost_after` and every lease.
const LONG: Duration = Duration::from_secs(300);

/// A network that can be cut.
pub trait Net {
    /// Drops what `node` sends to the coordinator (`up`), what it is sent (`down`), or carries it
    /// again.
    fn cut(&self, node: &str, up: bool, down: bool);

    /// A client on the machine of `node`, of the gateway that its agent has there, if it has one.
    fn local(&self, mesh: &Mesh, node: &str) -> Option<Web>;
}

/// In a long run, lets clients work for as long as a long partition lasts.
fn last(clients: &Clients) -> Duration {
    let begun = Instant::now();
    while is_long() && begun.elapsed() < LONG {
        clients.progress();
    }
    begun.elapsed()
}

/// How often instances of `node` have fenced themselves.
fn fenced(mesh: &Mesh, node: &str) -> usize {
    mesh.agents[node].log().matches("its lease ended").count()
}

/// Cuts off the owner of a fenced service, again and again, under clients of the coordinator's
/// gateway. There are two nodes.
///
/// # Panics
/// It does not go on at the other one, a change is lost, or there are two owners.
pub fn fence(mesh: &Mesh, net: &impl Net, nodes: [&str; 2]) {
    let spec = "state: single\n  durability: replicated\n  on_partition: fence\n  lease: 1s";
    counting::deploy(mesh, spec);
    let clients = Clients::start(mesh, "counters", CLIENTS, false);
    let mut lasted = Duration::ZERO;
    for (up, down) in CUTS {
        clients.progress();
        let owner = mesh.node_of("counters", 0);
        let other = nodes.into_iter().find(|node| *node != owner);
        let other = other.unwrap_or_else(|| panic!("an unknown owner: {owner}"));
        let before = fenced(mesh, &owner);
        net.cut(&owner, up, down);
        counting::serves_on(mesh, other);
        clients.progress();
        // It was alive all the time, and knows that it must not go on.
        eventually("the old owner has stopped by itself", || {
            (fenced(mesh, &owner) > before).then_some(())
        });
        silent(mesh, net, &owner);
        if up && down {
            lasted = last(&clients);
            silent(mesh, net, &owner);
        }
        net.cut(&owner, false, false);
        mesh.wait_ready(&owner);
        clients.progress();
        counting::serves_on(mesh, other);
        silent(mesh, net, &owner);
    }
    let acknowledged = clients.stop();
    let total = counting::check(mesh, "counters", &acknowledged);
    eprintln!(
        "fence: cuts={} the_first_lasted={lasted:?} acknowledged={total} lost=0",
        CUTS.len()
    );
}

/// The instance does not answer at a node that is not its owner's, not even a question. (One that
/// ran on could not answer either: what a call leaves in memory has no replica.)
fn silent(mesh: &Mesh, net: &impl Net, node: &str) {
    if let Some(web) = net.local(mesh, node) {
        let answer = web.ask("GET", "/counters/client-0", SILENCE);
        let answered = answer.as_ref().is_ok_and(|answer| answer.status == 200);
        assert!(!answered, "{node} is not the owner: {answer:?}");
    }
}

/// Cuts off the node of a service that continues, under clients of the node's own gateway.
///
/// # Panics
/// It stops, is restarted, or a change is lost.
pub fn go_on(mesh: &Mesh, net: &impl Net, node: &str) {
    let clients = continues(mesh, net, node);
    let run = mesh.service("counters")["instances"][0]["token"].clone();
    let mut lasted = Duration::ZERO;
    for (up, down) in CUTS {
        net.cut(node, up, down);
        eventually("the node is away", || {
            (mesh.node(node)["status"] != "ready").then_some(())
        });
        clients.progress();
        if up && down {
            lasted = last(&clients);
        }
        net.cut(node, false, false);
        mesh.wait_ready(node);
        counting::serves_on(mesh, node);
        clients.progress();
        let now = mesh.service("counters")["instances"][0]["token"].clone();
        assert_eq!(now, run, "it was adopted, not started again");
    }
    let acknowledged = clients.stop();
    // Through the coordinator's gateway.
    let total = counting::check(mesh, "counters", &acknowledged);
    eprintln!(
        "continue: cuts={} the_first_lasted={lasted:?} acknowledged={total} lost=0",
        CUTS.len()
    );
}

/// A service on `node` that goes on without the coordinator, and clients of it there.
///
/// # Panics
/// The node has no gateway.
pub fn continues(mesh: &Mesh, net: &impl Net, node: &str) -> Clients {
    let spec = format!(
        "state: single\n  durability: node\n  on_partition: continue\n  placement: {{node: {node}}}"
    );
    counting::deploy(mesh, &spec);
    let web = || {
        let web = net.local(mesh, node);
        web.unwrap_or_else(|| panic!("{node} has no gateway of its own"))
    };
    let clients = Clients::start_at(web, "counters", "local", CLIENTS, false);
    clients.progress();
    clients
}
