#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::pages::PER_WASM_PAGE;
use super::*;

/// An image with something in every place.
pub(crate) fn sample() -> Image {
    let mut image = Image::new([7; 32]);
    let inner = image.inner_mut();
    inner.wasm_pages = 2;
    let mut page = [0; PAGE_BYTES];
    page[5] = 42;
    inner.pages.set(0, &page);
    inner.pages.set(2 * PER_WASM_PAGE - 1, &[0xff; PAGE_BYTES]);
    let global = |ty, bits| Global { ty, bits };
    inner.globals = vec![
        global(GlobalType::I32, 65_536),
        global(GlobalType::F64, u128::from(1.5f64.to_bits())),
        global(GlobalType::V128, u128::MAX),
    ];
    inner.held.counters = Counters {
        seq: 9,
        effects: 8,
        streams: 7,
        random: 6,
        clock_ns: 5,
        desk: 4,
        schema: 3,
    };
    inner
        .held
        .kv
        .insert(Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    inner
        .desk
        .insert(Bytes::from_static(b"call/1"), Bytes::new());
    inner.held.timers = Arc::new([(1, 100), (2, 50), (3, 50)].into());
    inner.held.streams = Arc::new([4, 6].into());
    image
}

#[test]
fn the_format_is_frozen() {
    let bytes = sample().encode();
    // Images of this format are on disks: a change of these needs another format number.
    assert_eq!(&bytes[..10], b"HOP3IMAG\x01\x00");
    let hash = blake3::hash(&bytes).to_hex();
    assert_eq!((bytes.len(), hash.as_str()), GOLDEN_IMAGE);
    let mut older = sample();
    older.inner_mut().pages = Pages::default();
    let delta = sample().delta(&older);
    let hash = blake3::hash(&delta).to_hex();
    assert_eq!((delta.len(), hash.as_str()), GOLDEN_DELTA);
}

const GOLDEN_IMAGE: (usize, &str) = (
    8675,
    "3ff076fc1ca07a3b1b93b7a935eb7940ae9f2a183b73aee723fab9f9f43d1840",
);
const GOLDEN_DELTA: (usize, &str) = (
    4606,
    "3718e4e06d4d72f9b6bab922f93cc6bb07c3cdfb6733c70ba97ab34b95689673",
);

#[test]
fn an_image_says_what_it_holds() {
    let image = sample();
    assert_eq!(
        (image.seq(), image.schema(), image.memory_bytes()),
        (9, 3, 131_072)
    );
    assert_eq!(image.next_timer(), Some((2, 50)));
    assert_eq!(image.streams().collect::<Vec<_>>(), [4, 6]);
    assert_eq!(image.desk(b"call/1"), Some(&Bytes::new()));
    assert_eq!(image.desk(b"key"), None);
    assert_eq!(image.desk_range(b"call/").count(), 1);
    assert_eq!(image.state_bytes(), 2 * 4_096 + 32 + 8 + 32 + 6);
    assert_eq!(Image::decode(&image.encode()).unwrap(), image);
}

#[test]
fn wrong_bases_and_formats_are_refused() {
    let (old, mut new) = (sample(), sample());
    new.inner_mut().held.counters.seq = 10;
    let delta = new.delta(&old);
    assert_eq!(old.apply(&delta).unwrap(), new);
    let (expected, found) = (9, 10);
    assert_eq!(new.apply(&delta), Err(Error::Base { expected, found }));
    let mut touched = sample();
    touched.inner_mut().held.counters.desk += 1;
    assert!(matches!(touched.apply(&delta), Err(Error::Base { .. })));
    let mut other = sample();
    other.inner_mut().module = [8; 32];
    assert_eq!(other.apply(&delta), Err(Error::Module));
    assert!(matches!(Image::decode(&delta), Err(Error::Magic(_))));
    assert!(matches!(old.apply(&new.encode()), Err(Error::Magic(_))));
    let mut later = new.encode();
    later[8] = 2;
    let (found, known) = (2, 1);
    assert_eq!(Image::decode(&later), Err(Error::Version { found, known }));
}

#[test]
fn a_delta_is_as_long_as_what_changed_and_whole_pages_are_read_too() {
    let (old, mut new) = (sample(), sample());
    let mut page = *old.0.pages.bytes(1);
    page[100..104].copy_from_slice(b"here");
    new.inner_mut().pages.set(1, &page);
    let little = new.delta(&old);
    assert_eq!(old.apply(&little).unwrap(), new);
    // Nothing but a page's number, how it changed, one run with its place, and its four bytes.
    assert_eq!(little.len(), old.delta(&old).len() + 4 + 1 + 2 + 4 + 4);
    for (n, byte) in page.iter_mut().enumerate() {
        *byte = n as u8 | 1;
    }
    new.inner_mut().pages.set(1, &page);
    let mut whole = new.delta(&old);
    assert!(whole.len() > PAGE_BYTES);
    assert_eq!(old.apply(&whole).unwrap(), new);
    // As format 1 had it.
    assert_eq!(whole[8..10], [2, 0]);
    whole[8] = 1;
    assert_eq!(old.apply(&whole).unwrap(), new);
    whole[8] = 3;
    let (found, known) = (3, 2);
    assert_eq!(old.apply(&whole), Err(Error::Version { found, known }));
}

#[test]
fn every_cut_and_every_flipped_byte_is_refused() {
    let (old, mut new) = (sample(), sample());
    new.inner_mut().pages.set(1, &[1; PAGE_BYTES]);
    new.inner_mut().desk.remove(b"call/1");
    let (image, delta) = (new.encode(), new.delta(&old));
    for at in (0..image.len())
        .step_by(13)
        .chain(image.len() - 40..image.len())
    {
        assert!(Image::decode(&image[..at]).is_err(), "cut at {at}");
        let mut flipped = image.clone();
        flipped[at] ^= 0x10;
        assert!(Image::decode(&flipped).is_err(), "flipped at {at}");
    }
    for at in 0..delta.len() {
        assert!(old.apply(&delta[..at]).is_err(), "cut at {at}");
        let mut flipped = delta.clone();
        flipped[at] ^= 0x01;
        assert!(old.apply(&flipped).is_err(), "flipped at {at}");
    }
    let mut longer = image;
    longer.push(0);
    assert!(Image::decode(&longer).is_err());
}

#[derive(Debug, Clone)]
enum Change {
    Page(usize, u8),
    Kv(u8, Option<u8>),
    Desk(u8, Option<u8>),
    Timer(u64, Option<u64>),
    Stream(u64, bool),
    Global(u32),
    Size(u32),
}

fn change() -> impl Strategy<Value = Change> {
    let some = || prop::option::weighted(0.7, any::<u8>());
    prop_oneof![
        4 => (0..64usize, prop_oneof![Just(0u8), any::<u8>()]).prop_map(|(n, b)| Change::Page(n, b)),
        2 => (any::<u8>(), some()).prop_map(|(k, v)| Change::Kv(k, v)),
        2 => (any::<u8>(), some()).prop_map(|(k, v)| Change::Desk(k, v)),
        1 => (0..9u64, prop::option::of(any::<u64>())).prop_map(|(t, at)| Change::Timer(t, at)),
        1 => (0..9u64, any::<bool>()).prop_map(|(s, on)| Change::Stream(s, on)),
        1 => any::<u32>().prop_map(Change::Global),
        1 => (1..=4u32).prop_map(Change::Size),
    ]
}

fn apply(image: &mut Image, change: &Change) {
    let inner = image.inner_mut();
    inner.held.counters.seq += 1;
    match *change {
        Change::Page(n, byte) => {
            inner.wasm_pages = inner
                .wasm_pages
                .max(u32::try_from(n / PER_WASM_PAGE + 1).unwrap());
            inner.pages.set(n, &[byte; PAGE_BYTES]);
        }
        Change::Kv(key, value) => set(&mut inner.held.kv, key, value),
        Change::Desk(key, value) => set(&mut inner.desk, key, value),
        Change::Timer(timer, Some(at)) => {
            Arc::make_mut(&mut inner.held.timers).insert(timer, at);
        }
        Change::Timer(timer, None) => {
            Arc::make_mut(&mut inner.held.timers).remove(&timer);
        }
        Change::Stream(stream, true) => {
            Arc::make_mut(&mut inner.held.streams).insert(stream);
        }
        Change::Stream(stream, false) => {
            Arc::make_mut(&mut inner.held.streams).remove(&stream);
        }
        Change::Global(bits) => {
            let (ty, bits) = (GlobalType::I32, bits.into());
            inner.globals = vec![Global { ty, bits }];
        }
        Change::Size(pages) => inner.wasm_pages = inner.wasm_pages.max(pages),
    }
}

fn set(map: &mut Map, key: u8, value: Option<u8>) {
    match value {
        Some(value) => map.insert(vec![key].into(), vec![value].into()),
        None => {
            map.remove(&[key]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn encodings_and_deltas_lead_to_the_same_image(
        first in prop::collection::vec(change(), 0..60),
        second in prop::collection::vec(change(), 0..60),
    ) {
        let mut image = Image::new([1; 32]);
        first.iter().for_each(|change| apply(&mut image, change));
        let old = image.clone();
        let encoded = old.encode();
        second.iter().for_each(|change| apply(&mut image, change));
        prop_assert_eq!(&old.encode(), &encoded, "a clone is apart from what it was cloned from");

        let decoded = Image::decode(&encoded).unwrap();
        prop_assert_eq!(&decoded, &old);
        prop_assert_eq!(decoded.encode(), encoded);

        let delta = image.delta(&old);
        // Also on an image that shares nothing with the one the delta was made from.
        for base in [&old, &decoded] {
            let applied = base.apply(&delta).unwrap();
            prop_assert_eq!(&applied, &image);
            prop_assert_eq!(applied.encode(), image.encode());
        }
    }

    #[test]
    fn damaged_images_never_panic(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let good = sample().encode();
        let mut bytes = good.clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        prop_assert!(bytes == good || Image::decode(&bytes).is_err());
        let _ = sample().apply(&bytes);
    }
}
