//! Placement as a whole: what users see, and properties over arbitrary meshes.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn node(id: &str, tier: Tier) -> Candidate {
    Candidate {
        capacity: Capacity {
            cpu_milli: 4000,
            memory_bytes: 8 * GIB,
            storage_bytes: 100 * GIB,
            slots: 100,
            gpu: false,
        },
        arch: "x86_64".into(),
        capabilities: set(&["wasm"]),
        ..Candidate::new(id, tier)
    }
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn place(strategy: &str, request: &Request, nodes: &[Candidate]) -> Placement {
    Registry::default()
        .get(Some(strategy))
        .unwrap()
        .place(request, nodes, 7)
}

#[test]
fn the_example_of_every_day_reads_well() {
    let mut busy = node("edge-2", Tier::Edge);
    busy.allocated.cpu_milli = 1000;
    let nodes = [
        busy,
        node("cloud-1", Tier::Cloud),
        node("edge-1", Tier::Edge),
    ];
    let request = Request {
        resources: Resources {
            cpu_milli: 1000,
            memory_bytes: GIB,
            ..Resources::default()
        },
        tier: Some(Tier::Edge),
        ..Request::default()
    };
    let placement = place("spread", &request, &nodes);
    assert_eq!(
        placement.to_string(),
        "placed on edge-1: score 750 (room 750); next edge-2 (500)"
    );
    assert_eq!(placement.feasible, 2);
    let removed = Removed {
        filter: "tier".into(),
        nodes: 1,
        wanted: Some("edge".into()),
    };
    assert_eq!(placement.removed, [removed]);
    let last = placement.candidates.last().unwrap();
    assert_eq!(last.node, "cloud-1");
    let refusal = Verdict::Removed {
        filter: "tier".into(),
        reason: "it is cloud".into(),
    };
    assert_eq!(last.verdict, refusal);
}

#[test]
fn an_unplaceable_request_says_which_filter_removed_how_many() {
    let mut closed = node("iot-1", Tier::Iot);
    closed.cordoned = true;
    let nodes = [
        closed,
        node("cloud-1", Tier::Cloud),
        node("edge-1", Tier::Edge),
    ];
    let request = Request {
        tier: Some(Tier::Iot),
        ..Request::default()
    };
    let placement = place("spread", &request, &nodes);
    assert_eq!(placement.node(), None);
    assert_eq!(
        placement.to_string(),
        "no node fits: 3 nodes: 1 removed by cordon, 2 removed by tier (want iot)"
    );
    let none = place("first-fit", &request, &[]);
    assert_eq!(none.to_string(), "no node fits: there are no nodes");
}

#[test]
fn each_filter_refuses_and_gives_its_reason() {
    type Change = fn(&mut Request, &mut Candidate);
    let cases: [(&str, Change, &str); 15] = [
        ("ready", |_, n| n.ready = false, "it has no live session"),
        ("cordon", |_, n| n.cordoned = true, "it is cordoned"),
        ("drain", |_, n| n.draining = true, "it is being drained"),
        (
            "node",
            |r, _| r.node = Some("b".into()),
            "another node was named",
        ),
        ("avoid", |r, _| r.avoid = set(&["a"]), "it is to be avoided"),
        (
            "capability",
            |r, _| r.capabilities = set(&["onnx", "wasm"]),
            "its agent lacks onnx",
        ),
        (
            "arch",
            |r, _| r.arch = Some("aarch64".into()),
            "it is x86_64",
        ),
        ("tier", |r, _| r.tier = Some(Tier::Iot), "it is edge"),
        (
            "labels",
            |r, _| r.labels = vec![Selector::new("zone", Test::Equals("north".into()))],
            "unmet: zone=north",
        ),
        (
            "data",
            |r, _| r.data.required = set(&["taxi"]),
            "it lacks taxi",
        ),
        ("gpu", |r, _| r.resources.gpu = true, "it has no GPU"),
        (
            "cpu",
            |r, _| r.resources.cpu_milli = 4001,
            "4000 of 4000 milli free",
        ),
        (
            "memory",
            |r, n| {
                r.resources.memory_bytes = 2 * GIB;
                n.observed.memory_bytes = 7 * GIB;
            },
            "1 GiB of 8 GiB free",
        ),
        (
            "storage",
            |r, _| r.resources.storage_bytes = 101 * GIB,
            "100 GiB of 100 GiB free",
        ),
        (
            "slots",
            |_, n| n.allocated.slots = 100,
            "all 100 slots are taken",
        ),
    ];
    let names: Vec<_> = standard_filters()
        .iter()
        .map(|filter| filter.name())
        .collect();
    assert_eq!(
        names,
        cases.each_ref().map(|case| case.0),
        "every filter has its case"
    );
    for (filter, change, reason) in cases {
        let (mut request, mut candidate) = (Request::default(), node("a", Tier::Edge));
        assert_eq!(
            place("spread", &request, &[candidate.clone()]).node(),
            Some("a")
        );
        change(&mut request, &mut candidate);
        let placement = place("spread", &request, &[candidate]);
        let expected = Verdict::Removed {
            filter: filter.into(),
            reason: reason.into(),
        };
        assert_eq!(placement.candidates[0].verdict, expected);
        assert_eq!(placement.outcome, Outcome::Unplaceable);
    }
}

