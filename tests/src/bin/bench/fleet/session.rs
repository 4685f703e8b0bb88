//! Sessions of fake agents: they introduce themselves, hold nothing, take what comes, and report
//! telemetry at the pace asked for, or at a pace of the benchmark's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hop3_common::{
    id::UnixMs,
    wire::{
        CONTROL_FRAME_MAX, Down, HEADER_FRAME_MAX, Hello, NodeFacts, PROTOCOL, StreamHeader,
        TELEMETRY_FRAME_MAX, Up,
        io::{self, FrameReader},
        telemetry::{Batch, SAMPLES_MAX, Sample},
    },
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{Door, Member, enroll::PATIENCE};

/// Handshakes at once: below where the coordinator asks strangers to prove their address.
const AT_ONCE: usize = 48;
/// Tries before a session that is not welcomed is an error.
const TRIES_MAX: u32 = 6;

/// How fake agents report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As the coordinator asks.
    Asked,
    /// A batch of one sample each time.
    Every(Duration),
    /// Not at all.
    Silent,
}

/// Connected fake agents; they disconnect when it is dropped.
pub(crate) struct Fleet {
    tasks: JoinSet<Result<()>>,
    pace: watch::Sender<Pace>,
    sent: Arc<AtomicU64>,
    ended: Arc<AtomicUsize>,
}

/// A session that stands.
struct Session {
    connection: Connection,
    /// The control stream ends when this is dropped.
    _control: SendStream,
    frames: FrameReader<RecvStream>,
    sample_ms: u32,
    batch_ms: u32,
}

impl Fleet {
    /// Connects all of `members`.
    pub(crate) async fn connect(door: &Door, members: &[Member]) -> Result<Self> {
        let (pace, _) = watch::channel(Pace::Asked);
        let mut fleet = Self {
            tasks: JoinSet::new(),
            pace,
            sent: Arc::default(),
            ended: Arc::default(),
        };
        let opening = stream::iter(members).map(|member| open_patiently(door, member));
        let mut opening = std::pin::pin!(opening.buffer_unordered(AT_ONCE));
        let mut number = 0_u32;
        while let Some(session) = opening.try_next().await? {
            let (pace, sent) = (fleet.pace.subscribe(), fleet.sent.clone());
            let ended = fleet.ended.clone();
            // Spread over the whole period, as in a fleet that has run for long.
            let phase = f64::from(number) / members.len().max(1) as f64;
            number += 1;
            fleet.tasks.spawn(async move {
                let end = session.live(pace, &sent, phase).await;
                ended.fetch_add(1, Relaxed);
                end
            });
        }
        Ok(fleet)
    }

    /// Changes how all report, from now on.
    pub(crate) fn set_pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Batches sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// An error if any session has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.ended.load(Relaxed) == 0 {
            return Ok(());
        }
        match self.tasks.try_join_next() {
            Some(Ok(Err(error))) => Err(error.context("a fake agent's session ended")),
            _ => bail!("a fake agent's session ended"),
        }
    }
}

