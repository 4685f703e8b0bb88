//! Nodes and join tokens.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use hop3_common::{
    api::{
        JoinTokenCreated, JoinTokenRequest, JoinTokenView, NodePatch, NodeView, ProblemDetails,
        TelemetryView,
    },
    id::NodeId,
};

use super::{
    Shared,
    problem::{Answer, json, parse},
};

/// Every node, by name.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    responses((status = 200, body = Vec<NodeView>)))]
pub(super) async fn list(State(core): State<Shared>) -> Answer<Json<Vec<NodeView>>> {
    Ok(Json(core.nodes().await?))
}

/// One node. Being looked at, it sends telemetry every second for a while.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    responses((status = 200, body = NodeView), (status = 404, body = ProblemDetails)))]
pub(super) async fn show(
    State(core): State<Shared>,
    Path(node): Path<String>,
) -> Answer<Json<NodeView>> {
    let node: NodeId = parse("node", &node)?;
    let view = core.node(&node).await?;
    core.watch_node(&node).await?;
    Ok(Json(view))
}

/// Changes labels, cordon, drain.
#[utoipa::path(patch, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    request_body = NodePatch,
    responses((status = 200, body = NodeView), (status = 404, body = ProblemDetails)))]
pub(super) async fn patch(
    State(core): State<Shared>,
    Path(node): Path<String>,
    body: Bytes,
) -> Answer<Json<NodeView>> {
    let node: NodeId = parse("node", &node)?;
    Ok(Json(core.patch_node(&node, json(&body, "")?).await?))
}

/// Revokes a node: its session ends within a second.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemDetails)))]
pub(super) async fn remove(
    State(core): State<Shared>,
    Path(node): Path<String>,
) -> Answer<StatusCode> {
    core.remove_node(&parse("node", &node)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The samples kept of a node, oldest first.
#[utoipa::path(get, path = "/v1/nodes/{node}/telemetry", tag = "nodes",
    params(("node" = String, Path)),
    responses((status = 200, body = TelemetryView), (status = 404, body = ProblemDetails)))]
pub(super) async fn telemetry(
    State(core): State<Shared>,
    Path(node): Path<String>,
) -> Answer<Json<TelemetryView>> {
    let node: NodeId = parse("node", &node)?;
    let view = core.telemetry(&node).await?;
    core.watch_node(&node).await?;
    Ok(Json(view))
}

/// Makes a join token. Its secret is shown once.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "nodes", request_body = JoinTokenRequest,
    responses((status = 201, body = JoinTokenCreated), (status = 400, body = ProblemDetails)))]
pub(super) async fn create_token(
    State(core): State<Shared>,
    body: Bytes,
) -> Answer<(StatusCode, Json<JoinTokenCreated>)> {
    let request: JoinTokenRequest = json(&body, "")?;
    Ok((
        StatusCode::CREATED,
        Json(core.create_join_token(request).await?),
    ))
}

/// Join tokens, newest first.
#[utoipa::path(get, path = "/v1/join-tokens", tag = "nodes",
    responses((status = 200, body = Vec<JoinTokenView>)))]
pub(super) async fn list_tokens(State(core): State<Shared>) -> Answer<Json<Vec<JoinTokenView>>> {
    Ok(Json(core.join_tokens().await?))
}

/// Withdraws a join token.
#[utoipa::path(delete, path = "/v1/join-tokens/{id}", tag = "nodes", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemDetails)))]
pub(super) async fn revoke_token(
    State(core): State<Shared>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    core.revoke_join_token(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
