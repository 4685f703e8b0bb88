//! A file as shared memory: what is stored in it is in the file when the process is gone, without a
//! system call. It does not survive the machine.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use rustix::mm::{MapFlags, ProtFlags};

/// The first words of a file.
#[derive(Debug)]
pub struct SharedWords {
    at: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: what it points to is shared memory that is used through atomics only, and lives as long
// as this does.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of a file that is open for reading and writing. Their bytes must
    /// have been written: a hole on a full disk ends the process (SIGBUS), as does whoever cuts the
    /// file off.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let bytes = count * size_of::<AtomicU64>();
        if count == 0 || file.metadata()?.len() < bytes as u64 {
            let message = format!("the file has less than {bytes} bytes, or none are wanted");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let at = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { at, count })
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `count` words, begins at a page, and is unmapped by drop alone;
        // every bit pattern is a word, and atomics may be changed by others.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: it was mapped with this length, and nobody borrows it any more.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write as _, sync::atomic::Ordering};

    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(SharedWords::map(&file, 4).is_err(), "it is empty");
        file.write_all(&[0; 32]).unwrap();
        let shared = SharedWords::map(&file, 4).unwrap();
        shared.words()[3].store(u64::from_le_bytes(*b"in-hand!"), Ordering::Relaxed);
        let mut bytes = [0; 32];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!(&bytes[24..], b"in-hand!");
        assert!(SharedWords::map(&file, 5).is_err());
    }
}
