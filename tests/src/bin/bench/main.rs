//! `hop3-bench`: measures what `docs/benchmarks.md` publishes, with the built binaries, real
//! sockets and real files.
//!
//! Each group of metrics runs in a process of its own (`hop3-bench group NAME`), the leader of its
//! own process group: what a group leaves in memory or fails at does not reach the next, and
//! nothing that it started outlives it. Groups report metrics as JSON lines on standard output.
//!
//! Limits: [`orchestra::GROUP_MAX`] for a group. No figure is ever asserted.

#![allow(clippy::print_stdout, reason = "figures are this program's data")]

mod cast;
mod catalogue;
mod diag;
mod figures;
mod fleet;
mod floor;
mod groups;
mod http;
mod load;
mod machine;
mod markdown;
mod orchestra;
mod proc;
mod relay;
mod report;
mod slowdisk;
mod stage;
mod wrk;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Measures Hop3 on this machine.
#[derive(Debug, Parser)]
#[command(name = "hop3-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    /// Metrics or groups to measure, by the beginning of their names [default: all].
    names: Vec<String>,
    /// Fewer repetitions and smaller fleets: some minutes in all.
    #[arg(long)]
    quick: bool,
    /// Write the results here as a JSON list; machine and raw runs go beside it (.raw.json).
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing: print the results in this JSON file as Markdown.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["names", "quick", "json"])]
    markdown: Option<PathBuf>,
    /// With --markdown: put the table into this page, between its markers.
    #[arg(long, value_name = "PAGE", requires = "markdown")]
    into: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print where the memory of an agent is: idle, after a task, with a model.
    Diag,
    /// List every metric with its method and bar.
    List,
    /// Run one group and print its metrics as JSON lines.
    #[command(hide = true)]
    Group {
        group: String,
        names: Vec<String>,
        #[arg(long)]
        quick: bool,
    },
    /// The raw floor of invocations: the same HTTP stack, answering what it was sent.
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Some(Command::Diag) => diag::run().map(|()| true),
        Some(Command::List) => {
            print!("{}", catalogue::list());
            Ok(true)
        }
        Some(Command::Group {
            group,
            names,
            quick,
        }) => {
            proc::raise_open_files();
            let bench = report::Bench::new(quick, names);
            groups::run(&group, &bench).with_context(|| format!("group {group}"))?;
            Ok(true)
        }
        Some(Command::Floor { dir }) => floor::serve(&dir).map(|()| true),
        None => match &cli.markdown {
            Some(results) => markdown::print(results, cli.into.as_deref()).map(|()| true),
            None => orchestra::run(&cli.names, cli.quick, cli.json.as_deref()),
        },
    }
}
