//! Messages between services when processes die, and inputs that kill their agent.

use hop3_tests::{Mesh, Options, Web, eventually, guest, web::block_on};

fn serve(mesh: &Mesh, name: &str, module: &str, spec: &str) {
    let path = guest(module).display().to_string();
    mesh.hop3(&["artifact", "push", &path]).ok();
    let manifest = format!("kind: Service\nname: {name}\nspec:\n  module: {module}\n  {spec}\n");
    mesh.apply(&manifest).ok();
}

/// A service with state of `svc_links` on `node`.
fn links(mesh: &Mesh, name: &str, node: &str, more: &str) {
    let spec = format!("state: single\n  placement: {{node: {node}}}\n  {more}");
    serve(mesh, name, "svc_links", &spec);
}

/// Publishes numbers through `asks`, each accepted.
fn publish(web: &Web, numbers: std::ops::RangeInclusive<u32>) {
    for n in numbers {
        let path = "/asks/publish/plant/line";
        eventually("it is published", || {
            // Under a key, so that an answer that was lost is not a second message.
            let request = web.request("POST", path).body(n.to_string());
            let request = request.header("idempotency-key", format!("message-{n}"));
            let answer = block_on(web.send(request)).ok()?;
            (answer.status == 202).then_some(())
        });
    }
}

fn all(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|n| format!("{n},")).collect()
}

fn heard(web: &Web, name: &str, expected: &str) {
    eventually(&format!("{name} has heard {expected}"), || {
        let answer = block_on(web.get(&format!("/{name}/all"))).ok()?;
        (answer.text == expected).then_some(())
    });
}

#[test]
fn messages_wait_for_their_subscriber_and_come_once_and_in_order_whoever_is_killed() {
    let mut mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge"), ("edge-3", "edge")]);
    links(&mesh, "asks", "edge-1", "publish: [plant/*]");
    links(&mesh, "far", "edge-2", "subscribe: [plant/*]");
    links(&mesh, "other", "edge-3", "subscribe: [plant/line]");
    links(&mesh, "near", "edge-1", "subscribe: [plant/line]");
    let web = Web::new(&mesh);
    publish(&web, 1..=3);
    heard(&web, "far", &all(1..=3));
    mesh.kill_agent("edge-2");
    publish(&web, 4..=6);
    heard(&web, "near", &all(1..=6));
    mesh.kill_agent("edge-1");
    mesh.start_agent("edge-1");
    publish(&web, 7..=8);
    mesh.coordinator.kill();
    mesh.start_coordinator();
    publish(&web, 9..=10);
    mesh.start_agent("edge-2");
    for name in ["far", "other", "near"] {
        heard(&web, name, &all(1..=10));
    }
    // Nothing is left to be sent again.
    mesh.kill_agent("edge-1");
    mesh.start_agent("edge-1");
    publish(&web, 11..=11);
    for name in ["far", "other", "near"] {
        heard(&web, name, &all(1..=11));
    }
}

#[test]
fn neighbours_hear_each_other_without_a_coordinator_and_the_others_later() {
    let mut mesh = Mesh::with(Options {
        nodes: vec![("edge-1", "edge"), ("edge-2", "edge")],
        agent_config: "[gateway]\nlisten = \"127.0.0.1:0\"\n".into(),
        ..Options::default()
    });
    links(&mesh, "asks", "edge-1", "publish: [plant/*]");
    links(&mesh, "near", "edge-1", "subscribe: [plant/*]");
    links(&mesh, "far", "edge-2", "subscribe: [plant/*]");
    let web = Web::new(&mesh);
    publish(&web, 1..=2);
    heard(&web, "far", &all(1..=2));
    mesh.coordinator.kill();
    let local = Web::local(&mesh, "edge-1");
    publish(&local, 3..=6);
    heard(&local, "near", &all(1..=6));
    mesh.start_coordinator();
    heard(&web, "far", &all(1..=6));
    publish(&web, 7..=7);
    for name in ["near", "far"] {
        heard(&web, name, &all(1..=7));
    }
}

#[test]
fn a_call_is_done_once_whoever_is_killed_while_it_is_under_way() {
    let mut mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    links(&mesh, "asks", "edge-1", "calls: [counters]");
    let spec = "state: single\n  placement: {node: edge-2}";
    serve(&mesh, "counters", "counters", spec);
    let web = Web::new(&mesh);
    let add = |n: u32| {
        eventually("it calls", || {
            let request = web.request("POST", "/asks/add/counters");
            let request = request.header("idempotency-key", format!("call-{n}"));
            let answer = block_on(web.send(request)).ok()?;
            (answer.status == 202).then_some(())
        });
    };
    for n in 0..12 {
        add(n);
        match n % 4 {
            0 => mesh.kill_agent("edge-2"),
            1 => mesh.kill_agent("edge-1"),
            2 => mesh.coordinator.kill(),
            _ => continue,
        }
        match n % 4 {
            0 => mesh.start_agent("edge-2"),
            1 => mesh.start_agent("edge-1"),
            _ => mesh.start_coordinator(),
        }
        let expected = (n + 1).to_string();
        eventually("the call is done", || {
            let answer = block_on(web.get("/counters/a")).ok()?;
            let done = answer.status == 200 && answer.text.trim() == expected;
            done.then_some(())
        });
        eventually("its end has come", || {
            let answer = block_on(web.get("/asks/last")).ok()?;
            (answer.text == format!("200 {expected}")).then_some(())
        });
    }
}

#[test]
fn an_input_in_hand_at_three_crashes_of_its_agent_is_refused_and_the_service_lives() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    let limits = "limits: {cpu_time: 60s, deadline: 60s}";
    let spec = format!("state: single\n  {limits}");
    serve(&mesh, "bad", "svc_hostile", &spec);
    let web = Web::new(&mesh);
    let count = |path: &str| {
        eventually("it answers", || {
            let answer = block_on(web.get(path)).ok()?;
            (answer.status == 200).then_some(answer.text)
        })
    };
    assert_eq!(count("/bad/add"), "1 1");
    // Under a key the gateway asks again for as long as the outcome is not known.
    let asked = web.request("GET", "/bad/spin");
    let asked = asked.header("idempotency-key", "poison");
    let refused = std::thread::scope(|scope| {
        let spin = scope.spawn(|| block_on(web.send(asked)));
        for crash in 1..=3 {
            eventually("it spins", || {
                let in_hand = std::fs::read(mesh.path("edge-1/in-hand")).ok()?;
                in_hand.iter().any(|byte| *byte != 0).then_some(())
            });
            mesh.kill_agent("edge-1");
            mesh.start_agent("edge-1");
            // One that is killed before it looked has seen nothing.
            eventually("the agent counts the crash", || {
                let suspects = std::fs::read(mesh.path("edge-1/suspects")).ok()?;
                (*suspects.get(32)? >= crash).then_some(())
            });
        }
        spin.join()
    });
    let refused = refused.unwrap_or_else(|_| panic!("the client panicked"));
    let refused = refused.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(refused.status, 500, "{refused:?}");
    assert!(refused.text.contains("HOP3-0535"), "{refused:?}");
    assert_eq!(count("/bad/count"), "1 1");
    assert_eq!(count("/bad/add"), "2 2");
}
