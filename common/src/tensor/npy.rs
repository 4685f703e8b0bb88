//! NumPy's `.npy` files, versions 1.0 to 3.0.
//!
//! Read: all our dtypes, little- and big-endian (converted). Refused, with what to do: Fortran
//! order, structured and object dtypes. Written: version 1.0, little-endian, C order, data aligned
//! to 64 bytes as NumPy does. The header is a Python literal; we read just the three keys that the
//! format defines and refuse everything else.

use bytes::Bytes;

use super::{DType, Error, RANK_MAX, Tensor, short};

/// Longest header that we read, in bytes; ours and NumPy's are below 200.
pub const NPY_HEADER_BYTES_MAX: usize = 4096;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const ALIGN: usize = 64;

fn bad(reason: impl Into<String>) -> Error {
    Error::Npy {
        reason: reason.into(),
    }
}

/// Writes a tensor as an `.npy` file, version 1.0.
#[must_use]
pub fn to_npy(tensor: &Tensor) -> Vec<u8> {
    let dtype = tensor.dtype();
    let order = if dtype.bytes() == 1 { '|' } else { '<' };
    let mut shape: String = tensor
        .shape()
        .iter()
        .map(|dim| format!("{dim}, "))
        .collect();
    match tensor.shape().len() {
        0 => {}
        1 => shape.truncate(shape.len() - 1), // `(3,)`
        _ => shape.truncate(shape.len() - 2),
    }
    let mut header = format!(
        "{{'descr': '{order}{}{}', 'fortran_order': False, 'shape': ({shape}), }}",
        dtype.npy_kind(),
        dtype.bytes(),
    );
    let fixed = MAGIC.len() + 4;
    let total = (fixed + header.len() + 1).next_multiple_of(ALIGN);
    header.extend(std::iter::repeat_n(' ', total - fixed - header.len() - 1));
    header.push('\n');
    let header_bytes =
        u16::try_from(header.len()).expect("RANK_MAX dimensions of 20 digits fit 64 KiB");
    let mut file = Vec::with_capacity(total + tensor.data().len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&[1, 0]);
    file.extend_from_slice(&header_bytes.to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(tensor.data());
    file
}

/// Reads an `.npy` file.
///
/// # Errors
/// [`Error::Npy`] for a file that is damaged or of a kind that we do not carry, else as
/// [`Tensor::new`].
pub fn from_npy(file: &Bytes) -> Result<Tensor, Error> {
    let rest = file.strip_prefix(MAGIC).ok_or_else(|| {
        bad(if file.starts_with(b"PK") {
            "this is an .npz archive: unpack it and send one array"
        } else {
            "it does not begin with \\x93NUMPY: write it with numpy.save"
        })
    })?;
    let (prefix, header_bytes) = match *rest {
        [1, 0, a, b, ..] => (4, usize::from(u16::from_le_bytes([a, b]))),
        [2 | 3, 0, a, b, c, d, ..] => (
            6,
            usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX),
        ),
        [major, minor, _, _, ..] if !matches!((major, minor), (1..=3, 0)) => {
            return Err(bad(format!(
                "version {major}.{minor} is not one of 1.0, 2.0, 3.0"
            )));
        }
        _ => return Err(bad("it is cut off within the header")),
    };
    if header_bytes > NPY_HEADER_BYTES_MAX {
        return Err(bad(format!(
            "the header has {header_bytes} bytes, more than {NPY_HEADER_BYTES_MAX}"
        )));
    }
    let header = rest
        .get(prefix..prefix + header_bytes)
        .ok_or_else(|| bad("it is cut off within the header"))?;
    let header = std::str::from_utf8(header).map_err(|_| bad("the header is not text"))?;
    let header = Header::parse(header)?;
    let data = file.slice(MAGIC.len() + prefix + header_bytes..);
    if header.fortran && header.shape.len() > 1 {
        return Err(bad(
            "the array is in Fortran order: save numpy.ascontiguousarray(array)",
        ));
    }
    let data = match header.big_endian {
        true => swapped(header.dtype, &data),
        false => data,
    };
    Tensor::new(header.dtype, header.shape, data)
}

