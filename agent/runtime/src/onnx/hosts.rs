//! The models of one node: a bounded set of guarded children, the least used given up first.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hop3_common::{
    id::Digest,
    tensor::{Tensor, TensorSpec},
};

use super::{Error, Facts, HostOptions, Inference, Memory, ModelHost, Source};

/// What makes two deployments share a child: the same bytes, described and limited alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// The artifact.
    pub digest: Digest,
    /// The manifest's description of its inputs.
    pub specs: Vec<TensorSpec>,
    /// Its memory limit, bytes.
    pub memory_bytes_max: u64,
}

/// A child, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildStatus {
    /// Its model.
    pub digest: Digest,
    /// Its process.
    pub pid: u32,
    /// Its memory, where it can be read.
    pub memory: Option<Memory>,
}

/// At most so many models at a time, each in its own child.
#[derive(Debug)]
pub struct ModelHosts {
    options: HostOptions,
    children_max: usize,
    /// Least recently used first.
    hosts: Mutex<Vec<(ModelKey, Arc<ModelHost>)>>,
}

impl ModelHosts {
    /// An empty set; `options.memory_bytes_max` is replaced by each model's own.
    #[must_use]
    pub fn new(options: HostOptions, children_max: usize) -> Self {
        Self {
            options,
            children_max: children_max.max(1),
            hosts: Mutex::default(),
        }
    }

    /// Runs a model, starting its child if needed. `source` is kept for
    /// later starts. Blocks; see [`ModelHost::infer`].
    ///
    /// # Errors
    /// [`Error::Crowded`] if all children are busy with other models, else as the host.
    pub fn infer(
        &self,
        key: &ModelKey,
        source: &Source,
        inputs: Vec<Tensor>,
        limit: Duration,
    ) -> Result<Inference, Error> {
        // A host may be given up between being found and being used: then there is a free place.
        match self.host(key, source)?.infer(inputs.clone(), limit) {
            Err(Error::Retired) => self.host(key, source)?.infer(inputs, limit),
            result => result,
        }
    }

    /// Loads a model and says what it takes and gives, and its load time in microseconds.
    ///
    /// # Errors
    /// As [`ModelHosts::infer`].
    pub fn load(&self, key: &ModelKey, source: &Source) -> Result<(Facts, u64), Error> {
        self.host(key, source)?.load()
    }

    /// The host of a model, made if there is none.
    fn host(&self, key: &ModelKey, source: &Source) -> Result<Arc<ModelHost>, Error> {
        let mut hosts = self.hosts();
        if let Some(at) = hosts.iter().position(|(other, _)| other == key) {
            let entry = hosts.remove(at);
            let host = entry.1.clone();
            hosts.push(entry);
            return Ok(host);
        }
        let mut given_up = None;
        if hosts.len() >= self.children_max {
            let idle = hosts.iter().position(|(_, host)| !host.is_busy());
            let at = idle.ok_or(Error::Crowded {
                children_max: self.children_max,
            })?;
            given_up = Some(hosts.remove(at));
        }
        let options = HostOptions {
            memory_bytes_max: key.memory_bytes_max,
            ..self.options.clone()
        };
        let host = Arc::new(ModelHost::new(options, key.specs.clone(), source.clone()));
        hosts.push((key.clone(), host.clone()));
        drop(hosts);
        if let Some((_, host)) = given_up {
            host.retire();
        }
        Ok(host)
    }

    /// Ends the child of a model that is no longer deployed, once its current call is done.
    pub fn remove(&self, key: &ModelKey) {
        let removed = {
            let mut hosts = self.hosts();
            let at = hosts.iter().position(|(other, _)| other == key);
            at.map(|at| hosts.remove(at))
        };
        if let Some((_, host)) = removed {
            host.retire();
        }
    }

    /// Ends the children that nobody has used for long; to be called every few seconds.
    pub fn stop_idle(&self, now: Instant) {
        let hosts: Vec<_> = self.hosts().iter().map(|(_, host)| host.clone()).collect();
        for host in hosts {
            host.stop_if_idle(now);
        }
    }

    /// The children that there are now.
    #[must_use]
    pub fn children(&self) -> Vec<ChildStatus> {
        let hosts = self.hosts().clone();
        let status = |(key, host): &(ModelKey, Arc<ModelHost>)| {
            let pid = host.pid()?;
            Some(ChildStatus {
                digest: key.digest,
                pid,
                memory: host.memory(),
            })
        };
        hosts.iter().filter_map(status).collect()
    }

    fn hosts(&self) -> MutexGuard<'_, Vec<(ModelKey, Arc<ModelHost>)>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
