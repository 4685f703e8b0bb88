//! `hop3 service …`.

use std::{io::Write as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use hop3_common::{
    api::{
        MigrateRequest, MoveView, ScaleRequest, ServiceInstanceView, ServiceView, TakeOverRequest,
        TakeOverView,
    },
    id::{ServiceName, UnixMs},
    spec::{ByteSize, Millis},
    wire::Checkpoint,
};
use reqwest::Method;

use crate::{
    args::{Format, ServiceCommand, ServiceInvoke, ServiceMigrate},
    client::{Client, segment},
    output::{self, ago, facts, micros, note, table},
};

/// Between looks: short at first, for what is quick, then longer.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_LAST: Duration = Duration::from_millis(200);

/// Runs a service command.
pub async fn run(client: &Client, format: Format, command: &ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::Ls => {
            let services: Vec<ServiceView> = client.get("/v1/services").await?;
            output::print(format, &services, |services| services_table(services))
        }
        ServiceCommand::Show { name } => {
            let service: ServiceView = client.get(&path(name)).await?;
            output::print(format, &service, service_text)
        }
        ServiceCommand::Invoke(args) => invoke(client, args).await,
        ServiceCommand::Logs {
            name,
            index,
            follow,
        } => logs(client, name, *index, *follow).await,
        ServiceCommand::Scale {
            to: (name, replicas),
        } => {
            let request = ScaleRequest {
                replicas: *replicas,
            };
            let service: ServiceView = client.patch(&path(name), &request).await?;
            output::print(format, &service, service_text)
        }
        ServiceCommand::Checkpoint { name, index } => {
            let url = format!("{}/checkpoint{}", path(name), query(*index));
            let checkpoint: Checkpoint = client.post(&url, &()).await?;
            output::print(format, &checkpoint, checkpoint_text)
        }
        ServiceCommand::Migrate(args) => migrate(client, format, args).await,
        ServiceCommand::Takeover(args) => {
            let request = TakeOverRequest {
                index: args.index,
                to: args.to.clone(),
                accept_loss: args.accept_loss,
            };
            let url = format!("{}/takeover", path(&args.name));
            let taken: TakeOverView = client.post(&url, &request).await?;
            output::print(format, &taken, taken_text)
        }
    }
}

/// The API's path of a service.
pub fn path(name: &ServiceName) -> String {
    format!("/v1/services/{}", segment(name.as_str()))
}

fn query(index: Option<u32>) -> String {
    index.map_or(String::new(), |index| format!("?index={index}"))
}

async fn invoke(client: &Client, args: &ServiceInvoke) -> Result<()> {
    let body = match args.input.as_deref() {
        None => None,
        Some(file) if file == Path::new("-") => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
            Some(bytes)
        }
        Some(file) => {
            Some(std::fs::read(file).with_context(|| format!("cannot open {}", file.display()))?)
        }
    };
    let method = match (&args.method, &body) {
        (Some(method), _) => Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .with_context(|| format!("`{method}` is not a method"))?,
        (None, Some(_)) => Method::POST,
        (None, None) => Method::GET,
    };
    let inner = args.path.trim_start_matches('/');
    let mut request = client.request(method, &format!("{}/invoke/{inner}", path(&args.name)));
    for header in &args.header {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| anyhow!("--header `{header}` must be NAME:VALUE"))?;
        request = request.header(name.trim(), value.trim());
    }
    if let Some(index) = args.index {
        request = request.header("hop3-index", index);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = client.send(request).await?;
    let status = response.status();
    let body = response.bytes().await.context("the answer broke off")?;
    std::io::stdout().lock().write_all(&body)?;
    if status.as_u16() != 200 {
        note(&format!("status {status}"));
    }
    Ok(())
}

