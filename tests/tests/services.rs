//! Services through the whole mesh: real processes, the gateway, state, moves, bad guests.

use std::time::Duration;

use futures_util::StreamExt as _;
use hop3_tests::{Mesh, Options, Web, eventually, guest, web::block_on};

/// Pushes a guest and applies a service of it.
fn serve(mesh: &Mesh, name: &str, module: &str, spec: &str) {
    let path = guest(module).display().to_string();
    mesh.hop3(&["artifact", "push", &path]).ok();
    mesh.apply(&manifest(name, module, spec)).ok();
}

fn manifest(name: &str, module: &str, spec: &str) -> String {
    format!("kind: Service\nname: {name}\nspec:\n  module: {module}\n  {spec}\n")
}

fn text(web: &Web, method: &str, path: &str) -> String {
    let answer = block_on(web.send(web.request(method, path)));
    let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
    assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
    answer.text.trim().to_owned()
}

#[test]
fn a_service_is_applied_asked_scaled_and_deleted() {
    let mesh = Mesh::start(&[("cloud-1", "cloud"), ("edge-1", "edge")]);
    serve(&mesh, "hello", "echo", "replicas: 2");
    let web = Web::new(&mesh);
    assert_eq!(text(&web, "GET", "/hello/"), "hello");
    let answer = block_on(web.post("/hello/echo", "some bytes"));
    assert_eq!(answer.unwrap_or_else(|e| panic!("{e}")).text, "some bytes");
    let invoked = mesh
        .hop3(&["service", "invoke", "hello", "--path", "/"])
        .ok();
    assert_eq!(invoked.trim(), "hello");

    let service = mesh.service("hello");
    assert_eq!(service["status"], "ready", "{service}");
    assert_eq!(service["instances"].as_array().map(Vec::len), Some(2));
    mesh.hop3(&["service", "scale", "hello=3"]).ok();
    eventually("three replicas are ready", || {
        let service = mesh.service("hello");
        let ready = service["instances"]
            .as_array()?
            .iter()
            .filter(|i| i["status"] == "ready");
        (ready.count() == 3).then_some(())
    });
    mesh.hop3(&["service", "scale", "hello=1"]).ok();
    eventually("one replica is left", || {
        (mesh.service("hello")["instances"].as_array()?.len() == 1).then_some(())
    });
    assert_eq!(text(&web, "GET", "/hello/"), "hello");
    let why = mesh.hop3(&["explain", "service", "hello"]).ok();
    assert!(why.contains("service/hello/0"), "{why}");

    // An unchanged manifest changes nothing.
    let before = mesh.service("hello")["revision"].clone();
    mesh.apply(&manifest("hello", "echo", "replicas: 1")).ok();
    assert_eq!(mesh.service("hello")["revision"], before);

    mesh.hop3(&["delete", "service", "hello", "--yes"]).ok();
    let gone = block_on(web.get("/hello/")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(gone.status, 404, "{gone:?}");
    mesh.hop3(&["service", "show", "hello"])
        .fails(1, &["HOP3-0520"]);
}

#[test]
fn without_a_token_only_public_services_answer() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    serve(&mesh, "private", "echo", "replicas: 1");
    serve(&mesh, "open", "echo", "public: true");
    let web = Web::new(&mesh);
    let bare = |path: &str| {
        let request = web.request_as("GET", path, Some("wrong"));
        block_on(web.send(request)).unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(bare("/private/").status, 401);
    assert_eq!(bare("/open/").status, 200);
}

#[test]
fn acknowledged_changes_survive_the_killing_of_agent_and_coordinator() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    serve(&mesh, "counters", "counters", "state: single");
    let web = Web::new(&mesh);
    for n in 1..=5 {
        assert_eq!(text(&web, "POST", "/counters/a/add?n=1"), n.to_string());
    }
    mesh.kill_agent("edge-1");
    mesh.start_agent("edge-1");
    // The request waits until the instance is back.
    assert_eq!(text(&web, "GET", "/counters/a"), "5");
    mesh.coordinator.kill();
    mesh.start_coordinator();
    let value = eventually("the gateway answers again", || {
        let answer = block_on(Web::new(&mesh).get("/counters/a")).ok()?;
        (answer.status == 200).then_some(answer.text)
    });
    assert_eq!(value.trim(), "5");
}