#[test]
fn a_busy_processor_does_not_make_a_node_unplaceable() {
    let mut busy = node("a", Tier::Edge);
    busy.observed.cpu_milli = 4000;
    let wanted = Resources {
        cpu_milli: 100,
        ..Resources::default()
    };
    let request = Request {
        resources: wanted,
        ..Request::default()
    };
    assert_eq!(place("spread", &request, &[busy.clone()]).node(), Some("a"));
    assert_eq!(
        place("spread", &request, &[busy, node("b", Tier::Edge)]).node(),
        Some("b")
    );
}

#[test]
fn strategies_differ_where_they_should() {
    let mut filled = node("b", Tier::Edge);
    filled.allocated.cpu_milli = 2000;
    let nodes = [node("c", Tier::Edge), filled, node("d", Tier::Edge)];
    let request = Request::default();
    assert_eq!(place("first-fit", &request, &nodes).node(), Some("b"));
    assert_eq!(place("best-fit", &request, &nodes).node(), Some("b"));
    assert_eq!(place("spread", &request, &nodes).node(), Some("c"));
    let first = place("first-fit", &request, &nodes);
    assert_eq!(first.to_string(), "placed on b: the first of 3 that fit");
}

#[test]
fn a_group_spreads_over_nodes_or_over_a_label() {
    let zoned = |id: &str, zone: &str| {
        let mut zoned = node(id, Tier::Edge);
        zoned.labels.insert("zone".into(), zone.into());
        zoned
    };
    let nodes = [
        zoned("a", "x"),
        zoned("b", "x"),
        zoned("c", "y"),
        node("d", Tier::Edge),
    ];
    let placed = BTreeMap::from([("a".to_owned(), 1)]);
    let by = |key: Option<&str>| Request {
        spread: Some(Spread {
            key: key.map(str::to_owned),
            placed: placed.clone(),
        }),
        ..Request::default()
    };
    assert_eq!(place("spread", &by(None), &nodes).node(), Some("b"));
    assert_eq!(place("spread", &by(Some("zone")), &nodes).node(), Some("c"));
}

#[test]
fn preferences_decide_among_equals() {
    let mut far = node("a", Tier::Cloud);
    far.latency_ms = Some(80);
    let mut near = node("b", Tier::Edge);
    near.latency_ms = Some(2);
    near.data_tags = set(&["taxi"]);
    let nodes = [far, near];
    let data = DataWish {
        preferred: set(&["taxi", "maps"]),
        ..DataWish::default()
    };
    let wishes = [
        Request {
            near: true,
            ..Request::default()
        },
        Request {
            tiers_preferred: vec![Tier::Edge, Tier::Cloud],
            ..Request::default()
        },
        Request {
            data,
            ..Request::default()
        },
    ];
    assert_eq!(
        place("spread", &Request::default(), &nodes).node(),
        Some("a")
    );
    for wish in wishes {
        for strategy in ["spread", "best-fit"] {
            assert_eq!(
                place(strategy, &wish, &nodes).node(),
                Some("b"),
                "{strategy} {wish:?}"
            );
        }
    }
}

