//! What time alone brings about: nodes get lost, failed replicas are tried again, nobody watches
//! any more, ended tasks and unnamed blobs go. Each round looks at levels, so a missed one does no
//! harm.

use std::time::Duration;

use hop3_common::id::UnixMs;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{Core, artifacts, models, registry, services, tasks};

/// Time between rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Time between looks for leases that are over: it adds to the time until an instance goes on.
const LAPSES: Duration = Duration::from_millis(100);
/// Time between collections of records and blobs: they walk over everything.
const COLLECT: Duration = Duration::from_secs(600);

impl Core {
    /// Sweeps until `shutdown`.
    pub async fn sweep(&self, shutdown: CancellationToken) {
        let mut round = interval(ROUND);
        let mut lapses = interval(LAPSES);
        lapses.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut collect = interval_at(Instant::now() + COLLECT, COLLECT);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = lapses.tick() => services::fail_over_due(self).await,
                _ = round.tick() => self.sweep_once(UnixMs::now()).await,
                _ = collect.tick() => self.collect(UnixMs::now()).await,
            }
        }
    }

    /// One round, as of `now`.
    pub(crate) async fn sweep_once(&self, now: UnixMs) {
        registry::watch_expired(self, now);
        tasks::nodes_lost(self, now).await;
        models::retry_due(self, now).await;
        services::sweep(self, now).await;
        tasks::place_left_over(self).await;
    }

    /// Drops what is kept no longer.
    pub(crate) async fn collect(&self, now: UnixMs) {
        if let Err(problem) = tasks::expire(self, now).await {
            tracing::warn!(%problem, "ended tasks not dropped");
        }
        if let Err(problem) = artifacts::collect(self).await {
            tracing::warn!(%problem, "blobs not collected");
        }
    }
}
