//! ONNX models behind their guarded child process: right answers, typed refusals, hostile models.
#![allow(clippy::unwrap_used, missing_docs)]

mod craft;

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hop3_common::{
    id::Digest,
    tensor::{DType, Tensor, TensorSpec, from_npy},
};
use hop3_runtime::onnx::{
    Error, HostOptions, ModelError, ModelHost, ModelHosts, ModelKey, Source, Stage,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hop3-model-host");
/// Nothing in these tests takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Products of 2048 × 2048 numbers (17 GFLOP each) that no core does within a test.
const ENDLESS: usize = 200;

fn data(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .into()
}

fn array(name: &str) -> Tensor {
    from_npy(&data(name)).unwrap()
}

fn source(model: impl Into<Bytes>) -> Source {
    let model = model.into();
    Arc::new(move || Ok(model.clone()))
}

fn specs(texts: &[&str]) -> Vec<TensorSpec> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn options() -> HostOptions {
    HostOptions::new(PROGRAM, Vec::new())
}

fn host(model: impl Into<Bytes>, inputs: &[&str]) -> ModelHost {
    ModelHost::new(options(), specs(inputs), source(model))
}

fn refusal(model: impl Into<Bytes>, inputs: &[&str]) -> ModelError {
    match host(model, inputs).load() {
        Err(Error::Model(e)) => e,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn floats(shape: Vec<u64>) -> Tensor {
    let elements = usize::try_from(shape.iter().product::<u64>()).unwrap();
    Tensor::from_f32(shape, &vec![0.5; elements]).unwrap()
}

fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(got.shape(), expected.shape());
    for (a, b) in got.to_f32().unwrap().iter().zip(expected.to_f32().unwrap()) {
        assert!(
            (a - b).abs() <= tolerance,
            "{a} is not within {tolerance} of {b}"
        );
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::yield_now();
    }
}

// --- right answers ---

#[test]
fn scikit_learn_mlp_gives_labels_and_probabilities() {
    let host = host(data("skl_mlp.onnx"), &["X:f32[batch,64]"]);
    let result = host
        .infer(vec![array("skl_mlp.input.npy")], PATIENCE)
        .unwrap();
    assert_eq!(result.outputs.len(), 2);
    assert_eq!(result.outputs[0], array("skl_mlp.label.npy"));
    assert_close(
        &result.outputs[1],
        &array("skl_mlp.probabilities.npy"),
        1e-4,
    );
    assert!(result.load_us > 0 && result.infer_us > 0);
    let facts = host.facts().unwrap();
    let text = |specs: &[TensorSpec]| specs.iter().map(TensorSpec::to_string).collect::<Vec<_>>();
    assert_eq!(text(&facts.inputs), ["X:f32[batch,64]"]);
    assert_eq!(
        text(&facts.outputs),
        ["label:i64[batch]", "probabilities:f32[batch,10]"]
    );
}

#[test]
fn int8_models_give_the_numbers_they_came_with() {
    for (model, input, output, quantum) in [
        ("mlp_qdq", "x:f32[N,64]", "softmax_12", 1.0 / 255.0),
        ("cnn_qdq", "x:f32[N,1,28,28]", "gemm_18", 0.025_912_3),
    ] {
        let host = host(data(&format!("{model}.onnx")), &[input]);
        let result = host
            .infer(vec![array(&format!("{model}.input.npy"))], PATIENCE)
            .unwrap();
        let fixture = array(&format!("{model}.{output}.npy"));
        assert_close(&result.outputs[0], &fixture, 1e-3);
        // The standard's arithmetic, whose pairs of products do not saturate, is near:
        // data/README.md.
        let reference = array(&format!("{model}.{output}.reference.npy"));
        assert_close(&result.outputs[0], &reference, 5.01 * quantum);
        assert_eq!(classes(&result.outputs[0]), classes(&reference));
    }
}

#[test]
fn int8_patterns_that_do_not_saturate_are_what_onnx_defines() {
    let host = host(data("qdq_mix.onnx"), &["x:f32[N,3,11,9]"]);
    let result = host.infer(vec![array("qdq_mix.input.npy")], PATIENCE);
    let (got, expected) = (&result.unwrap().outputs[0], array("qdq_mix.y.npy"));
    // One step, where a sum is within rounding of a half.
    assert_close(got, &expected, 0.021);
    let (got, expected) = (got.to_f32().unwrap(), expected.to_f32().unwrap());
    let other = got
        .iter()
        .zip(&expected)
        .filter(|(a, b)| (**a - **b).abs() > 1e-3);
    assert!(other.count() <= expected.len() / 500);
}

/// The column of the largest number in each row; the first of equals.
fn classes(tensor: &Tensor) -> Vec<usize> {
    let columns = usize::try_from(tensor.shape()[1]).unwrap();
    let values = tensor.to_f32().unwrap();
    let best = |row: &[f32]| {
        let descending = (0..columns).rev();
        descending
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap()
    };
    values.chunks(columns).map(best).collect()
}

#[test]
fn plans_are_made_once_per_shape_and_few_are_kept() {
    let options = HostOptions {
        plans_max: 2,
        ..options()
    };
    let specs = specs(&["X:f32[batch,64]"]);
    let host = ModelHost::new(options, specs, source(data("skl_mlp.onnx")));
    host.load().unwrap();
    let planned = |batch: u64| {
        host.infer(vec![floats(vec![batch, 64])], PATIENCE)
            .unwrap()
            .plan_us
            > 0
    };
    let made: Vec<bool> = [1, 3, 3, 1, 5, 1, 3].map(planned).into();
    assert_eq!(made, [false, true, false, false, true, false, true]);
}

#[test]
fn one_batch_gives_what_single_rows_give() {
    let host = host(data("skl_mlp.onnx"), &["X:f32[batch,64]"]);
    let (input, labels) = (array("skl_mlp.input.npy"), array("skl_mlp.label.npy"));
    for (row, label) in labels.to_i64().unwrap().iter().enumerate().take(5) {
        let bytes = input.data().slice(row * 256..(row + 1) * 256);
        let row = Tensor::new(DType::F32, vec![1, 64], bytes).unwrap();
        let result = host.infer(vec![row], PATIENCE).unwrap();
        assert_eq!(result.outputs[0].to_i64().unwrap(), [*label]);
    }
}

#[test]
fn a_dimension_may_be_fixed_by_the_manifest() {
    let host = host(data("mlp_qdq.onnx"), &["x:f32[16,64]"]);
    let (facts, _) = host.load().unwrap();
    assert_eq!(facts.outputs[0].to_string(), "softmax_12:f32[16,10]");
    let result = host
        .infer(vec![array("mlp_qdq.input.npy")], PATIENCE)
        .unwrap();
    assert_close(&result.outputs[0], &array("mlp_qdq.softmax_12.npy"), 1e-3);
    let error = host.infer(vec![floats(vec![1, 64])], PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `x` must be f32[16,64], got f32[1,64]"
    );
}

#[test]
fn callers_in_parallel_take_turns() {
    let host = host(data("skl_mlp.onnx"), &["X:f32[batch,64]"]);
    let (input, labels) = (array("skl_mlp.input.npy"), array("skl_mlp.label.npy"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let result = host.infer(vec![input.clone()], PATIENCE).unwrap();
                    assert_eq!(result.outputs[0], labels);
                }
            });
        }
    });
    assert!(!host.is_busy());
}

