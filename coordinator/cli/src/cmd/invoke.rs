//! `hop3 invoke`.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result, anyhow};
use hop3_common::api::invoke_headers;
use reqwest::Method;

use crate::{
    args::Invoke,
    client::{Client, segment},
};

/// Calls a module once; returns the guest's exit code.
pub async fn run(client: &Client, args: &Invoke) -> Result<u8> {
    let input = match args.input.as_deref() {
        None => Vec::new(),
        Some(path) if path == Path::new("-") => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
            bytes
        }
        Some(path) => {
            std::fs::read(path).with_context(|| format!("cannot open {}", path.display()))?
        }
    };
    let mut query = format!("/v1/invoke?module={}", segment(&args.module));
    for (key, value) in [
        ("node", args.node.as_ref().map(ToString::to_string)),
        ("tier", args.tier.map(|tier| tier.to_string())),
        (
            "timeout_ms",
            args.timeout.map(|timeout| timeout.0.to_string()),
        ),
    ] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={value}"));
        }
    }
    let response = client
        .send(client.request(Method::POST, &query).body(input))
        .await?;
    let exit = response
        .headers()
        .get(invoke_headers::EXIT)
        .and_then(|v| v.to_str().ok());
    let exit: i32 = exit
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow!("the answer has no exit code"))?;
    let output = response.bytes().await.context("the answer broke off")?;
    std::io::stdout().lock().write_all(&output)?;
    Ok(exit as u8)
}
