//! Pages and sections that are made from the code, never typed.

use std::{collections::BTreeSet, fmt::Write as _, fs, process::Command};

use hop3_common::{
    codes::Code,
    identity,
    wire::{self, attach, close, telemetry},
};
use hop3_tests::{Mesh, bin};
use serde_json::Value;

use crate::pages::root;

/// Compares a whole page with `text`, or writes it.
pub(crate) fn page(path: &str, text: &str) {
    let file = root().join(path);
    if std::env::var_os("HOP3_UPDATE_DOCS").is_some() {
        fs::write(&file, text).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        found == text,
        "{path} is not current (line {differs:?}): run scripts/reference"
    );
}

/// Compares what stands between `<!-- NAME -->` and `<!-- /NAME -->`, or writes it.
pub(crate) fn section(path: &str, name: &str, text: &str) {
    let whole = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (head, rest) = whole
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{path}: no {begin}"));
    let (_, tail) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("{path}: no {end}"));
    page(path, &format!("{head}{begin}{text}{end}{tail}"));
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(bin(program))
        .args(args)
        .env_remove("COLUMNS")
        .env("NO_COLOR", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program} {args:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `docs/reference/cli.md`.
pub(crate) fn cli() -> String {
    output("hop3", &["reference"])
}

/// `docs/reference/daemons.md`: the daemons' command lines.
pub(crate) fn daemons() -> String {
    let mut text = String::from(
        "# Daemons\n\nGenerated from the programs by `scripts/reference`. \
         What the options mean in a file: [config.md](config.md).\n",
    );
    for (program, verbs) in [
        (
            "hop3-coordinator",
            &["run", "token", "token reset", "backup", "restore"][..],
        ),
        ("hop3-agent", &["enroll", "run"][..]),
    ] {
        for verb in verbs {
            let mut args: Vec<&str> = verb.split(' ').collect();
            args.push("--help");
            let help = output(program, &args);
            let _ = write!(
                text,
                "\n## {program} {verb}\n\n```text\n{}\n```\n",
                trimmed(&help)
            );
        }
    }
    text
}

/// Without spaces at line ends.
fn trimmed(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// `docs/reference/errors.md`.
pub(crate) fn errors() -> String {
    let mut text = String::from(
        "# Error codes\n\nGenerated from `common/src/codes.rs` by `scripts/reference`.\n\n\
         A code means the same in every release. At the API an error is an RFC 9457 problem\n\
         document with the status below and the code in `code`; the CLI prints the code in\n\
         brackets after the message.\n",
    );
    for (group, heading) in [
        (1, "Requests"),
        (2, "Access"),
        (3, "Nodes and enrolment"),
        (4, "Artifacts"),
        (5, "Tasks and services"),
        (6, "Models"),
        (7, "Placement"),
        (8, "Coordinator"),
    ] {
        let _ = write!(
            text,
            "\n## {heading}\n\n| code | HTTP | what | what to do |\n| --- | --- | --- | --- |\n"
        );
        for code in Code::ALL.iter().filter(|code| code.number() / 100 == group) {
            let anchor = code.to_string().to_lowercase();
            let (status, title, fix) = (code.status(), code.title(), code.fix());
            let _ = writeln!(
                text,
                "| <a id=\"{anchor}\"></a>{code} | {status} | {title} | {fix} |"
            );
        }
    }
    let listed = Code::ALL
        .iter()
        .filter(|code| text.contains(&code.to_string()))
        .count();
    assert_eq!(
        listed,
        Code::ALL.len(),
        "a group of codes has no heading here"
    );
    text
}

/// The table of limits in `docs/reference/wire.md`.
pub(crate) fn wire_limits() -> String {
    let rows = [
        (
            "oldest and newest protocol",
            format!("{} to {}", wire::PROTOCOL.0, wire::PROTOCOL.1),
        ),
        ("control frame", bytes(wire::CONTROL_FRAME_MAX)),
        ("stream header frame", bytes(wire::HEADER_FRAME_MAX)),
        ("call or reply frame", bytes(wire::CALL_FRAME_MAX)),
        ("telemetry frame", bytes(wire::TELEMETRY_FRAME_MAX)),
        (
            "samples in a telemetry batch",
            telemetry::SAMPLES_MAX.to_string(),
        ),
        ("enrolment frame", bytes(wire::ENROLL_FRAME_MAX)),
        ("certificate request", bytes(identity::csr::CSR_BYTES_MAX)),
        ("instances in an inventory", wire::INVENTORY_MAX.to_string()),
        ("attach: data in a frame", bytes(attach::DATA_BYTES_MAX)),
        (
            "attach: unconfirmed bytes per channel",
            bytes(attach::WINDOW_BYTES as usize),
        ),
        ("client stream frame", bytes(wire::CLIENT_FRAME_MAX)),
        (
            "headers of a request or reply",
            wire::HEADERS_MAX.to_string(),
        ),
        ("bytes of its headers", bytes(wire::HEADERS_BYTES_MAX)),
        ("path and query of a request", bytes(wire::PATH_BYTES_MAX)),
    ];
    let mut text = String::from("| limit | at most |\n| --- | --- |\n");
    for (what, most) in rows {
        let _ = writeln!(text, "| {what} | {most} |");
    }
    let codes = [
        (close::DONE, "orderly end"),
        (close::REVOKED, "the node was revoked: it stops dialling"),
        (
            close::REPLACED,
            "a newer connection of the same node took over",
        ),
        (close::PROTOCOL, "a frame was malformed or too large"),
        (close::UNAUTHENTICATED, "no acceptable client certificate"),
        (
            close::RESTARTING,
            "the coordinator restarts: come back when it said",
        ),
        (close::BUSY, "over a limit: come back later"),
    ];
    text.push_str("\n| close code | meaning |\n| --- | --- |\n");
    for (code, meaning) in codes {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text
}

fn bytes(count: usize) -> String {
    match count {
        n if n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

/// The table of routes in `docs/reference/api.md`, from the coordinator's own OpenAPI document.
pub(crate) fn routes(document: &Value) -> String {
    let mut text = String::from("| route | what |\n| --- | --- |\n");
    let paths = document["paths"].as_object().cloned().unwrap_or_default();
    assert!(paths.len() > 10, "the API has few routes: {document}");
    for (path, methods) in &paths {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let said = operation["summary"]
                .as_str()
                .or(operation["description"].as_str());
            let what = said.unwrap_or_default().lines().next().unwrap_or_default();
            let _ = writeln!(text, "| `{} {path}` | {what} |", method.to_uppercase());
        }
    }
    text
}

/// The coordinator's OpenAPI document.
pub(crate) fn openapi(mesh: &Mesh) -> Value {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = fs::read_to_string(mesh.path("coordinator/ca.pem")).unwrap_or_default();
    let tls = identity::tls::api_client(&ca).unwrap_or_else(|error| panic!("{error}"));
    let url = format!("{}/v1/openapi.json", mesh.api);
    let get = async {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .build()?;
        client
            .get(url)
            .bearer_auth(mesh.token())
            .send()
            .await?
            .error_for_status()?
            .json()
            .await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.unwrap_or_else(|error| panic!("{error}"));
    runtime
        .block_on(get)
        .unwrap_or_else(|error: reqwest::Error| panic!("{error:?}"))
}

/// The fields of a daemon's configuration file, as it names them itself when one is unknown.
pub(crate) fn known_fields(program: &str) -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let file = dir.path().join("config.toml");
    fs::write(&file, "no_such_field = 1\n").unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(bin(program))
        .args(["run", "--check-config", "--config"])
        .arg(&file)
        .env("HOP3_HOME", dir.path())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("no_such_field"),
        "{said}"
    );
    let listed = said.split("expected").nth(1).unwrap_or_default();
    let listed = listed.split(" for ").next().unwrap_or_default();
    let word =
        |text: &&str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && text.len() > 3;
    listed.split('`').filter(word).map(str::to_owned).collect()
}
