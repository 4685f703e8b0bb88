//! Where work may run: tiers, labels, data tags and the resources it asks for.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};
use utoipa::ToSchema;

use super::quantity::{ByteSize, CpuMilli};
use crate::id::{NAME_BYTES_MAX, NodeId};

/// Most labels or data tags a node may have, and most selectors a request may have.
pub const LABELS_MAX: usize = 64;

/// A node's place in the continuum.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Data centre or VM.
    Cloud,
    /// Near the users: an edge server or box.
    Edge,
    /// Beside the things: a gateway or single-board computer.
    Iot,
}

impl Tier {
    /// All tiers, cloud to iot.
    pub const ALL: [Self; 3] = [Self::Cloud, Self::Edge, Self::Iot];
}
impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Edge => "edge",
            Self::Iot => "iot",
        })
    }
}
impl FromStr for Tier {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|tier| tier.to_string() == text);
        known.ok_or_else(|| format!("`{text}` is not a tier: use cloud, edge or iot"))
    }
}

/// A node's labels: `key=value`, keys and values short and plain.
pub type Labels = BTreeMap<String, String>;

/// Checks one label key (or data tag).
pub fn check_label_key(key: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
    if !key.is_empty() && key.len() <= NAME_BYTES_MAX && key.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a label key: use 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`, `/`",
        key.chars().take(80).collect::<String>()
    ))
}

/// Parses `key=value` (as `--label` takes it).
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not a label: write key=value"))?;
    check_label_key(key)?;
    check_label_value(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn check_label_value(key: &str, value: &str) -> Result<(), String> {
    if value.len() > NAME_BYTES_MAX || value.chars().any(|c| c.is_control() || c == ',') {
        return Err(format!(
            "label `{key}`: value too long or with a comma or control character"
        ));
    }
    Ok(())
}

/// A condition on a node's labels: `key=value`, `key!=value`, `key in (a, b)`, `key`, `!key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The label has one of these values (`=` gives one).
    In(String, Vec<String>),
    /// The label is absent or has another value.
    NotEqual(String, String),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    Absent(String),
}

crate::schema::text_schema!(
    Selector,
    "A condition on labels: key=value, key!=value, key in (a, b), key, !key"
);

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some((key, value)) = text.split_once("!=") {
            let (key, value) = parse_label(&format!("{}={}", key.trim(), value.trim()))?;
            return Ok(Self::NotEqual(key, value));
        }
        if text.contains('=') {
            let (key, value) = parse_label(text)?;
            return Ok(Self::In(key, vec![value]));
        }
        if let Some((key, list)) = text.split_once(" in ") {
            let list = list
                .trim()
                .strip_prefix('(')
                .and_then(|l| l.strip_suffix(')'));
            let list = list.ok_or_else(|| format!("`{text}`: write `{key} in (a, b)`"))?;
            let key = key.trim();
            check_label_key(key)?;
            let values: Vec<_> = list.split(',').map(|v| v.trim().to_owned()).collect();
            // A list of one is written as `key=value`: it must be fit for that.
            values.iter().try_for_each(|v| check_label_value(key, v))?;
            if values.len() > LABELS_MAX {
                return Err(format!("`{key}`: more than {LABELS_MAX} values"));
            }
            return Ok(Self::In(key.to_owned(), values));
        }
        let (absent, key) = text
            .strip_prefix('!')
            .map_or((false, text), |key| (true, key.trim()));
        check_label_key(key).map_err(|_| {
            format!("`{text}` is not a selector: write key=value, key!=value, key in (a, b), key or !key")
        })?;
        Ok(if absent {
            Self::Absent(key.to_owned())
        } else {
            Self::Exists(key.to_owned())
        })
    }
}
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Self::In(key, values) => write!(f, "{key} in ({})", values.join(", ")),
            Self::NotEqual(key, value) => write!(f, "{key}!={value}"),
            Self::Exists(key) => f.write_str(key),
            Self::Absent(key) => write!(f, "!{key}"),
        }
    }
}
impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Where work may and should run. Empty = anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Only this node.
    pub node: Option<NodeId>,
    /// Only this tier.
    pub tier: Option<Tier>,
    /// Only nodes whose labels meet every selector.
    pub labels: Vec<Selector>,
    /// Only nodes that hold all of these data tags.
    pub data: Vec<String>,
    /// Nodes with more of these data tags score higher.
    pub prefer_data: Vec<String>,
    /// The strategy's name; the coordinator's default when absent.
    pub strategy: Option<String>,
}

/// What work asks a node for. Counted against capacity when it is placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// CPU (`500m`, `2`).
    pub cpu: CpuMilli,
    /// Memory (`64MiB`).
    pub memory: ByteSize,
    /// Disk.
    pub storage: ByteSize,
    /// Needs a GPU.
    pub gpu: bool,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: CpuMilli(100),
            memory: ByteSize::mib(64),
            storage: ByteSize(0),
            gpu: false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn selectors_round_trip() {
        for text in ["zone=a", "zone!=a", "disk in (ssd, nvme)", "gpu", "!old"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for bad in ["", "a b", "zone in a", "=x", "!"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
