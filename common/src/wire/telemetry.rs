//! Compact telemetry: samples as zigzag deltas to the one before, in varints.
//!
//! An idle node's sample costs about as many bytes as it has fields. Batches stand alone: a lost
//! one costs its samples only. Fields are only appended: how many there are shows in the batch, what
//! an older agent does not send is 0, and what a newer one adds is passed over.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::UnixMs;

/// Most samples in a batch.
pub const SAMPLES_MAX: usize = 128;
/// Fields of a sample.
const FIELDS: usize = 12;
/// Fields of the first samples there were: a batch has at least these.
const FIELDS_MIN: usize = 11;
/// More would be no sample.
const FIELDS_MAX: usize = 64;

/// One look at a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    /// When, on the node's clock.
    pub at: UnixMs,
    /// Busy CPU in thousandths of the whole machine.
    pub cpu_permille: u32,
    /// Memory in use, KiB.
    pub memory_used_kib: u64,
    /// Disk in use on the data directory's file system, KiB.
    pub disk_used_kib: u64,
    /// Bytes received per second, all interfaces but loopback.
    pub net_rx_bytes_per_s: u64,
    /// Bytes sent per second.
    pub net_tx_bytes_per_s: u64,
    /// Hottest sensor in tenths of a degree Celsius, where the machine has one.
    pub temperature_decicelsius: Option<i32>,
    /// One-minute load in hundredths.
    pub load1_centi: u32,
    /// Instances running.
    pub instances: u32,
    /// The agent's own resident memory, KiB.
    pub agent_rss_kib: u32,
    /// Resident memory of model children, KiB.
    pub models_rss_kib: u32,
    /// How late the agent's event loop is: 99 % of its wake-ups of about the last minute were at
    /// most so late, ms.
    #[serde(default)]
    pub loop_delay_p99_ms: u32,
}

/// Encoded samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Number of samples, at most [`SAMPLES_MAX`].
    pub count: u16,
    /// Zigzag varint deltas, field by field, sample by sample.
    #[serde(with = "serde_bytes_compat")]
    pub data: Vec<u8>,
}

/// `Vec<u8>` as one byte string.
mod serde_bytes_compat {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(data: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(data)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        bytes::Bytes::deserialize(d).map(Into::into)
    }
}

/// Why a batch does not decode.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a telemetry batch is malformed")]
pub struct Malformed;

impl Batch {
    /// Encodes the newest [`SAMPLES_MAX`] of `samples`.
    #[must_use]
    pub fn encode(samples: &[Sample]) -> Self {
        let samples = &samples[samples.len().saturating_sub(SAMPLES_MAX)..];
        let mut data = Vec::with_capacity(samples.len() * FIELDS * 2);
        let mut last = [0i64; FIELDS];
        for sample in samples {
            let fields = fields_of(sample);
            for (field, last) in fields.iter().zip(&mut last) {
                put_varint(&mut data, zigzag(field.wrapping_sub(*last)));
                *last = *field;
            }
        }
        Self {
            count: samples.len() as u16,
            data,
        }
    }

    /// The samples.
    pub fn decode(&self) -> Result<Vec<Sample>, Malformed> {
        if usize::from(self.count) > SAMPLES_MAX {
            return Err(Malformed);
        }
        let fields = self.fields()?;
        let mut rest = self.data.as_slice();
        let mut last = [0i64; FIELDS_MAX];
        let mut samples = Vec::with_capacity(usize::from(self.count));
        for _ in 0..self.count {
            for last in &mut last[..fields] {
                *last = last.wrapping_add(unzigzag(take_varint(&mut rest)?));
            }
            samples.push(sample_of(&last).ok_or(Malformed)?);
        }
        if rest.is_empty() {
            Ok(samples)
        } else {
            Err(Malformed)
        }
    }

    /// Fields of each sample, by the number of varints that there are.
    fn fields(&self) -> Result<usize, Malformed> {
        let varints = self.data.iter().filter(|byte| **byte < 0x80).count();
        let Some(fields) = varints.checked_div(usize::from(self.count)) else {
            return Ok(FIELDS);
        };
        let whole = varints.is_multiple_of(usize::from(self.count));
        match (FIELDS_MIN..=FIELDS_MAX).contains(&fields) && whole {
            true => Ok(fields),
            false => Err(Malformed),
        }
    }
}

