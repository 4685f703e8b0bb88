//! The command line. Data goes to standard output, everything else to standard error. Join
//! tokens come from a file or standard input, never from an argument (others see those).

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use hop3_common::identity::{JoinToken, token::TOKEN_CHARS_MAX};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use crate::{
    agent, blobs,
    config::{self, Config, Overrides, Places},
    identity,
};

/// Exit code of hop3's own failures.
const FAILED: u8 = 1;

/// Tells a daemon to end when the process that started it does.
const DIE_WITH_PARENT: &str = "HOP3_DIE_WITH_PARENT";

#[derive(Debug, Parser)]
#[command(
    name = "hop3-agent",
    version,
    about = "The daemon on every node of a Hop3 mesh"
)]
struct Cli {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object to a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a mesh with a token from `hop3 node token create`.
    Enroll {
        /// Read the join token from this file; `-` or nothing is standard input.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// The name to propose for this node; the host name by default.
        #[arg(long)]
        name: Option<String>,
        /// Go on as the agent once enrolled.
        #[arg(long)]
        run: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Run the agent of an enrolled node.
    Run {
        /// Check the configuration and exit.
        #[arg(long)]
        check_config: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Serve one model on standard input and output (started by the agent itself).
    #[command(hide = true, name = "model-host")]
    ModelHost,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "HOP3_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Where the agent keeps its state.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Common {
    fn load(&self) -> anyhow::Result<Config> {
        let home = std::env::var_os("HOP3_HOME").map(PathBuf::from);
        let data_dir = self
            .data_dir
            .as_deref()
            .map(std::path::absolute)
            .transpose()?;
        let home = home.as_deref().map(std::path::absolute).transpose()?;
        let places = Places::of(home.as_deref());
        Ok(config::load(
            self.config.as_deref(),
            &places,
            &Overrides { data_dir },
        )?)
    }
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    // The child serves a hostile model: it gets nothing else to do.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "model-host")
    {
        return crate::exec::model_host();
    }
    let cli = Cli::parse();
    log_to_stderr(cli.log_format);
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hop3-agent: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Ends with the process that started it, where that asks for it (`hop3 dev`).
fn die_with_parent() -> anyhow::Result<()> {
    if std::env::var_os(DIE_WITH_PARENT).is_some() {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal)
            .context("cannot ask to end with the parent")?;
    }
    Ok(())
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::ModelHost => anyhow::bail!("give `model-host` as the first argument"),
        Command::Run {
            check_config,
            common,
        } => {
            let config = common.load()?;
            if check_config {
                writeln!(std::io::stderr(), "the configuration is valid")?;
                return Ok(());
            }
            die_with_parent()?;
            runtime()?.block_on(agent::run(config))?;
            Ok(())
        }
        Command::Enroll {
            token_file,
            name,
            run,
            common,
        } => {
            let config = common.load()?;
            let token = read_token(token_file.as_deref())?;
            let hostname = name.unwrap_or_else(identity::hostname);
            let runtime = runtime()?;
            let node = runtime.block_on(identity::enroll(&config.data_dir, &token, &hostname))?;
            drop(token);
            writeln!(std::io::stdout(), "{node}")?;
            if run {
                runtime.block_on(agent::run(config))?;
            }
            Ok(())
        }
    }
}

fn read_token(file: Option<&Path>) -> anyhow::Result<JoinToken> {
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_CHARS_MAX));
    // One more than allowed, so that too long is noticed.
    let limit = TOKEN_CHARS_MAX as u64 + 1;
    match file.filter(|file| *file != Path::new("-")) {
        Some(file) => {
            let opened = std::fs::File::open(file)
                .with_context(|| format!("cannot open the token file {}", file.display()))?;
            opened
                .take(limit)
                .read_to_string(&mut text)
                .context("cannot read the token file")?;
        }
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                writeln!(std::io::stderr(), "Paste the join token, then press Enter:")?;
                stdin.read_line(&mut text)?;
            } else {
                stdin.lock().take(limit).read_to_string(&mut text)?;
            }
        }
    }
    Ok(text.parse()?)
}

/// Two workers: the network and the rest. Guests and models run on threads and processes of
/// their own, so more workers would only cost memory.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus.min(2))
        .max_blocking_threads(blobs::BLOCKING_THREADS_MAX)
        .thread_name("hop3-agent")
        .enable_all()
        .build()
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("HOP3_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_token_is_never_an_argument() {
        assert!(Cli::try_parse_from(["hop3-agent", "enroll", "hop3-join-1.abc"]).is_err());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "no token").unwrap();
        let error = read_token(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("not a join token"), "{error}");
        std::fs::write(&file, "x".repeat(TOKEN_CHARS_MAX * 2)).unwrap();
        assert!(
            read_token(Some(&file))
                .unwrap_err()
                .to_string()
                .contains("too long")
        );
    }
}
