//! A backup of a stopped coordinator restores the same mesh.

use std::{fs, process::Command};

use hop3_tests::{Mesh, bin, counting, counting::Clients, guest};

/// `hop3-coordinator` with a data directory; whether it succeeded, and what it said.
fn offline(mesh: &Mesh, verb: &str, dir: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(bin("hop3-coordinator"));
    command.arg(verb).arg("--data-dir").arg(mesh.path(dir));
    for arg in args {
        // Names of files are within the mesh's directory.
        match arg.strip_prefix('@') {
            Some(name) => command.arg(mesh.path(name)),
            None => command.arg(arg),
        };
    }
    let output = command.output().unwrap_or_else(|error| panic!("{error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

const OUT: [&str; 4] = ["--out", "@mesh.backup", "--backup-key", "@backup.key"];
const IN: [&str; 4] = ["--in", "@mesh.backup", "--backup-key", "@backup.key"];

#[track_caller]
fn refused(mesh: &Mesh, verb: &str, dir: &str, args: &[&str], why: &str) {
    let (done, said) = offline(mesh, verb, dir, args);
    assert!(!done && said.contains(why), "{verb}: {said}");
}

#[test]
fn a_restored_coordinator_is_the_same_mesh() {
    let mut mesh = Mesh::start(&[("edge-1", "edge")]);
    let task = mesh.submit(&[&guest("hello").display().to_string()]);
    let ended = mesh.wait_task(&task, &["succeeded"]);
    let output = mesh.hop3(&["task", "logs", &task]).ok();
    counting::deploy(&mesh, "state: keyed\n  durability: replicated");
    let clients = Clients::start(&mesh, "counters", 2, false);
    clients.progress();
    let acknowledged = clients.stop();
    let ca = fs::read(mesh.path("coordinator/ca.pem")).ok();
    let token = mesh.token();
    let run_before = mesh.service("counters")["instances"][0]["token"].clone();

    refused(
        &mesh,
        "backup",
        "coordinator",
        &OUT,
        "in use by another process",
    );
    assert!(!mesh.path("mesh.backup").exists());
    mesh.coordinator.stop();
    let (done, said) = offline(&mesh, "backup", "coordinator", &OUT);
    assert!(done && said.contains("records"), "{said}");
    refused(&mesh, "restore", "coordinator", &IN, "is not empty");

    // The machine is lost; the agent carries on.
    fs::remove_dir_all(mesh.path("coordinator")).unwrap_or_else(|error| panic!("{error}"));
    let whole = fs::read(mesh.path("mesh.backup")).unwrap_or_default();
    mesh.file("cut.backup", &whole[..whole.len() / 2]);
    let cut = ["--in", "@cut.backup", "--backup-key", "@backup.key"];
    refused(
        &mesh,
        "restore",
        "coordinator",
        &cut,
        "nothing was restored",
    );
    let other = ["--out", "@other.backup", "--backup-key", "@other.key"];
    refused(&mesh, "backup", "coordinator", &other, "holds no store");
    assert!(!mesh.path("other.key").exists());
    assert!(!mesh.path("coordinator").exists());

    let (done, said) = offline(&mesh, "restore", "coordinator", &IN);
    assert!(done, "{said}");
    mesh.start_coordinator();
    mesh.wait_ready("edge-1");
    assert_eq!(fs::read(mesh.path("coordinator/ca.pem")).ok(), ca);
    assert_eq!(mesh.token(), token);
    let shown = mesh.json(&["task", "show", &task]);
    assert_eq!(shown["result"], ended["result"]);
    assert_eq!(mesh.hop3(&["task", "logs", &task]).ok(), output);
    // The artifact's bytes are there: a new task needs them.
    mesh.hop3(&["task", "run", "hello"]).ok();
    counting::serves_on(&mesh, "edge-1");
    counting::check(&mesh, "counters", &acknowledged);
    // It was adopted, not started again.
    let run = &mesh.service("counters")["instances"][0]["token"];
    assert_eq!(*run, run_before);
    mesh.enroll("edge-2", "edge").ok();
}

#[test]
fn a_backup_goes_through_a_pipe_and_not_with_another_key() {
    let mut mesh = Mesh::start(&[]);
    mesh.coordinator.stop();
    let mut command = Command::new(bin("hop3-coordinator"));
    command
        .args(["backup", "--out", "-", "--data-dir"])
        .arg(mesh.path("coordinator"))
        .arg("--backup-key")
        .arg(mesh.path("backup.key"));
    let output = command.output().unwrap_or_else(|error| panic!("{error}"));
    assert!(output.status.success());
    mesh.file("mesh.backup", &output.stdout);
    let inside = ["--out", "@b", "--backup-key", "@coordinator/backup.key"];
    refused(&mesh, "backup", "coordinator", &inside, "outside of");
    let (done, said) = offline(
        &mesh,
        "backup",
        "coordinator",
        &["--out", "@b", "--backup-key", "@other.key"],
    );
    assert!(done, "{said}");
    let other = ["--in", "@mesh.backup", "--backup-key", "@other.key"];
    refused(
        &mesh,
        "restore",
        "new",
        &other,
        "does not open with this backup key",
    );
    let missing = ["--in", "@mesh.backup", "--backup-key", "@no.key"];
    refused(&mesh, "restore", "new", &missing, "no.key");
    assert!(!mesh.path("new").exists());
    let (done, said) = offline(&mesh, "restore", "new", &IN);
    assert!(done, "{said}");
}
