//! Inference through Hop3 against onnxruntime, on the same models and inputs in the same run, one
//! thread each.
//!
//! Ours is what the model's process measures around the model (`infer_us`), as REST answers it;
//! theirs is measured around `run_with_iobinding` in a process of its own. After each of our
//! inferences theirs is asked for one, over a pipe. So both meet the same caches, the same sleeping
//! processor and the same busy machine: a model that is asked now and then takes up to four times
//! as long as in a tight loop, whoever runs it, and a mesh is asked now and then. What onnxruntime
//! needs in a tight loop is said too.
//!
//! onnxruntime comes from PyPI into a virtual environment which `scripts/bench` makes and names in
//! `HOP3_BENCH_PYTHON`; without it only our absolute times are reported.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result};
use hop3_common::api::InferResponse;
use hop3_tests::data;

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
    let mut ours = vec![Vec::new(); CASES.len()];
    let (mut totals, mut theirs) = (ours.clone(), ours.clone());
    let mut peer = match std::env::var_os("HOP3_BENCH_PYTHON") {
        Some(python) => Some(Peer::start(&python)?),
        None => {
            say("no onnxruntime (HOP3_BENCH_PYTHON is not set; PyPI not reachable?): no ratios");
            None
        }
    };
    for _ in 0..bench.pick(2, 5) {
        for case in 0..CASES.len() {
            let times = runtime.block_on(infer(&api, case, count, peer.as_mut()))?;
            ours[case].push(figures::median(&times.ours));
            totals[case].push(figures::median(&times.totals));
            if !times.theirs.is_empty() {
                theirs[case].push(figures::median(&times.theirs));
            }
        }
    }
    if let Some(peer) = &mut peer {
        for (case, (name, ..)) in CASES.iter().enumerate() {
            let us = peer.ask(&format!("{case} {count}"))?;
            say(format!(
                "{name}: onnxruntime needs {us:.1} µs in a tight loop"
            ));
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

/// Microseconds of single inferences.
#[derive(Default)]
struct Times {
    ours: Vec<f64>,
    /// Ours, at the coordinator.
    totals: Vec<f64>,
    theirs: Vec<f64>,
}

/// Asks both in turns.
async fn infer(api: &Api, case: usize, count: usize, mut peer: Option<&mut Peer>) -> Result<Times> {
    let (_, model, input) = CASES[case];
    let body = std::fs::read(fixture(&format!("{input}.npy")))?;
    let path = format!("/v1/models/{}/infer", model.replace('_', "-"));
    let request = api.request("POST", &path, "application/x-npy", &body);
    let mut connection = api.connect().await?;
    let mut times = Times::default();
    for i in 0..WARM_UP + count {
        let answer = connection.good(&request).await?;
        let answer: InferResponse = serde_json::from_slice(&answer.body)?;
        let theirs = match &mut peer {
            Some(peer) => Some(peer.ask(&case.to_string())?),
            None => None,
        };
        if i >= WARM_UP {
            times.ours.push(cast::figure(answer.infer_us));
            times.totals.push(cast::figure(answer.total_us));
            times.theirs.extend(theirs);
        }
    }
    Ok(times)
}

/// onnxruntime with all models loaded, in a process of its own; ended with this.
struct Peer {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &OsStr) -> Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", include_str!("onnx.py")]);
        for (_, model, input) in CASES {
            command
                .arg(fixture(&format!("{model}.onnx")))
                .arg(fixture(&format!("{input}.npy")));
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run Python")?;
        let questions = process.stdin.take().context("no standard input")?;
        let answers = BufReader::new(process.stdout.take().context("no standard output")?);
        let mut peer = Self {
            process,
            questions,
            answers,
        };
        let version = peer.answer()?;
        say(format!("onnxruntime {version}"));
        Ok(peer)
    }

    /// The microseconds that onnxruntime needed.
    fn ask(&mut self, question: &str) -> Result<f64> {
        writeln!(self.questions, "{question}").context("onnxruntime has gone")?;
        let answer = self.answer()?;
        answer
            .parse()
            .with_context(|| format!("onnxruntime says {answer:?}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let bytes = self.answers.read_line(&mut line)?;
        anyhow::ensure!(bytes > 0, "onnxruntime failed: see above");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