#[test]
fn energy_prefers_awake_and_clean_nodes() {
    let powered = |id: &str, carbon: u32, slots: u64| {
        let mut powered = node(id, Tier::Edge);
        let carbon_g_per_kwh = Some(carbon);
        powered.energy = Some(EnergyProfile {
            idle_mw: 5000,
            max_mw: 9000,
            carbon_g_per_kwh,
        });
        powered.allocated.slots = slots;
        powered
    };
    let green = Registry::weighted("green", &BTreeMap::from([("energy".into(), 1)])).unwrap();
    let choose = |nodes: &[Candidate]| {
        green
            .place(&Request::default(), nodes, 0)
            .node()
            .unwrap()
            .to_owned()
    };
    assert_eq!(choose(&[powered("a", 300, 0), powered("b", 300, 1)]), "b");
    assert_eq!(choose(&[powered("a", 500, 0), powered("b", 100, 0)]), "b");
    assert_eq!(choose(&[node("a", Tier::Edge), powered("b", 900, 0)]), "b");
}

#[test]
fn a_large_mesh_keeps_counts_whole_and_details_bounded() {
    let mut nodes: Vec<_> = (0..500)
        .map(|i| node(&format!("n{i:03}"), Tier::Edge))
        .collect();
    for closed in &mut nodes[..300] {
        closed.cordoned = true;
    }
    let placement = place("spread", &Request::default(), &nodes);
    assert_eq!((placement.nodes, placement.feasible), (500, 200));
    assert_eq!(placement.removed[0].nodes, 300);
    assert_eq!(placement.candidates.len(), DETAIL_MAX);
    let ids: Vec<_> = placement
        .candidates
        .iter()
        .map(|c| c.node.as_str())
        .collect();
    assert_eq!(
        (ids[0], ids[RANKED_MIN - 1], ids[RANKED_MIN]),
        ("n300", "n331", "n000")
    );
}

#[test]
fn the_result_survives_json() {
    let nodes = [node("a", Tier::Edge), node("b", Tier::Iot)];
    let request = Request {
        tier: Some(Tier::Iot),
        ..Request::default()
    };
    let placement = place("spread", &request, &nodes);
    let json = serde_json::to_string(&placement).unwrap();
    assert!(
        json.contains(r#""outcome":{"kind":"placed","node":"b"}"#),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<Placement>(&json).unwrap(), placement);
}

fn arbitrary_tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Cloud), Just(Tier::Edge), Just(Tier::Iot)]
}

/// Small numbers, so that full, empty and equal nodes are common; and the largest, for overflow.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..6_u64, 1 => Just(u64::MAX)]
}

fn tags() -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set("[ab]", 0..=2)
}

prop_compose! {
    fn arbitrary_usage()(cpu in amount(), memory in amount(), slots in 0..3_u64) -> Usage {
        Usage { cpu_milli: cpu, memory_bytes: memory, storage_bytes: memory, slots }
    }
}

prop_compose! {
    fn arbitrary_node()(
        tier in arbitrary_tier(),
        flags in (prop::bool::weighted(0.9), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        zone in prop::option::of("[xy]"),
        data_tags in tags(),
        capacity in (amount(), amount(), amount(), 0..4_u64, any::<bool>()),
        allocated in arbitrary_usage(),
        observed in arbitrary_usage(),
        latency_ms in prop::option::of(0..100_u32),
        idle_mw in prop::option::of(0..10_000_u32),
    ) -> Candidate {
        let (cpu_milli, memory_bytes, storage_bytes, slots, gpu) = capacity;
        let profile = |idle_mw| EnergyProfile { idle_mw, max_mw: u32::MAX, carbon_g_per_kwh: None };
        Candidate {
            labels: zone.map(|zone| ("zone".to_owned(), zone)).into_iter().collect(),
            data_tags,
            ready: flags.0,
            cordoned: flags.1,
            draining: flags.2,
            capacity: Capacity { cpu_milli, memory_bytes, storage_bytes, slots, gpu },
            allocated,
            observed,
            latency_ms,
            energy: idle_mw.map(profile),
            ..node("", tier)
        }
    }
}

prop_compose! {
    fn arbitrary_request()(
        amounts in (0..4_u64, 0..4_u64, prop::bool::weighted(0.2)),
        tier in prop::option::weighted(0.2, arbitrary_tier()),
        tiers_preferred in prop::collection::vec(arbitrary_tier(), 0..3),
        zone in prop::option::weighted(0.3, "[xy]"),
        required in tags(),
        preferred in tags(),
        named in prop::option::weighted(0.1, 0..6_usize),
        spread in prop::option::of((any::<bool>(), prop::collection::btree_map(0..6_usize, 0..3_u32, 0..4))),
        near in any::<bool>(),
    ) -> Request {
        let (cpu_milli, memory_bytes, gpu) = amounts;
        let equals = |zone| Selector::new("zone", Test::Equals(zone));
        Request {
            resources: Resources { cpu_milli, memory_bytes, storage_bytes: memory_bytes, gpu },
            tier,
            tiers_preferred,
            labels: zone.map(equals).into_iter().collect(),
            data: DataWish { required: required.into_iter().take(1).collect(), preferred },
            node: named.map(id),
            spread: spread.map(|(zoned, placed)| Spread {
                key: zoned.then(|| "zone".to_owned()),
                placed: placed.into_iter().map(|(node, count)| (id(node), count)).collect(),
            }),
            near,
            ..Request::default()
        }
    }
}

fn id(index: usize) -> String {
    format!("n{index:02}")
}

fn arbitrary_mesh() -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec(arbitrary_node(), 0..12).prop_map(|mut nodes| {
        for (index, node) in nodes.iter_mut().enumerate() {
            node.node = id(index);
        }
        nodes
    })
}

