//! `hop3`: the operator's tool. Speaks the REST API only, save `hop3 dev`, which supervises the
//! sibling binaries. Data on stdout, everything else on stderr.
#![allow(clippy::print_stdout, reason = "printing is this program's job")]
#![allow(
    unreachable_pub,
    reason = "in a program, `pub` says what other modules use"
)]

mod args;
mod attach;
mod client;
mod cmd;
mod context;
mod output;
mod upload;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

/// Everything went well.
const EXIT_OK: u8 = 0;
/// The coordinator refused, or something failed.
const EXIT_FAILED: u8 = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // The process-wide default is for the HTTP client alone; an error means it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // `task run` passes exit codes through and keeps 125-127 for hop3's own failures.
    let attached = matches!(&cli.command, Command::Task(args::TaskCommand::Run(_)));
    match Box::pin(cmd::run(cli)).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(if attached {
                attach::exit_of(&error)
            } else {
                EXIT_FAILED
            })
        }
    }
}
