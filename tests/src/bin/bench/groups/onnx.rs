//! Inference through Hop3 against onnxruntime, on the same models and inputs in the same run, one
//! thread each.
//!
//! Ours is what the model's process measures around the model (`infer_us`), as REST answers it;
//! theirs is measured around `run_with_iobinding`. Runs of both take turns, so that a busy machine
//! meets both. onnxruntime comes from PyPI into a virtual environment which `scripts/bench` makes
//! and names in `HOP3_BENCH_PYTHON`; without it only our absolute times are reported.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use hop3_common::api::InferResponse;
use hop3_tests::data;
use serde::Deserialize;

use crate::{
    cast, figures, fleet,
    http::Api,
    report::{Bench, say},
    stage,
};

/// Models, and the facts of their inputs, whose first dimension they leave free.
const MODELS: &[(&str, &str)] = &[
    ("skl_mlp", "X:f32[batch,64]"),
    ("mlp_qdq", "x:f32[batch,64]"),
    ("cnn_qdq", "x:f32[batch,1,28,28]"),
];
/// Metric, model and input of each case. `…_450`: a batch of 450 digits.
const CASES: &[(&str, &str, &str)] = &[
    ("skl_mlp", "skl_mlp", "skl_mlp_input"),
    ("skl_mlp_450", "skl_mlp", "digits_x"),
    ("mlp_qdq", "mlp_qdq", "mlp_qdq_input"),
    ("cnn_qdq", "cnn_qdq", "cnn_qdq_input"),
];
/// Inferences before times count.
const WARM_UP: usize = 10;

#[derive(Deserialize)]
struct Theirs {
    version: String,
    us: Vec<f64>,
}

pub(super) fn run(bench: &Bench) -> Result<()> {
    let mesh = stage::mesh();
    for (model, input) in MODELS {
        let (name, file) = (model.replace('_', "-"), fixture(&format!("{model}.onnx")));
        let file = file.display().to_string();
        mesh.hop3(&["model", "push", &name, &file, "--spec", input])
            .ok();
        mesh.hop3(&["model", "deploy", &name]).ok();
    }
    let runtime = fleet::runtime()?;
    let api = Api::of(&mesh)?;
    let count = bench.pick(50, 300);
    let (mut ours, mut totals) = (vec![Vec::new(); CASES.len()], vec![Vec::new(); CASES.len()]);
    let mut theirs = vec![Vec::new(); CASES.len()];
    let python = std::env::var_os("HOP3_BENCH_PYTHON");
    if python.is_none() {
        say("no onnxruntime (HOP3_BENCH_PYTHON is not set; PyPI not reachable?): no ratios");
    }
    for _ in 0..bench.pick(2, 5) {
        for (i, (_, model, input)) in CASES.iter().enumerate() {
            let (us, total_us) = runtime.block_on(infer(&api, model, input, count))?;
            ours[i].push(us);
            totals[i].push(total_us);
        }
        if let Some(python) = &python {
            let answer = onnxruntime(python, count)?;
            theirs
                .iter_mut()
                .zip(answer.us)
                .for_each(|(all, us)| all.push(us));
        }
    }
    for (i, (case, ..)) in CASES.iter().enumerate() {
        let peer = (!theirs[i].is_empty()).then(|| figures::median(&theirs[i]));
        bench.report(&format!("onnx.us.{case}"), &ours[i], peer);
        bench.report(&format!("onnx.total_us.{case}"), &totals[i], None);
        let ratios: Vec<f64> = ours[i]
            .iter()
            .zip(&theirs[i])
            .map(|(us, them)| us / them)
            .collect();
        bench.report(&format!("onnx.ratio.{case}"), &ratios, Some(1.0));
    }
    Ok(())
}

fn fixture(name: &str) -> PathBuf {
    data(&format!("fixtures/models/{name}"))
}

/// Medians of the time in the model and of the time at the coordinator.
async fn infer(api: &Api, model: &str, input: &str, count: usize) -> Result<(f64, f64)> {
    let body = std::fs::read(fixture(&format!("{input}.npy")))?;
    let path = format!("/v1/models/{}/infer", model.replace('_', "-"));
    let request = api.request("POST", &path, "application/x-npy", &body);
    let mut connection = api.connect().await?;
    let (mut in_model, mut total) = (Vec::new(), Vec::new());
    for i in 0..WARM_UP + count {
        let answer = connection.good(&request).await?;
        let answer: InferResponse = serde_json::from_slice(&answer.body)?;
        if i >= WARM_UP {
            in_model.push(cast::figure(answer.infer_us));
            total.push(cast::figure(answer.total_us));
        }
    }
    Ok((figures::median(&in_model), figures::median(&total)))
}

fn onnxruntime(python: &std::ffi::OsStr, count: usize) -> Result<Theirs> {
    let mut command = Command::new(python);
    command.args(["-c", include_str!("onnx.py")]);
    for (_, model, input) in CASES {
        command
            .arg(fixture(&format!("{model}.onnx")))
            .arg(fixture(&format!("{input}.npy")));
        command.arg(count.to_string());
    }
    let output = command.output().context("cannot run Python")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "onnxruntime failed: {stderr}");
    let theirs: Theirs = serde_json::from_slice(&output.stdout).context("onnxruntime's times")?;
    say(format!(
        "onnxruntime {}: {:?} µs",
        theirs.version, theirs.us
    ));
    Ok(theirs)
}
