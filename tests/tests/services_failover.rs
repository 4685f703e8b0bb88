//! Replicated services: whatever becomes of the node, what was acknowledged goes on elsewhere, and
//! one instance at a time answers.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use hop3_tests::{
    Mesh, counting,
    counting::Clients,
    eventually,
    web::{Web, block_on},
};
use rustix::process::Signal;

const NODES: [(&str, &str); 2] = [("edge-1", "edge"), ("edge-2", "edge")];

fn other(node: &str) -> &'static str {
    if node == "edge-1" { "edge-2" } else { "edge-1" }
}

#[test]
fn a_killed_node_is_replaced_with_everything_that_was_acknowledged() {
    let mut mesh = Mesh::start(&NODES);
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let clients = Clients::start(&mesh, "counters", 4, false);
    for round in 0..4 {
        clients.progress();
        let owner = mesh.node_of("counters", 0);
        let began = Instant::now();
        mesh.kill_agent(&owner);
        counting::serves_on(&mesh, other(&owner));
        let served = clients.acknowledged();
        eventually("a client is served", || {
            (clients.acknowledged() > served).then_some(())
        });
        eprintln!("round {round}: served again after {:?}", began.elapsed());
        mesh.start_agent(&owner);
        mesh.wait_ready(&owner);
    }
    clients.progress();
    let acknowledged = clients.stop();
    counting::check(&mesh, "counters", &acknowledged);
    let explained = mesh.hop3(&["explain", "service", "counters"]).ok();
    assert!(explained.contains("failover"), "{explained}");
}

#[test]
fn an_agent_that_slept_past_its_lease_answers_nobody() {
    let mesh = Mesh::start(&NODES);
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let clients = Clients::start(&mesh, "counters", 4, false);
    clients.progress();
    let owner = mesh.node_of("counters", 0);
    mesh.agents[&owner].signal(Signal::STOP);
    counting::serves_on(&mesh, other(&owner));
    clients.progress();
    // It wakes up, and believes for a moment that nothing happened.
    mesh.agents[&owner].signal(Signal::CONT);
    clients.progress();
    eventually("the old run has ended", || {
        let log = mesh.agents[&owner].log();
        (log.contains("its lease ended") || log.contains("stop ordered")).then_some(())
    });
    assert_eq!(mesh.node_of("counters", 0), other(&owner));
    let acknowledged = clients.stop();
    counting::check(&mesh, "counters", &acknowledged);
}

#[test]
fn without_a_coordinator_a_fenced_instance_stops_and_goes_on_where_it_was() {
    let mut mesh = Mesh::start(&NODES);
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let web = Web::new(&mesh);
    let add = || block_on(web.post("/counters/a/add?n=1", ""));
    assert_eq!(add().unwrap().text.trim(), "1");
    let owner = mesh.node_of("counters", 0);
    mesh.coordinator.kill();
    eventually("it is fenced", || {
        let log = mesh.agents[&owner].log();
        log.contains("its lease ended").then_some(())
    });
    mesh.start_coordinator();
    counting::serves_on(&mesh, &owner);
    let web = Web::new(&mesh);
    let answer = block_on(web.post("/counters/a/add?n=1", "")).unwrap();
    assert_eq!((answer.status, answer.text.trim()), (200, "2"));
}

#[test]
fn state_that_is_only_on_its_node_waits_for_it() {
    let mut mesh = Mesh::start(&NODES);
    counting::deploy(&mesh, "state: single\n  durability: node");
    let web = Web::new(&mesh);
    let answer = block_on(web.post("/counters/a/add?n=5", "")).unwrap();
    assert_eq!(answer.text.trim(), "5");
    let owner = mesh.node_of("counters", 0);
    mesh.kill_agent(&owner);
    eventually("the node is away", || {
        (mesh.node(&owner)["status"] != "ready").then_some(())
    });
    assert_eq!(mesh.node_of("counters", 0), owner);
    mesh.start_agent(&owner);
    counting::serves_on(&mesh, &owner);
    let answer = block_on(web.post("/counters/a/add?n=1", "")).unwrap();
    assert_eq!(answer.text.trim(), "6");
}

#[test]
fn a_forced_take_over_tells_what_is_lost_and_keeps_the_branch() {
    let mut mesh = Mesh::start(&NODES);
    counting::deploy(&mesh, "state: single\n  durability: node");
    let add = |mesh: &Mesh| {
        let web = Web::new(mesh);
        let answer = block_on(web.post("/counters/a/add?n=1", "")).unwrap();
        answer.text.trim().parse::<u64>().unwrap()
    };
    assert_eq!(add(&mesh), 1);
    mesh.hop3(&["service", "checkpoint", "counters"]).ok();
    assert_eq!(add(&mesh), 2);
    let owner = mesh.node_of("counters", 0);
    let takeover = ["service", "takeover", "counters"];
    mesh.hop3(&takeover).fails(1, &["is connected", "migrate"]);
    mesh.kill_agent(&owner);
    eventually("the node is away", || {
        (mesh.node(&owner)["status"] != "ready").then_some(())
    });
    mesh.hop3(&takeover).fails(1, &["accept_loss", "lost"]);
    mesh.hop3(&[&takeover[..], &["--accept-loss"]].concat())
        .ok();
    counting::serves_on(&mesh, other(&owner));
    assert_eq!(
        add(&mesh),
        2,
        "from the checkpoint: the second change is lost"
    );
    mesh.start_agent(&owner);
    let branch = eventually("the branch is kept", || {
        let service = mesh.service("counters");
        let branch = service["instances"][0]["branches"][0].clone();
        branch["state"].is_object().then_some(branch)
    });
    assert_eq!(branch["node"], owner);
    eventually("the old owner holds nothing any more", || {
        let log = mesh.agents[&owner].log();
        log.contains("seal ordered").then_some(())
    });
    assert_eq!(add(&mesh), 3, "nothing of the branch is merged");
    let explained = mesh.hop3(&["explain", "service", "counters"]).ok();
    assert!(explained.contains("replaced unheard"), "{explained}");
}

#[test]
fn with_no_other_node_it_says_what_it_waits_for_and_goes_on_where_it_was() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let web = Web::new(&mesh);
    let answer = block_on(web.post("/counters/a/add?n=4", "")).unwrap();
    assert_eq!(answer.text.trim(), "4");
    let explained = mesh.hop3(&["explain", "service", "counters"]).ok();
    assert!(
        explained.contains("as soon as a node fits it: none does now"),
        "{explained}"
    );
    mesh.kill_agent("edge-1");
    eventually("it says why it does not run", || {
        let instance = mesh.service("counters")["instances"][0].clone();
        let reason = instance["reason"].as_str()?;
        let said = instance["status"] == "away" && reason.contains("its lease on edge-1 is over");
        said.then_some(())
    });
    mesh.start_agent("edge-1");
    counting::serves_on(&mesh, "edge-1");
    let answer = block_on(web.post("/counters/a/add?n=1", "")).unwrap();
    assert_eq!(answer.text.trim(), "5");
}
