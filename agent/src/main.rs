//! `hop3-agent`: see `hop3_agent::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hop3_agent::cli::run()
}
