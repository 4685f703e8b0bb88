//! A coordinator and its nodes in network namespaces of their own, and partitions by nftables.
//! Needs root, iproute2 and nftables; says so if there is no root.

use hop3_tests::{
    Mesh, PATIENCE, counting, eventually,
    netns::Netns,
    partition::{self, Net as _},
};

const NODES: [&str; 2] = ["edge-1", "edge-2"];

/// A mesh on machines of its own, if there can be any: the network first, so that it goes last.
fn machines(nodes: &[&'static str]) -> Option<(Netns, Mesh)> {
    let net = Netns::new(nodes)?;
    let mut mesh = Mesh::with(net.options());
    for name in nodes {
        mesh.enroll(name, "edge").ok();
        mesh.start_agent(name);
    }
    for name in nodes {
        mesh.wait_ready(name);
    }
    Some((net, mesh))
}

#[test]
fn a_fenced_service_leaves_a_machine_that_is_cut_off_with_one_owner_at_a_time() {
    let Some((net, mesh)) = machines(&NODES) else {
        return;
    };
    partition::fence(&mesh, &net, NODES);
}

#[test]
fn a_service_that_continues_serves_its_machine_and_is_adopted_without_a_restart() {
    let Some((net, mesh)) = machines(&["edge-1"]) else {
        return;
    };
    partition::go_on(&mesh, &net, "edge-1");
}

#[test]
fn an_agent_that_starts_while_it_is_cut_off_serves_its_machine_with_everything() {
    let Some((net, mut mesh)) = machines(&["edge-1"]) else {
        return;
    };
    let clients = partition::continues(&mesh, &net, "edge-1");
    net.cut("edge-1", true, true);
    eventually("the node is away", || {
        (mesh.node("edge-1")["status"] != "ready").then_some(())
    });
    for _ in 0..3 {
        clients.progress();
        mesh.kill_agent("edge-1");
        mesh.start_agent("edge-1");
    }
    clients.progress();
    let acknowledged = clients.stop();
    let Some(web) = net.local(&mesh, "edge-1") else {
        panic!("it has a gateway of its own");
    };
    for (key, count) in &acknowledged {
        let answer = web.ask("GET", &format!("/counters/{key}"), PATIENCE);
        let answer = answer.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(answer.text.trim(), count.to_string(), "{key}: {answer:?}");
    }
    let before = mesh.service("counters")["instances"][0]["token"].clone();
    net.cut("edge-1", false, false);
    mesh.wait_ready("edge-1");
    counting::serves_on(&mesh, "edge-1");
    counting::check(&mesh, "counters", &acknowledged);
    let after = mesh.service("counters")["instances"][0]["token"].clone();
    assert_eq!(after["epoch"], before["epoch"], "nobody took its place");
}
