//! What this node is and how it does: facts at the start, samples at the pace that the
//! coordinator asks for. Slow when nobody looks; nothing of it touches the disk.
//!
//! Samples gather in a ring; each session sends what has gathered as compact batches. When the
//! network is slow the oldest samples go first.

mod lag;
mod sampler;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hop3_common::wire::{
    StreamHeader, TELEMETRY_FRAME_MAX, io,
    telemetry::{Batch, SAMPLES_MAX, Sample},
};
pub use lag::Lag;
use quinn::Connection;
pub use sampler::{Sampler, facts, memory_bytes};
use tokio::sync::watch;

/// Fastest sampling, ms.
const SAMPLE_MS_MIN: u32 = 250;
/// Slowest sampling and batching, ms.
const PACE_MS_MAX: u32 = 600_000;
/// Without a coordinator's wish, ms.
const PACE_MS_ALONE: u32 = 10_000;
/// Below control and calls, above blobs.
const PRIORITY: i32 = 0;

/// Time between samples and between batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    sample_ms: u32,
    batch_ms: u32,
}

impl Pace {
    /// A pace within bounds: a batch holds at least one sample and at most [`SAMPLES_MAX`].
    #[must_use]
    pub fn new(sample_ms: u32, batch_ms: u32) -> Self {
        let sample_ms = sample_ms.clamp(SAMPLE_MS_MIN, PACE_MS_MAX);
        let most = sample_ms
            .saturating_mul(SAMPLES_MAX as u32)
            .min(PACE_MS_MAX);
        Self {
            sample_ms,
            batch_ms: batch_ms.clamp(sample_ms, most.max(sample_ms)),
        }
    }

    fn sample(self) -> Duration {
        Duration::from_millis(self.sample_ms.into())
    }

    fn batch(self) -> Duration {
        Duration::from_millis(self.batch_ms.into())
    }
}

/// The newest samples; the oldest go when it is full.
#[derive(Debug, Default)]
struct Ring(VecDeque<Sample>);

impl Ring {
    fn push(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    fn take(&mut self) -> Vec<Sample> {
        self.0.drain(..).collect()
    }
}

/// Clones share the same ring and pace.
#[derive(Clone)]
pub struct Telemetry {
    ring: Arc<Mutex<Ring>>,
    pace: Arc<watch::Sender<Pace>>,
}

impl Default for Telemetry {
    fn default() -> Self {
        let pace = watch::Sender::new(Pace::new(PACE_MS_ALONE, PACE_MS_ALONE));
        Self {
            ring: Arc::default(),
            pace: Arc::new(pace),
        }
    }
}

impl Telemetry {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Samples are pushed and taken whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the coordinator asks for.
    pub fn set_pace(&self, pace: Pace) {
        self.pace
            .send_if_modified(|now| std::mem::replace(now, pace) != pace);
    }

    /// Nobody looks.
    pub fn alone(&self) {
        self.set_pace(Pace::new(PACE_MS_ALONE, PACE_MS_ALONE));
    }

    /// Takes samples at the current pace, for ever. `own` gives what only the agent knows.
    pub async fn sample(
        self,
        mut sampler: Sampler,
        own: impl Fn() -> Own + Clone + Send + 'static,
    ) {
        let mut pace = self.pace.subscribe();
        loop {
            // Sensors and other processes may be slow to look at.
            let own = own.clone();
            let sampled = tokio::task::spawn_blocking(move || {
                let sample = sampler.sample(own());
                (sampler, sample)
            });
            let Ok((again, sample)) = sampled.await else {
                return;
            };
            sampler = again;
            self.ring().push(sample);
            let wait = pace.borrow_and_update().sample();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = pace.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends batches over one session, until it ends.
    pub async fn send(self, connection: Connection) -> Result<(), io::Error> {
        let mut stream = connection.open_uni().await.map_err(std::io::Error::from)?;
        let _ = stream.set_priority(PRIORITY);
        io::write(&mut stream, &StreamHeader::Telemetry, TELEMETRY_FRAME_MAX).await?;
        let mut pace = self.pace.subscribe();
        loop {
            let wait = pace.borrow_and_update().batch();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = pace.changed() => if changed.is_err() { return Ok(()) },
            }
            let samples = self.ring().take();
            if !samples.is_empty() {
                io::write(&mut stream, &Batch::encode(&samples), TELEMETRY_FRAME_MAX).await?;
            }
        }
    }
}

/// What only the agent knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own {
    /// Runs in hand.
    pub instances: u32,
    /// Resident memory of model children, bytes.
    pub models_rss_bytes: u64,
    /// How late its event loop is: [`Lag::p99_ms`].
    pub loop_delay_p99_ms: u32,
}

#[cfg(test)]
mod tests {
    use hop3_common::id::UnixMs;

    use super::*;

    #[test]
    fn the_newest_samples_stay() {
        let mut ring = Ring::default();
        for at in 0..SAMPLES_MAX as u64 + 10 {
            ring.push(Sample {
                at: UnixMs(at),
                ..Sample::default()
            });
        }
        let samples = ring.take();
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert_eq!(samples[0].at, UnixMs(10));
        assert!(ring.take().is_empty());
    }

    #[test]
    fn any_wish_becomes_a_possible_pace() {
        assert_eq!(
            Pace::new(0, 0),
            Pace {
                sample_ms: 250,
                batch_ms: 250
            }
        );
        assert_eq!(
            Pace::new(1000, u32::MAX),
            Pace {
                sample_ms: 1000,
                batch_ms: 128_000
            }
        );
        assert_eq!(
            Pace::new(u32::MAX, 0),
            Pace {
                sample_ms: 600_000,
                batch_ms: 600_000
            }
        );
    }
}