// --- wrong input ---

#[test]
fn wrong_inputs_are_refused_and_the_child_goes_on() {
    let host = host(craft::sum(), &["a:f32[n,2]", "b:f32[n,2]"]);
    host.load().unwrap();
    let pid = host.pid();
    let good = || vec![floats(vec![3, 2]), floats(vec![3, 2])];
    let cases = [
        (
            vec![floats(vec![3, 2])],
            "the model takes 2 input(s), got 1",
        ),
        (
            vec![floats(vec![3, 2]), floats(vec![3, 3])],
            "`b` must be f32[n,2]",
        ),
        (
            vec![floats(vec![3, 2]), floats(vec![4, 2])],
            "`b` must be f32[n,2] with n = 3",
        ),
        (vec![floats(vec![3, 2]), floats(vec![6])], "got f32[6]"),
        (vec![floats(vec![0, 2]), floats(vec![0, 2])], "`a` must be"),
        (
            vec![
                Tensor::from_i64(vec![1, 2], &[1, 2]).unwrap(),
                floats(vec![1, 2]),
            ],
            "got i64[1,2]",
        ),
    ];
    for (inputs, expected) in cases {
        let error = host.infer(inputs, PATIENCE).unwrap_err();
        assert!(
            error.to_string().contains(expected),
            "{error} should say {expected}"
        );
        assert!(!error.retryable());
    }
    let result = host.infer(good(), PATIENCE).unwrap();
    assert_eq!(result.outputs[0].to_f32().unwrap(), [1.0; 6]);
    assert_eq!(host.pid(), pid, "the same child all along");
}

