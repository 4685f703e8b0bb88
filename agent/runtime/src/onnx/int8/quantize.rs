//! From numbers to their 8-bit form: `saturate(round(x / scale) + zero)`, halves to even.

use tract_onnx::tract_core::tract_data::{
    TractResult,
    internal::{DatumType, TDim, Tensor},
    prelude::TVec,
};

use crate::onnx::unary::Compute;

/// 1.5 · 2²³: in a sum with it nothing is left of a fraction, rounded as IEEE does; a small number
/// is then the sum's lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// How an 8-bit tensor stands for numbers: `(q - zero) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quantisation {
    pub(super) scale: f32,
    pub(super) zero: i32,
    pub(super) is_signed: bool,
}

impl Quantisation {
    pub(super) fn datum_type(self) -> DatumType {
        if self.is_signed {
            DatumType::I8
        } else {
            DatumType::U8
        }
    }

    /// The least 8-bit number.
    pub(super) fn min(self) -> i32 {
        if self.is_signed { -128 } else { 0 }
    }

    /// What turns the byte of a number into that of the unsigned number 128 higher.
    pub(super) fn flip(self) -> u8 {
        if self.is_signed { 0x80 } else { 0 }
    }

    /// The byte of the 8-bit number nearest to `x`, a multiple of the scale.
    pub(super) fn byte(self, x: f32) -> u8 {
        let least = (self.min() - self.zero) as f32;
        // `max` first: not a number becomes the least one. The sum's lowest bits are the number.
        let x = x.max(least).min(least + 255.0) + ROUNDER;
        let rounded = x.to_bits().wrapping_sub(ROUNDER.to_bits());
        rounded.wrapping_add(self.zero.cast_unsigned()) as u8
    }
}

/// `QuantizeLinear` with one scale. Divides by it, as ONNX says; tract multiplies by the inverse.
#[derive(Debug)]
pub(super) struct Quantize(pub(super) Quantisation);

impl Compute for Quantize {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn input_type(&self) -> DatumType {
        DatumType::F32
    }

    fn output_type(&self) -> DatumType {
        self.0.datum_type()
    }

    fn output_shape(&self, input: &[TDim]) -> TractResult<TVec<TDim>> {
        Ok(input.into())
    }

    fn run(&self, input: &Tensor, output: &mut Tensor) -> TractResult<()> {
        let plain = input.try_as_plain_ram()?;
        let numbers = plain.as_slice::<f32>()?.iter();
        for (byte, x) in output.as_bytes_mut().iter_mut().zip(numbers) {
            *byte = self.0.byte(x / self.0.scale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_even_and_the_rest_saturates() {
        let (scale, zero, is_signed) = (1.0, 3, true);
        let signed = Quantisation {
            scale,
            zero,
            is_signed,
        };
        let bytes = [0.5, 1.5, 2.5, -0.5, -1.5, 0.499_999_97].map(|x| signed.byte(x));
        assert_eq!(bytes, [3, 5, 5, 3, 1, 3]);
        let bytes = [124.0, 124.6, 1e30, f32::INFINITY].map(|x| signed.byte(x));
        assert_eq!(bytes, [127; 4]);
        let bytes = [-131.0, -1e30, f32::NEG_INFINITY, f32::NAN].map(|x| signed.byte(x));
        assert_eq!(bytes, [0x80; 4]);
        let (zero, is_signed) = (0, false);
        let unsigned = Quantisation {
            scale,
            zero,
            is_signed,
        };
        assert_eq!(
            [-1.0, 0.4, 254.5, 300.0].map(|x| unsigned.byte(x)),
            [0, 0, 254, 255]
        );
    }
}
