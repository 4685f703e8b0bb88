//! A client of services: HTTP over the gateway of a mesh, with its CA and token; or over a node's
//! own, perhaps in a network namespace.

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Certificate, Client, ClientBuilder, Method, RequestBuilder};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

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

/// Asks a gateway. Clones share connections.
#[derive(Debug, Clone)]
pub struct Web {
    client: Client,
    base: String,
    token: String,
    /// Its sockets are of this network namespace.
    netns: Option<Arc<PathBuf>>,
}

impl Web {
    /// A client of `mesh`'s gateway with connections of its own.
    #[must_use]
    pub fn new(mesh: &Mesh) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = std::fs::read(mesh.path("coordinator/ca.pem")).unwrap_or_default();
        let ca = Certificate::from_pem(&ca).unwrap_or_else(|error| panic!("{error}"));
        Self {
            client: client(Client::builder().tls_certs_only([ca])),
            base: mesh.gateway.clone(),
            token: mesh.token(),
            netns: None,
        }
    }

    /// A client of a node's own gateway, wherever that listens; the node has one configured.
    #[must_use]
    pub fn local(mesh: &Mesh, node: &str) -> Self {
        let address = eventually("the node has a gateway", || {
            let log = mesh.agents[node].log();
            let mut lines = log.lines();
            let line = lines.rfind(|line| line.contains("services are served"))?;
            Some(line.rsplit_once("listen=")?.1.trim().to_owned())
        });
        Self::local_at(mesh, node, &address, None)
    }

    /// A client of the gateway at `address` that the agent of `node` offers to its own machine,
    /// which is the network namespace `netns`, if there is one.
    #[must_use]
    pub fn local_at(mesh: &Mesh, node: &str, address: &str, netns: Option<PathBuf>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = mesh.path(node).join("gateway.token");
        let token = std::fs::read_to_string(token).unwrap_or_default();
        Self {
            client: client(Client::builder()),
            base: format!("http://{address}"),
            token: token.trim().to_owned(),
            netns: netns.map(Arc::new),
        }
    }

    /// Moves the calling thread to where this client's sockets must be made.
    ///
    /// # Panics
    /// The namespace is gone, or not ours to enter.
    pub fn enter(&self) {
        let Some(path) = self.netns.as_deref() else {
            return;
        };
        let entered = File::open(path).and_then(|place| {
            let kind = Some(LinkNameSpaceType::Network);
            Ok(move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&place),
                kind,
            )?)
        });
        entered.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Asks from a thread of its own, at the right place.
    ///
    /// # Errors
    /// No answer came within `limit`.
    ///
    /// # Panics
    /// The namespace cannot be entered.
    pub fn ask(&self, method: &str, path: &str, limit: Duration) -> Result<Answer, reqwest::Error> {
        let (web, request) = (self.clone(), self.request(method, path).timeout(limit));
        let asked = std::thread::spawn(move || {
            web.enter();
            block_on(web.send(request))
        });
        asked.join().unwrap_or_else(|_| panic!("{path}: not asked"))
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

fn client(builder: ClientBuilder) -> Client {
    let built = builder.timeout(ANSWER).build();
    built.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Runs `future` on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|error| panic!("{error}"))
        .block_on(future)
}
