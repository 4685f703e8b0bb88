//! Tasks, attached and in the background, on real agents.

use hop3_tests::{Mesh, Options, data, eventually, guest};

fn path(name: &str) -> String {
    guest(name).display().to_string()
}

#[test]
fn an_attached_task_is_as_if_it_ran_here() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    let run = mesh.hop3(&[
        "task",
        "run",
        &path("hello"),
        "--env",
        "GREETING=Salut",
        "--",
        "a",
        "b",
    ]);
    let stdout = run.ok();
    assert!(stdout.contains("Salut"), "{stdout}");

    for code in [0, 1, 42, 124] {
        let run = mesh.hop3(&["task", "run", &path("exit"), "--", &code.to_string()]);
        assert_eq!(run.code, code, "{}", run.stderr);
    }

    let text = std::fs::read(data("guests/data/field_log.txt")).unwrap_or_default();
    let upper = mesh.hop3_with(&["task", "run", &path("upper")], &text).ok();
    assert_eq!(upper.as_bytes(), text.to_ascii_uppercase());
    let file = data("guests/data/field_log.txt").display().to_string();
    let from_file = mesh
        .hop3(&["task", "run", &path("upper"), "--input", &file])
        .ok();
    assert_eq!(from_file, upper);
}

#[test]
fn large_streams_pass_whole_in_both_directions_at_once() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    // Far more than all windows and buffers together; no period of a power of two.
    let text: Vec<u8> = (0..12_000_000u32)
        .map(|i| {
            if i % 61 == 60 {
                b'\n'
            } else {
                b'a' + (i % 23) as u8
            }
        })
        .collect();
    let out = mesh.hop3_with(&["task", "run", &path("upper")], &text).ok();
    assert_eq!(out.len(), text.len());
    assert!(out.as_bytes() == text.to_ascii_uppercase());
}

#[test]
fn a_background_task_keeps_its_output_and_result() {
    let mesh = Mesh::start(&[("cloud-1", "cloud"), ("edge-1", "edge")]);
    let input = data("guests/data/nyc_taxi.csv").display().to_string();
    let id = mesh.submit(&[&path("sensor_stats"), "--tier", "edge", "--input", &input]);
    let task = mesh.wait_task(&id, &["succeeded", "failed"]);
    assert_eq!(task["phase"], "succeeded", "{task}");
    assert_eq!(task["node"], "edge-1");
    assert_eq!(task["result"]["end"]["exited"], 0);
    let logs = mesh.hop3(&["task", "logs", &id]).ok();
    let attached = mesh
        .hop3(&["task", "run", &path("sensor_stats"), "--input", &input])
        .ok();
    assert_eq!(logs, attached);
    // A prefix is enough; a wrong id is said to be one.
    mesh.hop3(&["task", "show", &id[..6]]).ok();
    mesh.hop3(&["task", "show", "tzzzzzzzzzzz"])
        .fails(1, &["HOP3-0501"]);
}

#[test]
fn hostile_guests_are_ended_and_harm_nobody() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    let run = |name: &str, extra: &[&str]| {
        let module = path(name);
        let mut args = vec!["task", "run", module.as_str()];
        args.extend(extra);
        mesh.hop3(&args)
    };
    run("hostile_spin", &["--cpu-time", "300ms"]).fails(126, &["HOP3-0504", "cpu"]);
    run("hostile_spin", &["--timeout", "300ms"]).fails(126, &["HOP3-05"]);
    assert_eq!(run("hostile_grow", &["--memory", "16MiB"]).code, 3);
    run("hostile_recurse", &[]).fails(126, &["stack"]);
    run("hostile_trap", &["--", "unreachable"]).fails(126, &["HOP3-0503"]);
    run("hostile_trap", &["--", "divide"]).fails(126, &["HOP3-0503"]);
    let flood = mesh.submit(&[&path("hostile_flood_out")]);
    let flood = mesh.wait_task(&flood, &["succeeded", "failed"]);
    assert_eq!(
        flood["result"]["end"]["failed"]["code"], "HOP3-0504",
        "{flood}"
    );
    let calls = mesh.submit(&[&path("hostile_flood_calls"), "--timeout", "5s"]);
    let calls = mesh.wait_task(&calls, &["succeeded", "failed"]);
    assert_eq!(calls["phase"], "failed", "{calls}");
    // The node serves on.
    run("hello", &[]).ok();
    assert_eq!(mesh.node("edge-1")["status"], "ready");
}

#[test]
fn a_task_can_be_cancelled_while_it_spins_or_sleeps() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    for (module, args) in [("hostile_spin", &[][..]), ("sleep", &["--", "600"][..])] {
        let module = path(module);
        let mut all = vec![module.as_str()];
        all.extend(args);
        let id = mesh.submit(&all);
        mesh.wait_task(&id, &["running"]);
        mesh.hop3(&["task", "cancel", &id]).ok();
        let task = mesh.wait_task(&id, &["cancelled"]);
        assert_eq!(task["result"]["end"], "cancelled", "{task}");
        mesh.hop3(&["task", "cancel", &id]).fails(1, &["HOP3-0507"]);
    }
}

