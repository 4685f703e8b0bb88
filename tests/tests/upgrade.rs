//! Data of earlier builds opens: nodes, tasks, models, and services with their state.
//!
//! A fixture is what a mesh of a landed build left behind when coordinator and agents were killed:
//! their data directories, packed. A stored layout that changes without a new version of its record
//! fails here. `HOP3_WRITE_DATA=NAME scripts/test -E 'test(data_of_this_build)'` packs what the
//! programs in `$HOP3_BIN_DIR` leave behind; then add NAME to [`BUILDS`].

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use hop3_tests::{Mesh, Options, Web, counting, data, directory, guest, web::block_on};

/// Builds with fixtures, oldest first, and the services that each of them left.
const BUILDS: [(&str, &[(&str, u32)]); 3] = [
    ("2026-11-25-services", &[KEPT]),
    ("2026-11-25-leases", &[KEPT, REPLICATED]),
    ("2026-11-29-versions", &[KEPT, REPLICATED]),
];

/// Services, and how far each counted.
const KEPT: (&str, u32) = ("kept", 7);
const REPLICATED: (&str, u32) = ("replicated", 5);

const NODES: [(&str, &str); 2] = [("cloud-1", "cloud"), ("edge-1", "edge")];
/// Where the coordinator of a mesh listens, for the nodes that know it.
const ADDRESS: &str = "mesh-address";
/// The number of a task that no node is fit for.
const WAITING: &str = "waiting-task";

fn archive(build: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/builds/{build}.tar.gz"))
}

fn tar(args: &[&str], archive: &Path, dir: &Path) {
    let mut command = Command::new("tar");
    command.args(args).arg("--file").arg(archive);
    let output = command.current_dir(dir).output();
    let output = output.unwrap_or_else(|error| panic!("tar: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

fn infer(mesh: &Mesh) -> serde_json::Value {
    let input = data("fixtures/models/digits_10.npy").display().to_string();
    mesh.json(&["model", "infer", "digits", "--input", &input])["outputs"]["label"].clone()
}

fn digits() -> Vec<u64> {
    let text = fs::read_to_string(data("fixtures/models/digits_10.txt")).unwrap_or_default();
    let digits = text.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|digit| digit.parse().ok()).collect()
}

fn add(mesh: &Mesh, service: &str, n: u32) -> u32 {
    let answer = block_on(Web::new(mesh).post(&format!("/{service}/a/add?n={n}"), ""));
    let answer = answer.unwrap_or_else(|error| panic!("{error:?}"));
    let value = answer.text.trim().parse();
    value.unwrap_or_else(|_| panic!("{service}: {answer:?}"))
}

#[test]
fn data_of_earlier_builds_opens() {
    for (build, services) in BUILDS {
        eprintln!("data of {build}");
        let dir = directory();
        tar(&["--extract", "--gzip"], &archive(build), dir.path());
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        let address: SocketAddr = read(ADDRESS).parse().unwrap_or_else(|_| panic!("{build}"));
        let waiting = read(WAITING);
        let options = Options {
            nodes: NODES.to_vec(),
            ..Options::default()
        };
        let mesh = Mesh::found(dir, address, options);
        assert_eq!(mesh.json(&["task", "show", &waiting])["phase"], "pending");
        let labels = infer(&mesh);
        let digits = serde_json::json!({"data": digits(), "dtype": "i64", "shape": [10]});
        assert_eq!(labels, digits, "{build}");
        for (service, count) in services {
            let path = format!("/{service}/a");
            // It waits until the instance is there.
            let answer = block_on(Web::new(&mesh).get(&path));
            let answer = answer.unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(answer.text.trim(), count.to_string(), "{build}: {service}");
            assert_eq!(add(&mesh, service, 1), count + 1, "{build}: {service}");
            let told = mesh.hop3(&["explain", "service", service]).ok();
            assert!(told.contains("ready"), "{build}: {told}");
        }
        if let Some((service, count)) = services.first() {
            // It moves as ever: what is stored now is of this build.
            let to = if mesh.node_of(service, 0) == "edge-1" {
                "cloud-1"
            } else {
                "edge-1"
            };
            mesh.hop3(&["service", "migrate", service, "--to", to, "--watch"])
                .ok();
            assert_eq!(add(&mesh, service, 1), count + 2, "{build}: {service}");
        }
        for agent in mesh.agents.values() {
            assert!(!agent.log().contains("ERROR"), "{build}: {}", agent.log());
        }
    }
}

#[test]
fn data_of_this_build_is_packed() {
    let Some(build) = std::env::var_os("HOP3_WRITE_DATA") else {
        return;
    };
    let build = build.to_string_lossy();
    // Of its own, so that the port is free when the fixture is opened.
    let number = BUILDS.iter().position(|(known, _)| *known == build);
    let listen = [
        127,
        73,
        0,
        u8::try_from(number.unwrap_or(BUILDS.len()) + 1).unwrap_or(255),
    ];
    let mut mesh = Mesh::with(Options {
        nodes: NODES.to_vec(),
        listen: Some(listen.into()),
        ..Options::default()
    });
    let waiting = mesh.submit(&[&guest("hello").display().to_string(), "--node", "nowhere"]);
    mesh.hop3(&["task", "run", "hello"]).ok();
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
    mesh.hop3(&["model", "deploy", "digits", "--tier", "cloud"])
        .ok();
    infer(&mesh);
    let services = BUILDS[number.unwrap_or(BUILDS.len() - 1)].1;
    for (service, count) in services {
        let spec = match *service {
            "kept" => "state: single",
            _ => "state: single\n  durability: replicated",
        };
        counting::deploy_as(&mesh, service, spec);
        assert_eq!(add(&mesh, service, count - 1), count - 1);
        let to = if mesh.node_of(service, 0) == "edge-1" {
            "cloud-1"
        } else {
            "edge-1"
        };
        mesh.hop3(&["service", "migrate", service, "--to", to, "--watch"])
            .ok();
        assert_eq!(add(&mesh, service, 1), *count);
    }
    mesh.coordinator.kill();
    for (node, _) in NODES {
        mesh.kill_agent(node);
    }
    mesh.file(ADDRESS, &mesh.mesh_address);
    mesh.file(WAITING, &waiting);
    let dir = mesh.path("");
    let _ = fs::create_dir_all(archive("x").parent().unwrap_or(Path::new("")));
    let what = [
        "--create",
        "--gzip",
        "--owner=0",
        "--group=0",
        "--exclude=*/code",
        "--exclude=*/code-services",
    ];
    let from = ["coordinator", "cloud-1", "edge-1", ADDRESS, WAITING];
    tar(&[&what[..], &from].concat(), &archive(&build), &dir);
}
