//! The ownership protocol, searched: every order of events within a bound, over the product's own
//! steps; and each rule broken, which must show. `HOP3_LONG=1` looks further.
#![allow(clippy::print_stdout)]

mod ownership;

use std::time::Instant;

use ownership::{
    model::{DEPOSED, LOST, MIXED, ONE, Rules, STALE, Start},
    mutants::Mutant::{self, *},
    world::Budget,
};
use stateright::{Checker, HasDiscoveries, Model};

const NOTHING: Budget = Budget {
    crashes: 0,
    restarts: 0,
    breaks: 0,
    moves: 0,
    aborts: 0,
    failovers: 0,
    takeovers: 0,
    changes: 0,
    checkpoints: 0,
    effects: 0,
    ticks: 0,
};
const FAILOVER: Budget = Budget {
    crashes: 1,
    failovers: 1,
    changes: 1,
    ticks: 2,
    ..NOTHING
};
const LEASE: Budget = Budget {
    failovers: 1,
    ticks: 2,
    ..NOTHING
};
const LEASE_CHANGE: Budget = Budget {
    changes: 1,
    ..LEASE
};
const LEASE_RESTART: Budget = Budget {
    restarts: 1,
    ..LEASE
};
const RESTART: Budget = Budget {
    restarts: 1,
    crashes: 0,
    ..FAILOVER
};
const STREAMS: Budget = Budget {
    crashes: 1,
    breaks: 1,
    changes: 2,
    ..NOTHING
};
const SELF_FENCE: Budget = Budget {
    crashes: 0,
    ticks: 1,
    ..STREAMS
};
const MOVE: Budget = Budget {
    crashes: 1,
    moves: 1,
    aborts: 1,
    changes: 2,
    checkpoints: 1,
    ..NOTHING
};
const MOVE_OR_FAILOVER: Budget = Budget {
    moves: 1,
    crashes: 0,
    ..FAILOVER
};
const EFFECTS: Budget = Budget {
    effects: 2,
    moves: 1,
    changes: 1,
    ..NOTHING
};
const CONTINUE: Budget = Budget {
    crashes: 1,
    moves: 1,
    takeovers: 1,
    changes: 2,
    checkpoints: 1,
    ..NOTHING
};
const CONTINUE_EFFECTS: Budget = Budget {
    takeovers: 1,
    effects: 2,
    changes: 1,
    crashes: 1,
    ..NOTHING
};

fn rules(name: &'static str, fenced: bool, budget: Budget) -> Rules {
    Rules {
        name,
        fenced,
        local_first: false,
        start: if fenced {
            Start::Serving
        } else {
            Start::Nothing
        },
        mutants: &[],
        budget,
    }
}

/// Looks at everything; there must be nothing, and everything that should happen must happen.
fn search(rules: Rules) {
    let (name, began) = (rules.name, Instant::now());
    let failures = HasDiscoveries::AnyFailures;
    let checker = rules.checker().threads(1).finish_when(failures);
    let found = checker.spawn_bfs().join();
    let (states, depth) = (found.unique_state_count(), found.max_depth());
    println!(
        "model: {name}: states={states} depth={depth} in {:.1?}",
        began.elapsed()
    );
    found.assert_properties();
}

#[test]
fn every_order_of_events_keeps_the_invariants() {
    search(rules("failover", true, FAILOVER));
    search(rules("the coordinator restarts", true, RESTART));
    search(rules("streams break", true, STREAMS));
    search(rules("planned move", true, MOVE));
    let overtaken = Rules {
        start: Start::Failing,
        ..rules("a move overtakes a failover", true, BLIND)
    };
    search(overtaken);
    search(rules("effects", true, EFFECTS));
    search(rules("continue", false, CONTINUE));
    search(rules("effects of a branch", false, CONTINUE_EFFECTS));
    if std::env::var_os("HOP3_LONG").is_none() {
        return;
    }
    search(rules("move or failover", true, MOVE_OR_FAILOVER));
    let from_nothing = Rules {
        start: Start::Nothing,
        ..rules("failover, from nothing", true, FAILOVER)
    };
    search(from_nothing);
    let budget = Budget {
        breaks: 1,
        changes: 2,
        ..FAILOVER
    };
    search(rules("failover, streams break", true, budget));
    let budget = Budget {
        restarts: 1,
        changes: 2,
        ..FAILOVER
    };
    search(rules("failover, all restart", true, budget));
    let budget = Budget {
        failovers: 2,
        ticks: 4,
        crashes: 0,
        ..FAILOVER
    };
    search(rules("there and back", true, budget));
    let budget = Budget {
        crashes: 2,
        moves: 2,
        aborts: 1,
        changes: 3,
        ..CONTINUE
    };
    search(rules("continue, more", false, budget));
}

/// The first owner serves, and a failover is about to be committed.
const BLIND: Budget = Budget {
    moves: 1,
    changes: 1,
    ..NOTHING
};