fn swapped(dtype: DType, data: &Bytes) -> Bytes {
    // At most as long as what we were given, so bounded by the caller's own limit.
    let mut out = data.to_vec();
    let width = usize::try_from(dtype.bytes()).unwrap_or(1);
    out.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    out.into()
}

struct Header {
    dtype: DType,
    big_endian: bool,
    fortran: bool,
    shape: Vec<u64>,
}

impl Header {
    fn parse(text: &str) -> Result<Self, Error> {
        let mut cursor = Cursor(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        cursor.expect('{')?;
        while !cursor.take('}') {
            let key = cursor.quoted()?;
            cursor.expect(':')?;
            match key {
                "descr" if descr.is_none() => descr = Some(cursor.quoted()?),
                "fortran_order" if fortran.is_none() => fortran = Some(cursor.boolean()?),
                "shape" if shape.is_none() => shape = Some(cursor.tuple()?),
                _ => return Err(bad(format!("unexpected or repeated key `{}`", short(key)))),
            }
            if !cursor.take(',') {
                cursor.expect('}')?;
                break;
            }
        }
        if !cursor.0.trim().is_empty() {
            return Err(bad("there is text after the header's closing brace"));
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err(bad("the header lacks one of descr, fortran_order, shape"));
        };
        let (dtype, big_endian) = parse_descr(descr)?;
        Ok(Self {
            dtype,
            big_endian,
            fortran,
            shape,
        })
    }
}

fn parse_descr(descr: &str) -> Result<(DType, bool), Error> {
    let refuse = || {
        bad(format!(
            "dtype `{}` is not one of {}: convert it with array.astype",
            short(descr),
            DType::NAMES
        ))
    };
    let kind = descr.get(1..).ok_or_else(refuse)?;
    let dtype = DType::ALL
        .into_iter()
        .find(|dtype| kind == format!("{}{}", dtype.npy_kind(), dtype.bytes()))
        .ok_or_else(refuse)?;
    match descr.as_bytes().first() {
        Some(b'<' | b'=') => Ok((dtype, false)),
        Some(b'|') if dtype.bytes() == 1 => Ok((dtype, false)),
        Some(b'>') => Ok((dtype, true)),
        _ => Err(refuse()),
    }
}

/// Reads the few Python literals that a header holds.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, c: char) -> bool {
        self.0 = self.0.trim_start();
        match self.0.strip_prefix(c) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), Error> {
        if self.take(c) {
            return Ok(());
        }
        Err(bad(format!(
            "the header lacks `{c}` before `{}`",
            short(self.0)
        )))
    }

    fn quoted(&mut self) -> Result<&'a str, Error> {
        let quote = if self.take('\'') {
            '\''
        } else if self.take('"') {
            '"'
        } else if self.take('[') {
            return Err(bad(
                "structured dtypes are not supported: send one plain array",
            ));
        } else {
            return Err(bad(format!(
                "the header lacks a quoted word at `{}`",
                short(self.0)
            )));
        };
        let (word, rest) = self
            .0
            .split_once(quote)
            .ok_or_else(|| bad("a quoted word in the header has no end"))?;
        self.0 = rest;
        Ok(word)
    }

    fn boolean(&mut self) -> Result<bool, Error> {
        self.0 = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.0.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(bad("fortran_order is neither True nor False"))
    }

    fn tuple(&mut self) -> Result<Vec<u64>, Error> {
        let mut dims = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            if dims.len() == RANK_MAX {
                return Err(Error::Rank { rank: RANK_MAX + 1 });
            }
            self.0 = self.0.trim_start();
            let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = self.0.split_at(digits);
            let dim = number
                .parse()
                .map_err(|_| bad("the shape holds something that is no length"))?;
            dims.push(dim);
            // Python 2 wrote long integers as `3L`.
            self.0 = rest.strip_prefix('L').unwrap_or(rest);
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(dims)
    }
}
