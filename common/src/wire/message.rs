//! The messages of `hop3/1`. Append-only: `wire/golden.rs` keeps their bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::telemetry::Sample;
use crate::{
    codes::Problem,
    id::{Digest, InstanceId, MeshId, ModelName, NodeId, UnixMs},
    ownership::{Epoch, Token},
    spec::{ByteSize, Limits, Millis, Retry, VolumeGrant},
    tensor::{Tensor, TensorSpec},
};

/// The first frame of every stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamHeader {
    /// [`Up`] and [`Down`] frames.
    Control,
    /// Telemetry batches (uni).
    Telemetry,
    /// The agent wants a blob's bytes from `offset`; answered by a [`BlobReply`], then raw bytes.
    BlobGet {
        /// Which blob.
        digest: Digest,
        /// First byte wanted.
        offset: u64,
    },
    /// The agent offers a blob; answered by a [`BlobReply`] whose `offset` says where to begin;
    /// after the raw bytes comes a second [`BlobReply`] once the blob is durable.
    BlobPut {
        /// Its digest.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// [`Call`] and [`Reply`] frames.
    Calls,
    /// [`super::attach::Frame`]s of the attached task `instance`.
    Attach {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Output of a task from `offset`, raw, until the end of what there is (or of the task, if
    /// `follow`).
    Logs {
        /// Which instance.
        instance: InstanceId,
        /// Which output.
        channel: super::attach::Channel,
        /// First byte wanted.
        offset: u64,
        /// Go on until the task ends.
        follow: bool,
    },
    /// One [`ModelCheck`], answered by one `Result<ModelFacts, Problem>` frame.
    CheckModel,
    /// [`ClientUp`](super::ClientUp) and [`ClientDown`](super::ClientDown) frames of one client
    /// stream of a service's instance.
    Client {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// [`Outgoing`](super::Outgoing) and [`OutgoingReply`](super::OutgoingReply) frames.
    Outgoing,
}

/// Answer to `BlobGet` and `BlobPut`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobReply {
    /// The blob's size, and where the bytes begin.
    Ready {
        /// Size of the whole blob.
        size: u64,
        /// First byte that follows (get) or is wanted (put).
        offset: u64,
    },
    /// The blob is durable (put).
    Stored,
    /// Refused.
    Refused(Problem),
}

/// From agent to coordinator on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Up {
    /// The first frame.
    Hello(Hello),
    /// Everything this node holds, after each `Welcome`. Level-triggered: whatever is not in it
    /// is not there.
    Inventory(Vec<Held>),
    /// Something changed durably. Numbered from the agent's outbox; repeated until acknowledged.
    Report {
        /// Position in the outbox; grows by one.
        seq: u64,
        /// What changed.
        report: Report,
    },
    /// The node's facts changed.
    Facts(NodeFacts),
    /// The certificate needs renewal: a CSR by a new or the same key.
    Renew {
        /// PKCS#10, DER.
        csr_der: Bytes,
    },
    /// The agent is going down by intent.
    Leaving {
        /// Why, for people.
        reason: String,
    },
    /// Answers `Fetch`: what can be here before the instance is.
    Fetched {
        /// Which instance.
        instance: InstanceId,
    },
    /// These fenced runs want to go on: answered by [`Down::Leases`].
    Leases {
        /// Goes with the answer.
        number: u64,
        /// The runs.
        runs: Vec<(InstanceId, Token)>,
    },
}

/// From coordinator to agent on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Down {
    /// Answers `Hello`: the session stands.
    Welcome(Welcome),
    /// Answers `Hello`: no session.
    Refused(Problem),
    /// Every report up to `seq` is durable at the coordinator.
    Ack {
        /// Last durable report.
        seq: u64,
    },
    /// Own and run this instance. A repeat changes nothing.
    Assign(Box<Assignment>),
    /// End this instance, if its epoch is not newer.
    Stop {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
        /// Why, for logs.
        reason: String,
    },
    /// Forget an ended instance: its report is durable here.
    Forget {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// How often telemetry is wanted.
    Telemetry {
        /// Time between samples.
        sample_ms: u32,
        /// Time between batches.
        batch_ms: u32,
    },
    /// Answers `Renew`.
    Certificate {
        /// The new certificate, DER.
        cert_der: Bytes,
    },
    /// The coordinator goes down by intent; come back after this time.
    Restarting {
        /// When to reconnect.
        reconnect_in_ms: u32,
    },
    /// Make a checkpoint of this service's instance and send it: answered by a report.
    Checkpoint {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// Stop this service's instance for good, send its final checkpoint, never run the epoch
    /// again: answered by a report. A repeat changes nothing.
    Seal {
        /// Which instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A service's instance may come: have it ready, with the state of its `restore`, as far as
    /// that can be known. Answered by [`Up::Fetched`], whatever came of it.
    Fetch {
        /// Which instance.
        instance: InstanceId,
        /// What it would run.
        work: Box<super::ServiceWork>,
    },
    /// Answers [`Up::Leases`]: these runs may go on, counted from when that was sent.
    Leases {
        /// Of the request.
        number: u64,
        /// Each with the length of its lease, ms.
        runs: Vec<(InstanceId, Token, u32)>,
    },
}

/// The agent introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest and newest protocol the agent speaks.
    pub protocol: (u16, u16),
    /// Its name; must be the certificate's.
    pub node: NodeId,
    /// Its version, for people.
    pub agent_version: String,
    /// New at every boot of the machine.
    pub boot_id: [u8; 16],
    /// Names the agent's outbox: a new one means that numbering began anew.
    pub outbox: [u8; 16],
    /// What the machine is and can do.
    pub facts: NodeFacts,
}

/// The coordinator accepts the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol both speak.
    pub protocol: u16,
    /// The mesh.
    pub mesh: MeshId,
    /// The coordinator's version, for people.
    pub coordinator_version: String,
    /// The coordinator's clock.
    pub now: UnixMs,
    /// Last durable report of this outbox.
    pub acked_seq: u64,
    /// Time between telemetry samples.
    pub sample_ms: u32,
    /// Time between telemetry batches.
    pub batch_ms: u32,
}

/// What a node is: changes rarely.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// Operating system and version.
    pub os: String,
    /// Kernel version.
    pub kernel: String,
    /// CPU architecture (`x86_64`, `aarch64`).
    pub arch: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Size of the data directory's file system in KiB.
    pub disk_kib: u64,
    /// What it can run: `wasm`, `onnx`.
    pub capabilities: Vec<String>,
    /// Names of the volumes its configuration offers.
    pub volumes: Vec<String>,
    /// Data tags its configuration declares.
    pub data: Vec<String>,
    /// Tasks it runs at once at most.
    pub tasks_max: u32,
    /// Hash of everything that native code depends on.
    pub engine: String,
}

