//! The leases of this node's fenced instances: asked for over the session, counted on the
//! boot-time clock, which runs on while the machine sleeps. The rules are
//! [`hop3_common::ownership::Holder`]'s.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hop3_common::{
    clock::boot_now,
    id::InstanceId,
    ownership::{BootMs, Holder, Token},
    spec::Millis,
    wire::{LEASES_MAX, Up},
};
use tokio::{sync::watch, time::Instant};

/// Renewals per lease.
const PER_LEASE: u32 = 4;
/// Longest sleep: after a suspend the boot-time clock is ahead of the timers.
const LOOK: Duration = Duration::from_millis(250);

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub struct Leases(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Grows when a lease is wanted or granted.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    holder: Holder<InstanceId>,
    wanted: BTreeMap<InstanceId, (Token, Millis)>,
    /// Somebody waits for a first lease.
    urgent: bool,
    asked: Option<Instant>,
}

/// The lease of one run. Given up when dropped.
pub struct Lease {
    leases: Leases,
    instance: InstanceId,
    token: Token,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        // It changes in single steps.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Wants a lease for a run from now on. It is not held yet.
    #[must_use]
    pub fn want(&self, instance: &InstanceId, token: Token, ttl: Millis) -> Lease {
        let mut state = self.state();
        state.wanted.insert(instance.clone(), (token, ttl));
        state.urgent = true;
        drop(state);
        self.changed();
        Lease {
            leases: self.clone(),
            instance: instance.clone(),
            token,
        }
    }

    /// A session stands: whoever waits asks at once.
    pub fn session(&self) {
        self.state().urgent = true;
        self.changed();
    }

    /// Waits until leases should be asked for. Cancel-safe.
    pub async fn due(&self) {
        let mut changed = self.0.changed.subscribe();
        loop {
            let wait = {
                let state = self.state();
                let shortest = state.wanted.values().map(|(_, ttl)| ttl.0).min();
                match (shortest, state.asked) {
                    (None, _) => None,
                    (Some(_), None) => Some(Duration::ZERO),
                    (Some(_), _) if state.urgent => Some(Duration::ZERO),
                    (Some(ms), Some(asked)) => Some(
                        (Duration::from_millis(ms) / PER_LEASE).saturating_sub(asked.elapsed()),
                    ),
                }
            };
            match wait {
                Some(Duration::ZERO) => return,
                Some(wait) => drop(tokio::time::timeout(wait, changed.changed()).await),
                None => drop(changed.changed().await),
            }
        }
    }

    /// The request to be sent now.
    #[must_use]
    pub fn request(&self) -> Option<Up> {
        let mut state = self.state();
        (state.urgent, state.asked) = (false, Some(Instant::now()));
        if state.wanted.is_empty() {
            return None;
        }
        let wanted = state.wanted.iter().take(LEASES_MAX);
        let runs = wanted
            .map(|(id, (token, _))| (id.clone(), *token))
            .collect();
        let number = state.holder.ask(boot_now());
        Some(Up::Leases { number, runs })
    }

    /// A request was answered.
    pub fn granted(&self, number: u64, runs: Vec<(InstanceId, Token, u32)>) {
        let mut state = self.state();
        for (instance, token, ttl_ms) in runs {
            // Whoever gave up its lease does not get it back by a late answer.
            if state
                .wanted
                .get(&instance)
                .is_some_and(|(of, _)| *of == token)
            {
                state
                    .holder
                    .granted(number, &instance, token, ttl_ms.into());
            }
        }
        drop(state);
        self.changed();
    }
}

impl Lease {
    /// When it ends; `None` if it was never granted.
    fn until(&self) -> Option<BootMs> {
        self.leases.state().holder.until(&self.instance, self.token)
    }

    /// Whether the run may go on, and let effects out, now.
    #[must_use]
    pub fn holds(&self) -> bool {
        let state = self.leases.state();
        state.holder.holds(&self.instance, self.token, boot_now())
    }

    /// Waits until it is held.
    pub async fn held(&self) {
        let mut changed = self.leases.0.changed.subscribe();
        while !self.holds() {
            // The sender is in `self`.
            let _ = changed.changed().await;
        }
    }

    /// Waits until it has ended. Cancel-safe.
    pub async fn ended(&self) {
        loop {
            let left_ms = self
                .until()
                .map_or(0, |until| until.0.saturating_sub(boot_now().0));
            if left_ms == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left_ms).min(LOOK)).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        let mine = |(token, _): &(Token, Millis)| *token == self.token;
        if state.wanted.get(&self.instance).is_some_and(mine) {
            state.wanted.remove(&self.instance);
            state.holder.forget(&self.instance);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hop3_common::ownership::{Epoch, Incarnation};

    use super::*;

    fn run(incarnation: u64) -> Token {
        Token {
            epoch: Epoch(1),
            incarnation: Incarnation(incarnation),
        }
    }

    fn answer(leases: &Leases, ttl_ms: u32) {
        let Some(Up::Leases { number, runs }) = leases.request() else {
            panic!("nothing is asked for");
        };
        let granted = runs.into_iter().map(|(id, token)| (id, token, ttl_ms));
        leases.granted(number, granted.collect());
    }

    #[tokio::test]
    async fn a_lease_is_asked_for_held_and_ends() {
        let leases = Leases::default();
        let instance: InstanceId = "service/s/0".parse().unwrap();
        let lease = leases.want(&instance, run(1), Millis(1_000));
        leases.due().await;
        assert!(!lease.holds());
        answer(&leases, 60_000);
        lease.held().await;
        // The next run has to ask for itself.
        let next = leases.want(&instance, run(2), Millis(1_000));
        assert!(!next.holds());
        drop(lease);
        leases.due().await;
        answer(&leases, 60_000);
        assert!(next.holds(), "giving up the old one took nothing from it");
        drop(next);
        assert!(leases.request().is_none());
    }

    #[tokio::test]
    async fn it_ends_by_itself() {
        let leases = Leases::default();
        let instance: InstanceId = "service/s/0".parse().unwrap();
        let lease = leases.want(&instance, run(1), Millis(1_000));
        answer(&leases, 30);
        lease.held().await;
        lease.ended().await;
        assert!(!lease.holds());
    }
}