/// Rules that are not kept, where to look, and one of what must break; nothing = it must not.
struct Case {
    without: &'static [Mutant],
    start: Start,
    budget: Budget,
    breaks: &'static [&'static str],
}

/// Fenced.
const fn fenced(
    without: &'static [Mutant],
    budget: Budget,
    breaks: &'static [&'static str],
) -> Case {
    Case {
        without,
        start: Start::Serving,
        budget,
        breaks,
    }
}

/// With policy `continue`.
const fn alone(
    without: &'static [Mutant],
    budget: Budget,
    breaks: &'static [&'static str],
) -> Case {
    Case {
        start: Start::Nothing,
        ..fenced(without, budget, breaks)
    }
}

const CASES: &[Case] = &[
    fenced(&[SealNotDurable], MOVE, &[LOST, ONE]),
    alone(&[SealNotDurable], CONTINUE, &[ONE]),
    alone(&[RunsOnWhenSealed], CONTINUE, &[ONE]),
    fenced(&[LeaseFromReceipt], Budget { ticks: 3, ..LEASE }, &[ONE]),
    fenced(&[NoDriftMargin], LEASE, &[ONE]),
    fenced(&[NoWait], LEASE, &[ONE]),
    fenced(&[NoWaitAfterRestart], LEASE_RESTART, &[ONE]),
    fenced(&[GrantToAnybody], LEASE_RESTART, &[ONE]),
    fenced(&[NoLeaseCheck], LEASE, &[ONE]),
    fenced(&[NoBar], LEASE, &[ONE]),
    fenced(&[NoIncarnation], STREAMS, &[LOST]),
    fenced(&[BeginNotDurable], STREAMS, &[LOST]),
    fenced(&[FencedKeepsIncarnation], SELF_FENCE, &[LOST]),
    alone(&[AckBeforeLocal], CONTINUE, &[LOST]),
    fenced(&[AckBeforeReplica], LEASE_CHANGE, &[LOST]),
    fenced(&[AckBeforeLocal, LesserBaseTaken], STREAMS, &[LOST]),
    fenced(&[StaleBaseTaken], STREAMS, &[LOST]),
    fenced(&[LesserBaseTaken], STREAMS, &[LOST]),
    fenced(&[StaleChangeTaken], STREAMS, &[MIXED]),
    fenced(&[AnyStreamWrites], STREAMS, &[MIXED]),
    fenced(&[LateRemoval], BLIND, &[LOST]),
    Case {
        start: Start::Failing,
        ..fenced(&[BlindCommit], BLIND, &[LOST])
    },
    alone(&[StaleCheckpointTaken], CONTINUE, &[STALE]),
    fenced(&[StaleSealedTaken], MOVE_OR_FAILOVER, &[STALE]),
    alone(&[StaleEffectTaken], CONTINUE_EFFECTS, &[STALE]),
    fenced(&[SinkWithoutFence], EFFECTS, &[STALE]),
    fenced(&[SameEpoch], EFFECTS, &[STALE]),
    alone(&[StaleAssignTaken], CONTINUE, &[DEPOSED, ONE]),
    // Harmless by themselves: a second line, each. Nobody has a lease while a failover reads, so
    // nobody acknowledges what comes to the replica then. (And where leases fail, the seal stops
    // only the run that it met: the next incarnation may begin the replica anew.)
    fenced(&[ReplicaNotSealed], LEASE_CHANGE, &[]),
    // A replica that has more than its node does not begin with less, so nothing is lost, but
    // nobody serves; with that rule broken too it is (above).
    fenced(&[AckBeforeLocal], STREAMS, &[]),
    // What a deposed run writes after the swap was acknowledged by nobody.
    fenced(&[ReplicaNotAskingRecord], LEASE_CHANGE, &[]),
];

#[test]
fn every_broken_rule_shows() {
    for case in CASES {
        let rules = Rules {
            mutants: case.without,
            start: case.start,
            ..rules("", case.start != Start::Nothing, case.budget)
        };
        let until = match case.breaks {
            [] => HasDiscoveries::AnyFailures,
            some => HasDiscoveries::AnyOf(some.iter().copied().collect()),
        };
        let checker = rules
            .checker()
            .threads(1)
            .finish_when(until)
            .spawn_bfs()
            .join();
        let states = checker.unique_state_count();
        let found = checker.discoveries();
        let broken = [ONE, DEPOSED, LOST, STALE, MIXED].map(|name| (name, found.get(name)));
        let broken = broken
            .into_iter()
            .filter_map(|(name, path)| Some((name, path?)));
        let broken: Vec<_> = broken
            .map(|(name, path)| (name, path.clone().into_actions().len()))
            .collect();
        println!("mutant: {:?}: {broken:?}, states={states}", case.without);
        let expected = broken.iter().any(|(name, _)| case.breaks.contains(name));
        assert_eq!(expected, !case.breaks.is_empty(), "{:?}", case.without);
        assert!(expected || broken.is_empty(), "{:?}", case.without);
    }
}
