//! Artifacts: streamed in and out, named by digest.

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use hop3_common::{
    api::{ArtifactKind, ArtifactView, ProblemDetails},
    codes::Code,
    id::Digest,
};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{
    Shared,
    problem::{Answer, ApiError, parse},
};

/// Every artifact, newest first.
#[utoipa::path(get, path = "/v1/artifacts", tag = "artifacts",
    responses((status = 200, body = Vec<ArtifactView>)))]
pub(super) async fn list(State(core): State<Shared>) -> Answer<Json<Vec<ArtifactView>>> {
    Ok(Json(core.artifacts().await?))
}

/// One artifact, by digest, name or the beginning of its hex digits.
#[utoipa::path(get, path = "/v1/artifacts/{artifact}", tag = "artifacts",
    params(("artifact" = String, Path)),
    responses((status = 200, body = ArtifactView), (status = 404, body = ProblemDetails)))]
pub(super) async fn show(
    State(core): State<Shared>,
    Path(artifact): Path<String>,
) -> Answer<Json<ArtifactView>> {
    Ok(Json(core.artifact(&artifact).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PushQuery {
    kind: ArtifactKind,
    #[serde(default)]
    name: Option<String>,
}

/// Stores the body under its digest. Nothing stays of what is refused or breaks off.
#[utoipa::path(put, path = "/v1/artifacts/{artifact}", tag = "artifacts",
    params(
        ("artifact" = String, Path, description = "sha256:<hex> of the body"),
        ("kind" = ArtifactKind, Query),
        ("name" = Option<String>, Query)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ArtifactView), (status = 400, body = ProblemDetails)))]
pub(super) async fn push(
    State(core): State<Shared>,
    Path(artifact): Path<String>,
    Query(query): Query<PushQuery>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<ArtifactView>> {
    let digest: Digest = parse("artifact", &artifact)?;
    let size = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    let mut upload = core
        .artifact_writer(digest, query.kind, query.name, size)
        .await?;
    let mut stream = body.into_data_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| {
            ApiError::new(Code::InvalidBody, format!("the upload broke off: {error}"))
        })?;
        upload.append(bytes).await?;
    }
    Ok(Json(upload.finish().await?))
}

/// An artifact's bytes.
#[utoipa::path(get, path = "/v1/artifacts/{artifact}/content", tag = "artifacts",
    params(("artifact" = String, Path)),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = ProblemDetails)))]
pub(super) async fn content(
    State(core): State<Shared>,
    Path(artifact): Path<String>,
) -> Answer<Response> {
    let view = core.artifact(&artifact).await?;
    let read = core.read_artifact(&view.digest, 0).await?;
    let headers = [(CONTENT_LENGTH, view.bytes)];
    Ok((
        headers,
        Body::from_stream(ReaderStream::with_capacity(read.reader, 64 << 10)),
    )
        .into_response())
}

/// Removes an artifact that nothing uses.
#[utoipa::path(delete, path = "/v1/artifacts/{artifact}", tag = "artifacts",
    params(("artifact" = String, Path)),
    responses((status = 204), (status = 409, body = ProblemDetails)))]
pub(super) async fn remove(
    State(core): State<Shared>,
    Path(artifact): Path<String>,
) -> Answer<StatusCode> {
    core.remove_artifact(&artifact).await?;
    Ok(StatusCode::NO_CONTENT)
}
