//! Systems without `PAGEMAP_SCAN`: pages are compared.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Cannot be made.
pub(in super::super) struct Kernel(Infallible);

/// Cannot be made.
pub(in super::super) struct Watch(Infallible);

impl Kernel {
    pub(in super::super) fn open() -> io::Result<Arc<Self>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Watch {
    pub(super) fn start(kernel: Arc<Kernel>, _memory: &[u8]) -> io::Result<Self> {
        match kernel.0 {}
    }

    pub(super) fn written(&mut self, _: &[u8], _: impl FnMut(Range<usize>)) -> io::Result<()> {
        match self.0 {}
    }
}
