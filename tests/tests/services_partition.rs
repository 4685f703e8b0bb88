//! A node that is cut off while both sides live, by a relay: needs no privilege. `netns.rs` does
//! the same with real networks.

use std::net::{SocketAddr, TcpListener};

use hop3_tests::{
    Mesh, Options, Web,
    partition::{self, Net},
    relay::Relay,
};

/// A relay before each node.
#[derive(Default)]
struct Relays {
    relays: Vec<(&'static str, Relay)>,
    /// Where the only agent has its gateway.
    gateway: Option<SocketAddr>,
}

impl Relays {
    fn join(&mut self, mesh: &mut Mesh, name: &'static str) {
        let relay = Relay::to(mesh);
        relay.join(mesh, name, "edge");
        self.relays.push((name, relay));
    }
}

impl Net for Relays {
    fn cut(&self, node: &str, up: bool, down: bool) {
        let relay = self.relays.iter().find(|(name, _)| *name == node);
        let (_, relay) = relay.unwrap_or_else(|| panic!("{node} has no relay"));
        relay.cut(up, down);
    }

    fn local(&self, mesh: &Mesh, node: &str) -> Option<Web> {
        let address = self.gateway?.to_string();
        Some(Web::local_at(mesh, node, &address, None))
    }
}

#[test]
fn a_fenced_service_leaves_a_node_that_is_cut_off_with_one_owner_at_a_time() {
    let mut mesh = Mesh::start(&[]);
    let mut relays = Relays::default();
    let nodes = ["edge-1", "edge-2"];
    for name in nodes {
        relays.join(&mut mesh, name);
    }
    partition::fence(&mesh, &relays, nodes);
}

#[test]
fn a_service_that_continues_serves_its_node_and_is_adopted_without_a_restart() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let address = free.unwrap_or_else(|error| panic!("{error}"));
    let mut mesh = Mesh::with(Options {
        agent_config: format!("[gateway]\nlisten = \"{address}\"\n"),
        ..Options::default()
    });
    let mut relays = Relays {
        gateway: Some(address),
        ..Relays::default()
    };
    relays.join(&mut mesh, "edge-1");
    partition::go_on(&mesh, &relays, "edge-1");
}
