//! Requests that wait for the same instance are asked for in the order they came in.

use std::{sync::Arc, time::Duration};

use hop3_common::{codes::Code, spec::State};
use proptest::prelude::*;

use super::world::{Scripted, Step, World, info, name, request};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests come in one after the other, while the instance is away, and after it came, sealed
    /// at first: they happen in that order.
    #[test]
    fn order_is_kept_across_a_move(before in 1usize..30, after in 0usize..30, refusals in 0usize..4) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::new(info(State::Single, 1), &[]);
            let gateway = world.gateway();
            let send = |n: usize| {
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let post = request("POST", &format!("/{n}"));
                    gateway.deliver(&name(), None, &post, None).await
                })
            };
            let mut sent = Vec::new();
            for n in 0..before {
                sent.push(send(n));
                tokio::task::yield_now().await;
            }
            let sealed = vec![Step::NotDelivered(Code::NotHere); refusals];
            let instance = Scripted::new(0, &sealed);
            world.place(&[Arc::clone(&instance)]);
            for n in before..before + after {
                sent.push(send(n));
                tokio::task::yield_now().await;
            }
            for one in sent {
                prop_assert!(one.await.unwrap().is_ok());
            }
            let expected: Vec<String> = (0..before + after).map(|n| format!("/{n}")).collect();
            prop_assert_eq!(instance.paths(), expected);
            // While it was sealed only the first asked.
            prop_assert_eq!(instance.attempts(), before + after + refusals);
            Ok(())
        })?;
    }
}

/// One that was asked and is refused late goes before those that came after it.
#[tokio::test(start_paused = true)]
async fn who_came_first_is_first_even_if_refused_last() {
    let old = Scripted::always(0, Step::NotDelivered(Code::NotHere));
    let world = World::new(info(State::Single, 1), &[Arc::clone(&old)]);
    let gateway = world.gateway();
    let mut sent = Vec::new();
    for n in 0..5 {
        let gateway = gateway.clone();
        sent.push(tokio::spawn(async move {
            let post = request("POST", &format!("/{n}"));
            gateway.deliver(&name(), None, &post, None).await
        }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let new = Scripted::new(0, &[]);
    world.place(&[Arc::clone(&new)]);
    for one in sent {
        assert!(one.await.unwrap().is_ok());
    }
    assert_eq!(new.paths(), ["/0", "/1", "/2", "/3", "/4"]);
}
