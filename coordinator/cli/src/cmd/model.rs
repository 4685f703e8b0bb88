//! `hop3 model …`.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use hop3_common::{
    api::{ArtifactKind, InferRequest, InferResponse, ModelPush, ModelVersionView, ModelView},
    id::{ModelName, UnixMs},
    spec::{ByteSize, Invalid, Millis, ModelSpec, Resource, parse_documents},
};
use reqwest::Method;

use crate::{
    args::{Deploy, Format, ModelCommand},
    client::{Client, segment},
    cmd::task::{placement, read_manifest},
    output::{self, ago, confirm, facts, micros, note, table},
    upload,
};

/// Time between looks at a deployment.
const POLL: Duration = Duration::from_millis(200);
/// Largest input file.
const INPUT_BYTES_MAX: u64 = 8 << 20;

/// Runs a model command.
pub async fn run(client: &Client, format: Format, command: &ModelCommand) -> Result<()> {
    match command {
        ModelCommand::Push { name, file, inputs } => {
            let artifact = upload::push(client, file, Some(ArtifactKind::Onnx), None).await?;
            let push = ModelPush {
                artifact: artifact.digest,
                inputs: inputs.clone(),
            };
            let version: ModelVersionView = client
                .post(&format!("{}/versions", path(name)), &push)
                .await?;
            note(&format!("stored as version {} of {name}", version.version));
            output::print(format, &version, version_text)
        }
        ModelCommand::Deploy(args) => deploy(client, format, args).await,
        ModelCommand::Infer { name, input } => infer(client, format, name, input).await,
        ModelCommand::Ls => {
            let models: Vec<ModelView> = client.get("/v1/models").await?;
            output::print(format, &models, |models| models_table(models))
        }
        ModelCommand::Show { name } => {
            let model: ModelView = client.get(&path(name)).await?;
            output::print(format, &model, model_text)
        }
        ModelCommand::Rollback { name } => {
            let model: ModelView = client
                .post(&format!("{}/rollback", path(name)), &())
                .await?;
            wait_ready(client, format, model, Millis::secs(60)).await
        }
        ModelCommand::Undeploy { name } => {
            let model: ModelView = client
                .post(&format!("{}/undeploy", path(name)), &())
                .await?;
            output::print(format, &model, model_text)
        }
        ModelCommand::Rm { name, yes } => {
            confirm(&format!("remove the model {name} and its versions"), *yes)?;
            client.delete(&path(name)).await?;
            note(&format!("{name} is removed"));
            Ok(())
        }
    }
}

fn path(name: &ModelName) -> String {
    format!("/v1/models/{}", segment(name.as_str()))
}

async fn deploy(client: &Client, format: Format, args: &Deploy) -> Result<()> {
    let (name, spec) = match &args.manifest {
        Some(file) => manifest(file)?,
        None => {
            let name = args
                .name
                .clone()
                .ok_or_else(|| anyhow!("give a model's name"))?;
            let defaults = ModelSpec::default();
            let spec = ModelSpec {
                version: args.version,
                replicas: args.replicas.unwrap_or(defaults.replicas),
                placement: placement(&args.place),
                memory: args.memory.unwrap_or(defaults.memory),
                deadline: args.deadline.unwrap_or(defaults.deadline),
                ..defaults
            };
            (name, spec)
        }
    };
    let model: ModelView = client
        .post(&format!("{}/deploy", path(&name)), &spec)
        .await?;
    wait_ready(client, format, model, args.wait).await
}

fn manifest(file: &Path) -> Result<(ModelName, ModelSpec)> {
    let text = read_manifest(file)?;
    let mut resources = parse_documents(&text).with_context(|| format!("{}", file.display()))?;
    match (resources.len(), resources.pop()) {
        (1, Some(Resource::Model { name, spec })) => Ok((name, *spec)),
        (1, _) => Err(Invalid::new("kind", "is no Model: apply it with `hop3 apply -f`").into()),
        _ => Err(Invalid::new("document", "one model at a time").into()),
    }
}

/// Waits until every replica is ready, and says what it waits for.
async fn wait_ready(client: &Client, format: Format, model: ModelView, wait: Millis) -> Result<()> {
    let model = until_ready(client, model, wait).await?;
    output::print(format, &model, model_text)
}

/// As [`wait_ready`], without printing.
pub async fn until_ready(client: &Client, mut model: ModelView, wait: Millis) -> Result<ModelView> {
    let deadline = tokio::time::Instant::now() + Duration::from_millis(wait.0);
    let mut said = String::new();
    loop {
        let late: Vec<_> = model
            .replicas
            .iter()
            .filter(|r| r.status != "ready" || Some(r.version) != model.deployed)
            .collect();
        let Some(first) = late.first() else { break };
        if late.iter().any(|r| r.status == "failed") {
            anyhow::bail!("{} failed: {}", first.instance, first.reason);
        }
        let waits = format!(
            "waiting for {} replicas: {} ({})",
            late.len(),
            first.status,
            first.reason
        );
        if waits != said {
            note(&waits);
            said = waits;
        }
        if tokio::time::Instant::now() >= deadline {
            anyhow::bail!(
                "not ready after {wait}: {} ({}); see `hop3 explain model {}`",
                first.status,
                first.reason,
                model.name
            );
        }
        tokio::time::sleep(POLL).await;
        model = client.get(&path(&model.name)).await?;
    }
    Ok(model)
}