/// An instance to own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which instance.
    pub instance: InstanceId,
    /// The epoch of this ownership.
    pub epoch: Epoch,
    /// What to run.
    pub work: Work,
}

/// What an instance runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// A Wasm task.
    Task(TaskWork),
    /// A model to serve.
    Model(ModelWork),
    /// A service's instance.
    Service(Box<super::ServiceWork>),
}

/// A Wasm task, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskWork {
    /// The module.
    pub module: Digest,
    /// The module's size.
    pub module_bytes: u64,
    /// The program's name (`argv[0]`).
    pub program: String,
    /// Arguments after it.
    pub args: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: StdinSource,
    /// Bounds.
    pub limits: Limits,
    /// Granted directories.
    pub volumes: Vec<VolumeGrant>,
    /// What a loss of the node means.
    pub retry: Retry,
}

/// Where standard input comes from, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinSource {
    /// None.
    Empty,
    /// A blob.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
    /// An attached client, over an `Attach` stream.
    Attached,
}

/// A model to serve, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelWork {
    /// Its name.
    pub name: ModelName,
    /// Its version.
    pub version: u32,
    /// The ONNX file.
    pub model: Digest,
    /// Its size.
    pub model_bytes: u64,
    /// Input facts given by its user.
    pub inputs: Vec<TensorSpec>,
    /// Memory of the guarded child.
    pub memory: ByteSize,
    /// Longest inference.
    pub deadline: Millis,
}

/// One instance that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which instance.
    pub instance: InstanceId,
    /// The run it is in.
    pub token: Token,
    /// Where it stands.
    pub phase: Phase,
}

/// Where an instance stands on its node.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Known and durable, not begun.
    Accepted,
    /// Its bytes are being fetched or compiled.
    Preparing,
    /// It runs.
    Running,
    /// It ended; its outcome is in a report.
    Ended,
}

