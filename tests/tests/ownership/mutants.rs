//! The rules, each broken by a switch.

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mutant {
    SealNotDurable,
    RunsOnWhenSealed,
    LeaseFromReceipt,
    NoDriftMargin,
    NoWait,
    NoWaitAfterRestart,
    GrantToAnybody,
    NoLeaseCheck,
    NoBar,
    NoIncarnation,
    BeginNotDurable,
    FencedKeepsIncarnation,
    AckBeforeLocal,
    AckBeforeReplica,
    ReplicaNotSealed,
    ReplicaNotAskingRecord,
    StaleBaseTaken,
    LesserBaseTaken,
    StaleChangeTaken,
    AnyStreamWrites,
    LateRemoval,
    StaleCheckpointTaken,
    StaleSealedTaken,
    StaleEffectTaken,
    SinkWithoutFence,
    StaleAssignTaken,
    SameEpoch,
    BlindCommit,
}
