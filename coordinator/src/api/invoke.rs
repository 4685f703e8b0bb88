//! Short invocations: input in the body, output in the body.

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderValue, Response, StatusCode},
};
use hop3_common::{
    api::{ProblemDetails, invoke_headers},
    id::NodeId,
    spec::{ByteSize, Tier},
};
use serde::Deserialize;

use super::{
    Shared,
    problem::{Answer, ApiError},
};
use crate::core::InvokeTarget;

/// Default time limit.
const TIMEOUT_MS: u64 = 10_000;
/// Longest time limit: longer work is a task.
const TIMEOUT_MS_MAX: u64 = 300_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InvokeQuery {
    module: String,
    #[serde(default)]
    tier: Option<Tier>,
    #[serde(default)]
    node: Option<NodeId>,
    #[serde(default)]
    memory: Option<u64>,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

/// Runs a module once, at once: the body is its standard input, the answer its standard output.
/// For short calls: nothing is recorded, and a call whose node is lost is answered as such.
#[utoipa::path(post, path = "/v1/invoke", tag = "tasks",
    params(
        ("module" = String, Query, description = "name or digest of a Wasm artifact"),
        ("tier" = Option<Tier>, Query), ("node" = Option<String>, Query),
        ("memory" = Option<u64>, Query, description = "bytes"),
        ("timeout_ms" = Option<u64>, Query, description = "at most 300000; default 10000")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream",
         headers(("hop3-exit" = i32), ("hop3-node" = String), ("hop3-cpu-us" = u64), ("hop3-wall-us" = u64))),
        (status = 503, body = ProblemDetails)))]
pub(super) async fn invoke(
    State(core): State<Shared>,
    Query(query): Query<InvokeQuery>,
    input: Bytes,
) -> Answer<Response<Body>> {
    let timeout_ms = query.timeout_ms.unwrap_or(TIMEOUT_MS);
    if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
        return Err(ApiError::field(
            "timeout_ms",
            "must be from 1 to 300000: longer work is a task",
        ));
    }
    let target = InvokeTarget {
        module: &query.module,
        tier: query.tier,
        node: query.node.as_ref(),
        memory: query.memory.map(ByteSize),
        timeout_ms: Some(timeout_ms),
    };
    let outcome = core.invoke(target, input).await?;
    let mut response = Response::new(Body::from(outcome.output));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(invoke_headers::EXIT, HeaderValue::from(outcome.exit));
    headers.insert(
        invoke_headers::CPU_US,
        HeaderValue::from(outcome.usage.cpu_us),
    );
    headers.insert(
        invoke_headers::WALL_US,
        HeaderValue::from(outcome.usage.wall_us),
    );
    if let Ok(node) = HeaderValue::from_str(outcome.node.as_str()) {
        headers.insert(invoke_headers::NODE, node);
    }
    Ok(response)
}
