//! An image as bytes: module and layout, counters, globals, memory, key-value data, desk,
//! timers, streams. One state has one encoding: whatever is decoded encodes to the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::codec::{Fields, Reader, Writer, put_bytes};
use super::map::Map;
use super::pages::{PAGE_BYTES, PER_WASM_PAGE, Pages, ZERO};
use super::{Counters, Error, Global, GlobalType, Held, Image, Inner, WASM_PAGES_MAX, layout_of};

const MAGIC: &[u8; 8] = b"HOP3IMAG";
/// Number of the format; a later one reads this as well.
const FORMAT: u16 = 1;

/// Tags of sections; deltas use the same.
pub(super) mod tag {
    pub(in super::super) const HEAD: u8 = 1;
    pub(in super::super) const COUNTERS: u8 = 2;
    pub(in super::super) const GLOBALS: u8 = 3;
    pub(in super::super) const MEMORY: u8 = 4;
    pub(in super::super) const KV: u8 = 5;
    pub(in super::super) const DESK: u8 = 6;
    pub(in super::super) const TIMERS: u8 = 7;
    pub(in super::super) const STREAMS: u8 = 8;
}

impl Image {
    /// The image as bytes, independent of the machine.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let inner = &*self.0;
        let mut out = Writer::new(MAGIC, FORMAT);
        out.0
            .reserve(inner.pages.present() * (4 + PAGE_BYTES) + 1_024);
        out.section(tag::HEAD, |out| {
            out.extend(inner.module);
            out.extend(self.layout());
        });
        put_small(&mut out, inner);
        out.section(tag::MEMORY, |out| {
            out.extend(inner.wasm_pages.to_le_bytes());
            for (index, page) in inner.pages.iter() {
                out.extend(page_number(index));
                out.extend_from_slice(&page[..]);
            }
        });
        for (tag, map) in [(tag::KV, &inner.held.kv), (tag::DESK, &inner.desk)] {
            out.section(tag, |out| {
                for (key, value) in map.iter() {
                    put_bytes(out, key);
                    put_bytes(out, value);
                }
            });
        }
        out.0
    }

    /// Reads what [`encode`](Self::encode) gave.
    ///
    /// # Errors
    /// The bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut from = Reader::new(bytes, (MAGIC, FORMAT), "an image of a service")?;
        let mut head = from.section(tag::HEAD, "head")?;
        let (module, layout) = (*head.array::<32>()?, *head.array::<32>()?);
        head.end()?;
        let (counters, globals, timers, streams) = small(&mut from)?;
        check_layout(&globals, &layout)?;
        let (wasm_pages, pages) = memory(from.section(tag::MEMORY, "memory")?)?;
        let kv = map(from.section(tag::KV, "key-value data")?)?;
        let desk = map(from.section(tag::DESK, "desk")?)?;
        from.end()?;
        let held = Held {
            counters,
            kv,
            timers,
            streams,
        };
        Ok(Self(Arc::new(Inner {
            module,
            wasm_pages,
            pages,
            globals,
            held,
            desk,
        })))
    }
}

pub(super) fn check_layout(globals: &[Global], layout: &[u8; 32]) -> Result<(), Error> {
    if layout_of(globals.iter().map(|global| global.ty)) == *layout {
        return Ok(());
    }
    let (section, why) = ("globals", "not of the layout that the head names");
    Err(Error::Invalid { section, why })
}

pub(super) fn page_number(index: usize) -> [u8; 4] {
    u32::try_from(index)
        .expect("a page of a 4 GiB memory has a number below 2^20")
        .to_le_bytes()
}

/// What is small and always written whole.
pub(super) fn put_small(out: &mut Writer, inner: &Inner) {
    let held = &inner.held;
    out.section(tag::COUNTERS, |out| {
        let c = &held.counters;
        for number in [c.seq, c.effects, c.streams, c.random, c.clock_ns, c.desk] {
            out.extend(number.to_le_bytes());
        }
        out.extend(c.schema.to_le_bytes());
    });
    out.section(tag::GLOBALS, |out| {
        for global in &inner.globals {
            out.push(global.ty as u8);
            out.extend(global.bits.to_le_bytes());
        }
    });
    out.section(tag::TIMERS, |out| {
        for (timer, at_ms) in held.timers.iter() {
            out.extend(timer.to_le_bytes());
            out.extend(at_ms.to_le_bytes());
        }
    });
    out.section(tag::STREAMS, |out| {
        for stream in held.streams.iter() {
            out.extend(stream.to_le_bytes());
        }
    });
}