#[test]
fn state_moves_to_another_node_and_back_and_clients_do_not_notice() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    serve(&mesh, "counters", "counters", "state: single");
    let web = Web::new(&mesh);
    assert_eq!(text(&web, "POST", "/counters/a/add?n=7"), "7");
    for _ in 0..2 {
        let from = mesh.node_of("counters", 0);
        let to = if from == "edge-1" { "edge-2" } else { "edge-1" };
        let moved = mesh.hop3(&["service", "migrate", "counters", "--to", to, "--watch"]);
        let said = moved.stderr.clone() + &moved.stdout;
        moved.ok();
        assert!(said.contains("downtime"), "{said}");
        assert_eq!(mesh.node_of("counters", 0), to);
        assert_eq!(text(&web, "GET", "/counters/a"), "7");
    }
    let service = mesh.service("counters");
    assert_eq!(service["last_move"]["phase"], "done", "{service}");
    assert!(service["last_move"]["downtime_us"].as_u64() > Some(0));
}

#[test]
fn keyed_services_keep_each_key_in_its_shard() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    serve(&mesh, "counters", "counters", "state: keyed\n  shards: 4");
    let web = Web::new(&mesh);
    let mut shards = std::collections::BTreeSet::new();
    for key in 0..16 {
        let path = format!("/counters/key-{key}/add?n={key}");
        let added = block_on(web.post(&path, "")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(added.text.trim(), key.to_string());
        let read = block_on(web.get(&format!("/counters/key-{key}")));
        let read = read.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            (read.text.trim(), &read.instance),
            (added.text.trim(), &added.instance)
        );
        shards.extend(read.instance);
    }
    assert_eq!(shards.len(), 4, "{shards:?}");
    let resharded = mesh.apply(&manifest(
        "counters",
        "counters",
        "state: keyed\n  shards: 8",
    ));
    resharded.fails(1, &["HOP3-0525"]);
}

#[test]
fn a_drained_node_hands_its_services_over() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    serve(&mesh, "counters", "counters", "state: single");
    let web = Web::new(&mesh);
    assert_eq!(text(&web, "POST", "/counters/a/add?n=3"), "3");
    let from = mesh.node_of("counters", 0);
    mesh.hop3(&["node", "drain", &from]).ok();
    eventually("the service has left the node", || {
        let service = mesh.service("counters");
        let node = service["instances"][0]["node"].as_str()?.to_owned();
        (node != from && service["status"] == "ready").then_some(())
    });
    assert_eq!(text(&web, "GET", "/counters/a"), "3");
    // Nobody takes it while the other one is cordoned too.
    let here = mesh.node_of("counters", 0);
    let moved = mesh.hop3(&["service", "migrate", "counters", "--to", &from]);
    moved.fails(1, &["HOP3-0"]);
    assert_eq!(mesh.node_of("counters", 0), here);
}

