//! Prints what calls and restores cost; run it with `--run-ignored all --no-capture`.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use super::*;

const ROUNDS: u32 = 200;

fn each(mut what: impl FnMut()) -> Duration {
    what();
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| what());
    start.elapsed() / ROUNDS
}

/// A guest with so much memory in use; a call writes one page.
fn sized(mebibytes: u32) -> String {
    let (pages, bytes) = (mebibytes * 16, mebibytes << 20);
    format!(
        "(module (memory (export \"memory\") {pages})
           (func (export \"hop3_init\") (result i32)
             (memory.fill (i32.const 0) (i32.const 7) (i32.const {bytes})) (i32.const 0))
           (func (export \"hop3_request\") (result i32)
             (i32.store (i32.const 8192) (i32.add (i32.load (i32.const 8192)) (i32.const 1)))
             (i32.const 0))
           (func (export \"hop3_timer\") (result i32) (i32.const 0)))"
    )
}

#[test]
#[ignore = "prints times; asserts nothing about them"]
fn time_per_call_and_restore() {
    for tracking in [Tracking::Auto, Tracking::Compare] {
        for mebibytes in [1, 64] {
            let module = load_on(tracking, &sized(mebibytes));
            let cancel = CancelToken::new();
            let mut setup = setup();
            setup.limits.memory_bytes = 128 << 20;
            let created = Instance::create(&module, setup.clone(), NOW, &cancel);
            let mut instance = created.unwrap().0;
            let call = each(|| drop(send(&mut instance, request("/", ""))));
            let image = instance.image().clone();
            let encode = each(|| drop(image.encode()));
            let restore = each(|| {
                let image = image.clone();
                drop(Instance::restore(
                    &module,
                    setup.clone(),
                    image,
                    NOW,
                    &cancel,
                ));
            });
            println!(
                "{tracking:?} (kernel: {}) {mebibytes} MiB: call {call:?}, restore {restore:?}, \
                 encode {encode:?}",
                engine(tracking).tracks_by_kernel()
            );
        }
    }
}
