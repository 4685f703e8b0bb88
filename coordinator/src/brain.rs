//! The control plane as the mesh sees it: [`Brain`], word for word.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use hop3_common::{
    chunks::BlobStore,
    codes::Problem,
    id::{Digest, InstanceId, NodeId},
    identity::{
        PeerIdentity,
        enroll::{EnrollReply, EnrollRequest},
    },
    ownership::Token,
    wire::{Held, Hello, NodeFacts, Outgoing, OutgoingDone, Report, Welcome, telemetry::Sample},
};

use crate::{
    Core, artifacts, enroll,
    mesh::{Brain, NodeLink},
    registry, services,
};

#[async_trait::async_trait]
impl Brain for Core {
    async fn enroll(
        &self,
        request: EnrollRequest,
        exporter: [u8; 32],
        from: SocketAddr,
    ) -> EnrollReply {
        let reply = enroll::enroll(self, request, &exporter).await;
        if let EnrollReply::Refused(problem) = &reply {
            tracing::warn!(%from, code = %problem.code, "enrolment refused: {}", problem.message);
        }
        reply
    }

    async fn connected(
        &self,
        identity: PeerIdentity,
        hello: Hello,
        link: NodeLink,
    ) -> Result<Welcome, Problem> {
        registry::connected(self, &identity, hello, Arc::new(link)).await
    }

    async fn inventory(&self, link: &NodeLink, held: Vec<Held>) {
        registry::inventory(self, link, held).await;
    }

    async fn report(&self, link: &NodeLink, seq: u64, report: Report) -> Result<(), Problem> {
        registry::report(self, link, seq, report).await
    }

    async fn facts(&self, link: &NodeLink, facts: NodeFacts) {
        registry::facts(self, link, facts).await;
    }

    fn telemetry(&self, link: &NodeLink, samples: Vec<Sample>) {
        registry::samples(self, link, &samples);
    }

    async fn renew(&self, link: &NodeLink, csr_der: &[u8]) -> Result<Bytes, Problem> {
        enroll::renew_live(self, link.node(), csr_der).await
    }

    async fn disconnected(&self, link: &NodeLink, why: String) {
        registry::disconnected(self, link, &why).await;
    }

    fn blobs(&self) -> Arc<BlobStore> {
        self.blobs.clone()
    }

    async fn may_get(&self, node: &NodeId, digest: &Digest) -> Result<(), Problem> {
        artifacts::may_get(self, node, digest)
    }

    async fn may_put(&self, node: &NodeId, digest: &Digest, size: u64) -> Result<(), Problem> {
        self.services.wanted_again(digest);
        artifacts::may_put(self, node, size)
    }

    async fn stored(&self, node: &NodeId, _digest: &Digest, size: u64) {
        artifacts::stored(self, node, size);
    }

    async fn fetched(&self, node: &NodeId, instance: &InstanceId) {
        services::fetched(self, node, instance).await;
    }

    async fn leases(&self, link: &NodeLink, number: u64, runs: Vec<(InstanceId, Token)>) {
        services::leases(self, link, number, runs);
    }

    async fn outgoing(&self, link: &NodeLink, asked: Outgoing) -> Result<OutgoingDone, Problem> {
        services::outgoing(self, link.node(), asked).await
    }
}
