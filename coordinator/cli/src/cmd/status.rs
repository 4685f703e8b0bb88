//! `hop3 status`.

use std::{io::Write as _, time::Duration};

use anyhow::Result;
use hop3_common::api::{ServiceView, StatusView};

use crate::{
    args::{Format, Status},
    client::Client,
    cmd::{model::models_table, node::nodes_table, service::services_table},
    output,
};

/// Prints the mesh at a glance, once or every second.
pub async fn run(client: &Client, format: Format, args: &Status) -> Result<()> {
    if !args.watch {
        let view = look(client, "/v1/status").await?;
        return output::print(format, &view, text);
    }
    loop {
        let view = look(client, "/v1/status?watch=true").await?;
        refresh(format, &view, text)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The mesh, with its services.
#[derive(serde::Serialize)]
struct Glance {
    #[serde(flatten)]
    mesh: StatusView,
    services: Vec<ServiceView>,
}

async fn look(client: &Client, path: &str) -> Result<Glance> {
    Ok(Glance {
        mesh: client.get(path).await?,
        services: client.get("/v1/services").await?,
    })
}

/// Prints over what was there (or line after line for programs).
pub fn refresh<T: serde::Serialize>(
    format: Format,
    view: &T,
    text: fn(&T) -> String,
) -> Result<()> {
    if format == Format::Table {
        // Home, then clear to the end: no flicker.
        let mut out = std::io::stdout().lock();
        write!(out, "\x1b[H\x1b[J")?;
        drop(out);
        return output::print(format, view, text);
    }
    output::print_line(&serde_json::to_string(view)?);
    Ok(())
}

fn text(glance: &Glance) -> String {
    let view = &glance.mesh;
    let ready = view
        .nodes
        .iter()
        .filter(|n| n.status == hop3_common::api::NodeStatus::Ready)
        .count();
    let t = &view.tasks;
    let mut text = format!(
        "mesh {}  coordinator {}  up {}  {ready} of {} nodes ready\n\
         tasks: {} pending, {} assigned, {} running, {} succeeded, {} failed\n\
         artifacts: {} ({})\n",
        view.mesh,
        view.version,
        hop3_common::spec::Millis(view.now.since(view.started)),
        view.nodes.len(),
        t.pending,
        t.assigned,
        t.running,
        t.succeeded,
        t.failed,
        view.artifacts,
        hop3_common::spec::ByteSize(view.artifact_bytes),
    );
    text.push('\n');
    text.push_str(&nodes_table(&view.nodes, view.now));
    if !view.models.is_empty() {
        text.push_str("\n\n");
        text.push_str(&models_table(&view.models));
    }
    if !glance.services.is_empty() {
        text.push_str("\n\n");
        text.push_str(&services_table(&glance.services));
    }
    text
}
