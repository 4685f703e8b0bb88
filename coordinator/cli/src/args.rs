//! The command line, as `docs/reference/cli.md` is generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hop3_common::{
    id::{ModelName, NodeId, ServiceName},
    spec::{ByteSize, CpuMilli, Millis, Selector, Tier, placement::parse_label},
    wire::attach::Channel,
};

/// Operates a Hop3 mesh: nodes, tasks, models, services.
#[derive(Debug, Parser)]
#[command(name = "hop3", version, max_term_width = 100)]
pub struct Cli {
    /// How to print data.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// The coordinator's API, instead of the context's (https://HOST:PORT).
    #[arg(long, global = true, env = "HOP3_API")]
    pub api: Option<String>,
    /// File with the API token, instead of the context's.
    #[arg(long, global = true, env = "HOP3_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// File with the CA certificate of the API, instead of the context's.
    #[arg(long, global = true, env = "HOP3_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON value.
    Json,
    /// YAML.
    Yaml,
}

/// Verbs and nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole mesh on this machine: a coordinator and some agents.
    Dev(Dev),
    /// Show the mesh at a glance.
    Status(Status),
    /// Nodes and join tokens.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Wasm modules, models and data.
    #[command(subcommand)]
    Artifact(ArtifactCommand),
    /// Work that runs once.
    #[command(subcommand)]
    Task(TaskCommand),
    /// ONNX models.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Long-lived work, with or without state.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Declare what a file says: tasks, models, services.
    Apply(Apply),
    /// Show what there is of a kind, or one of it.
    Get {
        /// What kind of thing.
        kind: GetKind,
        /// Its name or id.
        name: Option<String>,
    },
    /// Remove something.
    Delete {
        /// What kind of thing.
        kind: DeleteKind,
        /// Its name or id.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Call a module once, input to output: no record, no wait.
    Invoke(Invoke),
    /// Say why something is where it is, or why it does not run.
    Explain {
        /// What kind of thing.
        kind: ExplainKind,
        /// Its name or id.
        name: String,
    },
    /// Choose the mesh to talk to.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Print the CLI reference as Markdown.
    #[command(hide = true)]
    Reference,
    /// Make a directory with a service to begin from.
    New(New),
}

/// What can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExplainKind {
    /// A task.
    Task,
    /// A node.
    Node,
    /// A model.
    Model,
    /// A service.
    Service,
}

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GetKind {
    /// Nodes.
    #[value(alias = "nodes")]
    Node,
    /// Artifacts.
    #[value(alias = "artifacts")]
    Artifact,
    /// Tasks.
    #[value(alias = "tasks")]
    Task,
    /// Models.
    #[value(alias = "models")]
    Model,
    /// Services.
    #[value(alias = "services")]
    Service,
}

/// What can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeleteKind {
    /// A node: it leaves the mesh for good.
    Node,
    /// An artifact that nothing uses.
    Artifact,
    /// A model with its versions.
    Model,
    /// A service with its state.
    Service,
}

/// `hop3 apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// The file, YAML or JSON, with one or more documents; - reads standard input.
    #[arg(long, short)]
    pub file: PathBuf,
    /// Do not wait until services and models are ready.
    #[arg(long)]
    pub no_wait: bool,
    /// Longest wait.
    #[arg(long, default_value = "60s")]
    pub timeout: Millis,
}

