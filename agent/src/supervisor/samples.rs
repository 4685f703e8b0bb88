//! Work for tests.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use hop3_common::{
    id::{Digest, InstanceId, UnixMs},
    ownership::{Epoch, Token},
    spec::{ByteSize, Durability, KeyFrom, Limits, Millis, Retry, ServiceLimits, State},
    wire::{Assignment, Checkpoint, ModelWork, ServiceWork, StdinSource, TaskWork, Work},
};

use super::core::Input;

pub(crate) fn task(retry: Retry) -> TaskWork {
    TaskWork {
        module: Digest::of(b"module"),
        module_bytes: 6,
        program: "p".into(),
        args: vec![],
        env: BTreeMap::new(),
        stdin: StdinSource::Empty,
        limits: Limits::default(),
        volumes: vec![],
        retry,
    }
}

pub(crate) fn model() -> ModelWork {
    ModelWork {
        name: "m".parse().unwrap(),
        version: 1,
        model: Digest::of(b"model"),
        model_bytes: 5,
        inputs: vec![],
        memory: ByteSize::mib(64),
        deadline: Millis::secs(1),
    }
}

/// A single, durable one.
pub(crate) fn service() -> ServiceWork {
    ServiceWork {
        name: "s".parse().unwrap(),
        index: 0,
        count: 1,
        revision: 1,
        module: Digest::of(b"service"),
        module_bytes: 7,
        state: State::Single,
        key: KeyFrom::default(),
        durability: Durability::Node,
        fence: None,
        checkpoint_every: Millis(0),
        checkpoint_keep: 1,
        env: BTreeMap::new(),
        subscribe: vec![],
        publish: vec![],
        calls: vec![],
        volumes: vec![],
        public: false,
        limits: ServiceLimits::default(),
        restore: None,
    }
}

pub(crate) fn assign(instance: InstanceId, epoch: u64, work: Work) -> Input {
    Input::Assign(Box::new(Assignment {
        instance,
        epoch: Epoch(epoch),
        work,
    }))
}

/// A checkpoint that `token` made.
pub(crate) fn made(token: Token) -> Checkpoint {
    Checkpoint {
        token,
        seq: 1,
        at: UnixMs(1),
        schema: 1,
        parts: vec![],
    }
}