#[test]
fn directories_are_granted_by_name_and_nothing_else_is_reachable() {
    let offered = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    std::fs::write(offered.path().join("note.txt"), "granted").unwrap_or_else(|e| panic!("{e}"));
    let mesh = Mesh::with(Options {
        nodes: vec![("edge-1", "edge")],
        agent_config: format!(
            "[volumes.shared]\npath = \"{}\"\n",
            offered.path().display()
        ),
        ..Options::default()
    });
    let run = |args: &[&str]| {
        let module = path("cat_dir");
        let mut all = vec!["task", "run", module.as_str()];
        all.extend(args);
        mesh.hop3(&all)
    };
    let listing = run(&["--volume", "shared:/data", "--", "/data"]).ok();
    assert!(listing.contains("note.txt"), "{listing}");
    let outside = run(&[
        "--volume",
        "shared:/data",
        "--",
        "/data/../../../etc/passwd",
    ]);
    assert!(!outside.stdout.contains("root:"), "{}", outside.stdout);
    let none = run(&["--", "/data"]);
    assert!(!none.stdout.contains("granted"), "{}", none.stdout);
    run(&["--volume", "secrets:/data", "--", "/data"]).fails(125, &["HOP3-0701", "secrets"]);
    // Read-only unless the node says otherwise.
    let _ = run(&["--volume", "shared:/data", "--", "-w", "/data/new.txt", "x"]);
    assert!(!offered.path().join("new.txt").exists());
}

#[test]
fn unsatisfiable_placements_say_which_filter_removed_how_many() {
    let mesh = Mesh::start(&[("cloud-1", "cloud"), ("edge-1", "edge")]);
    let id = mesh.submit(&[&path("hello"), "--tier", "iot"]);
    let task = mesh.wait_task(&id, &["pending"]);
    let reason = task["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("2") && reason.contains("tier"), "{reason}");
    let why = mesh.hop3(&["explain", "task", &id]).ok();
    assert!(why.contains("tier"), "{why}");
    mesh.hop3(&["task", "cancel", &id]).ok();
    mesh.wait_task(&id, &["cancelled"]);
    mesh.hop3(&["task", "run", &path("hello"), "--strategy", "best-fitt"])
        .fails(125, &["HOP3-0702", "best-fit"]);
}

#[test]
fn a_pending_task_runs_when_a_node_comes_that_fits() {
    let mut mesh = Mesh::start(&[("cloud-1", "cloud")]);
    let id = mesh.submit(&[&path("hello"), "--tier", "iot"]);
    mesh.wait_task(&id, &["pending"]);
    mesh.enroll("iot-1", "iot").ok();
    mesh.start_agent("iot-1");
    let task = mesh.wait_task(&id, &["succeeded"]);
    assert_eq!(task["node"], "iot-1");
}

#[test]
fn cordon_labels_and_drain_steer_placement() {
    let mesh = Mesh::start(&[("edge-1", "edge"), ("edge-2", "edge")]);
    mesh.hop3(&["node", "cordon", "edge-1"]).ok();
    for _ in 0..4 {
        let id = mesh.submit(&[&path("hello")]);
        assert_eq!(mesh.wait_task(&id, &["succeeded"])["node"], "edge-2");
    }
    mesh.hop3(&["node", "uncordon", "edge-1"]).ok();
    mesh.hop3(&["node", "label", "edge-1", "disk=nvme"]).ok();
    let id = mesh.submit(&[&path("hello"), "--label", "disk=nvme"]);
    assert_eq!(mesh.wait_task(&id, &["succeeded"])["node"], "edge-1");
    let sleeper = mesh.submit(&[&path("sleep"), "--label", "disk=nvme", "--", "1"]);
    mesh.wait_task(&sleeper, &["running"]);
    mesh.hop3(&["node", "drain", "edge-1"]).ok();
    assert_eq!(mesh.json(&["task", "show", &sleeper])["phase"], "succeeded");
    mesh.hop3(&["node", "label", "edge-1", "disk-"]).ok();
    assert!(mesh.node("edge-1")["labels"].get("disk").is_none());
}

#[test]
fn a_short_invocation_answers_at_once() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    mesh.hop3(&["artifact", "push", &path("echo_small")]).ok();
    let out = mesh
        .hop3_with(&["invoke", "echo_small", "--input", "-"], b"ping")
        .ok();
    assert_eq!(out, "ping");
    mesh.hop3(&["artifact", "push", &path("exit")]).ok();
    mesh.hop3(&["invoke", "nothing-here"])
        .fails(1, &["HOP3-0406"]);
    mesh.hop3(&["artifact", "push", &path("hostile_spin")]).ok();
    mesh.hop3(&["invoke", "hostile_spin", "--timeout", "300ms"])
        .fails(1, &["HOP3-05"]);
    assert_eq!(
        mesh.hop3_with(&["invoke", "echo_small", "--input", "-"], b"pong")
            .ok(),
        "pong"
    );
}

#[test]
fn output_can_be_followed_while_a_task_runs() {
    let mesh = Mesh::start(&[("edge-1", "edge")]);
    let id = mesh.submit(&[&path("sleep"), "--", "1"]);
    let followed = mesh.hop3(&["task", "logs", &id, "--follow"]).ok();
    let kept = eventually("the task ends", || {
        let task = mesh.json(&["task", "show", &id]);
        (task["phase"] == "succeeded").then(|| mesh.hop3(&["task", "logs", &id]).ok())
    });
    assert_eq!(followed, kept);
}
