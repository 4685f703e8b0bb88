#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const READY: Instance = Instance {
    at: Where::Here,
    tied: true,
    stateful: true,
    fenced: false,
    lapsed: false,
    current: true,
    leaves: false,
    ready: true,
    failed: false,
    retry: false,
    moving: None,
};

fn first(wanted: usize, instances: &[Instance]) -> Option<(usize, Need)> {
    needs(wanted, instances).first().copied()
}

#[test]
fn a_fenced_one_goes_on_elsewhere_when_its_lease_is_over() {
    let held = Instance {
        fenced: true,
        tied: false,
        ..READY
    };
    for at in [Where::Here, Where::Away, Where::Lost, Where::Removed] {
        let held = Instance { at, ..held };
        assert_eq!(first(1, &[held]), None, "{at:?}: it may still run");
        let lapsed = Instance {
            lapsed: true,
            ..held
        };
        assert_eq!(first(1, &[lapsed]), Some((0, Need::FailOver)), "{at:?}");
        let moving = Some(Moving::Sealing { vain: false });
        let lapsed = Instance { moving, ..lapsed };
        assert_eq!(first(1, &[lapsed]), Some((0, Need::FailOver)), "{at:?}");
    }
    let failed = Instance {
        ready: false,
        failed: true,
        retry: true,
        lapsed: true,
        ..held
    };
    assert_eq!(
        first(1, &[failed]),
        Some((0, Need::Retry)),
        "it is tried there"
    );
    let away = Instance {
        at: Where::Away,
        lapsed: false,
        ..failed
    };
    assert_eq!(
        first(1, &[away]),
        None,
        "not elsewhere before its lease is over"
    );
}

#[test]
fn state_waits_for_its_node_and_replicas_do_not() {
    let lost = Instance {
        at: Where::Lost,
        ready: false,
        ..READY
    };
    assert_eq!(first(1, &[lost]), None, "its state is there");
    let replica = Instance {
        stateful: false,
        tied: false,
        ..lost
    };
    assert_eq!(first(1, &[replica]), Some((0, Need::Replace)));
    let away = Instance {
        at: Where::Away,
        ..replica
    };
    assert_eq!(first(1, &[away]), None, "it may come back");
    let removed = Instance {
        at: Where::Removed,
        ..lost
    };
    assert_eq!(first(1, &[removed]), Some((0, Need::Replace)));
}

#[test]
fn instances_are_placed_ended_and_mended() {
    assert_eq!(needs(2, &[]), [(0, Need::Place), (1, Need::Place)]);
    assert_eq!(first(1, &[READY, READY]), Some((1, Need::End)));
    let failed = Instance {
        ready: false,
        failed: true,
        ..READY
    };
    assert_eq!(first(1, &[failed]), None, "not before its time");
    let due = Instance {
        retry: true,
        ..failed
    };
    assert_eq!(first(1, &[due]), Some((0, Need::Retry)));
    let away = Instance {
        at: Where::Away,
        ..due
    };
    assert_eq!(
        first(1, &[away]),
        None,
        "its state is on a node that is away"
    );
    let free = Instance {
        tied: false,
        ..away
    };
    assert_eq!(first(1, &[free]), Some((0, Need::Retry)));
}

#[test]
fn a_roll_goes_one_by_one_and_stops_at_a_failure() {
    let old = Instance {
        current: false,
        ..READY
    };
    let starting = Instance {
        ready: false,
        ..READY
    };
    let failed = Instance {
        failed: true,
        ..starting
    };
    assert_eq!(needs(3, &[old, old, old]), [(0, Need::Renew)]);
    assert_eq!(first(3, &[starting, old, old]), None);
    assert_eq!(needs(3, &[READY, old, old]), [(1, Need::Renew)]);
    assert_eq!(first(3, &[failed, old, old]), None);
    let away = Instance {
        at: Where::Away,
        ..old
    };
    assert_eq!(needs(2, &[away, old]), [(1, Need::Renew)]);
}

#[test]
fn a_drain_moves_one_at_a_time_and_what_cannot_leave_holds_nobody_up() {
    let leaves = Instance {
        leaves: true,
        ..READY
    };
    // Whoever carries them out takes the first that can be done.
    assert_eq!(
        needs(2, &[leaves, leaves]),
        [(0, Need::Move), (1, Need::Move)]
    );
    let moving = |moving| Instance {
        moving: Some(moving),
        ..leaves
    };
    let copying = |copied, vain| moving(Moving::Copying { copied, vain });
    assert_eq!(first(2, &[copying(false, false), leaves]), None);
    assert_eq!(
        first(2, &[copying(true, false), leaves]),
        Some((0, Need::Seal))
    );
    assert_eq!(
        first(2, &[copying(true, true), leaves]),
        Some((0, Need::Abort))
    );
    let sealing = |vain| moving(Moving::Sealing { vain });
    assert_eq!(first(2, &[sealing(false), leaves]), None);
    assert_eq!(first(2, &[sealing(true), leaves]), Some((0, Need::Abort)));
    assert_eq!(first(2, &[moving(Moving::Starting), leaves]), None);
}

