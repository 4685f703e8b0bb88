//! Enrolment, revocation, renewal: real processes, real tokens.

use hop3_tests::{Mesh, eventually, within};
use std::time::Duration;

#[test]
fn one_pasted_line_enrolls_a_node_that_shows_live_telemetry() {
    let mut mesh = Mesh::start(&[]);
    let created = mesh.json(&[
        "node", "token", "create", "--tier", "edge", "--name", "edge-1", "--label", "zone=lab",
    ]);
    let command = created["command"].as_str().unwrap_or_default();
    assert!(
        command.contains("hop3-agent enroll") && command.contains("--run"),
        "{command}"
    );
    // The secret goes in by standard input, not as an argument.
    let token = created["token"].as_str().unwrap_or_default();
    let line = command
        .lines()
        .find(|line| line.contains("hop3-agent"))
        .unwrap_or_default();
    assert!(
        !line
            .split("hop3-agent")
            .nth(1)
            .unwrap_or_default()
            .contains(token),
        "{command}"
    );

    mesh.enroll_with("edge-1", token).ok();
    mesh.start_agent("edge-1");
    mesh.wait_ready("edge-1");
    let node = eventually("telemetry arrives", || {
        let node = mesh.node("edge-1");
        (node["latest"]["memory_used_kib"].as_u64()? > 0).then_some(node)
    });
    assert_eq!(node["labels"]["zone"], "lab");
    assert_eq!(node["tier"], "edge");
    assert!(node["facts"]["cpus"].as_u64() > Some(0));
    assert!(node["latest"]["disk_used_kib"].as_u64() > Some(0));
}

#[test]
fn a_token_enrolls_one_node_and_no_more() {
    let mesh = Mesh::start(&[]);
    let token = mesh
        .hop3(&["node", "token", "create", "--tier", "iot", "--quiet"])
        .ok();
    mesh.enroll_with("iot-1", &token).ok();
    mesh.enroll_with("iot-2", &token).fails(1, &["HOP3-0303"]);
    let nodes = mesh.json(&["node", "ls"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    let tokens = mesh.json(&["node", "token", "ls"]);
    assert_eq!(tokens[0]["status"], "used");
    assert_eq!(tokens[0]["used_by"], "iot-1");
}

#[test]
fn expired_revoked_forged_and_mistyped_tokens_change_nothing() {
    let mesh = Mesh::start(&[]);
    let create = |args: &[&str]| {
        let mut all = vec!["node", "token", "create", "--tier", "edge"];
        all.extend(args);
        mesh.json(&all)
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();

    let expired = create(&["--ttl", "1ms"]);
    mesh.enroll_with("n1", &text(&expired["token"]))
        .fails(1, &["HOP3-0302"]);

    let revoked = create(&[]);
    mesh.hop3(&["node", "token", "revoke", &text(&revoked["id"])])
        .ok();
    mesh.enroll_with("n2", &text(&revoked["token"]))
        .fails(1, &["HOP3-0304"]);

    let mut mistyped = text(&create(&[])["token"]).into_bytes();
    let last = mistyped.len() - 3;
    mistyped[last] = if mistyped[last] == b'a' { b'b' } else { b'a' };
    mesh.enroll_with("n3", &String::from_utf8_lossy(&mistyped))
        .fails(1, &["token"]);
    mesh.enroll_with("n4", "").fails(1, &["token"]);

    assert_eq!(mesh.json(&["node", "ls"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn a_token_of_another_mesh_does_not_trust_this_coordinator() {
    let here = Mesh::start(&[]);
    let there = Mesh::start(&[]);
    let token = there
        .hop3(&["node", "token", "create", "--tier", "edge", "--quiet"])
        .ok();
    drop(there);
    // The other mesh is gone; somebody else answers at its address.
    let token_here = here
        .hop3(&["node", "token", "create", "--tier", "edge", "--quiet"])
        .ok();
    assert_ne!(token, token_here);
    let run = here.enroll_with("n1", &token);
    assert_eq!(run.code, 1, "{}", run.stderr);
}

#[test]
fn revocation_ends_a_live_session_within_a_second() {
    let mut mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    mesh.hop3(&["node", "rm", "edge-1", "--yes"]).ok();
    let agent = mesh
        .agents
        .get_mut("edge-1")
        .unwrap_or_else(|| unreachable!());
    within(Duration::from_secs(1), "the revoked agent is told", || {
        let log = agent.log();
        (log.contains("revoked") || agent.ended().is_some()).then_some(())
    });
    let nodes = mesh.json(&["node", "ls"]);
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
    // It cannot come back.
    if let Some(mut agent) = mesh.agents.remove("edge-1") {
        agent.kill();
    }
    mesh.start_agent("edge-1");
    let agent = mesh
        .agents
        .get_mut("edge-1")
        .unwrap_or_else(|| unreachable!());
    eventually("the revoked agent gives up", || {
        (agent.ended().is_some() || agent.log().matches("revoked").count() >= 2).then_some(())
    });
    assert_eq!(mesh.json(&["node", "ls"]).as_array().map(Vec::len), Some(1));
    assert_eq!(mesh.node("edge-2")["status"], "ready");
}

#[test]
fn enrolling_twice_needs_a_clear_decision() {
    let mesh = Mesh::start(&[]);
    mesh.enroll("edge-1", "edge").ok();
    let token = mesh
        .hop3(&["node", "token", "create", "--tier", "edge", "--quiet"])
        .ok();
    let stderr = mesh.enroll_with("edge-1", &token).fails(1, &["enrolled"]);
    assert!(stderr.contains("edge-1"), "{stderr}");
}

#[test]
fn certificates_renew_by_themselves() {
    let mesh = Mesh::with(hop3_tests::Options {
        nodes: vec![("edge-1", "edge")],
        coordinator_config: "certificate_ttl = \"10s\"\n".to_owned(),
        ..hop3_tests::Options::default()
    });
    let first = mesh.node("edge-1")["certificate_expires"].as_u64();
    eventually("the certificate is renewed twice", || {
        let node = mesh.node("edge-1");
        let later = node["certificate_expires"].as_u64()?;
        (later > first? + 10_000 && node["status"] == "ready").then_some(())
    });
}
