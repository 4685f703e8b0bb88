//! Tasks: work that runs once, input to output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Invalid,
    placement::{Placement, Resources},
    quantity::{ByteSize, Millis},
};
use crate::id::Digest;

/// Most arguments, and most environment variables, of a task.
pub const ARGS_MAX: usize = 256;
/// Most bytes of all arguments and environment together.
pub const ARGS_BYTES_MAX: usize = 64 << 10;
/// Most volumes of a task.
pub const VOLUMES_MAX: usize = 16;

/// What happens when the node of a running task is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// The loss is reported; the task does not run twice.
    #[default]
    Never,
    /// The task starts anew on another node. Its input must be an artifact.
    OnNodeLoss,
}

/// A host directory that the node's configuration offers by name, granted to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeGrant {
    /// The name in the agent's configuration.
    pub name: String,
    /// The absolute path the guest sees.
    pub path: String,
    /// Whether the guest may change it. Default: it may not.
    #[serde(default)]
    pub writable: bool,
}

/// Bounds on a run. Reaching one ends the run with that limit's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory, at most 4 GiB.
    pub memory: ByteSize,
    /// CPU time of the whole run; 0 = unbounded.
    pub cpu_time: Millis,
    /// Time from start to end; 0 = unbounded.
    pub timeout: Millis,
    /// Output kept of a background run, stdout and stderr each.
    pub output: ByteSize,
    /// Host calls per second, averaged.
    pub host_calls_per_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(256),
            cpu_time: Millis(0),
            timeout: Millis::secs(3600),
            output: ByteSize::mib(16),
            host_calls_per_s: 1_000_000,
        }
    }
}

/// Where a task's standard input comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stdin {
    /// No input: end of file at once.
    #[default]
    Empty,
    /// The bytes of an artifact.
    Artifact(Digest),
    /// A client that is attached. Output then goes to it as well, and is not kept.
    Attached,
}

/// A task as its user writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// The Wasm module: the digest or the name of an artifact.
    pub module: String,
    /// Arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Standard input.
    #[serde(default)]
    pub stdin: Stdin,
    /// Where it may run.
    #[serde(default)]
    pub placement: Placement,
    /// What it asks its node for.
    #[serde(default)]
    pub resources: Resources,
    /// Its bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Directories granted to it.
    #[serde(default)]
    pub volumes: Vec<VolumeGrant>,
    /// What happens when its node is lost.
    #[serde(default)]
    pub retry: Retry,
}

impl TaskSpec {
    /// A task of `module` with defaults everywhere.
    #[must_use]
    pub fn new(module: impl Into<String>) -> Self {
        Self {
            module: module.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            stdin: Stdin::Empty,
            placement: Placement::default(),
            resources: Resources::default(),
            limits: Limits::default(),
            volumes: Vec::new(),
            retry: Retry::Never,
        }
    }

    /// Checks what types cannot say. Names the field and the fix.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.module.is_empty() {
            return Err(Invalid::new(
                "spec.module",
                "is empty: name an artifact or its digest",
            ));
        }
        check_strings(self)?;
        check_limits(&self.limits)?;
        check_volumes(&self.volumes)?;
        if self.retry == Retry::OnNodeLoss && self.stdin == Stdin::Attached {
            return Err(Invalid::new(
                "spec.retry",
                "an attached task cannot be retried: its input is not stored; use `never`, or give \
                 the input as an artifact",
            ));
        }
        self.placement.check()
    }
}

impl Placement {
    /// Checks sizes of lists and the form of tags.
    pub fn check(&self) -> Result<(), Invalid> {
        let lists = [
            ("spec.placement.labels", self.labels.len()),
            ("spec.placement.data", self.data.len()),
            ("spec.placement.prefer_data", self.prefer_data.len()),
        ];
        for (field, len) in lists {
            if len > super::placement::LABELS_MAX {
                return Err(Invalid::new(field, "has more than 64 entries"));
            }
        }
        for tag in self.data.iter().chain(&self.prefer_data) {
            super::placement::check_label_key(tag)
                .map_err(|why| Invalid::new("spec.placement.data", why))?;
        }
        Ok(())
    }
}

fn check_strings(spec: &TaskSpec) -> Result<(), Invalid> {
    if spec.args.len() > ARGS_MAX {
        return Err(Invalid::new(
            "spec.args",
            format!("has more than {ARGS_MAX} entries"),
        ));
    }
    check_environment(&spec.env)?;
    let env_bytes: usize = spec.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    let arg_bytes: usize = spec.args.iter().map(|a| a.len() + 1).sum();
    if env_bytes + arg_bytes > ARGS_BYTES_MAX {
        return Err(Invalid::new(
            "spec.args",
            format!("arguments and environment exceed {ARGS_BYTES_MAX} bytes: pass them as input"),
        ));
    }
    let has_nul = |s: &String| s.contains('\0');
    if spec.args.iter().any(has_nul) {
        return Err(Invalid::new("spec.args", "contains a NUL character"));
    }
    Ok(())
}

/// Checks an environment: its size and its names.
pub(super) fn check_environment(env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if env.len() > ARGS_MAX {
        let problem = format!("has more than {ARGS_MAX} entries");
        return Err(Invalid::new("spec.env", problem));
    }
    let bytes: usize = env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    if bytes > ARGS_BYTES_MAX {
        let problem = format!("exceeds {ARGS_BYTES_MAX} bytes: pass it as input");
        return Err(Invalid::new("spec.env", problem));
    }
    let bad_key = |k: &String| k.is_empty() || k.contains('=') || k.contains('\0');
    if env.iter().any(|(k, v)| bad_key(k) || v.contains('\0')) {
        return Err(Invalid::new(
            "spec.env",
            "a name is empty, or a name has `=`, or there is a NUL",
        ));
    }
    Ok(())
}

fn check_limits(limits: &Limits) -> Result<(), Invalid> {
    const WASM_MEMORY_MAX: u64 = 4 << 30;
    const OUTPUT_MAX: u64 = 1 << 30;
    if !(64 << 10..=WASM_MEMORY_MAX).contains(&limits.memory.0) {
        return Err(Invalid::new(
            "spec.limits.memory",
            "must be from 64KiB to 4GiB",
        ));
    }
    if limits.output.0 > OUTPUT_MAX {
        return Err(Invalid::new("spec.limits.output", "must be at most 1GiB"));
    }
    if limits.host_calls_per_s == 0 {
        return Err(Invalid::new(
            "spec.limits.host_calls_per_s",
            "must be at least 1",
        ));
    }
    Ok(())
}

pub(super) fn check_volumes(volumes: &[VolumeGrant]) -> Result<(), Invalid> {
    if volumes.len() > VOLUMES_MAX {
        return Err(Invalid::new(
            "spec.volumes",
            format!("has more than {VOLUMES_MAX} entries"),
        ));
    }
    for volume in volumes {
        let clean = volume.path.starts_with('/')
            && volume.path.len() <= 255
            && !volume.path.contains('\0')
            && !volume.path.split('/').any(|part| part == "..");
        if !clean {
            return Err(Invalid::new(
                "spec.volumes.path",
                format!("`{}` must be an absolute path without `..`", volume.path),
            ));
        }
        volume
            .name
            .parse::<crate::id::NodeId>()
            .map_err(|error| Invalid::new("spec.volumes.name", error.to_string()))?;
    }
    Ok(())
}
