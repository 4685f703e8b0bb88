//! Services.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri},
    response::IntoResponse as _,
};
use hop3_common::{
    api::{
        MigrateRequest, MoveView, ProblemDetails, ScaleRequest, ServiceView, TakeOverRequest,
        TakeOverView,
    },
    codes::Code,
    id::ServiceName,
    spec::ServiceSpec,
    wire::{
        CALL_KEY, Checkpoint, HEADERS_BYTES_MAX, HEADERS_MAX, IDEMPOTENCY_KEY_BYTES_MAX,
        PATH_BYTES_MAX, ServiceReply, ServiceRequest,
    },
};
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{
    Shared,
    problem::{Answer, ApiError, json, parse},
};

/// Headers of the connection to us, or of our own: the service does not see them.
const NOT_PASSED: [&str; 12] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Every service, by name.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = Vec<ServiceView>)))]
pub(super) async fn list(State(core): State<Shared>) -> Answer<Json<Vec<ServiceView>>> {
    Ok(Json(core.services().await?))
}

/// One service.
#[utoipa::path(get, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path)),
    responses((status = 200, body = ServiceView), (status = 404, body = ProblemDetails)))]
pub(super) async fn show(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<Json<ServiceView>> {
    Ok(Json(core.service(&parse("name", &name)?).await?))
}

/// Declares a service, or changes it. The same again changes nothing.
#[utoipa::path(put, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path)), request_body = ServiceSpec,
    responses((status = 200, body = ServiceView), (status = 400, body = ProblemDetails),
        (status = 409, body = ProblemDetails)))]
pub(super) async fn apply(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<ServiceView>> {
    let name: ServiceName = parse("name", &name)?;
    let spec: ServiceSpec = json(&body, "spec")?;
    spec.check()?;
    Ok(Json(core.apply_service(&name, spec).await?))
}

/// Changes the number of replicas of a service without state.
#[utoipa::path(patch, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path)), request_body = ScaleRequest,
    responses((status = 200, body = ServiceView), (status = 409, body = ProblemDetails)))]
pub(super) async fn scale(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<ServiceView>> {
    let name: ServiceName = parse("name", &name)?;
    let request: ScaleRequest = json(&body, "")?;
    Ok(Json(core.scale_service(&name, request.replicas).await?))
}

/// Ends a service that no other one calls, and forgets it with its state.
#[utoipa::path(delete, path = "/v1/services/{name}", tag = "services",
    params(("name" = String, Path)),
    responses((status = 204), (status = 409, body = ProblemDetails)))]
