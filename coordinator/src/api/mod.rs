//! REST `/v1` over TLS: routes, authentication, problem details, OpenAPI. Thin: every handler is
//! one verb of [`Core`].
//!
//! Limits: bodies of at most [`JSON_BYTES_MAX`] (artifacts stream, within their own bound),
//! [`HEADER_TIMEOUT`] for a TLS handshake. Every route but `/healthz` and `/readyz` wants a token.

mod artifacts;
mod attach;
mod auth;
mod events;
mod invoke;
mod mesh;
mod models;
mod nodes;
mod problem;
mod services;
mod tasks;

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, extract::DefaultBodyLimit, middleware};
use axum_server::tls_rustls::RustlsConfig;
use tokio_util::sync::CancellationToken;
use utoipa::{Modify as _, OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::Core;

/// Largest JSON body, inference input or invocation input.
pub const JSON_BYTES_MAX: usize = 12 << 20;
/// Longest TLS handshake.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in flight may go on at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What every handler has.
type Shared = Arc<Core>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hop3",
        description = "The control plane of a Hop3 mesh. Errors are RFC 9457 problem details.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("token" = []))
)]
struct Document;

/// All routes with their documentation.
fn routes() -> OpenApiRouter<Shared> {
    let mut document = Document::openapi();
    auth::Scheme.modify(&mut document);
    OpenApiRouter::with_openapi(document)
        .routes(routes!(mesh::status))
        .routes(routes!(mesh::explain))
        .routes(routes!(mesh::decisions))
        .routes(routes!(events::events))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::patch, nodes::remove))
        .routes(routes!(nodes::telemetry))
        .routes(routes!(nodes::create_token, nodes::list_tokens))
        .routes(routes!(nodes::revoke_token))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::show, artifacts::push, artifacts::remove))
        .routes(routes!(artifacts::content))
        .routes(routes!(tasks::submit, tasks::list))
        .routes(routes!(tasks::show))
        .routes(routes!(tasks::cancel))
        .routes(routes!(tasks::output))
        .routes(routes!(attach::attach))
        .routes(routes!(invoke::invoke))
        .routes(routes!(models::list))
        .routes(routes!(models::show, models::remove))
        .routes(routes!(models::push))
        .routes(routes!(models::deploy))
        .routes(routes!(models::rollback))
        .routes(routes!(models::undeploy))
        .routes(routes!(models::infer))
        .routes(routes!(services::list))
        .routes(routes!(
            services::show,
            services::apply,
            services::scale,
            services::remove
        ))
        .routes(routes!(services::migrate, services::abort))
        .routes(routes!(services::take_over))
        .routes(routes!(services::checkpoint))
        .routes(routes!(services::logs))
        .routes(routes!(services::moves))
        .routes(routes!(
            services::invoke_get,
            services::invoke_put,
            services::invoke_post,
            services::invoke_delete,
            services::invoke_patch
        ))
}

/// The OpenAPI document, as `GET /v1/openapi.json` gives it.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().split_for_parts().1
}

/// The whole API.
pub fn router(core: Arc<Core>) -> Router {
    let (routes, document) = routes().split_for_parts();
    let document = Arc::new(document);
    let root = || axum::routing::any(services::invoke_root);
    let secured = routes
        .route("/v1/services/{name}/invoke", root())
        .route("/v1/services/{name}/invoke/", root())
        .route(
            "/v1/openapi.json",
            axum::routing::get(move || std::future::ready(axum::Json(Arc::clone(&document)))),
        )
        .layer(middleware::from_fn_with_state(
            Arc::clone(&core),
            auth::require_token,
        ))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX));
    Router::new()
        .route(
            "/healthz",
            axum::routing::get(|| std::future::ready("ok\n")),
        )
        .route("/readyz", axum::routing::get(mesh::ready))
        .merge(secured)
        .fallback(problem::no_route)
        .method_not_allowed_fallback(problem::no_method)
        .with_state(core)
}

/// Serves the API on `listener` until `shutdown`; requests in flight get a bounded time.
pub async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    tls: RustlsConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    serve_http(router(core), listener, tls, shutdown).await
}

/// Serves `router` on `listener` until `shutdown`; requests in flight get a bounded time. `tls` may
/// be renewed meanwhile.
pub async fn serve_http(
    router: Router,
    listener: TcpListener,
    tls: RustlsConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("the socket")?;
    let handle = axum_server::Handle::new();
    let stopper = handle.clone();
    let stopping = tokio::spawn(async move {
        shutdown.cancelled().await;
        stopper.graceful_shutdown(Some(DRAIN_TIMEOUT));
    });
    let acceptor = axum_server::tls_rustls::RustlsAcceptor::new(tls)
        .handshake_timeout(HEADER_TIMEOUT)
        .acceptor(axum_server::accept::NoDelayAcceptor::new());
    let server = axum_server::from_tcp(listener).context("the socket")?;
    let served = server
        .acceptor(acceptor)
        .handle(handle)
        .serve(router.into_make_service())
        .await
        .context("serving");
    stopping.abort();
    served
}

#[cfg(test)]
mod tests {
    /// The API's golden file: a change of the API shows in review, and old routes stay.
    #[test]
    fn the_api_is_as_documented() {
        let document = super::openapi().to_pretty_json().unwrap_or_default();
        insta::with_settings!({ snapshot_path => "../../tests/golden", prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!("openapi", document);
        });
    }
}
