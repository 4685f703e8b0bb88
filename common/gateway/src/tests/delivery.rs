//! Delivered once, in time, whatever instances do.

use std::{sync::Arc, time::Duration};

use hop3_common::{codes::Code, spec::State};
use proptest::prelude::*;
use tokio::time::Instant;

use super::world::{Scripted, Step, World, info, name, reply, request};
use crate::{
    ANSWER_GRACE, Delivered, WAITING_PER_SERVICE_MAX,
    policy::{ATTEMPT_FLOOR, PAUSE_MAX},
};

const SECOND: Duration = Duration::from_secs(1);

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test)
}

/// Lets every task go on as far as it can without time passing.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::NotDelivered(Code::NotHere)),
        2 => Just(Step::NotDelivered(Code::Busy)),
        2 => any::<bool>().prop_map(|happened| Step::Unknown { happened }),
        1 => Just(Step::Reply),
        1 => Just(Step::Failed),
    ];
    proptest::collection::vec(step, 0..10)
}

/// What must come of a script: how many attempts, and the code of the end.
fn model(steps: &[Step], repeatable: bool) -> (usize, Option<Code>) {
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::NotDelivered(_) => {}
            Step::Unknown { .. } if repeatable => {}
            Step::Unknown { .. } => return (at + 1, Some(Code::OutcomeUnknown)),
            Step::Failed => return (at + 1, Some(Code::HandlerFailed)),
            Step::Reply | Step::Answer(_) | Step::Hang => return (at + 1, None),
        }
    }
    (steps.len() + 1, None)
}

proptest! {
    #[test]
    fn delivered_once(steps in steps(), method in "GET|POST|PUT|HEAD|OPTIONS|DELETE", key: bool,
        stateless: bool)
    {
        run(async {
            let instance = Scripted::new(0, &steps);
            let state = if stateless { State::None } else { State::Single };
            let world = World::new(info(state, 1), &[Arc::clone(&instance)]);
            let gateway = world.gateway();
            let mut request = request(&method, "/x");
            request.idempotency_key = key.then(|| "k".to_owned());
            let repeatable = key || matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS");
            let got = gateway.deliver(&name(), None, &request, None).await;
            let (attempts, code) = model(&steps, repeatable);
            prop_assert_eq!(got.as_ref().err().map(|problem| problem.code), code);
            prop_assert_eq!(instance.attempts(), attempts);
            let twice = instance.paths().len() > 1;
            prop_assert!(repeatable || !twice, "an unsafe request happened twice");
            let counters = gateway.counters();
            prop_assert_eq!((counters.in_flight, counters.waiting), (0, 0));
            prop_assert_eq!(counters.retried as usize, attempts - 1);
            Ok(())
        })?;
    }

    #[test]
    fn deadlines_are_kept(
        step in prop_oneof![
            Just(None), Just(Some(Step::Hang)), Just(Some(Step::NotDelivered(Code::Busy))),
            Just(Some(Step::NotDelivered(Code::NotHere))),
            Just(Some(Step::Unknown { happened: false })),
        ],
        ms in 1u64..20_000,
    ) {
        run(async {
            let instance = step.clone().map(|step| Scripted::always(0, step));
            let instances: Vec<_> = instance.iter().cloned().collect();
            let world = World::new(info(State::Single, 1), &instances);
            let gateway = world.gateway();
            let begun = Instant::now();
            let deadline = Duration::from_millis(ms);
            let get = request("GET", "/");
            let problem = gateway.deliver(&name(), None, &get, Some(deadline)).await.unwrap_err();
            let shorter = deadline.min(10 * SECOND);
            let took = begun.elapsed();
            prop_assert!(took >= shorter, "{took:?}");
            prop_assert!(took <= shorter + ANSWER_GRACE + 2 * ATTEMPT_FLOOR, "{took:?}");
            let code = match step {
                None | Some(Step::NotDelivered(Code::NotHere)) => Code::ServiceNotReady,
                Some(Step::NotDelivered(_)) => Code::Busy,
                _ => Code::Deadline,
            };
            prop_assert_eq!(problem.code, code, "{}", problem.message);
            // Not a busy loop: pauses double to their bound.
            let most = 10 + (shorter.as_millis() / PAUSE_MAX.as_millis()) as usize;
            prop_assert!(instance.is_none_or(|instance| instance.attempts() <= most));
            Ok(())
        })?;
    }
}

#[test]
fn a_router_that_changes_fast_makes_no_busy_loop() {
    run(async {
        let instance = Scripted::always(0, Step::NotDelivered(Code::NotHere));
        let world = World::new(info(State::Single, 1), &[Arc::clone(&instance)]);
        let gateway = world.gateway();
        let changing = tokio::spawn(async move {
            loop {
                world.bump();
                tokio::task::yield_now().await;
            }
        });
        let post = request("POST", "/");
        // Real time: with tasks always ready, paused time stands still.
        tokio::time::resume();
        let got = gateway
            .deliver(&name(), None, &post, Some(Duration::from_millis(100)))
            .await;
        changing.abort();
        assert_eq!(got.unwrap_err().code, Code::ServiceNotReady);
        assert!(instance.attempts() <= 110, "{}", instance.attempts());
    });
}