async fn logs(client: &Client, name: &ServiceName, index: Option<u32>, follow: bool) -> Result<()> {
    let index = index.map_or(String::new(), |index| format!("&index={index}"));
    let url = format!("{}/logs?follow={follow}{index}", path(name));
    let mut response = client.send(client.request(Method::GET, &url)).await?;
    while let Some(bytes) = response.chunk().await.context("the log broke off")? {
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}

async fn migrate(client: &Client, format: Format, args: &ServiceMigrate) -> Result<()> {
    let url = format!("{}/migrate", path(&args.name));
    if args.abort {
        let url = format!("{url}{}", query(args.index));
        let ended: MoveView = client.json(client.request(Method::DELETE, &url)).await?;
        return output::print(format, &ended, move_text);
    }
    let request = MigrateRequest {
        index: args.index,
        to: args.to.clone(),
    };
    let begun: MoveView = client.post(&url, &request).await?;
    if !args.watch {
        return output::print(format, &begun, move_text);
    }
    let ended = watch(client, begun).await?;
    output::print(format, &ended, move_text)?;
    if ended.phase == "aborted" {
        bail!("the move was given up: {}", ended.reason);
    }
    Ok(())
}

/// Follows a move to its end; progress goes to standard error.
async fn watch(client: &Client, begun: MoveView) -> Result<MoveView> {
    let mut said = String::new();
    let mut seen = begun;
    let mut pause = POLL_FIRST;
    loop {
        let line = progress(&seen);
        if line != said {
            note(&line);
            said = line;
        }
        if seen.phase == "done" || seen.phase == "aborted" {
            return Ok(seen);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LAST);
        let moves: Vec<MoveView> = client.get("/v1/moves").await?;
        let same = |view: &MoveView| view.instance == seen.instance && view.began == seen.began;
        seen = moves.into_iter().find(same).ok_or_else(|| {
            anyhow!("the move is not on record any more: another one ended since")
        })?;
    }
}

fn progress(view: &MoveView) -> String {
    let ahead = ByteSize(view.copied_bytes);
    match view.phase.as_str() {
        "copying" => format!("{} copying: {ahead} ahead", view.instance),
        "sealing" => format!("{} sealing: stopped on {}", view.instance, view.from),
        "starting" => format!(
            "{} starting on {}: {} of the final state",
            view.instance,
            view.to,
            ByteSize(view.final_bytes)
        ),
        phase => format!("{} {phase}", view.instance),
    }
}

fn move_text(view: &MoveView) -> String {
    facts(&[
        ("instance", view.instance.to_string()),
        ("from", view.from.to_string()),
        ("to", view.to.to_string()),
        ("phase", view.phase.clone()),
        ("reason", view.reason.clone()),
        ("took", Millis(view.took_ms).to_string()),
        ("sent ahead", ByteSize(view.copied_bytes).to_string()),
        ("sent at the end", ByteSize(view.final_bytes).to_string()),
        (
            "downtime",
            view.downtime_us.map_or_else(|| "-".into(), micros),
        ),
    ])
}

fn taken_text(view: &TakeOverView) -> String {
    facts(&[
        ("instance", view.instance.to_string()),
        ("from", view.from.to_string()),
        ("to", view.to.to_string()),
        ("lost", view.lost.clone()),
    ])
}

fn checkpoint_text(checkpoint: &Checkpoint) -> String {
    facts(&[
        ("run", checkpoint.token.to_string()),
        ("changes", checkpoint.seq.to_string()),
        ("schema", checkpoint.schema.to_string()),
        ("made", ago(UnixMs::now(), checkpoint.at)),
        ("bytes", ByteSize(checkpoint.bytes()).to_string()),
        ("parts", checkpoint.parts.len().to_string()),
    ])
}

fn lower(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// Services, one a line.
pub fn services_table(services: &[ServiceView]) -> String {
    let rows = services.iter().map(|service| {
        let ready = service.instances.iter().filter(|i| i.status == "ready");
        [
            service.name.to_string(),
            lower(&service.spec.state),
            format!("{}/{}", ready.count(), service.spec.instances()),
            service.status.clone(),
            service.revision.to_string(),
            service.path.clone(),
        ]
    });
    table(
        ["SERVICE", "STATE", "READY", "STATUS", "REVISION", "PATH"],
        rows,
    )
}

/// One service with its instances.
pub fn service_text(service: &ServiceView) -> String {
    let mut text = facts(&[
        ("service", service.name.to_string()),
        ("status", format!("{}: {}", service.status, service.reason)),
        ("state", lower(&service.spec.state)),
        ("durability", lower(&service.spec.durability)),
        ("module", service.module.to_string()),
        ("revision", service.revision.to_string()),
        ("path", service.path.clone()),
    ]);
    text.push_str("\n\n");
    text.push_str(&instances_table(&service.instances));
    if let Some(moved) = &service.last_move {
        text.push_str(&format!(
            "\n\nlast move: {} from {} to {}, {}, downtime {}",
            moved.instance,
            moved.from,
            moved.to,
            moved.phase,
            moved.downtime_us.map_or_else(|| "-".into(), micros)
        ));
    }
    text
}

fn instances_table(instances: &[ServiceInstanceView]) -> String {
    let now = UnixMs::now();
    let rows = instances.iter().map(|instance| {
        let checkpoint = instance.checkpoint.as_ref().map_or_else(
            || "-".to_owned(),
            |cp| format!("{}, {}", ago(now, cp.at), ByteSize(cp.bytes())),
        );
        let replica = instance.replica.as_ref().map_or_else(
            || "-".to_owned(),
            |replica| format!("change {}, {}", replica.seq, ByteSize(replica.bytes)),
        );
        [
            instance.instance.to_string(),
            instance
                .node
                .as_ref()
                .map_or_else(|| "-".into(), ToString::to_string),
            instance.status.clone(),
            instance.token.to_string(),
            checkpoint,
            replica,
            instance.reason.clone(),
        ]
    });
    table(
        [
            "INSTANCE",
            "NODE",
            "STATUS",
            "RUN",
            "CHECKPOINT",
            "REPLICA",
            "WHY",
        ],
        rows,
    )
}

/// Waits until the service is ready, and says on standard error what it waits for.
pub async fn wait_ready(client: &Client, name: &ServiceName, wait: Millis) -> Result<ServiceView> {
    let until = tokio::time::Instant::now() + Duration::from_millis(wait.0);
    let mut said = String::new();
    let mut pause = POLL_FIRST;
    loop {
        let service: ServiceView = client.get(&path(name)).await?;
        if service.status == "ready" {
            return Ok(service);
        }
        if service.reason != said {
            note(&format!("{name}: {}", service.reason));
            said.clone_from(&service.reason);
        }
        if tokio::time::Instant::now() >= until {
            bail!(
                "service {name} is not ready after {wait}: {}",
                service.reason
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LAST);
    }
}