/// `hop3 service …`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services.
    Ls,
    /// Show one, with its instances.
    Show {
        /// Its name.
        name: ServiceName,
    },
    /// Ask it; the answer's body goes to standard output.
    Invoke(ServiceInvoke),
    /// Print what an instance logs.
    Logs {
        /// Its name.
        name: ServiceName,
        /// Which replica or shard; may be left out where there is one.
        #[arg(long)]
        index: Option<u32>,
        /// Go on as more comes.
        #[arg(long, short)]
        follow: bool,
    },
    /// Change the number of replicas of a service without state.
    Scale {
        /// NAME=REPLICAS.
        #[arg(value_parser = scale)]
        to: (ServiceName, u32),
    },
    /// Make a checkpoint of an instance now.
    Checkpoint {
        /// Its name.
        name: ServiceName,
        /// Which shard; may be left out where there is one.
        #[arg(long)]
        index: Option<u32>,
    },
    /// Move an instance to another node, with its state.
    Migrate(ServiceMigrate),
    /// Give an instance to another node although its owner cannot be reached: what only the owner
    /// has is lost to it.
    Takeover(ServiceTakeOver),
}

/// `hop3 service invoke`.
#[derive(Debug, Args)]
pub struct ServiceInvoke {
    /// Its name.
    pub name: ServiceName,
    /// Path and query, as the service sees it.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// HTTP method [default: GET, or POST with --input].
    #[arg(long)]
    pub method: Option<String>,
    /// File with the body; - reads standard input.
    #[arg(long)]
    pub input: Option<PathBuf>,
    /// A header, NAME:VALUE. May be repeated.
    #[arg(long, short = 'H', value_name = "NAME:VALUE")]
    pub header: Vec<String>,
    /// Ask this replica or shard.
    #[arg(long)]
    pub index: Option<u32>,
}

/// `hop3 service migrate`.
#[derive(Debug, Args)]
pub struct ServiceMigrate {
    /// Its name.
    pub name: ServiceName,
    /// Which replica or shard; may be left out where there is one.
    #[arg(long)]
    pub index: Option<u32>,
    /// Where to; the scheduler chooses if it is left out.
    #[arg(long)]
    pub to: Option<NodeId>,
    /// Follow the move to its end.
    #[arg(long, short)]
    pub watch: bool,
    /// Give up a move that is under way.
    #[arg(long, conflicts_with_all = ["to", "watch"])]
    pub abort: bool,
}

/// `hop3 service takeover`.
#[derive(Debug, Args)]
pub struct ServiceTakeOver {
    /// Its name.
    pub name: ServiceName,
    /// Which replica or shard; may be left out where there is one.
    #[arg(long)]
    pub index: Option<u32>,
    /// Where to; the scheduler chooses if it is left out.
    #[arg(long)]
    pub to: Option<NodeId>,
    /// Do it; without this it only says what would be lost.
    #[arg(long)]
    pub accept_loss: bool,
}

/// `NAME=REPLICAS`.
fn scale(text: &str) -> Result<(ServiceName, u32), String> {
    let (name, replicas) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` must be NAME=REPLICAS"))?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    let replicas = replicas
        .parse()
        .map_err(|_| format!("`{replicas}` is not a number of replicas"))?;
    Ok((name, replicas))
}

/// `hop3 dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// How many agents; their tiers are cloud, edge, iot in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub nodes: u16,
    /// Where state stays [default: $HOP3_HOME/dev].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Offer this host directory to tasks on every node: NAME=PATH, or NAME=PATH:rw.
    #[arg(long, value_name = "NAME=PATH")]
    pub volume: Vec<String>,
}

/// `hop3 status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Refresh every second, with live telemetry, until Ctrl-C.
    #[arg(long, short)]
    pub watch: bool,
}

