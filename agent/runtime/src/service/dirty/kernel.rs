//! Written pages, as the kernel knows them: an asynchronous write-protecting userfaultfd with
//! `PAGEMAP_SCAN` (Linux 6.7 and later).
//!
//! A memory is registered; each scan reports the pages written since the one before and protects
//! them again, atomically per page. A write to a protected page only clears the protection:
//! nobody is woken, no thread is needed, and writes by system calls count too. Pages that were
//! never touched need no protection: the first write makes them present and thereby reported.
//!
//! A self-test proves on a scratch mapping that all this holds here before it is relied on.
//!
//! JUSTIFICATION for `unsafe`: the two interfaces are ioctls without a safe wrapper.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags};

use super::super::image::pages::PAGE_BYTES;

/// Regions of one scan; more are fetched by further scans.
const REGIONS: usize = 64;
/// `UFFD_API`.
const API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const PAGEMAP_SCAN: u64 = 0xc060_6610;
/// `UFFD_FEATURE_WP_ASYNC`.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY`: all that an ordinary user may have; asynchronous protection resolves
/// the kernel's own faults nevertheless.
const USER_MODE_ONLY: u32 = 1;
/// `PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC`: protect what is reported, and fail where the
/// range is not all registered.
const SCAN_FLAGS: u64 = 1 | 2;
/// `PAGE_IS_WRITTEN`.
const WRITTEN: u64 = 1 << 1;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The process's userfaultfd and page map.
pub(in super::super) struct Kernel {
    uffd: OwnedFd,
    pagemap: File,
}

impl Kernel {
    /// Opens both and proves that they work.
    ///
    /// # Errors
    /// The kernel is too old, or forbids it.
    pub(in super::super) fn open() -> io::Result<Arc<Self>> {
        if rustix::param::page_size() != PAGE_BYTES {
            return Err(io::Error::other("pages are not 4 KiB here"));
        }
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
        // SAFETY: creating a userfaultfd changes no mapping; ranges are registered below only.
        let uffd = unsafe { rustix::mm::userfaultfd(flags) }?;
        let pagemap = File::open("/proc/self/pagemap")?;
        let mut api = UffdioApi {
            api: API,
            features: FEATURE_WP_ASYNC,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `UffdioApi`.
        unsafe { ioctl(&uffd, UFFDIO_API, &mut api) }?;
        let kernel = Arc::new(Self { uffd, pagemap });
        self_test(&kernel)?;
        Ok(kernel)
    }

    /// Registers `len` bytes from `start`; those registered already stay so.
    fn register(&self, start: u64, len: u64) -> io::Result<()> {
        let mut arg = UffdioRegister {
            range: UffdioRange { start, len },
            mode: MODE_WP,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `UffdioRegister`. With asynchronous
        // protection, registering changes what the kernel records about pages, and never what
        // they hold or whether they can be accessed.
        unsafe { ioctl(&self.uffd, UFFDIO_REGISTER, &mut arg) }
    }

    fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let mut arg = UffdioRange { start, len };
        // SAFETY: UFFDIO_UNREGISTER reads one `UffdioRange`; it lifts the protection.
        unsafe { ioctl(&self.uffd, UFFDIO_UNREGISTER, &mut arg) }
    }

    /// Reports the pages of `start..end` that were written since the last scan, as ranges of
    /// addresses.
    fn scan(&self, start: u64, end: u64, mut report: impl FnMut(&Region)) -> io::Result<()> {
        let mut regions = [Region::default(); REGIONS];
        let mut from = start;
        while from < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: SCAN_FLAGS,
                start: from,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: WRITTEN,
                category_anyof_mask: 0,
                return_mask: WRITTEN,
            };
            // SAFETY: PAGEMAP_SCAN reads and writes one `ScanArg` and writes at most `vec_len`
            // regions to `vec`, which is `regions`. It protects pages of ranges registered
            // above; what they hold does not change.
            let found = unsafe { ioctl_count(&self.pagemap, PAGEMAP_SCAN, &mut arg) }?;
            regions.iter().take(found).for_each(&mut report);
            if arg.walk_end <= from {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            from = arg.walk_end;
        }
        Ok(())
    }
}

/// # Safety
/// `request` must read and write no more than a `T` through its argument.
unsafe fn ioctl<T>(fd: &impl AsRawFd, request: u64, arg: &mut T) -> io::Result<()> {
    // SAFETY: as the caller says.
    unsafe { ioctl_count(fd, request, arg) }.map(drop)
}

