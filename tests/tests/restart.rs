//! SIGKILL at any moment: identity, enrolments, artifacts, tasks and results stay.

use hop3_tests::{Mesh, data, eventually, guest, slice_rows};

fn path(name: &str) -> String {
    guest(name).display().to_string()
}

#[test]
fn a_killed_coordinator_comes_back_with_everything() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    mesh.hop3(&["node", "label", "edge-1", "zone=a"]).ok();
    let id = mesh.submit(&[&path("hello")]);
    let before = mesh.wait_task(&id, &["succeeded"]);
    let output = mesh.hop3(&["task", "logs", &id]).ok();
    let open = mesh.json(&[
        "node", "token", "create", "--tier", "iot", "--name", "iot-1",
    ]);

    mesh.coordinator.kill();
    let away = mesh.hop3(&["task", "show", &id]);
    away.fails(1, &["HOP3-0314", &mesh.api, "is it running?"]);
    mesh.start_coordinator();
    mesh.wait_ready("edge-1");
    let after = mesh.json(&["task", "show", &id]);
    assert_eq!(before["result"], after["result"]);
    assert_eq!(mesh.hop3(&["task", "logs", &id]).ok(), output);
    assert_eq!(mesh.node("edge-1")["labels"]["zone"], "a");
    mesh.hop3(&["artifact", "show", "hello"]).ok();
    mesh.hop3(&["task", "run", "hello"]).ok();
    mesh.enroll_with("iot-1", open["token"].as_str().unwrap_or_default())
        .ok();
}

#[test]
fn a_task_outlives_the_coordinator_and_its_result_arrives() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    let id = mesh.submit(&[&path("sleep"), "--", "2"]);
    let before = mesh.wait_task(&id, &["running"]);
    mesh.coordinator.kill();
    mesh.start_coordinator();
    let after = mesh.wait_task(&id, &["succeeded", "failed"]);
    assert_eq!(after["phase"], "succeeded", "{after}");
    // It was adopted, not started again.
    assert_eq!(before["token"], after["token"]);
}

#[test]
fn a_killed_agent_comes_back_with_its_identity_and_reports_what_it_lost() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    let done = mesh.submit(&[&path("hello")]);
    mesh.wait_task(&done, &["succeeded"]);
    let lost = mesh.submit(&[&path("sleep"), "--", "600"]);
    mesh.wait_task(&lost, &["running"]);
    if let Some(mut agent) = mesh.agents.remove("edge-1") {
        agent.kill();
    }
    mesh.start_agent("edge-1");
    let lost = mesh.wait_task(&lost, &["failed"]);
    assert_eq!(
        lost["result"]["end"]["failed"]["code"], "HOP3-0502",
        "{lost}"
    );
    mesh.wait_ready("edge-1");
    assert_eq!(mesh.json(&["task", "show", &done])["phase"], "succeeded");
    mesh.hop3(&["task", "run", &path("hello")]).ok();
}

#[test]
fn a_retried_task_runs_elsewhere_when_its_node_is_lost() {
    let mut mesh = Mesh::with(hop3_tests::Options {
        nodes: vec![("edge-1", "edge"), ("edge-2", "edge")],
        coordinator_config: "lost_after = \"1s\"\n".to_owned(),
        ..hop3_tests::Options::default()
    });
    let id = mesh.submit(&[&path("sleep"), "--retry", "--", "3"]);
    let first = mesh.wait_task(&id, &["running"]);
    let node = first["node"].as_str().unwrap_or_default().to_owned();
    if let Some(mut agent) = mesh.agents.remove(&node) {
        agent.kill();
    }
    let second = mesh.wait_task(&id, &["succeeded", "failed"]);
    assert_eq!(second["phase"], "succeeded", "{second}");
    assert_ne!(second["node"], *node);
    assert!(second["token"]["epoch"].as_u64() > first["token"]["epoch"].as_u64());
    let why = mesh.hop3(&["explain", "task", &id]).ok();
    assert!(why.contains(&node), "{why}");
}

#[test]
fn an_attached_task_survives_the_coordinator() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    let text: Vec<u8> = (0..6_000_000u32)
        .map(|i| {
            if i % 53 == 52 {
                b'\n'
            } else {
                b'a' + (i % 19) as u8
            }
        })
        .collect();
    let input = mesh.file("input.txt", &text);
    let out = mesh.path("out.txt");
    let stdout = std::fs::File::create(&out).unwrap_or_else(|error| panic!("{error}"));
    let module = path("upper");
    let input = input.display().to_string();
    let mut child = mesh
        .command(&["task", "run", &module, "--input", &input])
        .stdout(stdout)
        .spawn()
        .unwrap_or_else(|error| panic!("{error}"));
    eventually("output begins", || {
        (out.metadata().ok()?.len() > 0).then_some(())
    });
    mesh.coordinator.kill();
    mesh.start_coordinator();
    let status = eventually("the task ends", || child.try_wait().ok()?);
    assert_eq!(status.code(), Some(0));
    let printed = std::fs::read(&out).unwrap_or_default();
    assert_eq!(printed.len(), text.len());
    assert!(printed == text.to_ascii_uppercase());
}

#[test]
fn a_model_serves_again_after_its_agent_and_the_coordinator_were_killed() {
    let mut mesh = Mesh::start(&[("cloud-1", "cloud")]);
    let model = data("fixtures/models/skl_mlp.onnx").display().to_string();
    mesh.hop3(&[
        "model",
        "push",
        "digits",
        &model,
        "--spec",
        "X:f32[batch,64]",
    ])
    .ok();
    mesh.hop3(&["model", "deploy", "digits"]).ok();
    let digits = slice_rows(&data("fixtures/models/digits_x.npy"), 0, 4);
    let input = mesh.file("x.npy", digits).display().to_string();
    let before = mesh.json(&["model", "infer", "digits", "--input", &input])["outputs"].clone();
    if let Some(mut agent) = mesh.agents.remove("cloud-1") {
        agent.kill();
    }
    mesh.coordinator.kill();
    mesh.start_agent("cloud-1");
    mesh.start_coordinator();
    mesh.wait_ready("cloud-1");
    let after = eventually("the model answers again", || {
        let run = mesh.hop3(&[
            "model", "infer", "digits", "--input", &input, "--output", "json",
        ]);
        (run.code == 0).then(|| run.json()["outputs"].clone())
    });
    assert_eq!(before, after);
}