/// `hop3 node …`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Join tokens: each enrolls one node.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List nodes.
    Ls,
    /// Show one node with live telemetry.
    Show {
        /// Its name.
        node: NodeId,
        /// Refresh every second until Ctrl-C.
        #[arg(long, short)]
        watch: bool,
    },
    /// Set labels (KEY=VALUE) or remove them (KEY-).
    Label {
        /// Its name.
        node: NodeId,
        /// KEY=VALUE or KEY-.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Place no new work on a node.
    Cordon {
        /// Its name.
        node: NodeId,
    },
    /// Let a node take work again; ends a drain.
    Uncordon {
        /// Its name.
        node: NodeId,
    },
    /// Cordon a node, move its models away and wait for its tasks to end.
    Drain {
        /// Its name.
        node: NodeId,
        /// Give up waiting after this time; the node stays cordoned.
        #[arg(long, default_value = "10m")]
        timeout: Millis,
    },
    /// Revoke a node: its session ends at once and it cannot come back.
    Rm {
        /// Its name.
        node: NodeId,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// `hop3 node token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token: prints the line to paste on the node.
    Create {
        /// The node's tier.
        #[arg(long)]
        tier: Tier,
        /// Labels the node gets (KEY=VALUE).
        #[arg(long = "label", value_parser = parse_label, value_name = "KEY=VALUE")]
        labels: Vec<(String, String)>,
        /// The node's name [default: its host name].
        #[arg(long)]
        name: Option<NodeId>,
        /// How long the token is valid.
        #[arg(long, default_value = "1h")]
        ttl: Millis,
        /// Print the token alone.
        #[arg(long)]
        quiet: bool,
    },
    /// List join tokens.
    Ls,
    /// Revoke a join token.
    Revoke {
        /// Its id.
        id: String,
    },
}

/// `hop3 artifact …`.
#[derive(Debug, Subcommand)]
pub enum ArtifactCommand {
    /// Store a file; Wasm and ONNX are recognised and checked.
    Push {
        /// The file.
        file: PathBuf,
        /// A name for it [default: the file's name without its ending].
        #[arg(long)]
        name: Option<String>,
        /// What it is, instead of what its content says.
        #[arg(long, value_enum)]
        kind: Option<Kind>,
    },
    /// List artifacts.
    Ls,
    /// Show one.
    Show {
        /// Name, digest, or the beginning of its hex digits.
        artifact: String,
    },
    /// Fetch one.
    Get {
        /// Name, digest, or the beginning of its hex digits.
        artifact: String,
        /// Where to write it [default: standard output].
        #[arg(long, short = 'f')]
        file: Option<PathBuf>,
    },
    /// Remove one that nothing uses.
    Rm {
        /// Name, digest, or the beginning of its hex digits.
        artifact: String,
    },
}

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A core Wasm module.
    Wasm,
    /// An ONNX model.
    Onnx,
    /// Anything else.
    Data,
}

/// Where work may run and what it gets.
#[derive(Debug, Clone, Default, Args)]
pub struct Where {
    /// Only on this node.
    #[arg(long)]
    pub node: Option<NodeId>,
    /// Only on this tier.
    #[arg(long)]
    pub tier: Option<Tier>,
    /// Only on nodes with this label: key=value, key!=value, "key in (a, b)", key, !key.
    #[arg(long = "label", value_name = "SELECTOR")]
    pub labels: Vec<Selector>,
    /// Only on nodes that hold this data.
    #[arg(long = "data", value_name = "TAG")]
    pub data: Vec<String>,
    /// How to choose among nodes: first-fit, best-fit, spread, …
    #[arg(long)]
    pub strategy: Option<String>,
}

/// What a task is made of, on the command line.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// A Wasm file, or the name or digest of an artifact.
    pub module: String,
    /// Where it may run.
    #[command(flatten)]
    pub place: Where,
    /// An environment variable.
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// A directory that the node offers: NAME:/path, or NAME:/path:rw.
    #[arg(long = "volume", value_name = "NAME:PATH")]
    pub volumes: Vec<String>,
    /// Memory limit.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// CPU time limit.
    #[arg(long, value_name = "TIME")]
    pub cpu_time: Option<Millis>,
    /// Time limit.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Millis>,
    /// CPU to reserve on the node (500m, 2).
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<CpuMilli>,
    /// Arguments of the guest, after `--`.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// `hop3 task run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The task.
    #[command(flatten)]
    pub task: TaskArgs,
    /// Standard input from this file.
    #[arg(long, short, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Where no node fits, wait until one does.
    #[arg(long)]
    pub wait: bool,
    /// Say where it runs, how long each step took and why it was placed there.
    #[arg(long, short)]
    pub verbose: bool,
}

