//! A stream in sealed frames of one size: what was cut off, exchanged or altered is noticed.
//!
//! ```text
//! magic 8 · id 16 · frames: sealed( up to FRAME_BYTES )…
//! ```
//!
//! Each frame is sealed in the context of the stream's id, its own number and whether it is the
//! last. Only the last is shorter (it may be empty), and nothing follows it.

use std::io::{self, Read, Write};

use super::Error;
use crate::store::{
    Cipher, MasterKey,
    crypt::{Purpose, SEAL_OVERHEAD_BYTES},
};

/// Bytes of a frame, in the clear.
pub(super) const FRAME_BYTES: usize = 64 * 1024;

const MAGIC: [u8; 8] = *b"HOP3BAK\x01";
const ID_BYTES: usize = 16;

fn context(id: &[u8; ID_BYTES], number: u64, last: bool) -> [u8; ID_BYTES + 9] {
    let mut context = [0; ID_BYTES + 9];
    context[..ID_BYTES].copy_from_slice(id);
    context[ID_BYTES..ID_BYTES + 8].copy_from_slice(&number.to_le_bytes());
    context[ID_BYTES + 8] = u8::from(last);
    context
}

/// Seals what is written. Not whole without [`Sealer::finish`].
pub(super) struct Sealer<W> {
    out: W,
    cipher: Cipher,
    id: [u8; ID_BYTES],
    number: u64,
    pending: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    pub(super) fn new(mut out: W, key: &MasterKey) -> Result<Self, Error> {
        let mut id = [0; ID_BYTES];
        getrandom::fill(&mut id).map_err(crate::store::Error::Random)?;
        let head = out.write_all(&MAGIC).and_then(|()| out.write_all(&id));
        head.map_err(Error::io("write the backup"))?;
        Ok(Self {
            out,
            cipher: key.cipher(Purpose::Backup),
            id,
            number: 0,
            pending: Vec::with_capacity(FRAME_BYTES),
        })
    }

    fn frame(&mut self, last: bool) -> io::Result<()> {
        let context = context(&self.id, self.number, last);
        let sealed = self.cipher.seal(&context, &self.pending);
        self.out.write_all(&sealed.map_err(io::Error::other)?)?;
        self.number += 1;
        self.pending.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.frame(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.pending.len() == FRAME_BYTES {
            self.frame(false)?;
        }
        let len = bytes.len().min(FRAME_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    // What is pending goes out with its frame.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what a [`Sealer`] wrote. Gives no byte of a frame that does not verify.
pub(super) struct Opener<R> {
    input: R,
    cipher: Cipher,
    id: [u8; ID_BYTES],
    number: u64,
    frame: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R: Read> Opener<R> {
    pub(super) fn new(mut input: R, key: &MasterKey) -> Result<Self, Error> {
        let mut head = [0; MAGIC.len() + ID_BYTES];
        let len = fill(&mut input, &mut head).map_err(Error::io("read the backup"))?;
        if len < head.len() || head[..7] != MAGIC[..7] {
            return Err(Error::Damaged("it is no backup of hop3"));
        }
        if head[..8] != MAGIC {
            return Err(Error::Damaged("it is of a newer release"));
        }
        let mut opener = Self {
            input,
            cipher: key.cipher(Purpose::Backup),
            id: head[8..].try_into().expect("sixteen bytes"),
            number: 0,
            frame: Vec::new(),
            at: 0,
            ended: false,
        };
        // Another key or damage: the first frame tells one of them.
        opener.next_frame().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::WrongKey,
            _ => Error::from_read(error),
        })?;
        Ok(opener)
    }

    fn next_frame(&mut self) -> io::Result<()> {
        let mut sealed = vec![0; FRAME_BYTES + SEAL_OVERHEAD_BYTES];
        let len = fill(&mut self.input, &mut sealed)?;
        let full = len == sealed.len();
        sealed.truncate(len);
        let open = |last| {
            let context = context(&self.id, self.number, last);
            self.cipher.open(&context, &sealed)
        };
        let opened = match open(false) {
            Ok(frame) if full => Ok((frame, false)),
            _ => open(true).map(|frame| (frame, true)),
        };
        let (frame, last) = opened.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if last && self.input.read(&mut [0])? > 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        (self.frame, self.at, self.ended) = (frame, 0, last);
        self.number += 1;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.frame.len() && !self.ended {
            self.next_frame()?;
        }
        let len = buf.len().min(self.frame.len() - self.at);
        buf[..len].copy_from_slice(&self.frame[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Reads until `buf` is full or the input ends.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buf.len() {
        match input.read(&mut buf[at..]) {
            Ok(0) => break,
            Ok(len) => at += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
