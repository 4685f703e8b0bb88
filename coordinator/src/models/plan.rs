//! What a model's replicas need next, as a pure function of what is recorded and known.

use hop3_common::{id::NodeId, ownership::Epoch};

/// A replica as [`next`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Replica {
    /// It was placed.
    pub(super) placed: bool,
    /// It follows the newest revision of the model.
    pub(super) current: bool,
    /// Its node is there, or may still come back.
    pub(super) node_ok: bool,
    /// Its node is being emptied.
    pub(super) draining: bool,
    /// It serves.
    pub(super) ready: bool,
    /// It failed, and it is time to try again.
    pub(super) retry: bool,
    /// It failed, whether or not it is time.
    pub(super) failed: bool,
}

/// What to do about one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Place it: it is nowhere, or where it was is lost.
    Place,
    /// Try it again: it failed.
    Retry,
    /// Move it off a node that is being emptied; it stays if no other fits.
    Move,
    /// Renew it for a newer revision.
    Renew,
    /// One too many: end it.
    End,
}

/// The first thing to be done, and to which replica. `wanted`: how many there shall be.
pub(super) fn next(wanted: usize, replicas: &[Replica]) -> Option<(usize, Need)> {
    let surplus = replicas
        .iter()
        .enumerate()
        .skip(wanted)
        .find(|(_, replica)| replica.placed);
    if let Some((index, _)) = surplus {
        return Some((index, Need::End));
    }
    let kept = &replicas[..wanted.min(replicas.len())];
    for (index, replica) in kept.iter().enumerate() {
        if !replica.placed || !replica.node_ok {
            return Some((index, Need::Place));
        }
        if replica.retry {
            return Some((index, Need::Retry));
        }
    }
    if replicas.len() < wanted {
        return Some((replicas.len(), Need::Place));
    }
    // One at a time: not while another of them does not serve yet. One that failed does not hold
    // up the mending of itself.
    let starting = |replica: &Replica| !replica.ready && !replica.failed;
    let busy = kept
        .iter()
        .any(|replica| starting(replica) && replica.current);
    let broken = kept.iter().any(|replica| replica.failed && replica.current);
    if busy {
        return None;
    }
    let moved = kept.iter().position(|replica| replica.draining);
    if let Some(index) = moved {
        return Some((index, Need::Move));
    }
    let old = kept.iter().position(|replica| !replica.current);
    old.filter(|_| !broken).map(|index| (index, Need::Renew))
}

/// Time until a replica that failed `failures` times in a row is tried again, in milliseconds.
pub(super) fn backoff_ms(failures: u32) -> u64 {
    const FIRST_MS: u64 = 1_000;
    const LAST_MS: u64 = 60_000;
    (FIRST_MS << failures.saturating_sub(1).min(10)).min(LAST_MS)
}

/// Whether a report of `epoch` by `node` concerns the owner of a replica.
pub(super) fn heard(owner: Option<&NodeId>, newest: Epoch, node: &NodeId, epoch: Epoch) -> bool {
    owner == Some(node) && epoch == newest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const READY: Replica = Replica {
        placed: true,
        current: true,
        node_ok: true,
        draining: false,
        ready: true,
        retry: false,
        failed: false,
    };
    const NONE: Replica = Replica {
        placed: false,
        ready: false,
        ..READY
    };

    #[test]
    fn replicas_are_placed_ended_and_mended() {
        assert_eq!(next(0, &[]), None);
        assert_eq!(next(2, &[]), Some((0, Need::Place)));
        assert_eq!(next(2, &[READY]), Some((1, Need::Place)));
        assert_eq!(next(1, &[READY, READY]), Some((1, Need::End)));
        assert_eq!(next(1, &[READY, NONE]), None);
        assert_eq!(
            next(
                2,
                &[
                    READY,
                    Replica {
                        node_ok: false,
                        ..READY
                    }
                ]
            ),
            Some((1, Need::Place))
        );
        let failed = Replica {
            ready: false,
            failed: true,
            ..READY
        };
        assert_eq!(next(1, &[failed]), None, "not before its time");
        assert_eq!(
            next(
                1,
                &[Replica {
                    retry: true,
                    ..failed
                }]
            ),
            Some((0, Need::Retry))
        );
    }

    #[test]
    fn a_roll_goes_one_by_one_and_stops_at_a_failure() {
        let old = Replica {
            current: false,
            ..READY
        };
        let starting = Replica {
            ready: false,
            ..READY
        };
        let failed = Replica {
            ready: false,
            failed: true,
            ..READY
        };
        assert_eq!(next(3, &[old, old, old]), Some((0, Need::Renew)));
        assert_eq!(next(3, &[starting, old, old]), None);
        assert_eq!(next(3, &[READY, old, old]), Some((1, Need::Renew)));
        assert_eq!(next(3, &[failed, old, old]), None);
        let old_failed = Replica {
            current: false,
            ..failed
        };
        assert_eq!(next(1, &[old_failed]), Some((0, Need::Renew)));
    }

    #[test]
    fn a_drain_moves_one_at_a_time() {
        let draining = Replica {
            draining: true,
            ..READY
        };
        assert_eq!(next(2, &[draining, READY]), Some((0, Need::Move)));
        assert_eq!(
            next(
                2,
                &[
                    draining,
                    Replica {
                        ready: false,
                        ..READY
                    }
                ]
            ),
            None
        );
    }

    proptest! {
        /// With every need met and every start ready, the plan comes to rest, with what is wanted.
        #[test]
        fn it_comes_to_rest(
            wanted in 0usize..5,
            raw in prop::collection::vec(any::<(bool, bool, bool, bool, bool)>(), 0..6),
        ) {
            let mut replicas: Vec<Replica> = raw.into_iter().map(|(p, c, n, d, f)| Replica {
                placed: p, current: c, node_ok: n, draining: d && p, ready: p && !f,
                retry: p && f, failed: p && f,
            }).collect();
            for _ in 0..40 {
                for replica in &mut replicas {
                    replica.ready |= replica.placed && !replica.failed;
                }
                let Some((index, need)) = next(wanted, &replicas) else { break };
                if index == replicas.len() { replicas.push(NONE); }
                replicas[index] = match need {
                    Need::End => NONE,
                    _ => Replica { ready: false, ..READY },
                };
            }
            prop_assert_eq!(next(wanted, &replicas), None);
            prop_assert_eq!(replicas.iter().filter(|r| **r == READY).count(), wanted);
        }

        #[test]
        fn backoff_grows_to_its_bound(failures in 1u32..1000) {
            prop_assert!((1_000..=60_000).contains(&backoff_ms(failures)));
            prop_assert!(backoff_ms(failures) <= backoff_ms(failures + 1));
        }
    }
}
