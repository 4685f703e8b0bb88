//! `hop3 artifact …`.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use hop3_common::{
    api::{ArtifactKind, ArtifactView},
    id::UnixMs,
    spec::ByteSize,
};
use reqwest::Method;

use crate::{
    args::{ArtifactCommand, Format, Kind},
    client::{Client, segment},
    output::{self, ago, facts, table},
    upload,
};

/// Runs an artifact command.
pub async fn run(client: &Client, format: Format, command: &ArtifactCommand) -> Result<()> {
    match command {
        ArtifactCommand::Push { file, name, kind } => {
            let stem = file
                .file_stem()
                .and_then(|stem| stem.to_str())
                .map(str::to_owned);
            let name = name.clone().or(stem);
            let kind = kind.map(|kind| match kind {
                Kind::Wasm => ArtifactKind::Wasm,
                Kind::Onnx => ArtifactKind::Onnx,
                Kind::Data => ArtifactKind::Data,
            });
            let view = upload::push(client, file, kind, name.as_deref()).await?;
            output::print(format, &view, artifact_text)
        }
        ArtifactCommand::Ls => {
            let views: Vec<ArtifactView> = client.get("/v1/artifacts").await?;
            output::print(format, &views, |views| artifacts_table(views))
        }
        ArtifactCommand::Show { artifact } => {
            let view: ArtifactView = client.get(&path(artifact)).await?;
            output::print(format, &view, artifact_text)
        }
        ArtifactCommand::Get { artifact, file } => get(client, artifact, file.as_deref()).await,
        ArtifactCommand::Rm { artifact } => {
            client.delete(&path(artifact)).await?;
            output::note(&format!("{artifact} is removed"));
            Ok(())
        }
    }
}

fn path(artifact: &str) -> String {
    format!("/v1/artifacts/{}", segment(artifact))
}

async fn get(client: &Client, artifact: &str, file: Option<&Path>) -> Result<()> {
    let request = client.request(Method::GET, &format!("{}/content", path(artifact)));
    let mut stream = client.send(request).await?.bytes_stream();
    let mut out: Box<dyn std::io::Write> = match file {
        Some(path) => Box::new(
            std::fs::File::create(path)
                .with_context(|| format!("cannot write {}", path.display()))?,
        ),
        None => Box::new(std::io::stdout().lock()),
    };
    while let Some(bytes) = stream.next().await {
        out.write_all(&bytes.context("the download broke off")?)?;
    }
    Ok(out.flush()?)
}

fn kind(kind: ArtifactKind) -> &'static str {
    match kind {
        ArtifactKind::Wasm => "wasm",
        ArtifactKind::Onnx => "onnx",
        ArtifactKind::Data => "data",
    }
}

fn artifact_text(a: &ArtifactView) -> String {
    facts(&[
        ("digest", a.digest.to_string()),
        (
            "names",
            if a.names.is_empty() {
                "-".to_owned()
            } else {
                a.names.join(", ")
            },
        ),
        ("kind", kind(a.kind).to_owned()),
        ("size", ByteSize(a.bytes).to_string()),
        ("pushed", ago(UnixMs::now(), a.created)),
        (
            "used by",
            if a.used_by.is_empty() {
                "-".to_owned()
            } else {
                a.used_by.join(", ")
            },
        ),
    ])
}

fn artifacts_table(views: &[ArtifactView]) -> String {
    if views.is_empty() {
        return "no artifacts: store one with `hop3 artifact push FILE`".to_owned();
    }
    let now = UnixMs::now();
    table(
        ["NAME", "KIND", "SIZE", "DIGEST", "PUSHED"],
        views.iter().map(|a| {
            [
                if a.names.is_empty() {
                    "-".to_owned()
                } else {
                    a.names.join(", ")
                },
                kind(a.kind).to_owned(),
                ByteSize(a.bytes).to_string(),
                a.digest.short(),
                ago(now, a.created),
            ]
        }),
    )
}
