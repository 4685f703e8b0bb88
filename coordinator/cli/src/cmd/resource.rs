//! `hop3 get` and `hop3 delete`: the same for every kind.

use anyhow::Result;

use crate::{
    args::{
        ArtifactCommand, DeleteKind, Format, GetKind, ModelCommand, NodeCommand, ServiceCommand,
        TaskCommand,
    },
    client::{Client, segment},
    cmd::{artifact, model, node, service, task},
    output::{confirm, note},
};

/// Tasks listed: the newest.
const TASKS_SHOWN: u32 = 100;

/// Shows all of a kind, or one of it.
pub async fn get(client: &Client, format: Format, kind: GetKind, name: Option<&str>) -> Result<()> {
    match (kind, name) {
        (GetKind::Node, None) => node::run(client, format, &NodeCommand::Ls).await,
        (GetKind::Node, Some(name)) => {
            let (node, watch) = (name.parse()?, false);
            node::run(client, format, &NodeCommand::Show { node, watch }).await
        }
        (GetKind::Artifact, None) => artifact::run(client, format, &ArtifactCommand::Ls).await,
        (GetKind::Artifact, Some(name)) => {
            let artifact = name.to_owned();
            artifact::run(client, format, &ArtifactCommand::Show { artifact }).await
        }
        (GetKind::Task, None) => {
            let limit = TASKS_SHOWN;
            let command = TaskCommand::Ls { limit };
            task::run(client, format, &command).await.map(drop)
        }
        (GetKind::Task, Some(name)) => {
            let task = name.to_owned();
            let command = TaskCommand::Show { task };
            task::run(client, format, &command).await.map(drop)
        }
        (GetKind::Model, None) => model::run(client, format, &ModelCommand::Ls).await,
        (GetKind::Model, Some(name)) => {
            let name = name.parse()?;
            model::run(client, format, &ModelCommand::Show { name }).await
        }
        (GetKind::Service, None) => service::run(client, format, &ServiceCommand::Ls).await,
        (GetKind::Service, Some(name)) => {
            let name = name.parse()?;
            service::run(client, format, &ServiceCommand::Show { name }).await
        }
    }
}

/// Removes one thing, once it is confirmed.
pub async fn delete(client: &Client, kind: DeleteKind, name: &str, yes: bool) -> Result<()> {
    let (path, question) = match kind {
        DeleteKind::Node => ("nodes", "remove the node {} from the mesh for good"),
        DeleteKind::Artifact => ("artifacts", "remove the artifact {}"),
        DeleteKind::Model => ("models", "remove the model {} and its versions"),
        DeleteKind::Service => ("services", "remove the service {} with all of its state"),
    };
    confirm(&question.replace("{}", name), yes)?;
    client
        .delete(&format!("/v1/{path}/{}", segment(name)))
        .await?;
    note(&format!("{name} is removed"));
    Ok(())
}