#[test]
fn it_goes_to_the_instance_as_soon_as_it_is_there() {
    run(async {
        let world = World::new(info(State::Single, 1), &[]);
        let gateway = world.gateway();
        let begun = Instant::now();
        let waiting = {
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let post = request("POST", "/a");
                gateway.deliver(&name(), None, &post, None).await
            })
        };
        tokio::time::sleep(3 * SECOND + Duration::from_millis(300)).await;
        assert_eq!(gateway.counters().waiting, 1);
        let instance = Scripted::new(0, &[]);
        world.place(&[Arc::clone(&instance)]);
        let got = waiting.await.unwrap();
        let reply = reply(200, "done");
        assert_eq!(got, Ok(Delivered { reply, index: 0 }));
        assert_eq!(begun.elapsed(), 3 * SECOND + Duration::from_millis(300));
        assert_eq!(gateway.counters().waiting, 0);
    });
}

#[test]
fn another_replica_is_asked_at_once() {
    run(async {
        let bad = Scripted::always(0, Step::NotDelivered(Code::Busy));
        let good = Scripted::new(1, &[]);
        let world = World::new(info(State::None, 2), &[Arc::clone(&bad), Arc::clone(&good)]);
        let gateway = world.gateway();
        let begun = Instant::now();
        for n in 0..20 {
            let post = request("POST", &format!("/{n}"));
            let got = gateway.deliver(&name(), None, &post, None).await.unwrap();
            assert_eq!(got.index, 1);
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(good.attempts(), 20);
        assert_eq!(bad.attempts(), 10, "equals take turns");
    });
}

#[test]
fn one_that_is_removed_meanwhile_is_unknown() {
    run(async {
        let world = World::new(info(State::Single, 1), &[]);
        let gateway = world.gateway();
        let post = request("POST", "/");
        let shop = name();
        let deliver = gateway.deliver(&shop, None, &post, None);
        let (got, ()) = tokio::join!(deliver, async {
            settle().await;
            world.remove();
        });
        assert_eq!(got.unwrap_err().code, Code::ServiceUnknown);
    });
}

/// One that never had its turn is told why those before it still wait.
#[test]
fn behind_others_it_is_told_whether_there_is_an_instance() {
    run(async {
        let refuses = Scripted::always(0, Step::NotDelivered(Code::Busy));
        for (instances, code) in [(vec![refuses], Code::Busy), (vec![], Code::ServiceNotReady)] {
            let world = World::new(info(State::Single, 1), &instances);
            let gateway = world.gateway();
            let first = {
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let post = request("POST", "/first");
                    gateway.deliver(&name(), None, &post, None).await
                })
            };
            settle().await;
            let post = request("POST", "/second");
            let got = gateway.deliver(&name(), None, &post, Some(SECOND)).await;
            let problem = got.unwrap_err();
            assert_eq!(problem.code, code, "{}", problem.message);
            assert!(
                problem.message.contains("in 0 attempts"),
                "{}",
                problem.message
            );
            first.abort();
        }
    });
}

#[test]
fn who_goes_away_frees_the_place() {
    run(async {
        let world = World::new(info(State::Single, 1), &[]);
        let gateway = world.gateway();
        let wait = || {
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let post = request("POST", "/");
                gateway.deliver(&name(), None, &post, None).await
            })
        };
        let mut waiting: Vec<_> = (0..WAITING_PER_SERVICE_MAX).map(|_| wait()).collect();
        settle().await;
        assert_eq!(gateway.counters().waiting as usize, WAITING_PER_SERVICE_MAX);
        assert_eq!(wait().await.unwrap().unwrap_err().code, Code::Busy);
        // The first in line, whose turn it is, goes: the next takes over.
        waiting.remove(0).abort();
        settle().await;
        let last = wait();
        settle().await;
        assert_eq!(gateway.counters().waiting as usize, WAITING_PER_SERVICE_MAX);
        let instance = Scripted::new(0, &[]);
        world.place(&[Arc::clone(&instance)]);
        assert!(last.await.unwrap().is_ok());
        for one in waiting {
            assert!(one.await.unwrap().is_ok());
        }
        assert_eq!(instance.paths().len(), WAITING_PER_SERVICE_MAX);
        assert_eq!(gateway.counters().waiting, 0);
        assert_eq!(gateway.counters().in_flight, 0);
    });
}

#[test]
fn a_bad_reply_is_the_guests_fault() {
    run(async {
        let steps = [Step::Answer(reply(700, ""))];
        let world = World::new(info(State::Single, 1), &[Scripted::new(0, &steps)]);
        let get = request("GET", "/");
        let got = world.gateway().deliver(&name(), None, &get, None).await;
        assert_eq!(got.unwrap_err().code, Code::ReplyInvalid);
    });
}