async fn infer(client: &Client, format: Format, name: &ModelName, input: &Path) -> Result<()> {
    let url = format!("{}/infer", path(name));
    let request = client.request(Method::POST, &url);
    let request = if input.extension().is_some_and(|ending| ending == "npy") {
        let size = std::fs::metadata(input)
            .with_context(|| format!("cannot open {}", input.display()))?
            .len();
        anyhow::ensure!(
            size <= INPUT_BYTES_MAX,
            "{} has {}: at most {} in one inference",
            input.display(),
            ByteSize(size),
            ByteSize(INPUT_BYTES_MAX)
        );
        let bytes =
            std::fs::read(input).with_context(|| format!("cannot read {}", input.display()))?;
        request
            .header("content-type", "application/x-npy")
            .body(bytes)
    } else {
        let text = if input == Path::new("-") {
            std::io::read_to_string(std::io::stdin())?
        } else {
            std::fs::read_to_string(input)
                .with_context(|| format!("cannot open {}", input.display()))?
        };
        let body: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", input.display()))?;
        let inputs = match body {
            serde_json::Value::Object(mut map) => match map.remove("inputs") {
                Some(serde_json::Value::Object(inputs)) => inputs,
                _ => serde_json::from_str(&text)?,
            },
            _ => anyhow::bail!("{}: write {{\"INPUT NAME\": [[…]]}}", input.display()),
        };
        request.json(&InferRequest { inputs })
    };
    let response: InferResponse = client.json(request).await?;
    output::print(format, &response, |r| {
        let mut text: Vec<String> = r
            .outputs
            .iter()
            .map(|(name, value)| tensor_text(name, value))
            .collect();
        text.push(format!(
            "version {} on {}: {} in the model, {} in all",
            r.version,
            r.node,
            micros(r.infer_us),
            micros(r.total_us)
        ));
        text.join("\n")
    })
}

/// `label i64[10] = [2,0,…]`.
fn tensor_text(name: &str, value: &serde_json::Value) -> String {
    let part = |key: &str| value.get(key).unwrap_or(&serde_json::Value::Null);
    let dtype = part("dtype").as_str().unwrap_or("?");
    format!("{name} {dtype}{} = {}", part("shape"), part("data"))
}

fn version_text(v: &ModelVersionView) -> String {
    let specs = |list: &[hop3_common::tensor::TensorSpec]| {
        list.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    facts(&[
        ("version", v.version.to_string()),
        ("artifact", v.artifact.to_string()),
        ("size", ByteSize(v.bytes).to_string()),
        ("inputs", specs(&v.inputs)),
        ("outputs", specs(&v.outputs)),
        ("pushed", ago(UnixMs::now(), v.created)),
    ])
}

fn model_text(m: &ModelView) -> String {
    let version = |v: Option<u32>| v.map_or("-".to_owned(), |v| v.to_string());
    let mut text = facts(&[
        ("model", m.name.to_string()),
        ("deployed", version(m.deployed)),
        ("previous", version(m.previous)),
    ]);
    text.push_str("\n\n");
    text.push_str(&table(
        ["VERSION", "SIZE", "INPUTS", "OUTPUTS"],
        m.versions.iter().map(|v| {
            let specs = |list: &[hop3_common::tensor::TensorSpec]| {
                list.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            [
                v.version.to_string(),
                ByteSize(v.bytes).to_string(),
                specs(&v.inputs),
                specs(&v.outputs),
            ]
        }),
    ));
    if !m.replicas.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(
            ["REPLICA", "VERSION", "NODE", "STATUS", "REASON"],
            m.replicas.iter().map(|r| {
                [
                    r.instance.to_string(),
                    r.version.to_string(),
                    r.node.as_ref().map_or("-".to_owned(), ToString::to_string),
                    r.status.clone(),
                    r.reason.clone(),
                ]
            }),
        ));
    }
    text
}

/// A line per model.
pub fn models_table(models: &[ModelView]) -> String {
    if models.is_empty() {
        return "no models: store one with `hop3 model push NAME FILE.onnx`".to_owned();
    }
    table(
        ["MODEL", "VERSIONS", "DEPLOYED", "READY", "INPUTS", "NODES"],
        models.iter().map(|m| {
            let ready = m.replicas.iter().filter(|r| r.status == "ready").count();
            let nodes = m
                .replicas
                .iter()
                .filter_map(|r| r.node.as_ref())
                .map(ToString::to_string);
            let inputs = m
                .versions
                .first()
                .map(|v| v.inputs.as_slice())
                .unwrap_or_default();
            [
                m.name.to_string(),
                m.versions.len().to_string(),
                m.deployed.map_or("-".to_owned(), |v| format!("v{v}")),
                format!("{ready}/{}", m.replicas.len()),
                inputs
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
                nodes.collect::<Vec<_>>().join(", "),
            ]
        }),
    )
}