/// A durable change of an instance. Idempotent: carries the token, phases only grow within one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Which instance.
    pub instance: InstanceId,
    /// The run that reports.
    pub token: Token,
    /// When, on the node's clock.
    pub at: UnixMs,
    /// What happened.
    pub event: Event,
}

/// What happened to an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It runs.
    Started {
        /// Time to fetch its bytes; 0 = they were here.
        fetch_us: u64,
        /// Time to compile or load it.
        load_us: u64,
    },
    /// A task ended.
    TaskEnded(Box<TaskResult>),
    /// A model is ready to serve.
    ModelReady(ModelFacts),
    /// It could not start, or died for good.
    Failed(Problem),
    /// It was stopped by order.
    Stopped,
    /// A service's instance serves.
    ServiceReady(super::ServiceFacts),
    /// A checkpoint is durable on the node and at the coordinator.
    Checkpointed(super::Checkpoint),
    /// The final checkpoint is durable here and there; this epoch never runs here again.
    Sealed(super::Checkpoint),
    /// It could not be sealed: it goes on.
    NotSealed(Problem),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskResult {
    /// How.
    pub end: End,
    /// What it used.
    pub usage: Usage,
    /// Kept standard output.
    pub stdout: Option<Output>,
    /// Kept standard error.
    pub stderr: Option<Output>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The guest returned or called `proc_exit`.
    Exited(i32),
    /// It failed: trap, limit, deadline, loss; the problem says which.
    Failed(Problem),
    /// It was cancelled.
    Cancelled,
}

/// What a run used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// CPU time of the guest's thread, microseconds.
    pub cpu_us: u64,
    /// Start to end, microseconds.
    pub wall_us: u64,
    /// Most linear memory, bytes.
    pub memory_peak_bytes: u64,
    /// Standard output and error, bytes.
    pub output_bytes: u64,
    /// Host calls.
    pub host_calls: u64,
}

/// Output kept as a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Output {
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelFacts {
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
    /// Time to load and optimise it.
    pub load_us: u64,
}

/// Asks an agent whether it can run a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCheck {
    /// The ONNX file.
    pub model: Digest,
    /// Its size.
    pub model_bytes: u64,
    /// Input facts given by its user.
    pub inputs: Vec<TensorSpec>,
    /// Memory of the guarded child.
    pub memory: ByteSize,
}

/// A short invocation, many to a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Names the reply; unique within the stream.
    pub id: u64,
    /// Time left for it.
    pub deadline_ms: u32,
    /// What to call.
    pub target: Target,
}

/// What a call invokes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// A fresh instance of a module; input is its stdin, its stdout the output.
    Module {
        /// The module.
        module: Digest,
        /// The module's size.
        module_bytes: u64,
        /// Most linear memory.
        memory_bytes: u64,
        /// Most CPU time, ms; 0 = the call's deadline.
        cpu_ms: u32,
        /// Standard input.
        input: Bytes,
    },
    /// An inference by a model instance of this node.
    Model {
        /// The instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
        /// Inputs in the model's order.
        inputs: Vec<Tensor>,
    },
    /// Gives up a call in flight, if it is still possible. Has no reply of its own.
    Cancel {
        /// The call to give up.
        id: u64,
    },
    /// A request to a service's instance of this node.
    Service {
        /// The instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
        /// The request.
        request: super::ServiceRequest,
    },
    /// A message to a service's instance of this node.
    Message {
        /// The instance.
        instance: InstanceId,
        /// Its epoch.
        epoch: Epoch,
        /// The message.
        message: super::TopicMessage,
    },
}

/// Answers a [`Call`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The call's id.
    pub id: u64,
    /// Its outcome.
    pub result: Result<CallResult, Problem>,
}

/// What a call gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CallResult {
    /// A module ran to its end.
    Module {
        /// Its exit code.
        exit: i32,
        /// Standard output.
        output: Bytes,
        /// What it used.
        usage: Usage,
    },
    /// An inference.
    Model {
        /// Outputs in the model's order.
        outputs: Vec<Tensor>,
        /// Time in the model.
        infer_us: u64,
    },
    /// A service's answer, as durable as it asks for.
    Service(super::ServiceReply),
    /// A message was handled.
    Delivered,
}

/// The newest sample of a node, as the coordinator shows it.
pub type LatestSample = Option<Sample>;