#[test]
fn a_handler_that_fails_changes_nothing_and_the_service_lives_on() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    serve(&mesh, "hostile", "svc_hostile", "state: single");
    let web = Web::new(&mesh);
    let good = text(&web, "GET", "/hostile/count");
    for (path, code) in [
        ("/hostile/trap", "HOP3-0523"),
        ("/hostile/spin", "HOP3-0523"),
        ("/hostile/grow", "HOP3-0523"),
        ("/hostile/recurse", "HOP3-0523"),
        ("/hostile/fail", "HOP3-0523"),
        ("/hostile/big", "HOP3-0524"),
    ] {
        let answer = block_on(web.get(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(
            answer.status >= 500 && answer.text.contains(code),
            "{path}: {answer:?}"
        );
        assert_eq!(text(&web, "GET", "/hostile/count"), good, "after {path}");
    }
    let logs = mesh.hop3(&["service", "logs", "hostile"]).ok();
    assert!(logs.contains("trap"), "{logs}");
}

#[test]
fn manifests_that_cannot_be_met_say_why() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("iot-1", "iot")]);
    let typo = mesh.apply("kind: Service\nname: s\nspec: {module: echo, stat: single}\n");
    typo.fails(1, &["HOP3-0101", "spec.stat", "did you mean `state`?"]);
    let unknown = mesh.apply(&manifest("s", "nothing-of-that-name", "replicas: 1"));
    unknown.fails(1, &["HOP3-0406"]);
    for module in ["echo", "hello", "counters"] {
        let path = guest(module).display().to_string();
        mesh.hop3(&["artifact", "push", &path]).ok();
    }
    // A task's module has no handlers.
    mesh.apply(&manifest("s", "hello", "replicas: 1"))
        .fails(1, &["HOP3-0404", "hop3_request"]);
    let nowhere = manifest("s", "echo", "placement: {tier: cloud}");
    let args = ["apply", "-f", "-", "--timeout", "2s"];
    let said = mesh.hop3_with(&args, nowhere.as_bytes());
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains("tier"), "{}", said.stderr);
    let why = mesh.hop3(&["explain", "service", "s"]).ok();
    assert!(why.contains("removed by tier"), "{why}");
    mesh.hop3(&["delete", "service", "s", "--yes"]).ok();

    // What cannot change, and what is in use.
    mesh.apply(&manifest("kept", "counters", "state: single"))
        .ok();
    mesh.apply(&manifest("kept", "counters", "state: none"))
        .fails(1, &["HOP3-0526"]);
    mesh.hop3(&["service", "scale", "kept=2"])
        .fails(1, &["HOP3-0533"]);
    mesh.hop3(&["artifact", "rm", "counters"])
        .fails(1, &["HOP3-0407", "kept"]);
    mesh.apply(&manifest("caller", "echo", "calls: [kept]"))
        .ok();
    mesh.hop3(&["delete", "service", "kept", "--yes"])
        .fails(1, &["HOP3-0531", "caller"]);
    mesh.hop3(&["service", "migrate", "kept", "--to", "nowhere"])
        .fails(1, &["HOP3-0307"]);
}

#[test]
fn state_in_a_volume_pins_the_instance() {
    let volume = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let mesh = Mesh::with(Options {
        nodes: vec![("edge-1", "edge"), ("edge-2", "edge")],
        agent_config: format!("[volumes.data]\npath = \"{}\"\n", volume.path().display()),
        ..Options::default()
    });
    let spec = "state: single\n  volumes: [{name: data, path: /data}]";
    serve(&mesh, "counters", "counters", spec);
    let from = mesh.node_of("counters", 0);
    let to = if from == "edge-1" { "edge-2" } else { "edge-1" };
    let moved = mesh.hop3(&["service", "migrate", "counters", "--to", to]);
    moved.fails(1, &["HOP3-0527", "data"]);
    assert_eq!(mesh.node_of("counters", 0), from);
}

#[test]
fn an_event_stream_goes_on_while_its_service_moves() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    serve(&mesh, "chat", "chat", "state: single");
    let web = Web::new(&mesh);
    block_on(async {
        let events = web.request("GET", "/chat/rooms/a/events").send().await;
        let events = events.unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(events.status(), 200);
        let mut events = events.bytes_stream();
        let mut seen = String::new();
        for n in 0..6 {
            if n == 3 {
                let from = mesh.node_of("chat", 0);
                let to = if from == "edge-1" { "edge-2" } else { "edge-1" };
                mesh.hop3(&["service", "migrate", "chat", "--to", to, "--watch"])
                    .ok();
            }
            let posted = web
                .post("/chat/rooms/a/messages", &format!("message {n}"))
                .await;
            let posted = posted.unwrap_or_else(|error| panic!("{error:?}"));
            assert!(posted.status < 300, "{posted:?}");
            let expected = format!("message {n}");
            while !seen.contains(&expected) {
                let next = tokio::time::timeout(Duration::from_secs(30), events.next()).await;
                let piece = next.unwrap_or_else(|_| panic!("no event {n}; saw {seen:?}"));
                let piece = piece.unwrap_or_else(|| panic!("the stream ended; saw {seen:?}"));
                let piece = piece.unwrap_or_else(|error| panic!("{error:?}; saw {seen:?}"));
                seen.push_str(&String::from_utf8_lossy(&piece));
            }
        }
        for n in 0..6 {
            assert_eq!(seen.matches(&format!("message {n}")).count(), 1, "{seen}");
        }
    });
}