/// # Safety
/// As [`ioctl`], but for memory that `arg` itself names.
unsafe fn ioctl_count<T>(fd: &impl AsRawFd, request: u64, arg: &mut T) -> io::Result<usize> {
    let arg = std::ptr::from_mut(arg);
    // The type of a request differs between C libraries.
    #[allow(clippy::useless_conversion)]
    let request = request.try_into().map_err(io::Error::other)?;
    // SAFETY: `arg` is valid for a `T`; the rest as the caller says.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, arg) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// One memory that is watched; forgotten when dropped, which must be before the memory goes.
pub(in super::super) struct Watch {
    kernel: Arc<Kernel>,
    start: u64,
    len: u64,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel refuses this mapping.
    pub(super) fn start(kernel: Arc<Kernel>, memory: &[u8]) -> io::Result<Self> {
        let start = memory.as_ptr() as u64;
        if !start.is_multiple_of(PAGE_BYTES as u64) {
            return Err(io::Error::other("the memory does not begin at a page"));
        }
        let mut watch = Self {
            kernel,
            start,
            len: 0,
        };
        watch.extend(memory)?;
        watch.kernel.scan(start, start + watch.len, |_| {})?;
        Ok(watch)
    }

    /// Watches what the memory has grown by.
    fn extend(&mut self, memory: &[u8]) -> io::Result<()> {
        let len = memory.len() as u64;
        if len > self.len {
            self.kernel
                .register(self.start + self.len, len - self.len)?;
            self.len = len;
        }
        Ok(())
    }

    /// Reports the pages written since the last time, as ranges of page numbers. Those of grown
    /// memory count from its growth.
    pub(super) fn written(
        &mut self,
        memory: &[u8],
        mut report: impl FnMut(Range<usize>),
    ) -> io::Result<()> {
        if memory.as_ptr() as u64 != self.start || (memory.len() as u64) < self.len {
            return Err(io::Error::other("the memory is another one"));
        }
        self.extend(memory)?;
        let page = |address: u64| {
            usize::try_from((address - self.start) / PAGE_BYTES as u64).unwrap_or(usize::MAX)
        };
        let end = self.start + self.len;
        self.kernel.scan(self.start, end, |region| {
            report(page(region.start)..page(region.end));
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.len > 0 {
            // Fails only if the mapping is gone, and its registration with it.
            let _ = self.kernel.unregister(self.start, self.len);
        }
    }
}

/// Pages of the self-test's mapping.
const SCRATCH_PAGES: usize = 8;

/// A private mapping for the self-test.
struct Scratch(*mut u8);

impl Scratch {
    const BYTES: usize = SCRATCH_PAGES * PAGE_BYTES;

    fn new() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping where the kernel likes aliases nothing.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                Self::BYTES,
                protection,
                MapFlags::PRIVATE,
            )
        }?;
        Ok(Self(at.cast()))
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `BYTES` long, readable, writable, zeroed and only ours.
        unsafe { std::slice::from_raw_parts_mut(self.0, Self::BYTES) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` and nothing borrows it any more.
        let _ = unsafe { rustix::mm::munmap(self.0.cast(), Self::BYTES) };
    }
}

/// Writes pages in all states (untouched, read, written before) and by a system call, and
/// compares what is reported.
fn self_test(kernel: &Arc<Kernel>) -> io::Result<()> {
    let mut scratch = Scratch::new()?;
    scratch.bytes()[PAGE_BYTES] = 1;
    let mut watch = Watch::start(Arc::clone(kernel), scratch.bytes())?;
    let mut expect = |scratch: &mut Scratch, pages: &[usize]| {
        let mut found = Vec::new();
        watch.written(scratch.bytes(), |range| found.extend(range))?;
        if pages.iter().all(|page| found.contains(page)) && found.len() <= pages.len() + 1 {
            return Ok(());
        }
        Err(io::Error::other("written pages are not reported here"))
    };
    expect(&mut scratch, &[])?;
    for round in 1..=2 {
        // Read only: may be reported once, when it becomes present.
        std::hint::black_box(scratch.bytes()[2 * PAGE_BYTES]);
        for page in [0, 1, 5] {
            scratch.bytes()[page * PAGE_BYTES + 7] = round;
        }
        rustix::io::read(
            File::open("/dev/zero")?,
            &mut scratch.bytes()[6 * PAGE_BYTES..][..1],
        )?;
        expect(&mut scratch, &[0, 1, 5, 6])?;
        expect(&mut scratch, &[])?;
    }
    Ok(())
}