/// `hop3 task submit`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["module", "manifest"])))]
pub struct Submit {
    /// A Wasm file, or the name or digest of an artifact.
    pub module: Option<String>,
    /// A manifest (`kind: Task`) instead; `-` reads standard input.
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with = "module")]
    pub manifest: Option<PathBuf>,
    /// Where it may run.
    #[command(flatten)]
    pub place: Where,
    /// A name for people.
    #[arg(long)]
    pub name: Option<String>,
    /// Standard input from this file.
    #[arg(long, short, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// An environment variable.
    #[arg(long = "env", short = 'e', value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// A directory that the node offers: NAME:/path, or NAME:/path:rw.
    #[arg(long = "volume", value_name = "NAME:PATH")]
    pub volumes: Vec<String>,
    /// Memory limit.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// CPU time limit.
    #[arg(long, value_name = "TIME")]
    pub cpu_time: Option<Millis>,
    /// Time limit.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Millis>,
    /// CPU to reserve on the node (500m, 2).
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<CpuMilli>,
    /// Run it again elsewhere when its node is lost.
    #[arg(long)]
    pub retry: bool,
    /// Wait for its end; the exit code tells how it went.
    #[arg(long)]
    pub wait: bool,
    /// Arguments of the guest, after `--`.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// `hop3 task …`.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Run a task as if it ran here: stdin, stdout, stderr and exit code.
    #[command(
        after_help = "Exit codes: the guest's own; 125 = Hop3 failed (node lost, coordinator \
        unreachable), 126 = the guest was ended (trap, limit, deadline), 127 = no such module."
    )]
    Run(Box<Run>),
    /// Run a task in the background.
    Submit(Box<Submit>),
    /// List tasks, newest first.
    Ls {
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Show one task.
    Show {
        /// Its id, or the beginning of it.
        task: String,
    },
    /// Print a background task's output.
    Logs {
        /// Its id, or the beginning of it.
        task: String,
        /// Go on until it ends.
        #[arg(long, short)]
        follow: bool,
        /// Standard error instead of standard output.
        #[arg(long)]
        stderr: bool,
    },
    /// End a task.
    Cancel {
        /// Its id, or the beginning of it.
        task: String,
    },
}

/// `hop3 invoke`.
#[derive(Debug, Args)]
pub struct Invoke {
    /// The name or digest of an artifact.
    pub module: String,
    /// Input file [default: none; `-` reads standard input].
    #[arg(long, short, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Only on this node.
    #[arg(long)]
    pub node: Option<NodeId>,
    /// Only on this tier.
    #[arg(long)]
    pub tier: Option<Tier>,
    /// Time limit.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Millis>,
}

/// `hop3 model …`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Store an ONNX file as a new version of a model, once a node has loaded it.
    Push {
        /// The model's name.
        name: ModelName,
        /// The ONNX file.
        file: PathBuf,
        /// Facts of an input whose dimensions the file leaves free (X:f32[batch,64]).
        #[arg(long = "spec", value_name = "INPUT")]
        inputs: Vec<String>,
    },
    /// Serve a model on nodes and wait until it is ready.
    Deploy(Box<Deploy>),
    /// Run an inference. Input: .npy for a model with one input, else .json {input: array}.
    Infer {
        /// The model's name.
        name: ModelName,
        /// The input (.npy or .json; `-` reads JSON from standard input).
        #[arg(long, short, value_name = "FILE")]
        input: PathBuf,
    },
    /// List models.
    Ls,
    /// Show one model: versions, inputs, outputs, replicas.
    Show {
        /// The model's name.
        name: ModelName,
    },
    /// Go back to the version deployed before.
    Rollback {
        /// The model's name.
        name: ModelName,
    },
    /// Stop serving a model; its versions stay.
    Undeploy {
        /// The model's name.
        name: ModelName,
    },
    /// Remove a model and its versions.
    Rm {
        /// The model's name.
        name: ModelName,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// `hop3 model deploy`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["name", "manifest"])))]
pub struct Deploy {
    /// The model's name.
    pub name: Option<ModelName>,
    /// A manifest (`kind: Model`) instead; `-` reads standard input.
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with = "name")]
    pub manifest: Option<PathBuf>,
    /// The version [default: the newest].
    #[arg(long)]
    pub version: Option<u32>,
    /// On how many nodes.
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Where it may run.
    #[command(flatten)]
    pub place: Where,
    /// Memory of the guarded process that runs it.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// The longest one inference may take.
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<Millis>,
    /// How long to wait until it is ready.
    #[arg(long, default_value = "60s")]
    pub wait: Millis,
}

