//! `hop3-coordinator`: the control plane's daemon.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use hop3_common::store::{MasterKey, backup};
use hop3_coordinator::{
    config::{self, Config, Raw},
    server,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Tells a daemon to end when the process that started it does (`hop3 dev`).
const DIE_WITH_PARENT: &str = "HOP3_DIE_WITH_PARENT";

#[derive(Debug, Parser)]
#[command(
    name = "hop3-coordinator",
    version,
    about = "The control plane of a Hop3 mesh"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the coordinator.
    Run(Run),
    /// Say where the admin token is, or make a new one.
    Token(Token),
    /// Write all state of a stopped coordinator into one sealed file.
    Backup(Backup),
    /// Make the data directory that a backup was made of.
    Restore(Restore),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    settings: Flags,
    /// Address for agents (UDP).
    #[arg(long, value_name = "IP:PORT")]
    mesh_listen: Option<String>,
    /// Address of the API (TCP).
    #[arg(long, value_name = "IP:PORT")]
    api_listen: Option<String>,
    /// Address of the gateway to services (TCP).
    #[arg(long, value_name = "IP:PORT")]
    gateway_listen: Option<String>,
    /// Where agents reach this coordinator; written into join tokens. May be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Vec<String>,
    /// One more name for the API's certificate. May be repeated.
    #[arg(long, value_name = "NAME")]
    api_name: Vec<String>,
    /// The mesh's name; chosen at the first start.
    #[arg(long, value_name = "NAME")]
    mesh: Option<String>,
    /// Written when it is ready: where it listens, and where CA and token are (JSON).
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
    /// How logs look (HOP3_LOG says which).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct Flags {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of all state.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Token {
    #[command(flatten)]
    settings: Flags,
    #[command(subcommand)]
    command: Option<TokenCommand>,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a new admin token; the one before is worth nothing then. Stop the coordinator first.
    Reset,
}

#[derive(Debug, Args)]
struct Backup {
    #[command(flatten)]
    settings: Flags,
    /// Where to write it; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The key to seal it with; made if it is not there. Keep it apart from the backup: whoever
    /// has both has the mesh.
    #[arg(long, value_name = "FILE")]
    backup_key: PathBuf,
}

#[derive(Debug, Args)]
struct Restore {
    #[command(flatten)]
    settings: Flags,
    /// The backup.
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// The key that it was sealed with.
    #[arg(long, value_name = "FILE")]
    backup_key: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Run(flags) => run(flags),
        Command::Token(flags) => token(flags),
        Command::Backup(flags) => backup(flags),
        Command::Restore(flags) => restore(flags),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hop3-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Run) -> Result<()> {
    log_to_stderr(flags.log_format);
    let raw = Raw {
        mesh: flags.mesh,
        data_dir: flags.settings.data_dir,
        mesh_listen: flags.mesh_listen,
        api_listen: flags.api_listen,
        gateway_listen: flags.gateway_listen,
        advertise: flags.advertise,
        api_name: flags.api_name,
        ..Raw::default()
    };
    let config = config::load(flags.settings.config.as_deref(), raw)?;
    if flags.check_config {
        eprintln!("the configuration is valid");
        return Ok(());
    }
    if std::env::var_os(DIE_WITH_PARENT).is_some() {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal)
            .context("cannot ask to end with the parent")?;
    }
    runtime()?.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(on_signal(shutdown.clone())?);
        server::run(config, flags.ready_file, shutdown).await
    })
}

/// Ends the run at SIGTERM or SIGINT; a second one ends it at once.
fn on_signal(shutdown: CancellationToken) -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    Ok(async move {
        for code in [None, Some(130)] {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            if let Some(code) = code {
                std::process::exit(code);
            }
            tracing::info!("stopping");
            shutdown.cancel();
        }
    })
}

impl Flags {
    fn load(self) -> Result<Config> {
        let raw = Raw {
            data_dir: self.data_dir,
            ..Raw::default()
        };
        Ok(config::load(self.config.as_deref(), raw)?)
    }
}

fn backup(flags: Backup) -> Result<()> {
    let config = flags.settings.load()?;
    let dir = std::path::absolute(&config.data_dir)?;
    anyhow::ensure!(
        dir.join("store").is_dir(),
        backup::Error::Absent { path: dir }
    );
    let outside =
        |path: &Path| Ok::<_, std::io::Error>(!std::path::absolute(path)?.starts_with(&dir));
    anyhow::ensure!(
        outside(&flags.backup_key)? && outside(&flags.out)?,
        "keep backup and backup key outside of {}",
        dir.display()
    );
    let to_stdout = flags.out == Path::new("-");
    anyhow::ensure!(
        !to_stdout || !std::io::stdout().is_terminal(),
        "standard output is a terminal: redirect it, or name a file with --out"
    );
    let seal = MasterKey::load_or_create(&flags.backup_key)?;
    let owner = backup::Owner::Coordinator;
    let made = if to_stdout {
        let out = std::io::stdout().lock();
        backup::write(owner, &dir, &config.key_file, &seal, out)?.0
    } else {
        backup::to_file(&flags.out, |out| {
            backup::write(owner, &dir, &config.key_file, &seal, out)
        })?
    };
    tell("backed up", made);
    Ok(())
}

fn restore(flags: Restore) -> Result<()> {
    let config = flags.settings.load()?;
    let [dir, key_file] = [&config.data_dir, &config.key_file].map(std::path::absolute);
    let seal = MasterKey::from_file(&flags.backup_key)?;
    let owner = backup::Owner::Coordinator;
    let restored = backup::restore(owner, &flags.input, &seal, &dir?, &key_file?)?;
    tell("restored", restored);
    Ok(())
}

fn tell(what: &str, summary: backup::Summary) {
    let backup::Summary {
        records,
        files,
        bytes,
    } = summary;
    eprintln!("{what}: {records} records, {files} files with {bytes} bytes, and the keys");
}

fn token(flags: Token) -> Result<()> {
    let config = flags.settings.load()?;
    let path = match flags.command {
        Some(TokenCommand::Reset) => runtime()?.block_on(server::reset(&config))?,
        None => {
            let path = server::admin_token_path(&config.data_dir);
            anyhow::ensure!(
                path.is_file(),
                "{} is not there: the first `hop3-coordinator run` makes it",
                path.display()
            );
            path
        }
    };
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("hop3-coordinator")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_env("HOP3_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
