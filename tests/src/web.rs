//! A client of services: HTTP over the gateway of a mesh, with its CA and token.

use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder};

use crate::{Mesh, eventually};

/// Longest wait for one answer; services wait less.
const ANSWER: Duration = Duration::from_secs(60);

/// What a service answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body, as text.
    pub text: String,
    /// The instance that answered, if it says so.
    pub instance: Option<String>,
}

/// Asks the gateway. Clones share connections.
#[derive(Debug, Clone)]
pub struct Web {
    client: Client,
    base: String,
    token: String,
}

impl Web {
    /// A client of `mesh`'s gateway with connections of its own.
    #[must_use]
    pub fn new(mesh: &Mesh) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = std::fs::read(mesh.path("coordinator/ca.pem")).unwrap_or_default();
        let ca = Certificate::from_pem(&ca).unwrap_or_else(|error| panic!("{error}"));
        let client = Client::builder()
            .tls_certs_only([ca])
            .timeout(ANSWER)
            .build()
            .unwrap_or_else(|error| panic!("{error:?}"));
        Self {
            client,
            base: mesh.gateway.clone(),
            token: mesh.token(),
        }
    }

    /// A client of a node's own gateway; the node has one configured.
    #[must_use]
    pub fn local(mesh: &Mesh, node: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = eventually("the node has a gateway", || {
            let log = mesh.agents[node].log();
            let line = log
                .lines()
                .rfind(|line| line.contains("services are served"))?;
            Some(line.rsplit_once("listen=")?.1.trim().to_owned())
        });
        let token = mesh.path(&format!("{node}/gateway.token"));
        let token = std::fs::read_to_string(token).unwrap_or_default();
        Self {
            client: Client::new(),
            base: format!("http://{address}"),
            token: token.trim().to_owned(),
        }
    }

    /// A request to `path` (`/SERVICE/…`), with the token.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.request_as(method, path, Some(&self.token))
    }

    /// A request with another token, or none.
    pub fn request_as(&self, method: &str, path: &str, token: Option<&str>) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let request = self.client.request(method, format!("{}{path}", self.base));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Asks and reads the whole answer.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        let instance = response.headers().get("hop3-instance");
        let instance = instance.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        let status = response.status().as_u16();
        Ok(Answer {
            status,
            text: response.text().await?,
            instance,
        })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// No answer came.
    pub async fn get(&self, path: &str) -> Result<Answer, reqwest::Error> {
        self.send(self.request("GET", path)).await
    }

    /// `POST path` with `body`.
    ///
    /// # Errors
    /// No answer came.
    pub async fn post(&self, path: &str, body: &str) -> Result<Answer, reqwest::Error> {
        self.send(self.request("POST", path).body(body.to_owned()))
            .await
    }
}

/// Runs `future` on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
        .block_on(future)
}
