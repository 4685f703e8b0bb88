//! Errors as RFC 9457 problem details.

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse as _, Response},
};
use hop3_common::{
    api::ProblemDetails,
    codes::{Code, Problem},
};

/// The response to a request that failed with `problem`.
pub(super) fn response(problem: &Problem) -> Response {
    let details = ProblemDetails::of(problem, None);
    let status = StatusCode::from_u16(details.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.is_server_error() {
        tracing::debug!(code = %details.code, detail = %details.detail, "a request failed");
    }
    let mut response = (status, Json(details)).into_response();
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/problem+json");
    headers.insert(CONTENT_TYPE, kind);
    if let Some(seconds) = retry_after(problem.code) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    if problem.code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// When it is worth to try again, in seconds: where the request surely did not happen.
fn retry_after(code: Code) -> Option<&'static str> {
    match code {
        Code::Busy | Code::NotHere => Some("1"),
        Code::ServiceNotReady | Code::NodeUnreachable | Code::Unavailable => Some("2"),
        _ => None,
    }
}
