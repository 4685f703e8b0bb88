//! A cheap look at an ONNX file while it passes: is its outline that of a `ModelProto`?
//!
//! Reads only the tags and lengths of the outermost protobuf fields, in constant memory. Whether
//! the model can run is for the node that loads it to say.

use hop3_common::codes::{Code, Problem};

/// Highest field number of a `ModelProto` (with room for those to come).
const FIELD_MAX: u64 = 64;
/// Bytes of the longest varint.
const VARINT_BYTES_MAX: u32 = 10;

/// Follows the outline of a file.
#[derive(Debug, Default)]
pub struct Probe {
    at: u64,
    /// Bytes of the current field that pass unseen.
    skip: u64,
    varint: u64,
    varint_bytes: u32,
    reading: Reading,
    ir_version: bool,
    graph: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum Reading {
    #[default]
    Tag,
    Value {
        field: u64,
    },
    Length {
        field: u64,
    },
}

impl Probe {
    /// The next bytes of the file.
    ///
    /// # Errors
    /// It is not a model's outline, as these show.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let pass = self.skip.min(bytes.len() as u64) as usize;
                bytes = &bytes[pass..];
                self.skip -= pass as u64;
                self.at += pass as u64;
                continue;
            }
            bytes = rest;
            self.at += 1;
            self.varint |= u64::from(byte & 0x7f)
                .checked_shl(self.varint_bytes * 7)
                .unwrap_or(0);
            self.varint_bytes += 1;
            if byte < 0x80 {
                let value = std::mem::take(&mut self.varint);
                self.varint_bytes = 0;
                self.whole(value)?;
            } else if self.varint_bytes == VARINT_BYTES_MAX {
                return Err(self.refuse("a number there is too long"));
            }
        }
        Ok(())
    }

    fn whole(&mut self, value: u64) -> Result<(), Problem> {
        match self.reading {
            Reading::Tag => {
                let (field, wire) = (value >> 3, value & 7);
                if field == 0 || field > FIELD_MAX {
                    return Err(self.refuse("a field there is none of a model's"));
                }
                self.reading = match wire {
                    0 => Reading::Value { field },
                    2 => Reading::Length { field },
                    1 | 5 => {
                        self.skip = if wire == 1 { 8 } else { 4 };
                        Reading::Tag
                    }
                    _ => return Err(self.refuse("a field there has an impossible type")),
                };
            }
            Reading::Value { field } => {
                self.ir_version |= field == 1;
                self.reading = Reading::Tag;
            }
            Reading::Length { field } => {
                self.graph |= field == 7;
                self.skip = value;
                self.reading = Reading::Tag;
            }
        }
        Ok(())
    }

    /// The file ends here.
    ///
    /// # Errors
    /// It is not a whole model.
    pub fn finish(self) -> Result<(), Problem> {
        let whole =
            self.skip == 0 && self.varint_bytes == 0 && matches!(self.reading, Reading::Tag);
        match (self.at, whole, self.ir_version, self.graph) {
            (0, ..) => Err(self.refuse("it is empty")),
            (_, false, ..) => Err(self.refuse("it ends in the middle of a field: cut short?")),
            (_, _, true, true) => Ok(()),
            (_, _, false, _) => Err(self.refuse("it has no version (`ir_version`)")),
            (.., false) => Err(self.refuse("it has no graph")),
        }
    }

    fn refuse(&self, why: &str) -> Problem {
        let message = format!(
            "this is not an ONNX model, as byte {} shows: {why}",
            self.at
        );
        Problem::new(Code::NotOnnx, message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// `ir_version: 8, producer_name: "x", graph: 300 bytes`.
    fn model() -> Vec<u8> {
        let mut bytes = vec![0x08, 8, 0x12, 1, b'x', 0x3a, 0xac, 0x02];
        bytes.extend([0xff; 300]);
        bytes
    }

    fn probe(bytes: &[u8], block: usize) -> Result<(), String> {
        let mut probe = Probe::default();
        for block in bytes.chunks(block) {
            probe.feed(block).map_err(|p| p.message)?;
        }
        probe.finish().map_err(|p| p.message)
    }

    #[test]
    fn a_model_passes_however_it_is_cut() {
        for block in [1, 2, 7, 1000] {
            probe(&model(), block).unwrap();
        }
    }

    #[test]
    fn what_is_no_model_is_refused_with_the_reason() {
        let cut = &model()[..100];
        let cases: [(&[u8], &str); 6] = [
            (b"", "empty"),
            (cut, "cut short"),
            (b"\x08\x08", "no graph"),
            (&[0x3a, 1, 0], "no version"),
            (b"PK\x03\x04 a zip archive", "not an ONNX"),
            (b"{\"json\": true}", "not an ONNX"),
        ];
        for (bytes, why) in cases {
            let refused = probe(bytes, 16).unwrap_err();
            assert!(refused.contains(why), "{bytes:?}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..500), cut in 1usize..50) {
            let _ = probe(&bytes, cut);
            let whole = probe(&bytes, 1000);
            prop_assert_eq!(probe(&bytes, cut), whole);
        }
    }
}
