//! A closed loop of requests: as many connections as requests in flight, each asks again as soon
//! as it was answered.
//!
//! All of it on one thread, so that the load takes at most one core.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;

use crate::{
    cast,
    figures::percentile,
    http::{Answer, Api},
};

/// What one run of load saw.
pub(crate) struct Seen {
    /// Answers per second.
    pub(crate) per_s: f64,
    /// Median latency.
    pub(crate) p50_ms: f64,
    /// 99th percentile of latency.
    pub(crate) p99_ms: f64,
    /// Median of the answers' `hop3-wall-us`, if they say it.
    pub(crate) node_us: Option<f64>,
}

/// What is asked and how.
pub(crate) struct Load {
    /// Of whom.
    pub(crate) api: Api,
    /// The request's bytes.
    pub(crate) request: Bytes,
    /// The expected answer's body.
    pub(crate) expected: Bytes,
    /// Connections.
    pub(crate) in_flight: usize,
}

/// One connection's latencies, and times on the node, microseconds.
type Times = (Vec<u32>, Vec<u32>);

impl Load {
    /// Runs the load: `warm_up`, then `window`, whose answers count.
    pub(crate) fn run(self, warm_up: Duration, window: Duration) -> Result<Seen> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(self.drive(warm_up, window))
    }

    async fn drive(self, warm_up: Duration, window: Duration) -> Result<Seen> {
        let in_flight = self.in_flight;
        let load = Arc::new(self);
        let mut connections = Vec::new();
        for _ in 0..in_flight {
            connections.push(load.api.connect().await.context("cannot connect")?);
        }
        let from = Instant::now() + warm_up;
        let until = from + window;
        let mut tasks = tokio::task::JoinSet::new();
        for mut connection in connections {
            let load = load.clone();
            tasks.spawn(async move {
                let (mut latencies, mut on_node): Times = Default::default();
                loop {
                    let asked = Instant::now();
                    if asked >= until {
                        return anyhow::Ok((latencies, on_node));
                    }
                    let answer = connection.ask(&load.request).await?;
                    let done = Instant::now();
                    load.check(&answer)?;
                    if asked >= from && done <= until {
                        latencies.push(us(done - asked));
                        let wall = answer
                            .header("hop3-wall-us")
                            .and_then(|us| us.parse::<u32>().ok());
                        on_node.extend(wall.filter(|_| in_flight == 1));
                    }
                }
            });
        }
        let (mut latencies, mut on_node): Times = Default::default();
        while let Some(done) = tasks.join_next().await {
            let (some, nodes) = done??;
            latencies.extend(some);
            on_node.extend(nodes);
        }
        anyhow::ensure!(!latencies.is_empty(), "no answer within {window:?}");
        let ms = |us: u32| f64::from(us) / 1e3;
        Ok(Seen {
            per_s: cast::figure(latencies.len() as u64) / window.as_secs_f64(),
            p50_ms: ms(percentile(&mut latencies, 500)),
            p99_ms: ms(percentile(&mut latencies, 990)),
            node_us: (!on_node.is_empty()).then(|| f64::from(percentile(&mut on_node, 500))),
        })
    }

    fn check(&self, answer: &Answer) -> Result<()> {
        anyhow::ensure!(
            answer.status == 200 && answer.body == self.expected,
            "a wrong answer, status {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)])
        );
        Ok(())
    }
}

fn us(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