#[test]
fn what_is_not_onnx_is_refused() {
    let not_onnx: [&[u8]; 4] = [b"", b"hello, world", b"\x89PNG\r\n\x1a\n", &[0xff; 1000]];
    for bytes in not_onnx {
        let error = refusal(bytes.to_vec(), &[]);
        assert!(matches!(error, ModelError::NotOnnx { .. }), "{error}");
    }
}

#[test]
fn truncated_and_corrupted_models_end_in_typed_errors() {
    let model = data("mlp_qdq.onnx");
    for part in 1..8 {
        let cut = model.len() * part / 8;
        let error = refusal(model.slice(..cut), &["x:f32[N,64]"]);
        assert!(
            matches!(error, ModelError::Malformed { .. }),
            "cut at {cut}: {error}"
        );
    }
    // Whatever a flipped byte does, it is told as the model's fault.
    for i in 0..24 {
        let mut bytes = model.to_vec();
        let at = (i * 7919 + 13) % bytes.len();
        bytes[at] ^= 0x55;
        match host(bytes, &["x:f32[N,64]"]).load() {
            Ok(_) | Err(Error::Model(_) | Error::MemoryExceeded { .. }) => {}
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn unsupported_operators_are_all_named_at_admission() {
    let error = refusal(craft::unknown_operators(), &[]);
    let expected = "the model uses operators that are not supported: Hidden, com.example.Fancy";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn manifests_must_settle_the_inputs() {
    let skl = || data("skl_mlp.onnx");
    let error = refusal(skl(), &[]).to_string();
    assert!(
        error.starts_with("dimension 0 of input `X` is free in the model"),
        "{error}"
    );
    let error = refusal(data("mlp_qdq.onnx"), &[]).to_string();
    assert!(
        error.starts_with("dimension 0 (`N`) of input `x` is free"),
        "{error}"
    );
    let error = refusal(skl(), &["Y:f32[n,64]"]).to_string();
    assert_eq!(error, "the model has no input `Y`; its inputs are: X");
    let error = refusal(skl(), &["X:f32[n,63]"]).to_string();
    assert_eq!(
        error,
        "the manifest says `X:f32[n,63]`, but the model has `X:f32[?,64]`"
    );
    for wrong in ["X:f64[n,64]", "X:f32[64]", "X:f32[n,m]"] {
        let error = refusal(skl(), &[wrong]);
        assert!(matches!(error, ModelError::Contradiction { .. }), "{error}");
    }
    let error = refusal(skl(), &["X:f32[n,64]", "X:f32[n,64]"]);
    assert!(matches!(error, ModelError::Contradiction { .. }), "{error}");
    let error = refusal(craft::strings(), &[]);
    assert!(
        matches!(error, ModelError::UnsupportedType { .. }),
        "{error}"
    );
}

#[test]
fn a_refused_model_is_not_loaded_again() {
    let host = host(craft::unknown_operators(), &[]);
    for _ in 0..3 {
        let error = host.infer(vec![floats(vec![1])], PATIENCE).unwrap_err();
        assert!(matches!(
            error,
            Error::Model(ModelError::UnsupportedOperator { .. })
        ));
        assert_eq!(host.pid(), None);
    }
}

// --- hostile models ---

#[test]
fn memory_limit_ends_a_greedy_model_at_load_and_at_run() {
    let at_load = host(craft::giant_constant(1 << 33), &[]);
    let error = at_load.load().unwrap_err();
    assert!(
        matches!(error, Error::MemoryExceeded { limit_bytes } if limit_bytes == 512 << 20),
        "{error:?}"
    );
    assert!(!error.retryable());

    let at_run = host(craft::outer_product(), &["x:f32[n,1]"]);
    let error = at_run
        .infer(vec![floats(vec![60_000, 1])], PATIENCE)
        .unwrap_err();
    assert!(matches!(error, Error::MemoryExceeded { .. }), "{error:?}");
    assert_eq!(at_run.pid(), None);
    let result = at_run.infer(vec![floats(vec![2, 1])], PATIENCE).unwrap();
    assert_eq!(
        result.outputs[0].to_f32().unwrap(),
        [0.25; 4],
        "the next one works"
    );
}

#[test]
fn an_output_too_large_to_carry_is_refused() {
    let host = host(craft::outer_product(), &["x:f32[n,1]"]);
    let error = host
        .infer(vec![floats(vec![5000, 1])], PATIENCE)
        .unwrap_err();
    assert!(matches!(error, Error::Model(_)), "{error:?}");
    assert!(host.infer(vec![floats(vec![2, 1])], PATIENCE).is_ok());
}

#[test]
fn a_late_inference_is_killed_and_the_next_one_works() {
    let host = host(craft::slow(ENDLESS), &["x:f32[n,n]"]);
    host.load().unwrap();
    let limit = Duration::from_millis(300);
    let error = host
        .infer(vec![floats(vec![2048, 2048])], limit)
        .unwrap_err();
    let late = matches!(
        error,
        Error::DeadlineExceeded {
            stage: Stage::Infer,
            limit_ms: 300
        }
    );
    assert!(late, "{error:?}");
    assert_eq!(host.pid(), None);
    assert!(host.infer(vec![floats(vec![1, 1])], PATIENCE).is_ok());
}

#[test]
fn waiting_for_a_turn_has_a_deadline_too() {
    let host = host(craft::slow(ENDLESS), &["x:f32[n,n]"]);
    host.load().unwrap();
    let idle = cpu_ticks(host.pid());
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| host.infer(vec![floats(vec![2048, 2048])], PATIENCE));
        until("the slow call runs", || host.is_busy());
        let limit = Duration::from_millis(50);
        let error = host.infer(vec![floats(vec![1, 1])], limit).unwrap_err();
        assert!(
            matches!(
                error,
                Error::DeadlineExceeded {
                    stage: Stage::Queue,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(error.retryable());
        until("it computes", || cpu_ticks(host.pid()) > idle + 20);
        kill(host.pid());
        slow.join().unwrap().unwrap_err();
    });
}

fn kill(pid: Option<u32>) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid.unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Processor time of a process, in hundredths of a second.
fn cpu_ticks(pid: Option<u32>) -> u64 {
    let Some(pid) = pid else { return 0 };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.split(' ')
        .nth(13)
        .and_then(|ticks| ticks.parse().ok())
        .unwrap_or(0)
}

#[test]
fn a_killed_child_costs_its_call_and_nothing_more() {
    let host = host(craft::slow(ENDLESS), &["x:f32[n,n]"]);
    host.load().unwrap();
    let idle = cpu_ticks(host.pid());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| host.infer(vec![floats(vec![2048, 2048])], PATIENCE));
        until("it computes", || cpu_ticks(host.pid()) > idle + 20);
        kill(host.pid());
        let error = call.join().unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Crashed {
                    signal: Some(9),
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(error.retryable());
    });
    host.infer(vec![floats(vec![1, 1])], PATIENCE).unwrap();

    let before = host.pid();
    kill(before);
    until("it is dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", before.unwrap())).unwrap();
        stat.contains(") Z ")
    });
    host.infer(vec![floats(vec![1, 1])], PATIENCE).unwrap();
    assert_ne!(
        host.pid(),
        before,
        "died between calls: replaced without an error"
    );
}