async fn open_patiently(door: &Door, member: &Member) -> Result<Session> {
    let mut last = None;
    for attempt in 0..TRIES_MAX {
        match tokio::time::timeout(PATIENCE, open(door, member)).await? {
            Ok(session) => return Ok(session),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no session")))
}

async fn open(door: &Door, member: &Member) -> Result<Session> {
    let connection = door.dial(&member.config).await?;
    let (mut send, recv) = connection.open_bi().await?;
    let hello = Up::Hello(Hello {
        protocol: PROTOCOL,
        node: member.node.clone(),
        agent_version: "bench".to_owned(),
        boot_id: [7; 16],
        outbox: [7; 16],
        facts: facts(member.node.as_str()),
    });
    io::write(&mut send, &StreamHeader::Control, HEADER_FRAME_MAX).await?;
    io::write(&mut send, &hello, CONTROL_FRAME_MAX).await?;
    let mut frames = FrameReader::new(recv, CONTROL_FRAME_MAX);
    let (sample_ms, batch_ms) = match frames.next::<Down>().await? {
        Some(Down::Welcome(welcome)) => (welcome.sample_ms, welcome.batch_ms),
        Some(Down::Refused(problem)) => bail!("refused: {problem}"),
        other => bail!("no welcome: {other:?}"),
    };
    io::write(&mut send, &Up::Inventory(Vec::new()), CONTROL_FRAME_MAX).await?;
    Ok(Session {
        connection,
        _control: send,
        frames,
        sample_ms,
        batch_ms,
    })
}

/// What a small machine says of itself. It can run nothing, so that nothing is placed on it.
fn facts(host: &str) -> NodeFacts {
    NodeFacts {
        hostname: host.to_owned(),
        os: "Debian GNU/Linux 12".to_owned(),
        kernel: "6.1.0".to_owned(),
        arch: "aarch64".to_owned(),
        cpus: 4,
        memory_kib: 4 << 20,
        disk_kib: 32 << 20,
        tasks_max: 8,
        ..NodeFacts::default()
    }
}

impl Session {
    /// Until the connection ends; that is an error.
    async fn live(
        mut self,
        mut pace: watch::Receiver<Pace>,
        sent: &AtomicU64,
        phase: f64,
    ) -> Result<()> {
        let mut telemetry = self.connection.open_uni().await?;
        io::write(
            &mut telemetry,
            &StreamHeader::Telemetry,
            TELEMETRY_FRAME_MAX,
        )
        .await?;
        let first = |period: Duration| Instant::now() + period.mul_f64(phase);
        let mut ticks = 0;
        let mut at = {
            let now = *pace.borrow_and_update();
            period(now, self.batch_ms).map(first)
        };
        loop {
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let now = *pace.borrow();
                    let samples = self.samples(&mut ticks, now);
                    io::write(&mut telemetry, &Batch::encode(&samples), TELEMETRY_FRAME_MAX)
                        .await?;
                    sent.fetch_add(1, Relaxed);
                    // On a grid, but never a burst to make up for time lost.
                    let next = at.zip(period(now, self.batch_ms)).map(|(at, p)| at + p);
                    at = next.map(|next| next.max(Instant::now()));
                }
                changed = pace.changed() => {
                    changed.context("the fleet is gone")?;
                    at = period(*pace.borrow_and_update(), self.batch_ms).map(first);
                }
                down = self.frames.next::<Down>() => match down? {
                    Some(Down::Telemetry { sample_ms, batch_ms }) => {
                        (self.sample_ms, self.batch_ms) = (sample_ms, batch_ms);
                    }
                    Some(_) => {}
                    None => bail!("the coordinator ended the control stream"),
                },
            }
        }
    }

    /// What a batch holds at this pace.
    fn samples(&self, ticks: &mut u64, pace: Pace) -> Vec<Sample> {
        let count = match pace {
            Pace::Asked => u64::from(self.batch_ms / self.sample_ms.max(1)),
            Pace::Every(_) | Pace::Silent => 1,
        };
        let (now, count) = (UnixMs::now().0, count.clamp(1, SAMPLES_MAX as u64));
        let oldest = now - (count - 1) * u64::from(self.sample_ms);
        let at = (0..count).map(|i| UnixMs(oldest + i * u64::from(self.sample_ms)));
        at.map(|at| {
            *ticks += 1;
            sample(*ticks, at)
        })
        .collect()
    }
}

fn period(pace: Pace, batch_ms: u32) -> Option<Duration> {
    match pace {
        Pace::Asked => Some(Duration::from_millis(u64::from(batch_ms.max(1)))),
        Pace::Every(period) => Some(period),
        Pace::Silent => None,
    }
}

/// A sample of a quiet machine: each field moves a little.
fn sample(tick: u64, at: UnixMs) -> Sample {
    // Some digits that repeat seldom.
    let noise = tick.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    Sample {
        at,
        cpu_permille: 10 + noise as u32 % 16,
        memory_used_kib: 900_000 + noise,
        disk_used_kib: 8_000_000 + tick,
        net_rx_bytes_per_s: 300 + noise,
        net_tx_bytes_per_s: 200 + noise,
        temperature_decicelsius: Some(420 + (noise % 8) as i32),
        load1_centi: 5 + noise as u32 % 4,
        instances: 0,
        agent_rss_kib: 14_000,
        models_rss_kib: 0,
        loop_delay_p99_ms: 2,
    }
}