#[test]
fn another_build_takes_the_state_over_or_is_refused() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    serve(&mesh, "versions", "svc_v1", "state: single");
    let web = Web::new(&mesh);
    for n in 1..=3 {
        assert_eq!(text(&web, "POST", "/versions/add"), format!("v1 {n}"));
    }
    let path = guest("svc_v2").display().to_string();
    mesh.hop3(&["artifact", "push", &path]).ok();
    mesh.apply(&manifest("versions", "svc_v2", "state: single"))
        .ok();
    assert_eq!(text(&web, "GET", "/versions/"), "v2 3");
    assert_eq!(text(&web, "POST", "/versions/add"), "v2 4");
    // The old one has no `hop3_upgrade`: there is no way back for the state.
    let back = mesh.apply(&manifest("versions", "svc_v1", "state: single"));
    back.fails(1, &["HOP3-0404", "hop3_upgrade"]);
    assert_eq!(mesh.service("versions")["status"], "ready");
}

#[test]
fn services_call_each_other_and_hear_topics_across_nodes() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    let on = |node: &str, more: &str| format!("state: single\n  placement: {{node: {node}}}{more}");
    serve(&mesh, "counters", "counters", &on("edge-2", ""));
    let links = "\n  calls: [counters, absent]\n  publish: [plant/*]";
    serve(&mesh, "asks", "svc_links", &on("edge-1", links));
    serve(
        &mesh,
        "far",
        "svc_links",
        &on("edge-2", "\n  subscribe: [plant/*]"),
    );
    serve(
        &mesh,
        "near",
        "svc_links",
        &on("edge-1", "\n  subscribe: [plant/line]"),
    );
    let web = Web::new(&mesh);
    assert_eq!(text(&web, "POST", "/counters/a/add?n=4"), "4");
    let post = |path: &str, body: &str| block_on(web.post(path, body)).map(|a| a.status).ok();
    let kept = |path: &str, expected: &str| {
        eventually(&format!("{path} is {expected:?}"), || {
            let answer = block_on(web.get(path)).ok()?;
            (answer.text.trim() == expected).then_some(())
        });
    };
    assert_eq!(post("/asks/call/counters", ""), Some(202));
    kept("/asks/last", "200 4");
    assert_eq!(post("/asks/call/far", ""), Some(403), "not granted");
    assert_eq!(post("/asks/publish/plant/line", "42"), Some(202));
    kept("/far/heard", "plant/line 42");
    kept("/near/heard", "plant/line 42");
    assert_eq!(post("/asks/publish/plant/other", "43"), Some(202));
    kept("/far/heard", "plant/other 43");
    kept("/near/heard", "plant/line 42");
    assert_eq!(post("/asks/publish/else", "1"), Some(403), "not granted");
    // A call of a service that is not there ends, and says so.
    assert_eq!(post("/asks/call/absent", ""), Some(202));
    eventually("the call has ended", || {
        let last = block_on(web.get("/asks/last")).ok()?.text;
        last.starts_with("0 ").then_some(())
    });
}

#[test]
fn a_node_serves_its_services_while_the_coordinator_is_away() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let address = free.unwrap_or_else(|error| panic!("{error}"));
    let mut mesh = Mesh::with(Options {
        nodes: vec![("edge-1", "edge")],
        agent_config: format!("[gateway]\nlisten = \"{address}\"\n"),
        ..Options::default()
    });
    serve(&mesh, "counters", "counters", "state: single");
    mesh.coordinator.kill();
    let token = std::fs::read_to_string(mesh.path("edge-1/gateway.token")).unwrap_or_default();
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let add = |token: &str| {
        let request = client.post(format!("http://{address}/counters/a/add?n=2"));
        let request = request.bearer_auth(token.trim()).send();
        block_on(async {
            let answer = request.await.unwrap_or_else(|error| panic!("{error:?}"));
            (
                answer.status().as_u16(),
                answer.text().await.unwrap_or_default(),
            )
        })
    };
    assert_eq!(add("wrong").0, 401);
    assert_eq!(add(&token), (200, "2".to_owned()));
    // The same after the agent was killed, with no coordinator to ask.
    mesh.kill_agent("edge-1");
    mesh.start_agent("edge-1");
    let served = eventually("the node serves by itself", || {
        let socket = std::net::TcpStream::connect(address);
        socket
            .is_ok()
            .then(|| add(&token))
            .filter(|(status, _)| *status == 200)
    });
    assert_eq!(served.1, "4");
}