/// `hop3 context …`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Show the mesh in use.
    Show,
    /// Use a mesh from now on.
    Set {
        /// The coordinator's API, https://HOST:PORT.
        api: String,
        /// The coordinator's `ca.pem`.
        #[arg(long)]
        ca_file: PathBuf,
        /// File with an API token (the coordinator's `admin.token`).
        #[arg(long)]
        token_file: PathBuf,
    },
}

/// `--stderr` as a channel.
#[must_use]
pub fn output_channel(stderr: bool) -> Channel {
    if stderr {
        Channel::Stderr
    } else {
        Channel::Stdout
    }
}

/// `hop3 new`.
#[derive(Debug, Args)]
pub struct New {
    /// The service's name.
    pub name: ServiceName,
    /// The language.
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    pub lang: Lang,
    /// Where; must be new or empty [default: ./NAME].
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// What a service is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lang {
    /// Rust.
    Rust,
    /// C.
    C,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let words = line.split_whitespace();
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn services_are_scaled_moved_and_asked() {
        let scale = parsed("hop3 service scale counter=3").unwrap();
        let Command::Service(ServiceCommand::Scale { to: (name, 3) }) = scale else {
            panic!("{scale:?}")
        };
        assert_eq!(name.as_str(), "counter");
        for bad in ["counter", "counter=", "counter=-1", "=3", "Counter=3"] {
            assert!(
                parsed(&format!("hop3 service scale {bad}")).is_err(),
                "{bad}"
            );
        }
        let moved = parsed("hop3 service migrate counter --index 2 --to edge-1 --watch").unwrap();
        let Command::Service(ServiceCommand::Migrate(args)) = moved else {
            panic!("{moved:?}")
        };
        assert_eq!((args.index, args.watch), (Some(2), true));
        assert!(parsed("hop3 service migrate counter --abort --to edge-1").is_err());
        let asked = parsed("hop3 service invoke counter --path /add -H x-key:7 --input -").unwrap();
        let Command::Service(ServiceCommand::Invoke(args)) = asked else {
            panic!("{asked:?}")
        };
        assert_eq!((args.path.as_str(), args.header.len()), ("/add", 1));
    }

    #[test]
    fn documents_are_applied_and_things_shown_and_removed() {
        let Command::Apply(args) = parsed("hop3 apply -f - --timeout 5s").unwrap() else {
            panic!("not apply")
        };
        assert_eq!((args.timeout, args.no_wait), (Millis::secs(5), false));
        assert!(parsed("hop3 apply").is_err());
        for kind in ["node", "artifacts", "task", "models", "service"] {
            assert!(parsed(&format!("hop3 get {kind}")).is_ok(), "{kind}");
        }
        assert!(parsed("hop3 get thing").is_err());
        let removed = parsed("hop3 delete service counter --yes").unwrap();
        assert!(matches!(removed, Command::Delete { yes: true, .. }));
        assert!(parsed("hop3 delete task t").is_err(), "tasks are cancelled");
        assert!(parsed("hop3 explain service counter").is_ok());
    }
}