fn fits(request: &Request, node: &Candidate) -> bool {
    standard_filters()
        .iter()
        .all(|filter| filter.check(request, node).is_ok())
}

proptest! {
    #[test]
    fn the_choice_fits_is_best_and_exists_if_any_fits(
        strategy in StrategyCase::any(), request in arbitrary_request(), nodes in arbitrary_mesh(),
    ) {
        let placement = strategy.0.place(&request, &nodes, 0);
        let feasible: Vec<_> = nodes.iter().filter(|node| fits(&request, node)).collect();
        prop_assert_eq!(placement.feasible as usize, feasible.len());
        prop_assert_eq!(placement.node().is_none(), feasible.is_empty());
        let removed: u32 = placement.removed.iter().map(|removed| removed.nodes).sum();
        prop_assert_eq!(placement.feasible + removed, placement.nodes);
        if let Some(chosen) = placement.node() {
            prop_assert!(feasible.iter().any(|node| node.node == chosen));
            prop_assert_eq!(chosen, &placement.candidates[0].node);
        }
        let mut previous = u32::MAX;
        for considered in &placement.candidates {
            if let Verdict::Fits { total, scores } = &considered.verdict {
                prop_assert!(*total <= SCORE_MAX && *total <= previous);
                prop_assert_eq!(*total, scores.iter().map(|score| score.part).sum::<u32>());
                previous = *total;
            }
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        strategy in StrategyCase::any(),
        request in arbitrary_request(),
        (nodes, shuffled) in arbitrary_mesh().prop_flat_map(|n| (Just(n.clone()), Just(n).prop_shuffle())),
    ) {
        let placement = strategy.0.place(&request, &nodes, 0);
        prop_assert_eq!(placement, strategy.0.place(&request, &shuffled, 0));
    }

    #[test]
    fn a_node_that_cannot_take_it_changes_nothing(
        strategy in StrategyCase::any(),
        request in arbitrary_request(),
        nodes in arbitrary_mesh(),
        mut stranger in arbitrary_node(),
        first in any::<bool>(),
    ) {
        stranger.ready = false;
        stranger.node = if first { "a".into() } else { "z".into() };
        let before = strategy.0.place(&request, &nodes, 0);
        let after = strategy.0.place(&request, &[nodes, vec![stranger]].concat(), 0);
        prop_assert_eq!(before.outcome, after.outcome);
        prop_assert_eq!(before.feasible, after.feasible);
    }
}

/// A strategy that proptest can print.
struct StrategyCase(Box<dyn PlacementStrategy>);

impl std::fmt::Debug for StrategyCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

impl StrategyCase {
    fn any() -> impl Strategy<Value = Self> {
        prop::collection::btree_map(0..7_usize, 0..5_u32, 0..7).prop_map(|weights| {
            let names: Vec<_> = standard_scores().iter().map(|score| score.name()).collect();
            let name = format!("{weights:?} of {names:?}");
            let weights = weights
                .into_iter()
                .map(|(i, w)| (names[i].to_owned(), w))
                .collect();
            Self(Box::new(Registry::weighted(name, &weights).unwrap()))
        })
    }
}
