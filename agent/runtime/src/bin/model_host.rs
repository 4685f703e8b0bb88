//! The model process as a program of its own, for this crate's tests; in the product it is the
//! agent's own binary that calls [`hop3_runtime::onnx::serve_child`].
//!
//! `--probe WHAT` closes the jail and then tries WHAT, which must end the process.

use std::process::ExitCode;

use hop3_runtime::onnx;

/// Memory for a probe: plenty for what it tries.
const PROBE_MEMORY_BYTES: u64 = 64 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match std::env::args().nth(1).as_deref() {
        Some("--probe") => probe(&std::env::args().nth(2).unwrap_or_default()),
        _ => onnx::serve_child(&mut arguments),
    }
}

/// Succeeds if the jail let it through.
fn probe(what: &str) -> ExitCode {
    if let Err(e) = onnx::jail(PROBE_MEMORY_BYTES) {
        eprintln!("no jail: {e}");
        return ExitCode::FAILURE;
    }
    match what {
        "nothing" => {}
        "file" => drop(std::fs::read("/etc/hostname")),
        "socket" => drop(std::net::TcpListener::bind("127.0.0.1:0")),
        "process" => drop(std::process::Command::new("/bin/true").status()),
        "thread" => drop(std::thread::Builder::new().spawn(|| {})),
        "kill" => drop(rustix::process::kill_process(
            rustix::process::getpid(),
            rustix::process::Signal::TERM,
        )),
        "memory" => drop(std::hint::black_box(vec![1u8; 256 << 20])),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}
