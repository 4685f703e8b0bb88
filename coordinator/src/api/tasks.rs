//! Tasks.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hop3_common::{
    api::{PAGE_ITEMS_MAX, Page, ProblemDetails, TaskPhase, TaskRequest, TaskView},
    wire::attach::Channel,
};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{
    Shared,
    problem::{Answer, ApiError, json},
};
use crate::core::TaskFilter;

/// Submits a task. It is durable when this answers; it may still wait for a node.
#[utoipa::path(post, path = "/v1/tasks", tag = "tasks", request_body = TaskRequest,
    responses((status = 201, body = TaskView), (status = 400, body = ProblemDetails)))]
pub(super) async fn submit(
    State(core): State<Shared>,
    body: Bytes,
) -> Answer<(StatusCode, Json<TaskView>)> {
    let request: TaskRequest = json(&body, "")?;
    request.spec.check()?;
    Ok((StatusCode::CREATED, Json(core.submit_task(request).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    phase: Option<TaskPhase>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    after: Option<String>,
}

/// Tasks, newest first.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks",
    params(
        ("phase" = Option<TaskPhase>, Query),
        ("limit" = Option<u64>, Query, description = "at most 500; default 100"),
        ("after" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = Page<TaskView>)))]
pub(super) async fn list(
    State(core): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Answer<Json<Page<TaskView>>> {
    let limit = query.limit.unwrap_or(100).clamp(1, PAGE_ITEMS_MAX);
    let filter = TaskFilter {
        phase: query.phase,
        limit: Some(limit),
        after: query.after,
    };
    Ok(Json(core.tasks(filter).await?))
}

/// One task, by id or the beginning of it.
#[utoipa::path(get, path = "/v1/tasks/{task}", tag = "tasks", params(("task" = String, Path)),
    responses((status = 200, body = TaskView), (status = 404, body = ProblemDetails)))]
pub(super) async fn show(
    State(core): State<Shared>,
    Path(task): Path<String>,
) -> Answer<Json<TaskView>> {
    Ok(Json(core.task(&task).await?))
}

/// Asks for a task's end.
#[utoipa::path(post, path = "/v1/tasks/{task}/cancel", tag = "tasks",
    params(("task" = String, Path)),
    responses((status = 200, body = TaskView), (status = 409, body = ProblemDetails)))]
pub(super) async fn cancel(
    State(core): State<Shared>,
    Path(task): Path<String>,
) -> Answer<Json<TaskView>> {
    let id = core.task(&task).await?.id;
    Ok(Json(core.cancel_task(&id).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputQuery {
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    offset: u64,
}

/// A background task's output, live or kept.
#[utoipa::path(get, path = "/v1/tasks/{task}/output/{channel}", tag = "tasks",
    params(
        ("task" = String, Path),
        ("channel" = String, Path, description = "stdout or stderr"),
        ("follow" = Option<bool>, Query, description = "go on until the task ends"),
        ("offset" = Option<u64>, Query)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = ProblemDetails)))]
pub(super) async fn output(
    State(core): State<Shared>,
    Path((task, channel)): Path<(String, String)>,
    Query(query): Query<OutputQuery>,
) -> Answer<Response> {
    let channel = match channel.as_str() {
        "stdout" => Channel::Stdout,
        "stderr" => Channel::Stderr,
        _ => return Err(ApiError::field("channel", "must be stdout or stderr")),
    };
    let id = core.task(&task).await?.id;
    let stream = core
        .task_output(&id, channel, query.offset, query.follow)
        .await?;
    Ok(Body::from_stream(ReaderStream::with_capacity(stream, 32 << 10)).into_response())
}
