//! Images of services and deltas between them, which come from other nodes.
//!
//! Each section has a checksum: the targets mend sums, lengths and the layout's hash of what the
//! fuzzer made, so that it gets behind them. (The first byte says whether.)

use hop3_runtime::service::Image;

use crate::input::{Input, put_part};

/// Magic and format.
const HEAD_BYTES: usize = 10;
/// Tag and length of a section.
const SECTION_BYTES: usize = 9;
const SUM_BYTES: usize = 16;
/// What an image may hold beyond its bytes, per byte: nothing; and for its length alone.
const SLACK_BYTES: u64 = 1 << 16;

/// The sections of an image or a delta, as they come. A length that lies ends them.
fn sections(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut out = Vec::new();
    let mut rest = bytes.get(HEAD_BYTES..).unwrap_or(&[]);
    while let Some((head, after)) = rest.split_first_chunk::<SECTION_BYTES>() {
        let len = u64::from_le_bytes(head[1..].try_into().unwrap());
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(after.len());
        let (payload, after) = after.split_at(len);
        out.push((head[0], payload.to_vec()));
        rest = after.get(SUM_BYTES..).unwrap_or(&[]);
    }
    out
}

fn sealed(head: &[u8], sections: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = head.to_vec();
    for (tag, payload) in sections {
        let mut section = vec![*tag];
        section.extend((payload.len() as u64).to_le_bytes());
        section.extend_from_slice(payload);
        out.extend_from_slice(&section);
        out.extend_from_slice(&blake3::hash(&section).as_bytes()[..SUM_BYTES]);
    }
    out
}

/// With right sums, and the layout at `layout_at` of the first section that of the globals.
fn mended(bytes: &[u8], layout_at: usize) -> Vec<u8> {
    const GLOBALS: u8 = 3;
    const GLOBAL_BYTES: usize = 17;
    let mut sections = sections(bytes);
    let globals = sections.iter().find(|(tag, _)| *tag == GLOBALS);
    let types: Vec<u8> = globals.map_or(Vec::new(), |(_, payload)| {
        payload.iter().copied().step_by(GLOBAL_BYTES).collect()
    });
    let layout = blake3::derive_key("hop3 2026 layout of a service's globals", &types);
    if let Some((_, head)) = sections.first_mut()
        && let Some(place) = head.get_mut(layout_at..layout_at + layout.len())
    {
        place.copy_from_slice(&layout);
    }
    sealed(&bytes[..HEAD_BYTES.min(bytes.len())], &sections)
}

/// An image: one state has one encoding, and a small one is small in memory.
pub fn image(data: &[u8]) -> bool {
    let mut input = Input(data);
    let bytes = match input.u8() % 2 {
        0 => input.0.to_vec(),
        _ => mended(input.0, 32),
    };
    let Ok(image) = Image::decode(&bytes) else {
        return false;
    };
    assert!(image.encode() == bytes, "another encoding of the same");
    check(&image, bytes.len());
    true
}

fn check(image: &Image, bytes: usize) {
    // Entries count more than their bytes: 32 each, of at least 8.
    assert!(image.state_bytes() <= bytes as u64 * 5 + SLACK_BYTES);
    assert!(image.memory_bytes() <= 1 << 32);
    assert!(image.streams().is_sorted());
    let _ = image.next_timer();
    assert_eq!(image.desk_range(b"").count(), image.desk_range(&[]).count());
}

/// A base image and a delta of it: what it leads to is an image as any other, and the delta
/// between the two leads there, too.
pub fn delta(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (mend, base) = (input.u8() % 2 == 1, input.part());
    let delta = match mend {
        false => input.0.to_vec(),
        true => mended(input.0, 64),
    };
    let Ok(base) = Image::decode(base) else {
        return false;
    };
    let before = base.encode();
    let Ok(after) = base.apply(&delta) else {
        assert!(base.encode() == before, "a refused delta changed its base");
        return false;
    };
    assert!(base.encode() == before, "a delta changed its base");
    check(&after, before.len() + delta.len());
    let encoded = after.encode();
    let decoded = Image::decode(&encoded).expect("an image of our own making");
    assert!(decoded == after && decoded.module() == after.module());
    let again = base.apply(&after.delta(&base)).expect("a delta of our own");
    assert!(again == after && again.encode() == encoded);
    true
}