#[test]
fn repeated_failures_are_paused() {
    let host = host(craft::giant_constant(1 << 33), &[]);
    let first: Vec<Error> = (0..2).map(|_| host.load().unwrap_err()).collect();
    assert!(
        first
            .iter()
            .all(|e| matches!(e, Error::MemoryExceeded { .. })),
        "{first:?}"
    );
    let error = host.load().unwrap_err();
    assert!(
        matches!(error, Error::BackingOff { failures: 2, .. }),
        "{error:?}"
    );
}

#[test]
fn programs_that_are_no_model_process_are_told_apart() {
    let with = |program: &str, args: &[&str]| {
        let args: Vec<OsString> = args.iter().map(Into::into).collect();
        let options = HostOptions {
            load_ms_max: 2000,
            ..HostOptions::new(program, args)
        };
        ModelHost::new(options, Vec::new(), source(Bytes::new()))
            .load()
            .unwrap_err()
    };
    let error = with("/nonexistent", &[]);
    assert!(matches!(error, Error::Spawn { .. }), "{error:?}");
    let error = with("/bin/echo", &["hello"]);
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    let error = with("/bin/sh", &["-c", "echo sorry >&2; exit 3"]);
    let told =
        matches!(&error, Error::Crashed { code: Some(3), message, .. } if message == "sorry");
    assert!(told, "{error:?}");
    let error = with("/bin/sh", &["-c", "sleep 100"]);
    assert!(
        matches!(
            error,
            Error::DeadlineExceeded {
                stage: Stage::Load,
                ..
            }
        ),
        "{error:?}"
    );
    let error = with(PROGRAM, &["--nonsense", "1"]);
    assert!(
        matches!(error, Error::Crashed { code: Some(70), .. }),
        "{error:?}"
    );
}

