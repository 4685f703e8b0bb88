//! The guest's memory as host calls see it: every access is checked and a bad pointer is
//! `EFAULT`, whatever the guest passes. Alignment does not matter.

use super::abi::Errno;

/// Buffers of one vectored call: what POSIX systems allow.
const IOVECS_MAX: u32 = 1_024;
/// Bytes moved by one call; more is a partial read or write, so that no call runs long.
pub(super) const IO_BYTES_MAX: u32 = 1024 * 1024;
/// Bytes of a path: what Linux allows.
pub(super) const PATH_BYTES_MAX: u32 = 4_096;

/// A view of the guest's memory for the length of one host call.
pub(super) struct Mem<'a>(pub(super) &'a mut [u8]);

/// A checked range of guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    start: usize,
    len: usize,
}

impl Range {
    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl Mem<'_> {
    /// Checks that `len` bytes from `ptr` are there.
    pub(super) fn range(&self, ptr: u32, len: u32) -> Result<Range, Errno> {
        let (start, len) = (ptr as usize, len as usize);
        match start.checked_add(len) {
            Some(end) if end <= self.0.len() => Ok(Range { start, len }),
            _ => Err(Errno::Fault),
        }
    }

    pub(super) fn bytes(&self, range: Range) -> &[u8] {
        &self.0[range.start..range.start + range.len]
    }

    pub(super) fn bytes_mut(&mut self, range: Range) -> &mut [u8] {
        &mut self.0[range.start..range.start + range.len]
    }

    pub(super) fn array<const N: usize>(&self, ptr: u32) -> Result<[u8; N], Errno> {
        let start = ptr as usize;
        let bytes = self.0.get(start..).and_then(|rest| rest.first_chunk());
        bytes.copied().ok_or(Errno::Fault)
    }

    pub(super) fn put(&mut self, ptr: u32, bytes: &[u8]) -> Result<(), Errno> {
        let start = ptr as usize;
        let end = start.checked_add(bytes.len()).ok_or(Errno::Fault)?;
        self.0
            .get_mut(start..end)
            .ok_or(Errno::Fault)?
            .copy_from_slice(bytes);
        Ok(())
    }

    pub(super) fn put_u32(&mut self, ptr: u32, value: u32) -> Result<(), Errno> {
        self.put(ptr, &value.to_le_bytes())
    }

    pub(super) fn put_u64(&mut self, ptr: u32, value: u64) -> Result<(), Errno> {
        self.put(ptr, &value.to_le_bytes())
    }

    /// The path that the guest passed: relative, not empty, UTF-8, bounded.
    pub(super) fn path(&self, ptr: u32, len: u32) -> Result<&str, Errno> {
        let path = self.text(ptr, len)?;
        match path.bytes().next() {
            None => Err(Errno::Noent),
            Some(b'/') => Err(Errno::Notcapable),
            Some(_) if path.contains('\0') => Err(Errno::Inval),
            Some(_) => Ok(path),
        }
    }

    /// Bounded UTF-8 text.
    pub(super) fn text(&self, ptr: u32, len: u32) -> Result<&str, Errno> {
        if len > PATH_BYTES_MAX {
            return Err(Errno::Nametoolong);
        }
        std::str::from_utf8(self.bytes(self.range(ptr, len)?)).map_err(|_| Errno::Ilseq)
    }

    /// The buffers of a vectored call, all checked, empty ones left out, together at most
    /// [`IO_BYTES_MAX`].
    pub(super) fn iovecs(&self, ptr: u32, count: u32) -> Result<Vec<Range>, Errno> {
        if count > IOVECS_MAX {
            return Err(Errno::Inval);
        }
        let (mut left, mut ranges) = (IO_BYTES_MAX, Vec::new());
        for n in 0..count {
            let at = ptr.checked_add(n * 8).ok_or(Errno::Fault)?;
            let [a, b, c, d, e, f, g, h] = self.array(at)?;
            let (buf, len) = (
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            );
            self.range(buf, len)?;
            let range = self.range(buf, len.min(left))?;
            left -= len.min(left);
            if range.len > 0 {
                ranges.push(range);
            }
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_checked() {
        let mut bytes = b"/abs\0x\xff..".to_vec();
        let mem = Mem(&mut bytes);
        assert_eq!(mem.path(0, 4), Err(Errno::Notcapable));
        assert_eq!(mem.path(1, 3), Ok("abs"));
        assert_eq!(mem.path(1, 5), Err(Errno::Inval));
        assert_eq!(mem.path(6, 1), Err(Errno::Ilseq));
        assert_eq!(mem.path(0, 0), Err(Errno::Noent));
        assert_eq!(mem.path(0, 5_000), Err(Errno::Nametoolong));
        assert_eq!(mem.path(8, 2), Err(Errno::Fault));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_pointer_panics(
            size in 0_usize..200,
            fill in any::<u8>(),
            ptr in any::<u32>(),
            len in any::<u32>(),
            near in 0_u32..220,
        ) {
            let mut bytes = vec![fill; size];
            let mut mem = Mem(&mut bytes);
            let pairs = [(ptr, len), (near, len), (ptr, near), (near, near), (u32::MAX, len)];
            for (ptr, len) in pairs {
                if let Ok(range) = mem.range(ptr, len) {
                    prop_assert_eq!(mem.bytes(range).len(), len as usize);
                    prop_assert_eq!(mem.bytes_mut(range).len(), range.len());
                }
                let _ = mem.path(ptr, len);
                let _ = mem.array::<48>(ptr);
                let _ = mem.put_u64(ptr, 1);
                let _ = mem.put_u32(ptr, 1);
                if let Ok(ranges) = mem.iovecs(ptr, len) {
                    let total: usize = ranges.iter().map(|range| range.len()).sum();
                    prop_assert!(total <= IO_BYTES_MAX as usize);
                }
            }
        }
    }
}
