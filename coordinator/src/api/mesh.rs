//! The mesh as a whole: status, explanations, decisions, readiness.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use hop3_common::api::{DecisionView, Explanation, ProblemDetails, StatusView};
use serde::Deserialize;

use super::{Shared, problem::Answer};

/// Most decisions in one answer.
const DECISIONS_MAX: usize = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusQuery {
    /// Ask nodes for live telemetry for the next ten seconds.
    #[serde(default)]
    watch: bool,
}

/// The mesh at a glance.
#[utoipa::path(get, path = "/v1/status", tag = "mesh",
    params(("watch" = Option<bool>, Query, description = "Ask nodes for live telemetry")),
    responses((status = 200, body = StatusView)))]
pub(super) async fn status(
    State(core): State<Shared>,
    Query(query): Query<StatusQuery>,
) -> Answer<Json<StatusView>> {
    let view = core.status().await?;
    if query.watch {
        for node in &view.nodes {
            core.watch_node(&node.id).await?;
        }
    }
    Ok(Json(view))
}

/// Why here, why not running, why moved.
#[utoipa::path(get, path = "/v1/explain/{kind}/{name}", tag = "mesh",
    params(("kind" = String, Path, description = "task, node or model"), ("name" = String, Path)),
    responses((status = 200, body = Explanation), (status = 404, body = ProblemDetails)))]
pub(super) async fn explain(
    State(core): State<Shared>,
    Path((kind, name)): Path<(String, String)>,
) -> Answer<Json<Explanation>> {
    Ok(Json(core.explain(&kind, &name).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecisionsQuery {
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    limit: Option<usize>,
}

/// Recorded choices, newest first.
#[utoipa::path(get, path = "/v1/decisions", tag = "mesh",
    params(
        ("subject" = Option<String>, Query, description = "task/ID, model/NAME, node/NAME"),
        ("limit" = Option<u64>, Query)),
    responses((status = 200, body = Vec<DecisionView>)))]
pub(super) async fn decisions(
    State(core): State<Shared>,
    Query(query): Query<DecisionsQuery>,
) -> Answer<Json<Vec<DecisionView>>> {
    let limit = query.limit.unwrap_or(50).min(DECISIONS_MAX);
    Ok(Json(core.decisions(query.subject.as_deref(), limit).await?))
}

/// Whether the coordinator can take writes.
pub(super) async fn ready(State(core): State<Shared>) -> Answer<&'static str> {
    core.ready().await?;
    Ok("ready\n")
}
