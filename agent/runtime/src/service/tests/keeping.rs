use proptest::prelude::*;

use super::*;

/// Writes a byte of the body to the address in its path (8 hexadecimal digits), grows for it,
/// counts calls in a hidden global, draws randomness, and replies with all that it knows: the
/// count, the random bytes, the byte that was at the address before.
const WRITER: &str = r#"(module
    (import "hop3" "input" (func $input (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "reply_write" (func $write (param i32 i32) (result i32)))
    (import "hop3" "kv_set" (func $kv_set (param i32 i32 i32 i32) (result i32)))
    (import "hop3" "now_ms" (func $now (result i64)))
    (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    (memory (export "memory") 2 20)
    (data (i32.const 70000) "initial")
    (global $count (mut i32) (i32.const 10))
    (global $sum (mut f64) (f64.const 0.5))
    (func (export "hop3_request") (result i32) (local $at i32)
        (drop (call $input (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 8)))
        (local.set $at (i32.load (i32.const 0)))
        (loop $grow (if (i32.ge_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))
            (then (br_if $grow (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))))
        (global.set $count (i32.add (global.get $count) (i32.const 1)))
        (global.set $sum (f64.add (global.get $sum) (f64.convert_i32_u (local.get $at))))
        (i32.store (i32.const 16) (global.get $count))
        (f64.store (i32.const 24) (global.get $sum))
        (drop (call $random (i32.const 32) (i32.const 8)))
        (i32.store8 (i32.const 40) (i32.load8_u (local.get $at)))
        (i64.store (i32.const 48) (call $now))
        (i32.store8 (local.get $at) (i32.load8_u (i32.const 4)))
        (drop (call $kv_set (i32.const 0) (i32.const 2) (i32.const 32) (i32.const 8)))
        (drop (call $write (i32.const 16) (i32.const 40)))
        (i32.const 0)))"#;

fn write(at: u32, byte: u8) -> Input {
    let mut body = at.to_le_bytes().to_vec();
    body.push(byte);
    Input::Request {
        method: "POST".into(),
        path: "/".into(),
        headers: Vec::new(),
        body: body.into(),
        more: false,
        from: None,
    }
}

fn writes() -> impl Strategy<Value = Vec<(u32, u8)>> {
    prop::collection::vec((64..1_200_000u32, prop_oneof![Just(0), any::<u8>()]), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_restored_instance_goes_on_as_the_original(first in writes(), second in writes()) {
        let mut ends = Vec::new();
        for tracking in [Tracking::Auto, Tracking::Compare] {
            let module = load_on(tracking, WRITER);
            let cancel = CancelToken::new();
            let mut original = Instance::create(&module, setup(), NOW, &cancel).unwrap().0;
            let start = original.image().clone();
            for (at, byte) in &first {
                done(&mut original, write(*at, *byte));
            }
            let image = Image::decode(&original.image().encode()).unwrap();
            let mut copy = restore(&module, image.clone());
            prop_assert_eq!(copy.image(), original.image());
            for (at, byte) in &second {
                let (a, b) = (write(*at, *byte), write(*at, *byte));
                prop_assert_eq!(done(&mut original, a), done(&mut copy, b));
            }
            prop_assert_eq!(copy.image(), original.image());
            prop_assert_eq!(copy.image().encode(), original.image().encode());
            // A live memory that was tracked is the image, byte for byte.
            original.rest();
            done(&mut original, write(64, 1));
            done(&mut copy, write(64, 1));
            prop_assert_eq!(copy.image(), original.image());
            let delta = original.image().delta(&start);
            prop_assert_eq!(&start.apply(&delta).unwrap(), original.image());
            let delta = original.image().delta(&image);
            prop_assert_eq!(&image.apply(&delta).unwrap(), original.image());
            ends.push(original.image().encode());
        }
        prop_assert_eq!(&ends[0], &ends[1], "both ways to find changes find the same");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn one_made_ready_ahead_goes_on_as_the_original(
        ahead in writes(), since in writes(), after in writes(),
    ) {
        for tracking in [Tracking::Auto, Tracking::Compare] {
            let module = load_on(tracking, WRITER);
            let cancel = CancelToken::new();
            let mut original = Instance::create(&module, setup(), NOW, &cancel).unwrap().0;
            for (at, byte) in &ahead {
                done(&mut original, write(*at, *byte));
            }
            let base = Image::decode(&original.image().encode()).unwrap();
            let mut ready = restore(&module, base.clone());
            for (at, byte) in &since {
                done(&mut original, write(*at, *byte));
            }
            // The state at the end is known as a change of the one ahead, or by itself.
            let shared = base.apply(&original.image().delta(&base)).unwrap();
            let whole = Image::decode(&original.image().encode()).unwrap();
            let image = if since.len() % 2 == 0 { shared } else { whole };
            ready.advance(image).unwrap();
            prop_assert_eq!(ready.image(), original.image());
            for (at, byte) in &after {
                let (a, b) = (write(*at, *byte), write(*at, *byte));
                prop_assert_eq!(done(&mut original, a), done(&mut ready, b));
                prop_assert_eq!(ready.image(), original.image());
            }
            // What the image says is what the memory holds.
            let mut again = restore(&module, ready.image().clone());
            let last = write(after[0].0, 1);
            prop_assert_eq!(done(&mut ready, last.clone()), done(&mut again, last));
        }
    }
}

#[test]
fn a_state_of_another_module_is_not_taken_over_ahead() {
    let mut ready = restore(&load(WRITER), start(WRITER).image().clone());
    let before = ready.image().clone();
    let other = start(&handler("", "(i32.const 0)")).image().clone();
    assert!(matches!(ready.advance(other), Err(StartError::Layout)));
    assert_eq!(ready.image(), &before);
}

#[test]
fn a_hidden_global_comes_back() {
    let wat = handler(
        "(global $count (mut i32) (i32.const 48))",
        "(global.set $count (i32.add (global.get $count) (i32.const 1)))
         (i32.store (i32.const 0) (global.get $count))
         (drop (call $reply_write (i32.const 0) (i32.const 1))) (i32.const 0)",
    );
    let mut instance = start(&wat);
    assert_eq!(
        (body(&mut instance, ""), body(&mut instance, "")),
        ("1".into(), "2".into())
    );
    let mut copy = restore(&load(&wat), instance.image().clone());
    assert_eq!(body(&mut copy, ""), "3");
    assert_eq!(body(&mut instance, ""), "3");
}

#[test]
fn pages_that_the_host_wrote_are_kept() {
    for tracking in [Tracking::Auto, Tracking::Compare] {
        let wat = handler(
            "",
            "(drop (call $input (i32.const 4) (i32.const 0) (i32.const 40000) (i32.const 64)))
             (i32.const 0)",
        );
        let module = load_on(tracking, &wat);
        let mut instance = Instance::create(&module, setup(), NOW, &CancelToken::new())
            .unwrap()
            .0;
        for text in ["first", "other"] {
            done(&mut instance, request("/", text));
            let page = instance.image().0.pages.bytes(40_000 / 4_096);
            assert_eq!(&page[40_000 % 4_096..][..5], text.as_bytes());
        }
    }
}

#[test]
fn the_desk_is_part_of_the_image() {
    let wat = handler("", "(i32.const 0)");
    let mut instance = start(&wat);
    let before = instance.image().clone();
    instance.set_desk(b"a/1".to_vec(), Some(Bytes::from_static(b"x")));
    instance.set_desk(b"a/2".to_vec(), Some(Bytes::new()));
    instance.set_desk(b"a/2".to_vec(), None);
    let copy = Image::decode(&instance.image().encode()).unwrap();
    assert_eq!(copy.desk(b"a/1"), Some(&Bytes::from_static(b"x")));
    assert_eq!(copy.desk_range(b"a/").count(), 1);
    let delta = instance.image().delta(&before);
    assert_eq!(before.apply(&delta).unwrap(), copy);
}

fn versioned(schema: u32, upgrade: &str) -> String {
    handler(
        &format!(
            "(global $g (mut i32) (i32.const 0))
             (func (export \"hop3_schema\") (result i32) (i32.const {schema})) {upgrade}"
        ),
        "(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 49)))
         (drop (call $reply_write (i32.const 0) (i32.const 1)))
         (i32.store (i32.const 0) (i32.const 5)) (i32.const 0)",
    )
}

#[test]
fn a_state_of_another_version_is_upgraded_or_refused() {
    let mut old = start(&versioned(1, ""));
    assert_eq!(body(&mut old, ""), "1");
    let image = old.image().clone();
    let cancel = CancelToken::new();
    let to = |wat: &str| Instance::restore(&load(wat), setup(), image.clone(), NOW, &cancel);
    assert!(matches!(
        to(&versioned(2, "")),
        Err(StartError::Schema { from: 1, to: 2 })
    ));
    // The new build begins with its own memory: data that the old one does not have are there.
    let upgrade = "(func (export \"hop3_upgrade\") (param $from i32) (result i32)
        (i32.store (i32.const 0) (i32.add (local.get $from) (i32.load (i32.const 0))))
        (drop (call $timer_set (i64.const 3) (i64.const 4)))
        (call $publish (i32.const 200) (i32.const 5) (i32.const 0) (i32.const 0)))
        (data (i32.const 200) \"out/x\")";
    let (mut new, called) = to(&versioned(2, upgrade)).unwrap();
    assert_eq!(called.result.unwrap().effects.len(), 1);
    assert_eq!((new.image().schema(), new.image().seq()), (2, 2));
    assert_eq!(new.image().next_timer(), Some((3, 4)));
    assert_eq!(body(&mut new, ""), "2", "1 for the old version, and 1");
    // What changed can be stored as a difference to the old build's image.
    let rebuilt = image.apply(&new.image().delta(&image)).unwrap();
    assert_eq!(&rebuilt, new.image());
    let same_version = versioned(1, "(func (export \"other\"))");
    assert!(matches!(to(&same_version), Err(StartError::Schema { .. })));
}

#[test]
fn constructors_run_once_and_before_everything() {
    let wat = handler(
        "(func (export \"_initialize\") (i32.store (i32.const 0)
            (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hop3_init\") (result i32)
            (i32.store (i32.const 4) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
            (i32.const 0))",
        "(drop (call $reply_write (i32.const 0) (i32.const 8))) (i32.const 0)",
    );
    let mut instance = start(&wat);
    assert_eq!(body(&mut instance, ""), "\u{1}\0\0\0\u{2}\0\0\0");
    let mut copy = restore(&load(&wat), instance.image().clone());
    assert_eq!(body(&mut copy, ""), "\u{1}\0\0\0\u{2}\0\0\0");
}

#[test]
fn an_instance_may_be_called_from_any_thread() {
    let mut instance = start(&handler("", "(i32.const 0)"));
    let moved = std::thread::spawn(move || {
        done(&mut instance, request("/", ""));
        instance
    });
    let mut instance = moved.join().unwrap();
    done(&mut instance, request("/", ""));
    assert_eq!(instance.image().seq(), 2);
}