fn fields_of(s: &Sample) -> [i64; FIELDS] {
    [
        s.at.0 as i64,
        i64::from(s.cpu_permille),
        s.memory_used_kib as i64,
        s.disk_used_kib as i64,
        s.net_rx_bytes_per_s as i64,
        s.net_tx_bytes_per_s as i64,
        // 0 = no sensor; otherwise the reading moved away from 0.
        s.temperature_decicelsius
            .map_or(0, |t| i64::from(t) + 10_000),
        i64::from(s.load1_centi),
        i64::from(s.instances),
        i64::from(s.agent_rss_kib),
        i64::from(s.models_rss_kib),
        i64::from(s.loop_delay_p99_ms),
    ]
}

/// The sample of these fields; none if one is wider than its type.
fn sample_of(f: &[i64; FIELDS_MAX]) -> Option<Sample> {
    let narrow = |field: i64| u32::try_from(field).ok();
    let temperature = match f[6] {
        0 => None,
        field => Some(i32::try_from(field.checked_sub(10_000)?).ok()?),
    };
    Some(Sample {
        at: UnixMs(f[0] as u64),
        cpu_permille: narrow(f[1])?,
        memory_used_kib: f[2] as u64,
        disk_used_kib: f[3] as u64,
        net_rx_bytes_per_s: f[4] as u64,
        net_tx_bytes_per_s: f[5] as u64,
        temperature_decicelsius: temperature,
        load1_centi: narrow(f[7])?,
        instances: narrow(f[8])?,
        agent_rss_kib: narrow(f[9])?,
        models_rss_kib: narrow(f[10])?,
        loop_delay_p99_ms: narrow(f[11])?,
    })
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        v |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(v);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wider_than_its_field_is_malformed() {
        for (field, value) in [
            (1, 1 << 32),
            (1, -1),
            (6, 1 << 32),
            (6, i64::MIN),
            (10, 1 << 40),
        ] {
            let mut fields = [0; FIELDS];
            fields[field] = value;
            let mut data = Vec::new();
            for of in fields {
                put_varint(&mut data, zigzag(of));
            }
            assert_eq!(Batch { count: 1, data }.decode(), Err(Malformed), "{field}");
        }
    }

    #[test]
    fn an_idle_minute_is_small() {
        let samples: Vec<Sample> = (0..6)
            .map(|i| Sample {
                at: UnixMs(1_800_000_000_000 + i * 10_000),
                cpu_permille: 12,
                memory_used_kib: 4 << 20,
                agent_rss_kib: 12_000,
                ..Sample::default()
            })
            .collect();
        let batch = Batch::encode(&samples);
        assert_eq!(batch.decode().unwrap(), samples);
        assert!(batch.data.len() < 100, "{}", batch.data.len());
    }

    /// A batch of samples with these many fields; field `n` of sample `s` is `100 * s + n`.
    fn batch_of(fields: i64) -> Batch {
        let mut data = Vec::new();
        for sample in 0..3 {
            for field in 0..fields {
                put_varint(&mut data, zigzag(if sample == 0 { field } else { 100 }));
            }
        }
        Batch { count: 3, data }
    }

    #[test]
    fn samples_of_older_and_newer_agents_are_read() {
        for (fields, delay) in [(11, 0), (12, 211), (13, 211), (64, 211)] {
            let samples = batch_of(fields).decode().unwrap();
            let last = samples[2];
            let read = (last.models_rss_kib, last.loop_delay_p99_ms);
            assert_eq!(read, (210, delay), "{fields} fields");
        }
        for fields in [0, 10, 65] {
            assert_eq!(batch_of(fields).decode(), Err(Malformed), "{fields} fields");
        }
        let mut uneven = batch_of(12);
        uneven.data.push(0);
        assert_eq!(uneven.decode(), Err(Malformed));
    }

    proptest! {
        #[test]
        fn samples_round_trip(raw in prop::collection::vec(
            (any::<u64>(), any::<u32>(), any::<u64>(), prop::option::of(-2000i32..2000)), 0..40,
        )) {
            let samples: Vec<Sample> = raw.into_iter().map(|(a, b, c, t)| Sample {
                at: UnixMs(a), cpu_permille: b, memory_used_kib: c, net_rx_bytes_per_s: c / 3,
                loop_delay_p99_ms: b / 7,
                temperature_decicelsius: t, ..Sample::default()
            }).collect();
            prop_assert_eq!(Batch::encode(&samples).decode().unwrap(), samples);
        }

        #[test]
        fn garbage_never_panics(count in any::<u16>(), data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Batch { count, data }.decode();
        }
    }
}