#[test]
fn an_unreadable_source_is_an_error_of_its_own() {
    let source: Source = Arc::new(|| Err(std::io::ErrorKind::NotFound.into()));
    let error = ModelHost::new(options(), Vec::new(), source)
        .load()
        .unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error:?}");
}

// --- the jail ---

#[test]
fn the_jail_lets_nothing_through() {
    let probe = |what: &str| {
        let output = Command::new(PROGRAM)
            .args(["--probe", what])
            .env_clear()
            .output()
            .unwrap();
        (output.status.code(), output.status.signal())
    };
    assert_eq!(probe("nothing"), (Some(0), None));
    for what in ["file", "socket", "process", "thread", "kill"] {
        assert_eq!(probe(what), (None, Some(libc::SIGSYS)), "{what}");
    }
    assert_eq!(probe("memory"), (None, Some(libc::SIGABRT)));
}

#[test]
fn children_outlive_the_thread_that_started_them() {
    let host = Arc::new(host(craft::outer_product(), &["x:f32[n,1]"]));
    let starter = host.clone();
    std::thread::spawn(move || starter.load().map(drop))
        .join()
        .unwrap()
        .unwrap();
    let pid = host.pid();
    for _ in 0..3 {
        host.infer(vec![floats(vec![2, 1])], PATIENCE).unwrap();
    }
    assert_eq!(host.pid(), pid);
}

// --- a node's worth of models ---

