//! What it costs to lose the index of a store: a coordinator with many records is killed and
//! started again, with its index and without.
//!
//! Before each kill it was stopped and started in good order, so that the index is current and
//! trusted: one that saw two crashes in a row is built anew anyway.

use std::path::Path;

use anyhow::{Context as _, Result};
use hop3_common::id::Digest;
use hop3_tests::Daemon;
use serde_json::Value;

use super::coordinator::start;
use crate::{cast, figures, fleet, http::Api, report::Bench};

/// Connections that upload; as many uploads are allowed at once.
const LANES: usize = 8;
/// What a coordinator logs of the index when it opens its store.
const OPENED: &str = "store opened";
const REBUILT: &str = "Rebuilt";

pub(super) fn run(bench: &Bench) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let count = bench.pick(1_000, 10_000);
    let (mut daemon, _) = start(dir.path())?;
    let runtime = fleet::runtime()?;
    let mut expected = runtime.block_on(fill(&api(dir.path())?, count))?;
    expected.sort();
    let (mut intact, mut rebuilt) = (Vec::new(), Vec::new());
    for _ in 0..bench.pick(3, 10) {
        for (keep, times) in [(true, &mut intact), (false, &mut rebuilt)] {
            daemon.stop();
            let (mut victim, _) = start(dir.path())?;
            victim.kill();
            if !keep {
                let index = dir.path().join("data/store/index");
                std::fs::remove_dir_all(&index).with_context(|| index.display().to_string())?;
            }
            let (again, took) = start(dir.path())?;
            daemon = again;
            times.push(cast::ms(took));
            let opened = opened(&daemon).context("it did not log how its store opened")?;
            anyhow::ensure!(
                opened.contains(REBUILT) != keep,
                "the index was not as it should be: {opened}"
            );
            let found = runtime.block_on(artifacts(&api(dir.path())?))?;
            anyhow::ensure!(
                found == expected,
                "{} of {count} artifacts are there",
                found.len()
            );
        }
    }
    let baseline = figures::median(&intact);
    bench.report("recovery.sled_ms", &rebuilt, Some(baseline));
    bench.report("recovery.intact_ms", &intact, None);
    Ok(())
}

/// The REST API of the coordinator in `dir`.
fn api(dir: &Path) -> Result<Api> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let ready: Value = serde_json::from_str(&read("ready.json")?)?;
    let url = ready["api"].as_str().context("no api in ready.json")?;
    let address = url.trim_start_matches("https://").trim_end_matches('/');
    Api::new(
        address.parse().with_context(|| url.to_owned())?,
        &read("data/ca.pem")?,
        read("data/admin.token")?.trim(),
    )
}

/// Pushes this many small artifacts; their digests.
async fn fill(api: &Api, count: usize) -> Result<Vec<String>> {
    let lanes = (0..LANES).map(|lane| async move {
        let mut connection = api.connect().await?;
        let mut digests = Vec::new();
        for i in (lane..count).step_by(LANES) {
            let content = format!("record {i}");
            let digest = Digest::of(content.as_bytes()).to_string();
            let path = format!("/v1/artifacts/{digest}?kind=data&name=record-{i}");
            let kind = "application/octet-stream";
            let request = api.request("PUT", &path, kind, content.as_bytes());
            connection.good(&request).await?;
            digests.push(digest);
        }
        anyhow::Ok(digests)
    });
    let lanes = futures_util::future::try_join_all(lanes).await?;
    Ok(lanes.into_iter().flatten().collect())
}

/// The digests of all artifacts, sorted.
async fn artifacts(api: &Api) -> Result<Vec<String>> {
    let request = api.request("GET", "/v1/artifacts", "text/plain", b"");
    let answer = api.connect().await?.good(&request).await?;
    let listed: Value = serde_json::from_slice(&answer.body)?;
    let listed = listed.as_array().context("not a list")?;
    let digest = |artifact: &Value| Some(artifact["digest"].as_str()?.to_owned());
    let digests: Option<Vec<_>> = listed.iter().map(digest).collect();
    let mut digests = digests.context("an artifact without a digest")?;
    digests.sort();
    Ok(digests)
}

/// What the process logged when it opened its store.
fn opened(daemon: &Daemon) -> Option<String> {
    let log = daemon.log();
    let line = log.lines().rfind(|line| line.contains(OPENED))?;
    Some(line.to_owned())
}
