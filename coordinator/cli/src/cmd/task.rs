//! `hop3 task …`.

use std::{collections::BTreeMap, io::Read as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use futures_util::StreamExt as _;
use hop3_common::{
    api::{
        ArtifactKind, ArtifactView, Explanation, Page, ProblemDetails, TaskPhase, TaskRequest,
        TaskView,
    },
    codes::{Code, Problem},
    id::UnixMs,
    spec::{
        Invalid, Limits, Placement, Resource, Resources, Retry, Stdin, TaskSpec, VolumeGrant,
        parse_documents,
    },
    wire::{End, Usage},
};
use reqwest::Method;

use crate::{
    EXIT_FAILED, EXIT_OK,
    args::{Format, Run, Submit, TaskCommand, Where, output_channel},
    attach::{self, NoModule},
    client::{Client, Refused, code_of, segment},
    output::{self, ago, facts, micros, table},
    upload,
};

/// Time between looks at a task that is waited for.
const POLL: Duration = Duration::from_millis(200);

/// Runs a task command; returns the exit code.
pub async fn run(client: &Client, format: Format, command: &TaskCommand) -> Result<u8> {
    match command {
        TaskCommand::Run(args) => run_attached(client, args).await,
        TaskCommand::Submit(args) => submit(client, format, args).await,
        TaskCommand::Ls { limit } => {
            let page: Page<TaskView> = client.get(&format!("/v1/tasks?limit={limit}")).await?;
            output::print(format, &page.items, |tasks| tasks_table(tasks))?;
            Ok(EXIT_OK)
        }
        TaskCommand::Show { task } => {
            let view: TaskView = client.get(&path(task)).await?;
            output::print(format, &view, task_text)?;
            Ok(EXIT_OK)
        }
        TaskCommand::Logs {
            task,
            follow,
            stderr,
        } => {
            let channel = format!("{:?}", output_channel(*stderr)).to_lowercase();
            let url = format!("{}/output/{channel}?follow={follow}", path(task));
            let mut stream = client
                .send(client.request(Method::GET, &url))
                .await?
                .bytes_stream();
            while let Some(bytes) = stream.next().await {
                let mut out = std::io::stdout().lock();
                std::io::Write::write_all(&mut out, &bytes.context("the output broke off")?)?;
                std::io::Write::flush(&mut out)?;
            }
            Ok(EXIT_OK)
        }
        TaskCommand::Cancel { task } => {
            let view: TaskView = client.post(&format!("{}/cancel", path(task)), &()).await?;
            output::note(&format!("{} is being cancelled", view.id));
            Ok(EXIT_OK)
        }
    }
}

fn path(task: &str) -> String {
    format!("/v1/tasks/{}", segment(task))
}

/// What a module reference on the command line stands for: a file is pushed, anything else must
/// be an artifact.
async fn module(client: &Client, reference: &str) -> Result<String> {
    let file = Path::new(reference);
    if file.is_file() {
        let name = file.file_stem().and_then(|stem| stem.to_str());
        let view = upload::push(client, file, Some(ArtifactKind::Wasm), name).await?;
        return Ok(view.digest.to_string());
    }
    if reference.contains('/') || reference.ends_with(".wasm") {
        return Err(NoModule(format!("there is no file {reference}")).into());
    }
    let found = client
        .get::<ArtifactView>(&format!("/v1/artifacts/{}", segment(reference)))
        .await;
    match found {
        Ok(view) => Ok(view.digest.to_string()),
        Err(error) if code_of(&error) == Some(Code::ArtifactUnknown) => Err(NoModule(format!(
            "`{reference}` is neither a file here nor the name or digest of an artifact: see \
             `hop3 artifact ls`"
        ))
        .into()),
        Err(error) => Err(error),
    }
}

/// `KEY=VALUE` pairs.
fn environment(pairs: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| anyhow!("--env `{text}` must be KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    pairs.iter().map(pair).collect()
}

/// `NAME:/path` and `NAME:/path:rw`.
fn volumes(grants: &[String]) -> Result<Vec<VolumeGrant>> {
    let grant = |text: &String| {
        let (name, rest) = text
            .split_once(':')
            .ok_or_else(|| anyhow!("--volume `{text}` must be NAME:/path or NAME:/path:rw"))?;
        let (path, writable) = match rest.strip_suffix(":rw") {
            Some(path) => (path, true),
            None => (rest, false),
        };
        Ok(VolumeGrant {
            name: name.to_owned(),
            path: path.to_owned(),
            writable,
        })
    };
    grants.iter().map(grant).collect()
}

/// The placement that flags ask for.
pub fn placement(place: &Where) -> Placement {
    Placement {
        node: place.node.clone(),
        tier: place.tier,
        labels: place.labels.clone(),
        data: place.data.clone(),
        prefer_data: Vec::new(),
        strategy: place.strategy.clone(),
    }
}

async fn run_attached(client: &Client, args: &Run) -> Result<u8> {
    if let Some(input) = args.input.as_deref().filter(|path| *path != Path::new("-")) {
        // Before anything is sent: a typo must not start a task.
        std::fs::File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
    }
    let task = &args.task;
    let defaults = Limits::default();
    let spec = TaskSpec {
        args: task.args.clone(),
        env: environment(&task.env)?,
        stdin: Stdin::Attached,
        placement: placement(&task.place),
        resources: Resources {
            cpu: task.cpu.unwrap_or(Resources::default().cpu),
            ..Resources::default()
        },
        limits: Limits {
            memory: task.memory.unwrap_or(defaults.memory),
            cpu_time: task.cpu_time.unwrap_or(defaults.cpu_time),
            timeout: task.timeout.unwrap_or(defaults.timeout),
            ..defaults
        },
        volumes: volumes(&task.volumes)?,
        ..TaskSpec::new(module(client, &task.module).await?)
    };
    let name = Path::new(&task.module)
        .file_stem()
        .and_then(|s| s.to_str())
        .map(str::to_owned);
    let view: TaskView = client
        .post("/v1/tasks", &TaskRequest { name, spec })
        .await?;
    if view.phase == TaskPhase::Pending {
        if !args.wait {
            let cancel = format!("{}/cancel", path(view.id.as_str()));
            let _: TaskView = client.post(&cancel, &()).await?;
            let problem = Problem::new(Code::Unplaceable, view.reason);
            return Err(Refused(ProblemDetails::of(&problem, None)).into());
        }
        output::note(&format!("waiting: {}", view.reason));
    }
    let ended = attach::run(client, &view.id, args.input.as_deref(), args.verbose).await?;
    if args.verbose {
        tell(client, &view, &ended.usage).await;
    }
    match &ended.end {
        End::Exited(_) => {}
        End::Failed(problem) => {
            output::note(&format!("error: {problem}"));
            let fix = problem.code.fix();
            if !fix.is_empty() {
                output::note(&format!("  fix: {fix}"));
            }
        }
        End::Cancelled => output::note("cancelled"),
    }
    Ok(ended.exit())
}

/// What ran where, how long it took, why there.
async fn tell(client: &Client, task: &TaskView, usage: &Usage) {
    let view: Option<TaskView> = client.get(&path(task.id.as_str())).await.ok();
    let explanation: Option<Explanation> = client
        .get(&format!("/v1/explain/task/{}", task.id))
        .await
        .ok();
    let node = view.as_ref().and_then(|v| v.node.clone());
    let node = node.map_or("an unknown node".to_owned(), |node| node.to_string());
    output::note(&format!(
        "hop3: {} ran on {node}: {} of CPU, {} in all, {} of memory",
        task.id,
        micros(usage.cpu_us),
        micros(usage.wall_us),
        hop3_common::spec::ByteSize(usage.memory_peak_bytes),
    ));
    if let Some((fetch, load)) = view.and_then(|view| view.prepare_us) {
        output::note(&format!(
            "hop3: module fetched in {}, loaded in {}",
            micros(fetch),
            micros(load)
        ));
    }
    if let Some(decision) = explanation.and_then(|e| e.decisions.into_iter().last()) {
        output::note(&format!("hop3: {}", decision.reason));
    }
}

async fn submit(client: &Client, format: Format, args: &Submit) -> Result<u8> {
    let mut requests = match &args.manifest {
        Some(file) => manifests(file)?,
        None => vec![request(args)?],
    };
    for request in &mut requests {
        request.spec.module = module(client, &request.spec.module).await?;
        if let Some(input) = &args.input {
            let view = upload::push(client, input, Some(ArtifactKind::Data), None).await?;
            request.spec.stdin = Stdin::Artifact(view.digest);
        }
    }
    let mut views: Vec<TaskView> = Vec::with_capacity(requests.len());
    for request in &requests {
        views.push(client.post("/v1/tasks", request).await?);
    }
    if args.wait {
        for view in &mut views {
            while !view.phase.is_final() {
                tokio::time::sleep(POLL).await;
                *view = client.get(&path(view.id.as_str())).await?;
            }
        }
    }
    output::print(format, &views, |views| match views.as_slice() {
        [one] => task_text(one),
        many => tasks_table(many),
    })?;
    let failed = |view: &TaskView| view.phase.is_final() && view.phase != TaskPhase::Succeeded;
    Ok(if views.iter().any(failed) {
        EXIT_FAILED
    } else {
        EXIT_OK
    })
}

/// Reads a text file or standard input, bounded.
pub fn read_manifest(file: &Path) -> Result<String> {
    let limit = hop3_common::spec::DOCUMENT_BYTES_MAX as u64 + 1;
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .context("standard input")?;
    } else {
        let opened =
            std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
        opened
            .take(limit)
            .read_to_string(&mut text)
            .with_context(|| format!("{}", file.display()))?;
    }
    Ok(text)
}

fn manifests(file: &Path) -> Result<Vec<TaskRequest>> {
    let text = read_manifest(file)?;
    let resources = parse_documents(&text).with_context(|| format!("{}", file.display()))?;
    let task = |resource| match resource {
        Resource::Task { name, spec } => Ok(TaskRequest { name, spec: *spec }),
        Resource::Model { .. } | Resource::Service { .. } => Err(Invalid::new(
            "kind",
            "is not Task: apply it with `hop3 apply -f`",
        )),
    };
    let requests: Result<Vec<_>, _> = resources.into_iter().map(task).collect();
    requests.with_context(|| format!("{}", file.display()))
}

fn request(args: &Submit) -> Result<TaskRequest> {
    let defaults = Limits::default();
    // clap's group sees to it that there is a module when there is no manifest.
    let module = args.module.clone().unwrap_or_default();
    let stem = Path::new(&module)
        .file_stem()
        .and_then(|s| s.to_str())
        .map(str::to_owned);
    let spec = TaskSpec {
        args: args.args.clone(),
        env: environment(&args.env)?,
        placement: placement(&args.place),
        resources: Resources {
            cpu: args.cpu.unwrap_or(Resources::default().cpu),
            ..Resources::default()
        },
        limits: Limits {
            memory: args.memory.unwrap_or(defaults.memory),
            cpu_time: args.cpu_time.unwrap_or(defaults.cpu_time),
            timeout: args.timeout.unwrap_or(defaults.timeout),
            ..defaults
        },
        volumes: volumes(&args.volumes)?,
        retry: if args.retry {
            Retry::OnNodeLoss
        } else {
            Retry::Never
        },
        ..TaskSpec::new(module)
    };
    Ok(TaskRequest {
        name: args.name.clone().or(stem),
        spec,
    })
}

fn phase(phase: TaskPhase) -> String {
    format!("{phase:?}").to_lowercase()
}

fn end(view: &TaskView) -> String {
    match view.result.as_ref().map(|result| &result.end) {
        None => "-".to_owned(),
        Some(End::Exited(code)) => format!("exit {code}"),
        Some(End::Failed(problem)) => problem.code.to_string(),
        Some(End::Cancelled) => "cancelled".to_owned(),
    }
}

fn duration(view: &TaskView) -> String {
    view.result
        .as_ref()
        .map_or("-".to_owned(), |result| micros(result.usage.wall_us))
}

fn tasks_table(tasks: &[TaskView]) -> String {
    if tasks.is_empty() {
        return "no tasks: run one with `hop3 task run FILE.wasm`".to_owned();
    }
    let now = UnixMs::now();
    table(
        ["TASK", "NAME", "PHASE", "NODE", "END", "TOOK", "SUBMITTED"],
        tasks.iter().map(|t| {
            [
                t.id.to_string(),
                t.name.clone().unwrap_or_else(|| "-".to_owned()),
                phase(t.phase),
                t.node.as_ref().map_or("-".to_owned(), ToString::to_string),
                end(t),
                duration(t),
                ago(now, t.created),
            ]
        }),
    )
}

fn task_text(t: &TaskView) -> String {
    let mut lines = vec![
        ("task", t.id.to_string()),
        ("name", t.name.clone().unwrap_or_else(|| "-".to_owned())),
        ("module", t.module.to_string()),
        ("phase", format!("{} ({})", phase(t.phase), t.reason)),
        (
            "node",
            t.node.as_ref().map_or("-".to_owned(), ToString::to_string),
        ),
        ("token", t.token.to_string()),
        ("submitted", ago(UnixMs::now(), t.created)),
    ];
    if let Some((fetch, load)) = t.prepare_us {
        lines.push((
            "prepared",
            format!("fetched in {}, loaded in {}", micros(fetch), micros(load)),
        ));
    }
    if let Some(result) = &t.result {
        let u = &result.usage;
        lines.push(("end", end(t)));
        if let End::Failed(problem) = &result.end {
            lines.push(("error", problem.message.clone()));
        }
        lines.push((
            "used",
            format!(
                "{} CPU, {} in all, {} memory, {} output",
                micros(u.cpu_us),
                micros(u.wall_us),
                hop3_common::spec::ByteSize(u.memory_peak_bytes),
                hop3_common::spec::ByteSize(u.output_bytes)
            ),
        ));
    }
    facts(&lines)
}