#[test]
fn idle_children_are_stopped_and_their_memory_is_shown() {
    let host = host(data("skl_mlp.onnx"), &["X:f32[batch,64]"]);
    assert!(!host.stop_if_idle(Instant::now()), "nothing to stop");
    host.load().unwrap();
    let memory = host.memory().unwrap();
    assert!(memory.pss_bytes > 0 && memory.pss_bytes <= memory.rss_bytes);
    let now = Instant::now();
    assert!(!host.stop_if_idle(now));
    assert!(host.stop_if_idle(now + Duration::from_secs(301)));
    assert_eq!((host.pid(), host.memory()), (None, None));
    assert!(host.facts().is_some(), "still known");
    host.infer(vec![floats(vec![1, 64])], PATIENCE).unwrap();
}

fn key(model: &Bytes, inputs: &[&str]) -> ModelKey {
    let digest = Digest::of(model);
    ModelKey {
        digest,
        specs: specs(inputs),
        memory_bytes_max: 256 << 20,
    }
}

#[test]
fn the_least_used_model_gives_way() {
    let hosts = ModelHosts::new(options(), 2);
    let (a, b, c) = (
        data("skl_mlp.onnx"),
        data("mlp_qdq.onnx"),
        Bytes::from(craft::sum()),
    );
    let (ka, kb) = (key(&a, &["X:f32[n,64]"]), key(&b, &["x:f32[n,64]"]));
    let kc = key(&c, &["a:f32[n,2]", "b:f32[n,2]"]);
    let row = || vec![floats(vec![1, 64])];
    let models = |hosts: &ModelHosts| {
        hosts
            .children()
            .iter()
            .map(|child| child.digest)
            .collect::<Vec<_>>()
    };
    hosts
        .infer(&ka, &source(a.clone()), row(), PATIENCE)
        .unwrap();
    hosts
        .infer(&kb, &source(b.clone()), row(), PATIENCE)
        .unwrap();
    hosts
        .infer(&ka, &source(a.clone()), row(), PATIENCE)
        .unwrap();
    hosts.load(&kc, &source(c.clone())).unwrap();
    assert_eq!(models(&hosts), [ka.digest, kc.digest]);
    hosts.remove(&ka);
    assert_eq!(models(&hosts), [kc.digest]);
    hosts.stop_idle(Instant::now() + Duration::from_secs(301));
    assert!(models(&hosts).is_empty());
}

#[test]
fn a_hostile_model_does_not_touch_its_neighbour() {
    let hosts = ModelHosts::new(options(), 2);
    let bad = Bytes::from(craft::giant_constant(1 << 33));
    let good = data("skl_mlp.onnx");
    let (kb, kg) = (key(&bad, &[]), key(&good, &["X:f32[n,64]"]));
    let input = || vec![array("skl_mlp.input.npy")];
    for _ in 0..2 {
        hosts.load(&kb, &source(bad.clone())).unwrap_err();
        let result = hosts
            .infer(&kg, &source(good.clone()), input(), PATIENCE)
            .unwrap();
        assert_eq!(result.outputs[0], array("skl_mlp.label.npy"));
    }
}

#[test]
fn when_all_children_are_busy_others_are_told() {
    let hosts = ModelHosts::new(options(), 1);
    let (slow, other) = (Bytes::from(craft::slow(ENDLESS)), data("skl_mlp.onnx"));
    let (ks, ko) = (key(&slow, &["x:f32[n,n]"]), key(&other, &["X:f32[n,64]"]));
    hosts.load(&ks, &source(slow.clone())).unwrap();
    let pid = || hosts.children().first().map(|child| child.pid);
    let idle = cpu_ticks(pid());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            hosts.infer(
                &ks,
                &source(slow.clone()),
                vec![floats(vec![2048, 2048])],
                PATIENCE,
            )
        });
        until("it computes", || cpu_ticks(pid()) > idle + 20);
        let error = hosts.load(&ko, &source(other.clone())).unwrap_err();
        assert!(
            matches!(error, Error::Crowded { children_max: 1 }),
            "{error:?}"
        );
        kill(pid());
        call.join().unwrap().unwrap_err();
    });
    hosts.load(&ko, &source(other.clone())).unwrap();
}
