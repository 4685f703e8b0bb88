//! Invocations: HTTPS → coordinator → QUIC → agent → a fresh Wasm instance, and back.
//!
//! One agent; the load is a closed loop over kept HTTP/1.1 connections on one thread of another
//! process, 1 and 64 in flight. Each answer is checked. Beside it the same load asks a server of
//! the same HTTP and TLS stack that answers what it was sent: what HTTP alone costs here.

use std::time::Duration;

use anyhow::Result;
use hop3_tests::guest;

use crate::{
    floor,
    http::Api,
    load::{Load, Seen},
    report::Bench,
    stage,
};

/// Until connections, code and caches are warm.
const WARM_UP: Duration = Duration::from_secs(1);
/// Input and output of `echo_small`.
const PAYLOAD_BYTES: usize = 1024;

/// Figures of one load, run after run.
#[derive(Default)]
struct Runs {
    per_s: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
    node_us: Vec<f64>,
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    for module in ["echo_small", "empty"] {
        mesh.hop3(&["artifact", "push", &guest(module).display().to_string()])
            .ok();
    }
    let api = Api::of(&mesh)?;
    let payload = vec![b'x'; PAYLOAD_BYTES];
    for in_flight in [1, 64] {
        let echo = measure(bench, &api, "echo_small", &payload, in_flight)?;
        bench.report(&format!("invoke.p50_ms.{in_flight}"), &echo.p50_ms, None);
        bench.report(&format!("invoke.p99_ms.{in_flight}"), &echo.p99_ms, None);
        bench.report(&format!("invoke.per_s.{in_flight}"), &echo.per_s, None);
        bench.report("invoke.node_us", &echo.node_us, None);
        let empty = measure(bench, &api, "empty", b"", in_flight)?;
        bench.report(
            &format!("invoke.empty_p50_ms.{in_flight}"),
            &empty.p50_ms,
            None,
        );
        bench.report(
            &format!("invoke.empty_p99_ms.{in_flight}"),
            &empty.p99_ms,
            None,
        );
        bench.report(
            &format!("invoke.empty_per_s.{in_flight}"),
            &empty.per_s,
            None,
        );
    }
    drop(mesh);
    let dir = tempfile::tempdir()?;
    let (_floor, api) = floor::start(dir.path())?;
    for in_flight in [1, 64] {
        let floor = measure(bench, &api, "floor", &payload, in_flight)?;
        bench.report(
            &format!("invoke.baseline_p50_ms.{in_flight}"),
            &floor.p50_ms,
            None,
        );
        bench.report(
            &format!("invoke.baseline_per_s.{in_flight}"),
            &floor.per_s,
            None,
        );
    }
    Ok(())
}

fn measure(
    bench: &Bench,
    api: &Api,
    module: &str,
    payload: &[u8],
    in_flight: usize,
) -> Result<Runs> {
    let window = Duration::from_secs(bench.pick(2, 8));
    let mut runs = Runs::default();
    for _ in 0..bench.pick(1, 5) {
        let path = format!("/v1/invoke?module={module}");
        let load = Load {
            api: api.clone(),
            request: api.request("POST", &path, "application/octet-stream", payload),
            expected: payload.to_vec().into(),
            in_flight,
        };
        let Seen {
            per_s,
            p50_ms,
            p99_ms,
            node_us,
        } = load.run(WARM_UP, window)?;
        runs.per_s.push(per_s);
        runs.p50_ms.push(p50_ms);
        runs.p99_ms.push(p99_ms);
        runs.node_us.extend(node_us);
    }
    Ok(runs)
}
