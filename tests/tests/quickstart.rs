//! The README's first command, as a new user runs it, but for the build.

use std::process::Command;

use hop3_tests::{bin, data};

#[test]
fn the_quick_start_does_the_main_jobs_and_says_what_to_type_next() {
    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let programs = bin("hop3");
    let programs = programs.parent().unwrap_or_else(|| panic!("no folder"));
    let output = Command::new(data("../scripts/quickstart"))
        .arg("--once")
        .env("HOP3_BIN_DIR", programs)
        .env("HOP3_HOME", dir.path().join("home"))
        .env("HOP3_QUICKSTART_DIR", dir.path().join("quickstart"))
        .output()
        .unwrap_or_else(|error| panic!("{error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for expected in [
        "3 of 3 nodes ready",
        // What wordcount says of the real file.
        "991",
        // The first two lines of the stream, in capitals.
        "THE FIELD LOG OF A SMALL STATION",
        "recognised: 2,0,4,9,4,1,2,4,6,7",
        // A service came back from a killed agent, and moved while it was asked.
        "kill -9 the agent",
        "downtime",
        "; 0 answers were missing or wrong",
        "removed by tier",
        "round trip",
        "All of that took",
    ] {
        assert!(
            stdout.contains(expected),
            "no {expected:?} in:\n{stdout}\n{stderr}"
        );
    }
}
