//! Amounts with units: `64MiB`, `30s`, `500m`. Plain numbers are bytes, milliseconds and
//! millicores; JSON output is always the plain number.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {hint}")]
pub struct Error {
    text: String,
    what: &'static str,
    hint: &'static str,
}

/// `text` as a number times the first unit whose name ends it.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text
        .trim_end_matches(|c: char| c.is_ascii_alphabetic())
        .trim_end();
    let unit = text[digits.len()..].trim();
    let scale = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?
        .1;
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value = digits.parse::<f64>().ok().filter(|_| plain)? * scale as f64;
    // 2^53: beyond it a float no longer names a whole number.
    (value <= 9_007_199_254_740_992.0).then_some(value.round() as u64)
}

macro_rules! quantity {
    ($(#[$doc:meta])* $ty:ident, $what:literal, $hint:literal, $units:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
        #[schema(value_type = u64)]
        pub struct $ty(pub u64);

        impl FromStr for $ty {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                scaled(text.trim(), $units).map(Self).ok_or_else(|| Error {
                    text: text.chars().take(40).collect(),
                    what: $what,
                    hint: $hint,
                })
            }
        }
        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_u64(self.0)
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $ty;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, concat!($what, " (", $hint, ")"))
                    }
                    fn visit_u64<E: de::Error>(self, v: u64) -> Result<$ty, E> {
                        Ok($ty(v))
                    }
                    // TOML has signed numbers only.
                    fn visit_i64<E: de::Error>(self, v: i64) -> Result<$ty, E> {
                        let v = u64::try_from(v).map_err(|_| E::custom("must not be negative"))?;
                        Ok($ty(v))
                    }
                    fn visit_str<E: de::Error>(self, v: &str) -> Result<$ty, E> {
                        v.parse().map_err(E::custom)
                    }
                }
                if d.is_human_readable() {
                    d.deserialize_any(Visitor)
                } else {
                    u64::deserialize(d).map(Self)
                }
            }
        }
    };
}

quantity! {
    /// A number of bytes.
    ByteSize, "a size", "write bytes, or 64KiB, 10MB, 1.5GiB",
    &[("", 1), ("B", 1), ("K", 1 << 10), ("KiB", 1 << 10), ("KB", 1000), ("M", 1 << 20),
      ("MiB", 1 << 20), ("MB", 1_000_000), ("G", 1 << 30), ("GiB", 1 << 30),
      ("GB", 1_000_000_000), ("TiB", 1 << 40), ("TB", 1_000_000_000_000)]
}
quantity! {
    /// A length of time in milliseconds.
    Millis, "a duration", "write milliseconds, or 500ms, 30s, 5m, 2h, 7d",
    &[("", 1), ("ms", 1), ("s", 1000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000),
      ("d", 86_400_000)]
}

/// CPU in thousandths of a core: `2` is two cores, `500m` half of one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = u64)]
pub struct CpuMilli(pub u64);

impl FromStr for CpuMilli {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let value = scaled(text.trim(), &[("m", 1), ("", 1000)]);
        value.map(Self).ok_or_else(|| Error {
            text: text.chars().take(40).collect(),
            what: "an amount of CPU",
            hint: "write cores (0.5, 2) or millicores (500m)",
        })
    }
}
impl fmt::Debug for CpuMilli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for CpuMilli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            (self.0 / 1000).fmt(f)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}
impl Serialize for CpuMilli {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.collect_str(&format_args!("{}m", self.0))
        } else {
            s.serialize_u64(self.0)
        }
    }
}
impl<'de> Deserialize<'de> for CpuMilli {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = CpuMilli;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of CPU (cores such as 0.5 or 2, or millicores such as 500m)")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<CpuMilli, E> {
                v.checked_mul(1000)
                    .map(CpuMilli)
                    .ok_or_else(|| E::custom("too many cores"))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<CpuMilli, E> {
                let v = u64::try_from(v).map_err(|_| E::custom("must not be negative"))?;
                self.visit_u64(v)
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<CpuMilli, E> {
                if (0.0..1e9).contains(&v) {
                    Ok(CpuMilli((v * 1000.0).round() as u64))
                } else {
                    Err(E::custom("CPU must be a number of cores from 0"))
                }
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<CpuMilli, E> {
                v.parse().map_err(E::custom)
            }
        }
        if d.is_human_readable() {
            d.deserialize_any(Visitor)
        } else {
            u64::deserialize(d).map(Self)
        }
    }
}

impl ByteSize {
    /// `n` binary mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.iter().find(|(_, scale)| self.0 >= *scale) {
            Some((unit, scale)) if self.0.is_multiple_of(*scale) => {
                write!(f, "{} {unit}", self.0 / scale)
            }
            Some((unit, scale)) => write!(f, "{:.1} {unit}", self.0 as f64 / *scale as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl Millis {
    /// `n` seconds.
    #[must_use]
    pub const fn secs(n: u64) -> Self {
        Self(n * 1000)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 1000 => write!(f, "{ms} ms"),
            ms if ms < 60_000 => write!(f, "{:.1} s", ms as f64 / 1000.0),
            ms if ms < 3_600_000 => write!(f, "{}m{:02}s", ms / 60_000, ms / 1000 % 60),
            ms if ms < 86_400_000 => write!(f, "{}h{:02}m", ms / 3_600_000, ms / 60_000 % 60),
            ms => write!(f, "{}d{:02}h", ms / 86_400_000, ms / 3_600_000 % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_scale() {
        assert_eq!("64MiB".parse::<ByteSize>().unwrap(), ByteSize::mib(64));
        assert_eq!("1.5 GiB".parse::<ByteSize>().unwrap(), ByteSize(3 << 29));
        assert_eq!("2m".parse::<Millis>().unwrap(), Millis(120_000));
        assert_eq!("250ms".parse::<Millis>().unwrap(), Millis(250));
        assert_eq!("500m".parse::<CpuMilli>().unwrap(), CpuMilli(500));
        assert_eq!("0.25".parse::<CpuMilli>().unwrap(), CpuMilli(250));
        assert_eq!(
            serde_json::from_str::<CpuMilli>("2").unwrap(),
            CpuMilli(2000)
        );
        for bad in [
            "",
            "x",
            "-1",
            "1e9999",
            "5 parsecs",
            "1.2.3MiB",
            "99999999999999TiB",
            "nan",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        let error = "5 parsecs".parse::<Millis>().unwrap_err().to_string();
        assert!(error.contains("30s"), "{error}");
    }

    #[test]
    fn amounts_survive_json_and_postcard() {
        let cpu = CpuMilli(1500);
        let json = serde_json::to_string(&cpu).unwrap();
        assert_eq!(serde_json::from_str::<CpuMilli>(&json).unwrap(), cpu);
        let bytes = postcard::to_allocvec(&(cpu, ByteSize(7), Millis(9))).unwrap();
        let back: (CpuMilli, ByteSize, Millis) = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, (cpu, ByteSize(7), Millis(9)));
    }
}