pub(super) async fn remove(
    State(core): State<Shared>,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    core.remove_service(&parse("name", &name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to move an instance, with its state. Answers when the move is on record.
#[utoipa::path(post, path = "/v1/services/{name}/migrate", tag = "services",
    params(("name" = String, Path)), request_body = MigrateRequest,
    responses((status = 202, body = MoveView), (status = 409, body = ProblemDetails)))]
pub(super) async fn migrate(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<(StatusCode, Json<MoveView>)> {
    let name: ServiceName = parse("name", &name)?;
    let request: MigrateRequest = json(&body, "")?;
    let begun = core.migrate_service(&name, request).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

/// Gives an instance to another node although its owner, which alone has its newest state, cannot
/// be reached.
#[utoipa::path(post, path = "/v1/services/{name}/takeover", tag = "services",
    params(("name" = String, Path)), request_body = TakeOverRequest,
    responses((status = 200, body = TakeOverView), (status = 409, body = ProblemDetails)))]
pub(super) async fn take_over(
    State(core): State<Shared>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<TakeOverView>> {
    let name: ServiceName = parse("name", &name)?;
    let request: TakeOverRequest = json(&body, "")?;
    Ok(Json(core.take_over_service(&name, request).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IndexQuery {
    #[serde(default)]
    index: Option<u32>,
}

/// Gives up a move whose source has not been sealed yet: it goes on where it was.
#[utoipa::path(delete, path = "/v1/services/{name}/migrate", tag = "services",
    params(("name" = String, Path),
        ("index" = Option<u32>, Query, description = "may be left out where there is one")),
    responses((status = 200, body = MoveView), (status = 409, body = ProblemDetails)))]
pub(super) async fn abort(
    State(core): State<Shared>,
    Path(name): Path<String>,
    Query(query): Query<IndexQuery>,
) -> Answer<Json<MoveView>> {
    let name: ServiceName = parse("name", &name)?;
    Ok(Json(core.abort_move(&name, query.index).await?))
}

/// Makes a checkpoint of an instance. It is durable here when this answers.
#[utoipa::path(post, path = "/v1/services/{name}/checkpoint", tag = "services",
    params(("name" = String, Path),
        ("index" = Option<u32>, Query, description = "may be left out where there is one")),
    responses((status = 200, body = Checkpoint), (status = 503, body = ProblemDetails)))]
pub(super) async fn checkpoint(
    State(core): State<Shared>,
    Path(name): Path<String>,
    Query(query): Query<IndexQuery>,
) -> Answer<Json<Checkpoint>> {
    let name: ServiceName = parse("name", &name)?;
    Ok(Json(core.checkpoint_service(&name, query.index).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    #[serde(default)]
    index: Option<u32>,
    #[serde(default)]
    follow: bool,
}

/// What an instance logs, as its node has it.
#[utoipa::path(get, path = "/v1/services/{name}/logs", tag = "services",
    params(("name" = String, Path),
        ("index" = Option<u32>, Query, description = "may be left out where there is one"),
        ("follow" = Option<bool>, Query, description = "go on")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 503, body = ProblemDetails)))]
pub(super) async fn logs(
    State(core): State<Shared>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Answer<Response<Body>> {
    let name: ServiceName = parse("name", &name)?;
    let stream = core.service_logs(&name, query.index, query.follow).await?;
    Ok(Body::from_stream(ReaderStream::with_capacity(stream, 32 << 10)).into_response())
}

/// Moves on their way, and the last one of each service, newest first.
#[utoipa::path(get, path = "/v1/moves", tag = "services",
    responses((status = 200, body = Vec<MoveView>)))]
pub(super) async fn moves(State(core): State<Shared>) -> Answer<Json<Vec<MoveView>>> {
    Ok(Json(core.moves().await?))
}

/// Asks a service, as its gateway does: `/v1/services/{name}/invoke/a?b=c` is `/a?b=c` there. With
/// an `Idempotency-Key` a repeat gives the first answer; with `Hop3-Index` that instance is asked.
/// Answers that are client streams need the gateway.
async fn invoke(
    core: Shared,
    (name, method): (String, Method),
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Answer<Response<Body>> {
    let name: ServiceName = parse("name", &name)?;
    let index = headers
        .get("hop3-index")
        .map(|value| parse("Hop3-Index", value.to_str().unwrap_or("?")))
        .transpose()?;
    let request = ServiceRequest {
        method: method.to_string(),
        path: inner_path(uri, name.as_str())?,
        headers: passed(headers)?,
        body,
        more: false,
        idempotency_key: key_of(headers)?,
        from: None,
    };
    let delivered = core.gateway().deliver(&name, index, &request, None).await?;
    answer(delivered.reply)
}

/// The path that the service sees.
fn inner_path(uri: &Uri, name: &str) -> Answer<String> {
    let whole = uri.path_and_query().map_or("/", |path| path.as_str());
    let start = format!("/v1/services/{name}/invoke");
    let path = whole.strip_prefix(&start).unwrap_or("/");
    let path = match path {
        "" => "/".to_owned(),
        query if query.starts_with('?') => format!("/{query}"),
        path => path.to_owned(),
    };
    if path.len() > PATH_BYTES_MAX {
        let message = format!("a path has at most {PATH_BYTES_MAX} bytes");
        return Err(ApiError::new(Code::TooLarge, message));
    }
    Ok(path)
}

fn passed(headers: &HeaderMap) -> Answer<Vec<(String, Bytes)>> {
    let passed: Vec<(String, Bytes)> = headers
        .iter()
        .filter(|(name, _)| !NOT_PASSED.contains(&name.as_str()))
        .map(|(name, value)| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            (name.as_str().to_owned(), value)
        })
        .collect();
    let bytes: usize = passed
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if passed.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let message =
            format!("a request has at most {HEADERS_MAX} headers of {HEADERS_BYTES_MAX} bytes");
        return Err(ApiError::new(Code::TooLarge, message));
    }
    Ok(passed)
}

