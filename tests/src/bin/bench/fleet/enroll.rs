//! Enrolment of fake agents.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hop3_common::{
    api::JoinTokenCreated,
    codes::Code,
    id::{NodeId, UnixMs},
    identity::{
        CaCertificate, JoinToken, NodeKey,
        enroll::{EnrollReply, EnrollRequest, Join},
        tls,
    },
    wire::{COORDINATOR_NAME, ENROLL_FRAME_MAX, PROTOCOL, close, io},
};
use hop3_tests::Mesh;
use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use rustls::pki_types::CertificateDer;

use super::quic;
use crate::http::Api;

/// UDP sockets that a fleet shares: one would need a larger receive buffer than is usual.
const SOCKETS: usize = 4;
/// REST connections that make join tokens.
const TOKEN_CONNECTIONS: usize = 8;
/// Enrolments at once.
const AT_ONCE: usize = 32;
/// Tries before a busy coordinator is an error.
const TRIES_MAX: u32 = 8;
/// Longest enrolment and longest handshake.
pub(super) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// The coordinator as fake agents see it.
pub(crate) struct Door {
    ca: CaCertificate,
    address: SocketAddr,
    endpoints: Vec<Endpoint>,
    next: AtomicUsize,
    enroll: ClientConfig,
}

/// An enrolled fake agent.
pub(crate) struct Member {
    pub(super) node: NodeId,
    pub(super) config: ClientConfig,
}

impl Door {
    /// The mesh's coordinator. Within a tokio runtime.
    pub(crate) fn new(mesh: &Mesh) -> Result<Self> {
        let ca = std::fs::read_to_string(mesh.path("coordinator/ca.pem")).context("ca.pem")?;
        let ca = CaCertificate::from_pem(&ca)?;
        let client = || Endpoint::client((Ipv4Addr::LOCALHOST, 0).into());
        let endpoints = (0..SOCKETS)
            .map(|_| client())
            .collect::<std::io::Result<Vec<_>>>()?;
        let enroll = quic(tls::enroll_client(
            ca.pin(),
            tls::TlsTime::new(UnixMs::now),
        )?)?;
        let address = mesh.mesh_address.parse().context("the mesh's address")?;
        Ok(Self {
            ca,
            address,
            endpoints,
            next: AtomicUsize::new(0),
            enroll,
        })
    }

    /// A connection, from one of the shared sockets.
    pub(super) async fn dial(&self, config: &ClientConfig) -> Result<Connection> {
        let endpoint = &self.endpoints[self.next.fetch_add(1, Relaxed) % self.endpoints.len()];
        let dial = endpoint.connect_with(config.clone(), self.address, COORDINATOR_NAME)?;
        Ok(tokio::time::timeout(PATIENCE, dial)
            .await
            .context("no handshake in time")??)
    }

    /// Enrolls one fake agent as its token says.
    pub(crate) async fn enroll(&self, token: &JoinToken) -> Result<Member> {
        let key = NodeKey::generate()?;
        let facts = [("arch", "x86_64"), ("os", "linux"), ("version", "bench")];
        let request = EnrollRequest::Join(Join {
            protocol: PROTOCOL,
            token: token.id(),
            secret: token.secret().clone(),
            csr_der: key.csr()?,
            hostname: "bench".to_owned(),
            facts: facts
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        });
        let granted = self.ask_patiently(&request).await?;
        let membership = granted.verify(token.ca_pin(), &key.public_key())?;
        let cert: CertificateDer<'static> = membership.cert;
        let time = tls::TlsTime::new(UnixMs::now);
        let config = quic(tls::mesh_client(&self.ca, cert, &key, time)?)?;
        Ok(Member {
            node: granted.node,
            config,
        })
    }

    /// Asks again when the coordinator is busy or shed the handshake.
    async fn ask_patiently(
        &self,
        request: &EnrollRequest,
    ) -> Result<hop3_common::identity::enroll::Granted> {
        let mut last = None;
        for attempt in 0..TRIES_MAX {
            match tokio::time::timeout(PATIENCE, self.exchange(request)).await? {
                Ok(EnrollReply::Granted(granted)) => return Ok(granted),
                Ok(EnrollReply::Refused(problem)) if problem.code != Code::Busy => {
                    bail!("{problem}")
                }
                Ok(EnrollReply::Refused(problem)) => last = Some(anyhow::anyhow!("{problem}")),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20 << attempt)).await;
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("not enrolled")))
    }

    async fn exchange(&self, request: &EnrollRequest) -> Result<EnrollReply> {
        let connection = self.dial(&self.enroll).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        io::write(&mut send, request, ENROLL_FRAME_MAX).await?;
        send.finish()?;
        let reply = io::read(&mut recv, ENROLL_FRAME_MAX)
            .await?
            .context("no reply")?;
        connection.close(VarInt::from_u32(close::DONE), b"enrolled");
        Ok(reply)
    }

    /// Enrolls all, some at once.
    pub(crate) async fn enroll_all(&self, tokens: &[JoinToken]) -> Result<Vec<Member>> {
        let all = stream::iter(tokens).map(|token| self.enroll(token));
        all.buffer_unordered(AT_ONCE).try_collect().await
    }
}

/// Makes join tokens for the nodes `bench-FROM` and on, over REST.
pub(crate) async fn tokens(api: &Api, from: usize, count: usize) -> Result<Vec<JoinToken>> {
    let lanes = (0..TOKEN_CONNECTIONS).map(|lane| async move {
        let mut connection = api.connect().await?;
        let mut tokens = Vec::new();
        for i in (from + lane..from + count).step_by(TOKEN_CONNECTIONS) {
            let body = format!(r#"{{"tier":"edge","node":"bench-{i}"}}"#);
            let request = api.request(
                "POST",
                "/v1/join-tokens",
                "application/json",
                body.as_bytes(),
            );
            let answer = connection.good(&request).await?;
            let created: JoinTokenCreated = serde_json::from_slice(&answer.body)?;
            tokens.push(created.token.parse::<JoinToken>()?);
        }
        anyhow::Ok(tokens)
    });
    let lanes = futures_util::future::try_join_all(lanes).await?;
    Ok(lanes.into_iter().flatten().collect())
}
