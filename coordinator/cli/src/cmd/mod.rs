//! One module per noun.

mod apply;
mod artifact;
mod dev;
mod explain;
mod invoke;
mod model;
mod new;
mod node;
mod resource;
mod service;
mod status;
mod task;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::{
    EXIT_OK,
    args::{Cli, Command, ContextCommand},
    client::Client,
    context::Context,
    output,
};

/// Runs the command; returns the exit code.
pub async fn run(cli: Cli) -> Result<u8> {
    let format = cli.output;
    match &cli.command {
        Command::Dev(dev) => dev::run(dev).await.map(|()| EXIT_OK),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "hop3", &mut std::io::stdout());
            Ok(EXIT_OK)
        }
        Command::Reference => {
            output::print_line(clap_markdown::help_markdown::<Cli>().trim_end());
            Ok(EXIT_OK)
        }
        Command::Context(command) => context(&cli, command).map(|()| EXIT_OK),
        Command::New(args) => new::run(args).map(|()| EXIT_OK),
        command => {
            let client = Client::new(&Context::resolve(&cli)?)?;
            match command {
                Command::Status(args) => status::run(&client, format, args).await,
                Command::Node(command) => node::run(&client, format, command).await,
                Command::Artifact(command) => artifact::run(&client, format, command).await,
                Command::Task(command) => return task::run(&client, format, command).await,
                Command::Model(command) => model::run(&client, format, command).await,
                Command::Service(command) => service::run(&client, format, command).await,
                Command::Apply(args) => apply::run(&client, format, args).await,
                Command::Get { kind, name } => {
                    resource::get(&client, format, *kind, name.as_deref()).await
                }
                Command::Delete { kind, name, yes } => {
                    resource::delete(&client, *kind, name, *yes).await
                }
                Command::Invoke(args) => return invoke::run(&client, args).await,
                Command::Explain { kind, name } => explain::run(&client, format, *kind, name).await,
                Command::Dev(_)
                | Command::Completions { .. }
                | Command::Reference
                | Command::Context(_)
                | Command::New(_) => Ok(()),
            }
            .map(|()| EXIT_OK)
        }
    }
}

fn context(cli: &Cli, command: &ContextCommand) -> Result<()> {
    match command {
        ContextCommand::Show => {
            let context = Context::resolve(cli)?;
            output::print(cli.output, &context, |c| {
                output::facts(&[
                    ("api", c.api.clone()),
                    (
                        "gateway",
                        c.gateway.clone().unwrap_or_else(|| "unknown".into()),
                    ),
                    ("ca file", c.ca_file.display().to_string()),
                    ("token file", c.token_file.display().to_string()),
                ])
            })
        }
        ContextCommand::Set {
            api,
            ca_file,
            token_file,
        } => {
            let absolute = |path: &std::path::PathBuf| {
                std::fs::canonicalize(path).with_context(|| format!("{}", path.display()))
            };
            let context = Context {
                api: api.clone(),
                gateway: None,
                ca_file: absolute(ca_file)?,
                token_file: absolute(token_file)?,
            };
            Client::new(&context)?;
            context.save()?;
            output::note(&format!("using {api}"));
            Ok(())
        }
    }
}
