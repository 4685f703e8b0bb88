//! Files to artifacts: hashed first, sent only when the coordinator does not have them.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use hop3_common::{
    api::{ArtifactKind, ArtifactView},
    codes::Code,
    id::Digest,
};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use sha2::Digest as _;

use crate::client::{Client, code_of, segment};

/// Files below this show no progress bar.
const BAR_BYTES: u64 = 4 << 20;

/// What a file's first bytes say it is.
#[must_use]
pub fn guess_kind(path: &Path, head: &[u8]) -> ArtifactKind {
    let ending = path
        .extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or("");
    if head.starts_with(b"\0asm") || ending == "wasm" {
        ArtifactKind::Wasm
    } else if ending == "onnx" {
        ArtifactKind::Onnx
    } else {
        ArtifactKind::Data
    }
}

/// Stores `path` and returns what is stored. Does not send what is there.
pub async fn push(
    client: &Client,
    path: &Path,
    kind: Option<ArtifactKind>,
    name: Option<&str>,
) -> Result<ArtifactView> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let meta = file
        .metadata()
        .with_context(|| format!("cannot read {shown}"))?;
    anyhow::ensure!(meta.is_file(), "{shown} is not a file");
    let (digest, head) = hash(&mut file).with_context(|| format!("cannot read {shown}"))?;
    let kind = kind.unwrap_or_else(|| guess_kind(path, &head));
    let known = client
        .get::<ArtifactView>(&format!("/v1/artifacts/{digest}"))
        .await;
    match known {
        Ok(view) if view.kind == kind && name.is_none_or(|n| view.names.iter().any(|v| v == n)) => {
            return Ok(view);
        }
        Ok(_) => {}
        Err(error) if code_of(&error) == Some(Code::ArtifactUnknown) => {}
        Err(error) => return Err(error),
    }
    let kind_text = match kind {
        ArtifactKind::Wasm => "wasm",
        ArtifactKind::Onnx => "onnx",
        ArtifactKind::Data => "data",
    };
    let mut query = format!("/v1/artifacts/{digest}?kind={kind_text}");
    if let Some(name) = name {
        query.push_str(&format!("&name={}", segment(name)));
    }
    let bar = bar(meta.len(), &shown.to_string());
    let progress = bar.clone();
    let file = tokio::fs::File::open(path).await?;
    let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10)
        .inspect_ok(move |bytes| progress.inc(bytes.len() as u64));
    let request = client
        .request(Method::PUT, &query)
        .header("content-length", meta.len())
        .body(reqwest::Body::wrap_stream(stream));
    let view = client.json(request).await;
    bar.finish_and_clear();
    view
}

fn hash(file: &mut File) -> std::io::Result<(Digest, Vec<u8>)> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut head = Vec::new();
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((Digest(hasher.finalize().into()), head));
        }
        if head.is_empty() {
            head = buffer[..n.min(64)].to_vec();
        }
        hasher.update(&buffer[..n]);
    }
}

fn bar(bytes: u64, what: &str) -> ProgressBar {
    if bytes < BAR_BYTES {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes).with_message(what.to_owned());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar
}
