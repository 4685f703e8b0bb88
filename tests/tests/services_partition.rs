//! A node that is cut off while both sides live: fenced services go on elsewhere with one owner,
//! others go on where they are.

use hop3_tests::{
    Mesh, Options, counting,
    counting::Clients,
    eventually,
    relay::Relay,
    web::{Web, block_on},
};

/// Cut both ways, towards the coordinator, towards the agent.
const CUTS: [(bool, bool); 3] = [(true, true), (true, false), (false, true)];

#[test]
fn a_fenced_service_leaves_a_node_that_is_cut_off_with_one_owner_at_a_time() {
    let mut mesh = Mesh::start(&[]);
    let relays = ["edge-1", "edge-2"].map(|name| {
        let relay = Relay::to(&mesh);
        relay.join(&mut mesh, name, "edge");
        (name, relay)
    });
    counting::deploy(
        &mesh,
        "state: single\n  durability: replicated\n  lease: 1s",
    );
    let clients = Clients::start(&mesh, "counters", 4, false);
    for (up, down) in CUTS {
        clients.progress();
        let owner = mesh.node_of("counters", 0);
        let cut = relays.iter().find(|(name, _)| *name == owner);
        let other = relays.iter().find(|(name, _)| *name != owner);
        let (Some((_, relay)), Some((other, _))) = (cut, other) else {
            panic!("an unknown owner: {owner}");
        };
        relay.cut(up, down);
        counting::serves_on(&mesh, other);
        clients.progress();
        // It was alive all the time, and knows that it must not go on.
        eventually("the old owner has stopped by itself", || {
            let log = mesh.agents[&owner].log();
            log.contains("its lease ended").then_some(())
        });
        relay.cut(false, false);
        mesh.wait_ready(&owner);
        clients.progress();
        assert_eq!(
            mesh.node_of("counters", 0),
            *other,
            "the old owner does not come between"
        );
    }
    let acknowledged = clients.stop();
    counting::check(&mesh, "counters", &acknowledged);
}

#[test]
fn a_service_that_continues_serves_its_node_and_is_adopted_without_a_restart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let address = free.unwrap_or_else(|error| panic!("{error}"));
    let mut mesh = Mesh::with(Options {
        agent_config: format!("[gateway]\nlisten = \"{address}\"\n"),
        ..Options::default()
    });
    let relay = Relay::to(&mesh);
    relay.join(&mut mesh, "edge-1", "edge");
    counting::deploy(&mesh, "state: single\n  durability: node");
    let run = mesh.service("counters")["instances"][0]["token"].clone();
    relay.cut(true, true);
    eventually("the node is away", || {
        (mesh.node("edge-1")["status"] != "ready").then_some(())
    });
    let token = std::fs::read_to_string(mesh.path("edge-1/gateway.token")).unwrap_or_default();
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    for expected in 1..=3 {
        let request = client.post(format!("http://{address}/counters/a/add?n=1"));
        let request = request.bearer_auth(token.trim()).send();
        let text = block_on(async { request.await?.text().await });
        assert_eq!(text.unwrap_or_default().trim(), expected.to_string());
    }
    relay.cut(false, false);
    mesh.wait_ready("edge-1");
    counting::serves_on(&mesh, "edge-1");
    assert_eq!(
        mesh.service("counters")["instances"][0]["token"],
        run,
        "it was not restarted"
    );
    let web = Web::new(&mesh);
    let answer = block_on(web.post("/counters/a/add?n=1", ""));
    assert_eq!(answer.unwrap_or_else(|e| panic!("{e}")).text.trim(), "4");
}
