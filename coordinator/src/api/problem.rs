//! Errors as RFC 9457 problem details.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use hop3_common::{
    api::ProblemDetails,
    codes::{Code, Problem},
    spec::Invalid,
};

/// What a handler fails with.
#[derive(Debug)]
pub(super) struct ApiError {
    problem: Problem,
    field: Option<String>,
}

/// What a handler returns.
pub(super) type Answer<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Problem::new(code, message).into()
    }

    /// A bad query parameter or path segment.
    pub(super) fn field(field: &str, error: impl std::fmt::Display) -> Self {
        Self {
            problem: Problem::new(Code::InvalidField, format!("`{field}`: {error}")),
            field: Some(field.to_owned()),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            field: None,
        }
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let problem = Problem::new(Code::InvalidField, invalid.to_string());
        Self {
            problem,
            field: Some(invalid.field),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let details = ProblemDetails::of(&self.problem, self.field);
        let status =
            StatusCode::from_u16(details.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = %details.code, detail = %details.detail, "a request failed");
        }
        let mut response = (status, Json(details)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, problem);
        response
    }
}

pub(super) async fn no_route(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(
        Code::NotFound,
        format!("there is nothing at {path}: see /v1/openapi.json"),
    )
}

pub(super) async fn no_method(method: axum::http::Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(
        Code::NotFound,
        format!("{path} takes no {method}: see /v1/openapi.json"),
    )
}

/// Parses a path segment or query parameter.
pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    field: &str,
    text: &str,
) -> Answer<T> {
    text.parse().map_err(|error| ApiError::field(field, error))
}

/// Parses a JSON body strictly: unknown fields and their nearest known ones are named.
pub(super) fn json<T: serde::de::DeserializeOwned>(body: &[u8], root: &str) -> Answer<T> {
    Ok(hop3_common::spec::parse_json(body, root)?)
}
