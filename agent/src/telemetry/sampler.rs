//! Looks at the machine, refreshing only what a sample needs.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use hop3_common::{
    id::UnixMs,
    wire::{NodeFacts, telemetry::Sample},
};
use sysinfo::{Components, MemoryRefreshKind, Networks, System};

use super::Own;
use crate::config::Config;

/// Sensors are looked for again after so many samples.
const SENSORS_EVERY: u32 = 600;

/// See the module. What the system does not show is 0 or absent in the samples.
pub struct Sampler {
    system: Option<System>,
    networks: Option<Networks>,
    sensors: Option<Components>,
    data_dir: PathBuf,
    last: Instant,
    count: u32,
}

impl Sampler {
    /// A first look.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        let mut system = System::new().ok();
        system.iter_mut().for_each(System::refresh_cpu_usage);
        Self {
            system,
            networks: Networks::new_with_refreshed_list().ok(),
            sensors: Components::new_with_refreshed_list().ok(),
            data_dir: data_dir.into(),
            last: Instant::now(),
            count: 0,
        }
    }

    /// One look. May block on slow sensors.
    pub fn sample(&mut self, own: Own) -> Sample {
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        }
        self.networks
            .iter_mut()
            .for_each(|networks| networks.refresh(true));
        self.count = self.count.wrapping_add(1);
        if let Some(sensors) = &mut self.sensors {
            if self.count.is_multiple_of(SENSORS_EVERY) {
                sensors.refresh(true);
            } else {
                sensors.iter_mut().for_each(sysinfo::Component::refresh);
            }
        }
        let elapsed_ms = self.last.elapsed().as_millis().max(1) as u64;
        self.last = Instant::now();
        let per_s = |bytes: u64| bytes.saturating_mul(1000) / elapsed_ms;
        let wires = self
            .networks
            .iter()
            .flat_map(|networks| networks.iter())
            .filter(|(name, _)| *name != "lo");
        let (rx, tx) = wires.fold((0, 0), |(rx, tx), (_, wire)| {
            (rx + wire.received(), tx + wire.transmitted())
        });
        let cpu_percent = self.system.as_ref().map_or(0.0, System::global_cpu_usage);
        let load1 = System::load_average().map_or(0.0, |load| load.one);
        Sample {
            at: UnixMs::now(),
            cpu_permille: (cpu_percent * 10.0).clamp(0.0, 1000.0) as u32,
            memory_used_kib: self.system.as_ref().map_or(0, System::used_memory) >> 10,
            disk_used_kib: disk(&self.data_dir).map_or(0, |disk| disk.used_kib),
            net_rx_bytes_per_s: per_s(rx),
            net_tx_bytes_per_s: per_s(tx),
            temperature_decicelsius: self.sensors.as_ref().and_then(hottest),
            load1_centi: (load1 * 100.0).clamp(0.0, 1e9) as u32,
            instances: own.instances,
            agent_rss_kib: own_rss_kib(),
            models_rss_kib: u32::try_from(own.models_rss_bytes >> 10).unwrap_or(u32::MAX),
            loop_delay_p99_ms: own.loop_delay_p99_ms,
        }
    }
}

fn hottest(sensors: &Components) -> Option<i32> {
    let readings = sensors.iter().filter_map(sysinfo::Component::temperature);
    let sane = readings.filter(|celsius| (-60.0..200.0).contains(celsius));
    sane.map(|celsius| (celsius * 10.0).round() as i32).max()
}

struct Disk {
    size_kib: u64,
    used_kib: u64,
}

fn disk(path: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let kib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 10;
    let (size_kib, free_kib) = (kib(stat.f_blocks), kib(stat.f_bfree));
    Some(Disk {
        size_kib,
        used_kib: size_kib.saturating_sub(free_kib),
    })
}

/// Resident memory of this process.
fn own_rss_kib() -> u32 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse::<u64>().ok())
        .unwrap_or(0);
    u32::try_from((pages * rustix::param::page_size() as u64) >> 10).unwrap_or(u32::MAX)
}

/// Memory of the machine, bytes.
#[must_use]
pub fn memory_bytes() -> u64 {
    let Ok(mut system) = System::new() else {
        return 0;
    };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    system.total_memory()
}

/// What this node is and can do. `engine`: the hash that compiled code depends on.
#[must_use]
pub fn facts(config: &Config, engine: String) -> NodeFacts {
    NodeFacts {
        hostname: crate::identity::hostname(),
        os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
        kernel: System::kernel_version().unwrap_or_default(),
        arch: std::env::consts::ARCH.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from) as u32,
        memory_kib: memory_bytes() >> 10,
        disk_kib: disk(&config.data_dir).map_or(0, |disk| disk.size_kib),
        capabilities: vec!["wasm".into(), "onnx".into()],
        volumes: config.volumes.keys().cloned().collect(),
        data: config.data.clone(),
        tasks_max: config.tasks_max,
        engine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_sees_this_machine() {
        let mut sampler = Sampler::new(Path::new("/"));
        let sample = sampler.sample(Own {
            instances: 2,
            models_rss_bytes: 5 << 20,
            loop_delay_p99_ms: 3,
        });
        assert!(sample.memory_used_kib > 0 && sample.disk_used_kib > 0);
        assert!(sample.agent_rss_kib > 100);
        assert!(sample.cpu_permille <= 1000);
        assert_eq!((sample.instances, sample.models_rss_kib), (2, 5 << 10));
        assert_eq!(sample.loop_delay_p99_ms, 3);
    }
}
