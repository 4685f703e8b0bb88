//! Disks that are full while everything runs: what cannot be stored is refused and says why,
//! nothing acknowledged is lost, and all goes on when there is room again. Needs root, for a disk
//! small enough to be filled; says so if there is none.

use hop3_tests::{
    Daemon, Mesh, SmallDisk, Web, counting, counting::Clients, eventually, is_root, web::block_on,
};

/// Room for what a daemon keeps, and little more.
const DISK_BYTES: u64 = 24 << 20;

/// Waits until a change is refused for want of room, and whoever looks is told why.
fn refused(mesh: &Mesh, full: &SmallDisk) {
    let web = Web::new(mesh);
    let why = format!("no space left for {}/", full.dir().display());
    let refused = eventually("a change is refused", || {
        let answer = block_on(web.post("/counters/probe/add?n=1", "")).ok()?;
        (answer.status == 507).then_some(answer.text)
    });
    let said = refused.contains("HOP3-0802") && refused.contains(&why);
    assert!(said, "not {why:?}: {refused}");
    eventually("the service says why it does not go on", || {
        let service = mesh.service("counters");
        let reason = service["instances"][0]["reason"].as_str()?.contains(&why);
        let explained = mesh.hop3(&["explain", "service", "counters"]).ok();
        (reason && explained.contains(&why)).then_some(())
    });
}

/// Kills an agent and starts it again, and waits until it says that it has.
fn restart(mesh: &mut Mesh, node: &str) {
    let starts = |mesh: &Mesh| mesh.agents[node].log().matches("agent started").count();
    let before = starts(mesh);
    mesh.kill_agent(node);
    mesh.start_agent(node);
    eventually("the agent has started", || {
        (starts(mesh) > before).then_some(())
    });
}

/// Panics if an agent does not run.
fn runs(mesh: &mut Mesh, node: &str) {
    let ended = mesh.agents.get_mut(node).map(Daemon::ended);
    assert_eq!(ended, Some(None), "{node} goes on");
}

#[test]
fn an_agent_without_room_refuses_what_it_cannot_store_and_loses_nothing() {
    if !is_root("a small disk") {
        return;
    }
    let mut mesh = Mesh::start(&[("edge-2", "edge")]);
    let disk = SmallDisk::mount(mesh.path("edge-1"), DISK_BYTES);
    mesh.enroll("edge-1", "edge").ok();
    mesh.start_agent("edge-1");
    mesh.wait_ready("edge-1");
    let on = |node: &str| format!("state: single\n  placement: {{node: {node}}}");
    counting::deploy(&mesh, &on("edge-1"));
    counting::deploy_as(&mesh, "elsewhere", &on("edge-2"));
    let clients = Clients::start(&mesh, "counters", 4, false);
    // Nothing of it may reach them.
    let others = Clients::start_at(|| Web::new(&mesh), "elsewhere", "other", 2, true);
    clients.progress();

    disk.fill();
    refused(&mesh, &disk);
    others.progress();
    runs(&mut mesh, "edge-1");
    disk.free();
    clients.progress();
    restart(&mut mesh, "edge-1");
    clients.progress();

    // Now it has to begin without room.
    disk.fill();
    refused(&mesh, &disk);
    restart(&mut mesh, "edge-1");
    others.progress();
    runs(&mut mesh, "edge-1");
    disk.free();
    clients.progress();

    // Nothing but what it has on the disk.
    let acknowledged = clients.stop();
    restart(&mut mesh, "edge-1");
    counting::check(&mesh, "counters", &acknowledged);
    counting::check(&mesh, "elsewhere", &others.stop());
}

#[test]
fn a_coordinator_without_room_has_nothing_acknowledged_that_it_does_not_have() {
    if !is_root("a small disk") {
        return;
    }
    let nodes = ["edge-1", "edge-2"];
    let mut mesh = Mesh::start(&nodes.map(|name| (name, "edge")));
    mesh.coordinator.kill();
    let disk = SmallDisk::mount(mesh.path("coordinator"), DISK_BYTES);
    mesh.start_coordinator();
    for node in nodes {
        mesh.wait_ready(node);
    }
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let clients = Clients::start(&mesh, "counters", 4, false);
    clients.progress();

    disk.fill();
    refused(&mesh, &disk);
    assert!(mesh.coordinator.ended().is_none(), "it goes on");
    disk.free();
    clients.progress();

    // It has to begin without room, and then its replica is all there is.
    disk.fill();
    refused(&mesh, &disk);
    mesh.coordinator.kill();
    mesh.start_coordinator();
    let owner = mesh.node_of("counters", 0);
    mesh.kill_agent(&owner);
    disk.free();
    let other = nodes.into_iter().find(|node| *node != owner);
    counting::serves_on(&mesh, other.unwrap_or_default());
    clients.progress();
    let acknowledged = clients.stop();
    counting::check(&mesh, "counters", &acknowledged);
}