pub(super) type Small = (
    Counters,
    Vec<Global>,
    Arc<BTreeMap<u64, u64>>,
    Arc<BTreeSet<u64>>,
);

/// Reads what [`put_small`] wrote.
pub(super) fn small(from: &mut Reader<'_>) -> Result<Small, Error> {
    let mut fields = from.section(tag::COUNTERS, "counters")?;
    let counters = Counters {
        seq: fields.u64()?,
        effects: fields.u64()?,
        streams: fields.u64()?,
        random: fields.u64()?,
        clock_ns: fields.u64()?,
        desk: fields.u64()?,
        schema: fields.u32()?,
    };
    fields.end()?;
    let globals = globals(from.section(tag::GLOBALS, "globals")?)?;
    let mut fields = from.section(tag::TIMERS, "timers")?;
    let mut timers = BTreeMap::new();
    while !fields.is_empty() {
        let (timer, at_ms) = (fields.u64()?, fields.u64()?);
        if timers
            .last_key_value()
            .is_some_and(|(last, _)| *last >= timer)
        {
            return Err(fields.invalid("timers out of order"));
        }
        timers.insert(timer, at_ms);
    }
    let mut fields = from.section(tag::STREAMS, "streams")?;
    let mut streams = BTreeSet::new();
    while !fields.is_empty() {
        let stream = fields.u64()?;
        if streams.last().is_some_and(|last| *last >= stream) {
            return Err(fields.invalid("streams out of order"));
        }
        streams.insert(stream);
    }
    Ok((counters, globals, Arc::new(timers), Arc::new(streams)))
}

fn globals(mut fields: Fields<'_>) -> Result<Vec<Global>, Error> {
    let mut globals = Vec::new();
    while !fields.is_empty() {
        let ty = GlobalType::of(fields.u8()?).ok_or(fields.invalid("unknown type"))?;
        let bits = u128::from_le_bytes(*fields.array()?);
        let width = match ty {
            GlobalType::I32 | GlobalType::F32 => 32,
            GlobalType::I64 | GlobalType::F64 => 64,
            GlobalType::V128 => 128,
        };
        if width < 128 && bits >> width != 0 {
            return Err(fields.invalid("a value is wider than its type"));
        }
        globals.push(Global { ty, bits });
    }
    Ok(globals)
}

/// The number of a page within a memory, greater than the last.
pub(super) fn page_index(
    fields: &mut Fields<'_>,
    wasm_pages: u32,
    last: Option<usize>,
) -> Result<usize, Error> {
    let index = fields.u32()? as usize;
    if last.is_some_and(|last| last >= index) {
        return Err(fields.invalid("pages out of order"));
    }
    if index >= wasm_pages as usize * PER_WASM_PAGE {
        return Err(fields.invalid("a page beyond the memory's end"));
    }
    Ok(index)
}

/// The size of a memory.
pub(super) fn wasm_pages(fields: &mut Fields<'_>) -> Result<u32, Error> {
    let wasm_pages = fields.u32()?;
    if wasm_pages > WASM_PAGES_MAX {
        return Err(fields.invalid("more than 4 GiB"));
    }
    Ok(wasm_pages)
}

fn memory(mut fields: Fields<'_>) -> Result<(u32, Pages), Error> {
    let size = wasm_pages(&mut fields)?;
    let (mut pages, mut last) = (Pages::default(), None);
    while !fields.is_empty() {
        let index = page_index(&mut fields, size, last)?;
        let page = fields.array()?;
        if *page == ZERO {
            return Err(fields.invalid("a page of zeros is not left out"));
        }
        pages.put(index, Some(Arc::new(*page)));
        last = Some(index);
    }
    Ok((size, pages))
}

fn map(mut fields: Fields<'_>) -> Result<Map, Error> {
    let mut map = Map::default();
    let mut last: Option<&[u8]> = None;
    while !fields.is_empty() {
        let (key, value) = (fields.bytes()?, fields.bytes()?);
        if last.is_some_and(|last| last >= key) {
            return Err(fields.invalid("keys out of order"));
        }
        map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        last = Some(key);
    }
    Ok(map)
}