/// Builds an image from parts, by the documented form.
fn built(seq: u64, pages: &[(u32, u8)], kv: &[(&str, &str)], timers: &[(u64, u64)]) -> Vec<u8> {
    let mut sections = vec![(1, [7; 32].repeat(2))];
    let numbers = [seq, 8, 7, 6, 5, 4].map(u64::to_le_bytes).concat();
    sections.push((2, [numbers, 3u32.to_le_bytes().to_vec()].concat()));
    let global = |ty: u8, bits: u128| [vec![ty], bits.to_le_bytes().to_vec()].concat();
    sections.push((
        3,
        [global(1, 65_536), global(4, 9), global(5, u128::MAX)].concat(),
    ));
    let timers = timers
        .iter()
        .flat_map(|(timer, at)| [timer.to_le_bytes(), at.to_le_bytes()]);
    sections.push((7, timers.collect::<Vec<_>>().concat()));
    sections.push((8, [4u64, 6].map(u64::to_le_bytes).concat()));
    let mut memory = 2u32.to_le_bytes().to_vec();
    for (index, byte) in pages {
        memory.extend(index.to_le_bytes());
        memory.extend([*byte; 4_096]);
    }
    sections.push((4, memory));
    let mut entries = Vec::new();
    for part in kv.iter().flat_map(|(key, value)| [key, value]) {
        entries.extend((part.len() as u32).to_le_bytes());
        entries.extend_from_slice(part.as_bytes());
    }
    sections.push((5, entries));
    let mut desk = 6u32.to_le_bytes().to_vec();
    desk.extend_from_slice(b"call/1\0\0\0\0");
    sections.push((6, desk));
    mended(&sealed(b"HOP3IMAG\x01\0", &sections), 32)
}

fn before() -> Vec<u8> {
    built(
        9,
        &[(0, 42)],
        &[("a", "1"), ("key", "value")],
        &[(1, 100), (2, 50)],
    )
}

fn later() -> Vec<u8> {
    let kv: [(&str, &str); 3] = [("b", "2"), ("c", ""), ("key", "other")];
    built(10, &[(31, 1)], &kv, &[(2, 60)])
}

/// Seeds of [`image`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |mend: u8, image: &[u8]| [&[mend][..], image].concat();
    let mut long = before();
    // The length of the first section.
    long[11..19].copy_from_slice(&u64::MAX.to_le_bytes());
    vec![
        ("ok-empty".into(), of(0, &built(0, &[], &[], &[]))),
        ("ok-image".into(), of(0, &before())),
        ("ok-mended".into(), of(1, &later())),
        (
            "bad-zero-page".into(),
            of(1, &built(1, &[(3, 0)], &[], &[])),
        ),
        (
            "bad-pages-out-of-order".into(),
            of(1, &built(1, &[(3, 1), (2, 1)], &[], &[])),
        ),
        (
            "bad-page-outside".into(),
            of(1, &built(1, &[(32, 1)], &[], &[])),
        ),
        (
            "bad-timers-out-of-order".into(),
            of(1, &built(1, &[], &[], &[(2, 1), (1, 1)])),
        ),
        ("bad-long-section".into(), of(0, &long)),
        ("bad-cut".into(), of(0, &before()[..200])),
    ]
}

/// Seeds of [`delta`].
#[must_use]
pub fn delta_seeds() -> Vec<(String, Vec<u8>)> {
    let of = |mend: u8, base: &[u8], delta: &[u8]| {
        let mut out = vec![mend];
        put_part(&mut out, base);
        out.extend_from_slice(delta);
        out
    };
    let (old, new) = (before(), later());
    let (old_image, new_image) = (Image::decode(&old).unwrap(), Image::decode(&new).unwrap());
    let forth = new_image.delta(&old_image);
    let back = old_image.delta(&new_image);
    vec![
        ("ok-forth".into(), of(0, &old, &forth)),
        ("ok-back".into(), of(1, &new, &back)),
        ("ok-same".into(), of(0, &old, &old_image.delta(&old_image))),
        ("bad-other-base".into(), of(0, &old, &back)),
        ("bad-cut".into(), of(1, &old, &forth[..forth.len() / 2])),
    ]
}
