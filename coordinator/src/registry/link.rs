//! What the brain needs of a live session. The mesh's [`NodeLink`] is one; tests have another.

use std::{net::SocketAddr, time::Duration};

use hop3_common::{
    codes::{Code, Problem},
    id::{InstanceId, NodeId},
    ownership::Epoch,
    wire::{
        CallResult, Down, ModelCheck, ModelFacts, Target,
        attach::{Channel, Frame},
    },
};

use crate::{
    mesh::{AttachReceiver, AttachSender, NodeLink},
    tasks::ByteStream,
};

/// A live session with a node.
#[async_trait::async_trait]
pub(crate) trait Link: Send + Sync + 'static {
    fn node(&self) -> &NodeId;
    fn session(&self) -> u64;
    fn address(&self) -> SocketAddr;
    fn rtt(&self) -> Duration;
    fn is_open(&self) -> bool;
    /// Whether it was queued: if not, the session ends and the next one makes up for it.
    fn send(&self, down: Down) -> Result<(), Problem>;
    async fn call(&self, target: Target, deadline: Duration) -> Result<CallResult, Problem>;
    async fn attach(
        &self,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<(Box<dyn FrameSink>, Box<dyn FrameSource>), Problem>;
    async fn client(
        &self,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<Box<dyn hop3_gateway::Link>, Problem>;
    async fn logs(
        &self,
        instance: InstanceId,
        channel: Channel,
        offset: u64,
        follow: bool,
    ) -> Result<ByteStream, Problem>;
    async fn check_model(
        &self,
        check: ModelCheck,
        deadline: Duration,
    ) -> Result<ModelFacts, Problem>;
    fn close(&self, code: u32, reason: &str);
}

/// Frames towards a task.
#[async_trait::async_trait]
pub(crate) trait FrameSink: Send {
    async fn send(&mut self, frame: Frame) -> Result<(), Problem>;
}

/// Frames from a task; `None` at the end.
#[async_trait::async_trait]
pub(crate) trait FrameSource: Send {
    async fn recv(&mut self) -> Option<Frame>;
}

#[async_trait::async_trait]
impl FrameSink for AttachSender {
    async fn send(&mut self, frame: Frame) -> Result<(), Problem> {
        self.send(frame).await
    }
}

#[async_trait::async_trait]
impl FrameSource for AttachReceiver {
    async fn recv(&mut self) -> Option<Frame> {
        self.recv().await
    }
}

#[async_trait::async_trait]
impl Link for NodeLink {
    fn node(&self) -> &NodeId {
        self.node()
    }
    fn session(&self) -> u64 {
        self.session()
    }
    fn address(&self) -> SocketAddr {
        self.address()
    }
    fn rtt(&self) -> Duration {
        self.rtt()
    }
    fn is_open(&self) -> bool {
        self.is_open()
    }
    fn send(&self, down: Down) -> Result<(), Problem> {
        self.send(down)
            .map_err(|gone| Problem::new(Code::NodeUnreachable, gone.to_string()))
    }
    async fn call(&self, target: Target, deadline: Duration) -> Result<CallResult, Problem> {
        self.call(target, deadline).await
    }
    async fn attach(
        &self,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<(Box<dyn FrameSink>, Box<dyn FrameSource>), Problem> {
        let (sink, source) = self.attach(instance, epoch).await?;
        Ok((Box::new(sink), Box::new(source)))
    }
    async fn client(
        &self,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<Box<dyn hop3_gateway::Link>, Problem> {
        Ok(Box::new(self.client(instance, epoch).await?))
    }
    async fn logs(
        &self,
        instance: InstanceId,
        channel: Channel,
        offset: u64,
        follow: bool,
    ) -> Result<ByteStream, Problem> {
        Ok(Box::pin(
            self.logs(instance, channel, offset, follow).await?,
        ))
    }
    async fn check_model(
        &self,
        check: ModelCheck,
        deadline: Duration,
    ) -> Result<ModelFacts, Problem> {
        self.check_model(check, deadline).await
    }
    fn close(&self, code: u32, reason: &str) {
        self.close(code, reason);
    }
}
