//! What changed from one image to a later one, as bytes.
//!
//! Pages and entries that the two share are left out; of a page that changed a little only the
//! bytes that did are written ([`super::patch`]); counters, globals, timers and streams are small
//! and go whole. A delta names the image it starts from by its call number and module.

use std::sync::Arc;

use bytes::Bytes;

use super::codec::{Fields, Reader, Writer, put_bytes};
use super::map::Map;
use super::pages::{PAGE_BYTES, PER_WASM_PAGE, Page, ZERO};
use super::patch;
use super::sections::{check_layout, page_index, page_number, put_small, small, tag, wasm_pages};
use super::{Error, Held, Image, Inner};

const MAGIC: &[u8; 8] = b"HOP3DELT";
/// Number of the format. In 1 there was no [`PATCHED`].
const FORMAT: u16 = 2;
/// A page whose bytes changed here and there.
const PATCHED: u8 = 2;
/// A page or entry that is set.
const SET: u8 = 1;
/// One that is gone.
const GONE: u8 = 0;

impl Image {
    /// What makes `self` out of `since`.
    #[must_use]
    pub fn delta(&self, since: &Self) -> Vec<u8> {
        let (old, new) = (&*since.0, &*self.0);
        let mut out = Writer::new(MAGIC, FORMAT);
        out.section(tag::HEAD, |out| {
            out.extend(old.module);
            out.extend(new.module);
            out.extend(self.layout());
            out.extend(since.seq().to_le_bytes());
            out.extend(old.held.counters.desk.to_le_bytes());
        });
        put_small(&mut out, new);
        out.section(tag::MEMORY, |out| {
            out.extend(new.wasm_pages.to_le_bytes());
            let limit = new.wasm_pages as usize * PER_WASM_PAGE;
            for (index, page) in new.pages.unshared(&old.pages) {
                if page.is_none() && (old.pages.get(index).is_none() || index >= limit) {
                    continue;
                }
                put_page(out, index, page, old.pages.bytes(index));
            }
        });
        let maps = [
            (tag::KV, &new.held.kv, &old.held.kv),
            (tag::DESK, &new.desk, &old.desk),
        ];
        for (tag, new, old) in maps {
            out.section(tag, |out| {
                for (key, value) in new.diff(old) {
                    put_bytes(out, key);
                    out.push(if value.is_some() { SET } else { GONE });
                    if let Some(value) = value {
                        put_bytes(out, value);
                    }
                }
            });
        }
        out.0
    }

    /// The image that `delta` leads to from this one.
    ///
    /// # Errors
    /// The bytes are no delta, or one from another image.
    pub fn apply(&self, delta: &[u8]) -> Result<Self, Error> {
        let old = &*self.0;
        let mut from = Reader::new(delta, (MAGIC, FORMAT), "a delta of a service's image")?;
        let mut head = from.section(tag::HEAD, "head")?;
        let (base, module) = (head.array::<32>()?, *head.array::<32>()?);
        let layout = *head.array::<32>()?;
        let (expected, desk) = (head.u64()?, head.u64()?);
        head.end()?;
        if *base != old.module {
            return Err(Error::Module);
        }
        if (expected, desk) != (self.seq(), old.held.counters.desk) {
            let found = self.seq();
            return Err(Error::Base { expected, found });
        }
        let (counters, globals, timers, streams) = small(&mut from)?;
        check_layout(&globals, &layout)?;
        let mut new = Inner {
            module,
            globals,
            held: Held {
                counters,
                kv: old.held.kv.clone(),
                timers,
                streams,
            },
            ..old.clone()
        };
        memory(&mut new, from.section(tag::MEMORY, "memory")?)?;
        let kv = from.section(tag::KV, "key-value data")?;
        map(&mut new.held.kv, kv)?;
        map(&mut new.desk, from.section(tag::DESK, "desk")?)?;
        from.end()?;
        Ok(Self(Arc::new(new)))
    }
}

/// Writes what makes a page out of what it was, in the shorter way; nothing if nothing changed.
fn put_page(out: &mut Vec<u8>, index: usize, page: Option<&Page>, old: &[u8; PAGE_BYTES]) {
    let Some(page) = page else {
        out.extend(page_number(index));
        return out.push(GONE);
    };
    match patch::between(old, page) {
        Some(patch) if patch.is_empty() => {}
        Some(patch) => {
            out.extend(page_number(index));
            out.push(PATCHED);
            patch.put(out);
        }
        None => {
            out.extend(page_number(index));
            out.push(SET);
            out.extend_from_slice(&page[..]);
        }
    }
}

fn memory(new: &mut Inner, mut fields: Fields<'_>) -> Result<(), Error> {
    let size = wasm_pages(&mut fields)?;
    // A memory shrinks only where an instance was made anew under the same name.
    for index in size as usize * PER_WASM_PAGE..new.wasm_pages as usize * PER_WASM_PAGE {
        new.pages.put(index, None);
    }
    new.wasm_pages = size;
    let mut last = None;
    while !fields.is_empty() {
        let index = page_index(&mut fields, size, last)?;
        let page = match fields.u8()? {
            GONE => None,
            SET => Some(*fields.array()?),
            PATCHED => Some(patch::apply(new.pages.bytes(index), &mut fields)?),
            _ => return Err(fields.invalid("neither set, patched nor gone")),
        };
        if page.is_some_and(|page| page == ZERO) {
            return Err(fields.invalid("a page of zeros is not left out"));
        }
        new.pages.put(index, page.map(Arc::new));
        last = Some(index);
    }
    Ok(())
}

fn map(map: &mut Map, mut fields: Fields<'_>) -> Result<(), Error> {
    let mut last: Option<&[u8]> = None;
    while !fields.is_empty() {
        let key = fields.bytes()?;
        if last.is_some_and(|last| last >= key) {
            return Err(fields.invalid("keys out of order"));
        }
        match fields.u8()? {
            GONE => {
                map.remove(key);
            }
            SET => map.insert(
                Bytes::copy_from_slice(key),
                Bytes::copy_from_slice(fields.bytes()?),
            ),
            _ => return Err(fields.invalid("neither set nor gone")),
        }
        last = Some(key);
    }
    Ok(())
}