fn instance() -> impl Strategy<Value = Instance> {
    let at = prop_oneof![
        1 => Just(Where::Nowhere),
        3 => Just(Where::Here),
        1 => Just(Where::Away),
        1 => Just(Where::Lost),
        1 => Just(Where::Removed),
    ];
    let copying =
        any::<(bool, bool)>().prop_map(|(copied, vain)| Some(Moving::Copying { copied, vain }));
    let moving = prop_oneof![
        4 => Just(None),
        1 => copying,
        1 => any::<bool>().prop_map(|vain| Some(Moving::Sealing { vain })),
        1 => Just(Some(Moving::Starting)),
    ];
    (at, moving, any::<[bool; 7]>()).prop_map(|(at, moving, bits)| {
        let [current, leaves, failed, tied, stateful, fenced, lapsed] = bits;
        let placed = at != Where::Nowhere;
        Instance {
            at,
            tied: tied && stateful,
            fenced: fenced && stateful,
            lapsed: lapsed && fenced && stateful && placed,
            stateful,
            current: current && placed,
            leaves: leaves && at == Where::Here,
            ready: placed && !failed && moving.is_none(),
            failed: failed && placed,
            retry: false,
            moving: moving.filter(|_| placed && stateful),
        }
    })
}

/// What carrying out a need makes of an instance, at best.
fn carried(before: Instance, need: Need) -> Instance {
    let fresh = Instance {
        at: Where::Here,
        tied: false,
        current: true,
        leaves: false,
        ready: false,
        failed: false,
        retry: false,
        // A new owner gets time to ask for its lease.
        lapsed: false,
        moving: None,
        ..before
    };
    match need {
        Need::End => Instance {
            at: Where::Nowhere,
            ..fresh
        },
        Need::FailOver => fresh,
        Need::Place | Need::Replace | Need::Retry => Instance {
            moving: before
                .moving
                .filter(|m| need == Need::Retry && *m == Moving::Starting),
            ..fresh
        },
        Need::Renew => Instance {
            tied: before.tied,
            leaves: before.leaves,
            ..fresh
        },
        Need::Move if before.stateful => Instance {
            moving: Some(Moving::Copying {
                copied: false,
                vain: false,
            }),
            ..before
        },
        Need::Move => fresh,
        Need::Seal => Instance {
            moving: Some(Moving::Sealing { vain: false }),
            ..before
        },
        Need::Abort => Instance {
            moving: None,
            ready: before.at == Where::Here,
            ..before
        },
    }
}

/// What time and nodes do: copies arrive, seals are answered, starts succeed, failures come due.
fn elapse(i: &mut Instance) {
    match &mut i.moving {
        Some(Moving::Copying { vain, .. } | Moving::Sealing { vain }) if i.at != Where::Here => {
            *vain = true;
        }
        Some(Moving::Copying { copied, .. }) => *copied = true,
        Some(Moving::Sealing { vain: false }) => {
            *i = Instance {
                at: Where::Here,
                tied: false,
                leaves: false,
                ready: false,
                current: true,
                moving: Some(Moving::Starting),
                ..*i
            };
        }
        _ => {}
    }
    i.retry = i.failed;
    // Who answers renews its lease.
    i.lapsed = i.fenced && !matches!(i.at, Where::Here | Where::Nowhere);
    if i.at == Where::Here && !i.failed {
        let before_swap = matches!(
            i.moving,
            Some(Moving::Copying { .. } | Moving::Sealing { .. })
        );
        i.ready = true;
        if !before_swap {
            i.moving = None;
        }
    }
    if i.at == Where::Away && !i.stateful {
        i.at = Where::Lost;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    /// From whatever it begins: within a bound nothing more is needed, all that can serve does, and
    /// what stays undone is state on nodes that are away.
    #[test]
    fn it_comes_to_rest(
        wanted in 0usize..5,
        mut instances in prop::collection::vec(instance(), 0..6),
    ) {
        const ROUNDS_MAX: usize = 80;
        let mut rounds = 0;
        loop {
            let before = instances.clone();
            let next = first(wanted, &instances);
            if let Some((index, need)) = next {
                if index == instances.len() {
                    instances.push(Instance {
                        at: Where::Nowhere, tied: false, ready: false, current: false, ..READY
                    });
                }
                instances[index] = carried(instances[index], need);
            }
            instances.iter_mut().for_each(elapse);
            if next.is_none() && before == instances {
                break;
            }
            rounds += 1;
            prop_assert!(rounds < ROUNDS_MAX, "no rest: {:?} {instances:?}", next);
        }
        prop_assert_eq!(needs(wanted, &instances), []);
        for (index, i) in instances.iter().enumerate() {
            if index >= wanted {
                prop_assert_eq!(i.at, Where::Nowhere);
            } else if i.at == Where::Here {
                prop_assert!(i.ready && i.current && i.moving.is_none() && !i.leaves, "{i:?}");
            } else {
                prop_assert!(i.stateful && matches!(i.at, Where::Away | Where::Lost), "{i:?}");
            }
        }
    }

    /// Nothing that has state is placed while its node may still have it.
    #[test]
    fn state_is_never_left_behind(
        wanted in 0usize..5,
        instances in prop::collection::vec(instance(), 0..6),
    ) {
        for (index, need) in needs(wanted, &instances) {
            let Some(i) = instances.get(index) else { continue };
            if i.stateful && matches!(need, Need::Place | Need::Replace) {
                prop_assert!(matches!(i.at, Where::Nowhere | Where::Removed), "{i:?}");
            }
            if need == Need::Retry && i.tied {
                prop_assert_eq!(i.at, Where::Here);
            }
        }
    }

    #[test]
    fn backoff_grows_to_its_bound(failures in 1u32..1000) {
        prop_assert!((500..=60_000).contains(&backoff_ms(failures)));
        prop_assert!(backoff_ms(failures) <= backoff_ms(failures + 1));
    }
}