fn key_of(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if key.starts_with(CALL_KEY) => Err(ApiError::field(
            "Idempotency-Key",
            format!("must not begin with `{CALL_KEY}`: such keys are Hop3's own"),
        )),
        Ok(key) if (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::field(
            "Idempotency-Key",
            format!("must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters"),
        )),
    }
}

fn answer(reply: ServiceReply) -> Answer<Response<Body>> {
    if reply.stream.is_some() {
        let message = "the service answered with a client stream: ask its gateway for it";
        return Err(ApiError::new(Code::ReplyInvalid, message));
    }
    let invalid = |what: &str| {
        ApiError::new(
            Code::ReplyInvalid,
            format!("the service's reply has an invalid {what}"),
        )
    };
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).map_err(|_| invalid("status"))?;
    for (name, value) in reply.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("header"))?;
        if NOT_PASSED.contains(&name.as_str()) {
            continue;
        }
        let value = HeaderValue::from_bytes(&value).map_err(|_| invalid("header"))?;
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

/// As the handlers below, for the service's root: a wildcard does not match nothing.
pub(super) async fn invoke_root(
    State(core): State<Shared>,
    Path(name): Path<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response<Body>> {
    invoke(core, (name, method), &uri, &headers, body).await
}

/// One handler for each method, for the API's document knows no `ANY`.
macro_rules! invoke {
    ($($name:ident $method:ident,)*) => {$(
        #[doc = "Asks a service, as its gateway does."]
        #[utoipa::path($method, path = "/v1/services/{name}/invoke/{*path}", tag = "services",
            params(("name" = String, Path), ("path" = String, Path),
                ("Hop3-Index" = Option<u32>, Header, description = "ask this replica or shard"),
                ("Idempotency-Key" = Option<String>, Header,
                 description = "a repeat gives the first answer")),
            request_body(content = Vec<u8>, content_type = "application/octet-stream"),
            responses((status = 200, description = "whatever the service answers"),
                (status = 502, body = ProblemDetails), (status = 503, body = ProblemDetails)))]
        pub(super) async fn $name(
            State(core): State<Shared>,
            Path((name, _path)): Path<(String, String)>,
            method: Method,
            uri: Uri,
            headers: HeaderMap,
            body: Bytes,
        ) -> Answer<Response<Body>> {
            invoke(core, (name, method), &uri, &headers, body).await
        }
    )*};
}

invoke! {
    invoke_get get,
    invoke_put put,
    invoke_post post,
    invoke_delete delete,
    invoke_patch patch,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_service_sees_its_own_path() {
        let path = |uri: &str| inner_path(&uri.parse().unwrap(), "s").unwrap();
        assert_eq!(path("/v1/services/s/invoke/a/b?c=d"), "/a/b?c=d");
        assert_eq!(path("/v1/services/s/invoke/"), "/");
        assert_eq!(path("/v1/services/s/invoke/?x"), "/?x");
        let long = format!("/v1/services/s/invoke/{}", "x".repeat(PATH_BYTES_MAX));
        assert!(inner_path(&long.parse().unwrap(), "s").is_err());
    }

    #[test]
    fn headers_of_the_connection_stay_here() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        headers.insert("x-key", HeaderValue::from_static("17"));
        headers.insert("idempotency-key", HeaderValue::from_static("k"));
        assert_eq!(
            passed(&headers).unwrap(),
            [("x-key".to_owned(), Bytes::from_static(b"17"))]
        );
        assert_eq!(key_of(&headers).unwrap().as_deref(), Some("k"));
        let long = HeaderValue::from_str(&"k".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1)).unwrap();
        headers.insert("idempotency-key", long);
        assert!(key_of(&headers).is_err());
    }
}
