//! `hop3 apply`: documents become what they declare.

use anyhow::{Context as _, Result};
use hop3_common::{
    api::{ModelView, ServiceView, TaskRequest, TaskView},
    spec::{Resource, parse_documents},
};
use serde::Serialize;

use super::{model, service};
use crate::{
    args::{Apply, Format},
    client::{Client, segment},
    cmd::task::read_manifest,
    output::{self, note},
};

/// What became of a document.
#[derive(Serialize)]
#[serde(tag = "kind", content = "resource")]
enum Applied {
    Task(Box<TaskView>),
    Model(Box<ModelView>),
    Service(Box<ServiceView>),
}

/// Applies every document in order, then waits for what serves.
pub async fn run(client: &Client, format: Format, args: &Apply) -> Result<()> {
    let text = read_manifest(&args.file)?;
    let resources = parse_documents(&text)
        .with_context(|| format!("nothing was applied of {}", args.file.display()))?;
    let mut applied = Vec::new();
    for resource in resources {
        applied.push(apply(client, resource).await?);
    }
    if !args.no_wait {
        for one in &mut applied {
            match one {
                Applied::Task(_) => {}
                Applied::Model(view) => {
                    **view = model::until_ready(client, (**view).clone(), args.timeout).await?;
                }
                Applied::Service(view) => {
                    **view = service::wait_ready(client, &view.name, args.timeout).await?;
                }
            }
        }
    }
    output::print(format, &applied, |applied| {
        let line = |one: &Applied| match one {
            Applied::Task(view) => format!("task/{} {:?}", view.id, view.phase).to_lowercase(),
            Applied::Model(view) => format!("model/{} applied", view.name),
            Applied::Service(view) => {
                format!("service/{} {} at {}", view.name, view.status, view.path)
            }
        };
        applied.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

async fn apply(client: &Client, resource: Resource) -> Result<Applied> {
    Ok(match resource {
        Resource::Task { name, spec } => {
            let request = TaskRequest { name, spec: *spec };
            let view: TaskView = client.post("/v1/tasks", &request).await?;
            note(&format!("task/{} submitted", view.id));
            Applied::Task(Box::new(view))
        }
        Resource::Model { name, spec } => {
            let url = format!("/v1/models/{}/deploy", segment(name.as_str()));
            let view: ModelView = client.post(&url, &*spec).await?;
            note(&format!("model/{name} applied"));
            Applied::Model(Box::new(view))
        }
        Resource::Service { name, spec } => {
            let view: ServiceView = client.put(&service::path(&name), &*spec).await?;
            note(&format!(
                "service/{name} applied, revision {}",
                view.revision
            ));
            Applied::Service(Box::new(view))
        }
    })
}
