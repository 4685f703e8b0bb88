//! The REST API, as the CLI calls it.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use hop3_common::{api::ProblemDetails, codes::Code, identity, spec::Invalid};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use crate::context::{Context, read_small};

/// Longest wait for a TCP and TLS connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest JSON answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The coordinator refused: its problem details.
#[derive(Debug, thiserror::Error)]
#[error("{} [{}]", .0.detail, .0.code)]
pub struct Refused(pub ProblemDetails);

/// Nobody answers where the coordinator should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the coordinator at {api}: {why}; is it running?")]
pub struct Unreachable {
    /// Its API.
    pub api: String,
    /// What the system says.
    pub why: String,
}

/// The code of a refusal anywhere in `error`'s chain.
#[must_use]
pub fn refusal(error: &anyhow::Error) -> Option<Code> {
    let refused = error.downcast_ref::<Refused>();
    refused.map(|refused| refused.0.code)
}

/// The code of what is wrong, whoever found it.
#[must_use]
pub fn code_of(error: &anyhow::Error) -> Option<Code> {
    let unreachable = || error.downcast_ref::<Unreachable>();
    let invalid = || error.downcast_ref::<Invalid>();
    refusal(error)
        .or_else(|| unreachable().map(|_| Code::CoordinatorUnreachable))
        .or_else(|| invalid().map(|_| Code::InvalidField))
}

/// A client of one coordinator.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// `https://HOST:PORT`, no slash at the end.
    pub api: String,
    token: String,
    tls: rustls::ClientConfig,
}

impl Client {
    /// A client for `context`. Reads the CA and the token.
    pub fn new(context: &Context) -> Result<Self> {
        let api = context.api.trim_end_matches('/').to_owned();
        anyhow::ensure!(
            api.starts_with("https://"),
            "`{api}` is not an API address: it looks like https://HOST:7431 (there is no plaintext)"
        );
        let ca = read_small(&context.ca_file)?;
        let tls = identity::tls::api_client(&ca)
            .with_context(|| format!("{} is not a CA certificate", context.ca_file.display()))?;
        let token = read_small(&context.token_file)?.trim().to_owned();
        anyhow::ensure!(
            !token.is_empty(),
            "{} is empty",
            context.token_file.display()
        );
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()?;
        Ok(Self {
            http,
            api,
            token,
            tls,
        })
    }

    /// TLS settings and token, for the WebSocket.
    #[must_use]
    pub fn tls(&self) -> (rustls::ClientConfig, &str) {
        (self.tls.clone(), &self.token)
    }

    /// A request to `path` (`/v1/…`).
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.api))
            .bearer_auth(&self.token)
    }

    /// Sends a request; a refusal becomes [`Refused`].
    pub async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<ProblemDetails>(&body) {
            Ok(details) => Err(Refused(details).into()),
            Err(_) if status == StatusCode::NOT_FOUND => Err(anyhow!(
                "{} does not know this request: is it a Hop3 API?",
                self.api
            )),
            Err(_) => Err(anyhow!("{} answered {status}", self.api)),
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let api = &self.api;
        let mut root: &dyn std::error::Error = &error;
        while let Some(source) = root.source() {
            root = source;
        }
        if error.is_connect() {
            let (api, why) = (api.clone(), root.to_string());
            Unreachable { api, why }.into()
        } else {
            anyhow!("the request to {api} failed: {root}")
        }
    }

    /// Sends a request and reads its JSON answer.
    pub async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let body = response.bytes().await.context("the answer broke off")?;
        anyhow::ensure!(body.len() <= ANSWER_BYTES_MAX, "the answer is too large");
        serde_json::from_slice(&body).with_context(|| {
            format!(
                "the coordinator at {} answered in a form this CLI does not know",
                self.api
            )
        })
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::GET, path)).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::PUT, path).json(body)).await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.json(self.request(Method::PATCH, path).json(body))
            .await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, path))
            .await
            .map(drop)
    }
}

/// `text` as one segment of a path.
#[must_use]
pub fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~:".contains(&b);
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}
