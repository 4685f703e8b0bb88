//! Bearer tokens.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use hop3_common::codes::Code;
use utoipa::{
    Modify,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use super::problem::ApiError;
use crate::Core;

/// Longest `Authorization` header that is looked at.
const HEADER_BYTES_MAX: usize = 512;

/// Declares the token in the OpenAPI document.
pub(super) struct Scheme;

impl Modify for Scheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Default::default);
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API token, such as the coordinator's admin.token"))
            .build();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Lets a request through when it carries a valid token.
pub(super) async fn require_token(
    State(core): State<Arc<Core>>,
    mut request: Request,
    next: Next,
) -> Response {
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .filter(|value| value.len() <= HEADER_BYTES_MAX)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else {
        let message = "this request needs a header `Authorization: Bearer <API token>`";
        return ApiError::new(Code::Unauthenticated, message).into_response();
    };
    match core.authenticate(token).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(problem) => ApiError::from(problem).into_response(),
    }
}
