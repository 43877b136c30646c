//! Rates against hand-solved cases and against water-filling of the whole network at once.

use proptest::prelude::*;

use super::{Network, Rates, Reached};
use crate::num::at;

const EXACT: Rates = Rates::Exact { epsilon: 1e-10 };

/// With links hot from `hot_from` flows on, which tell their neighbours everything.
fn network(capacities: &[f64], rates: Rates, hot_from: usize) -> Network<usize> {
    let mut network = Network::new(rates);
    network.hot_from = hot_from;
    network.drift = 1e-10;
    capacities.iter().for_each(|capacity| {
        network.add_link(*capacity);
    });
    network
}

/// Progressive filling: all rates grow together; where a link is full, its flows stop growing.
fn oracle(capacities: &[f64], flows: &[(Vec<u32>, f64)]) -> Vec<f64> {
    let mut rates: Vec<Option<f64>> = vec![None; flows.len()];
    while rates.iter().any(Option::is_none) {
        let share = |link: usize| {
            let on = |index: &usize| flows[*index].0.iter().any(|l| at(*l) == link);
            let used: f64 = (0..flows.len()).filter(on).filter_map(|index| rates[index]).sum();
            let open = (0..flows.len()).filter(on).filter(|index| rates[*index].is_none()).count();
            (open > 0).then(|| (capacities[link] - used).max(0.0) / open as f64)
        };
        let link = (0..capacities.len()).filter_map(|l| share(l).map(|s| (s, l))).min_by(|a, b| a.0.total_cmp(&b.0));
        let capped =
            (0..flows.len()).filter(|i| rates[*i].is_none()).min_by(|a, b| flows[*a].1.total_cmp(&flows[*b].1));
        let (level, full) = link.unwrap();
        let capped = capped.unwrap();
        if flows[capped].1 <= level {
            rates[capped] = Some(flows[capped].1);
            continue;
        }
        for (index, (links, _)) in flows.iter().enumerate() {
            if rates[index].is_none() && links.iter().any(|l| at(*l) == full) {
                rates[index] = Some(level);
            }
        }
    }
    rates.into_iter().map(Option::unwrap).collect()
}

#[test]
fn one_flow_takes_its_narrowest_link() {
    let mut net = network(&[100.0, 30.0, 50.0], EXACT, 64);
    let flow = net.start(0, &[0, 1, 2], 60.0, f64::INFINITY, 7);
    net.settle(0);
    assert!((net.rate(flow) - 30.0).abs() < 1e-9);
    assert_eq!(net.due(), 2_000_000_000);
    let mut over = Vec::new();
    net.fire(2_000_000_000, &mut over);
    net.settle(2_000_000_000);
    assert_eq!((over, net.live(), net.due()), (vec![(7, Reached::End)], 0, u64::MAX));
}

#[test]
fn the_parking_lot_is_shared_as_solved_by_hand() {
    // A long flow over three links, a short one on each; the middle link is the narrowest.
    let mut net = network(&[10.0, 6.0, 12.0], EXACT, 64);
    let long = net.start(0, &[0, 1, 2], 1e9, f64::INFINITY, 0);
    let short: Vec<u32> = (0..3).map(|l| net.start(0, &[l], 1e9, f64::INFINITY, 0)).collect();
    net.settle(0);
    let rates: Vec<f64> = [long].iter().chain(&short).map(|f| net.rate(*f)).collect();
    for (rate, expected) in rates.iter().zip([3.0, 7.0, 3.0, 9.0]) {
        assert!((rate - expected).abs() < 1e-6, "{rates:?}");
    }
}

#[test]
fn what_a_capped_flow_leaves_goes_to_the_others() {
    let mut net = network(&[9.0], EXACT, 64);
    let capped = net.start(0, &[0], 1e9, 1.0, 0);
    let free: Vec<u32> = (0..2).map(|_| net.start(0, &[0], 1e9, f64::INFINITY, 0)).collect();
    net.settle(0);
    assert!((net.rate(capped) - 1.0).abs() < 1e-9);
    free.iter().for_each(|flow| assert!((net.rate(*flow) - 4.0).abs() < 1e-9));
    assert!((net.used(0) - 9.0).abs() < 1e-9);
}

#[test]
fn fast_rates_give_what_a_flow_leaves_to_none() {
    let mut net = network(&[9.0, 1.0], Rates::Fast, 64);
    let slow = net.start(0, &[0, 1], 1e9, f64::INFINITY, 0);
    let other = net.start(0, &[0], 1e9, f64::INFINITY, 0);
    net.settle(0);
    assert!((net.rate(slow) - 1.0).abs() < 1e-9 && (net.rate(other) - 4.5).abs() < 1e-9);
}

/// Runs all flows to their end; when each was over, and the most that a link carried over its capacity.
fn run(capacities: &[f64], flows: &[(Vec<u32>, f64, f64, u64)], rates: Rates, hot_from: usize) -> (Vec<f64>, f64) {
    let mut net = network(capacities, rates, hot_from);
    let (mut ends, mut excess, mut next) = (vec![f64::NAN; flows.len()], 0.0f64, 0);
    let mut over = Vec::new();
    loop {
        let due = net.due();
        let now = if next < flows.len() && flows[next].3 <= due {
            let (links, bytes, cap, start) = &flows[next];
            net.start(*start, links, *bytes, *cap, next);
            next += 1;
            *start
        } else if due < u64::MAX {
            net.fire(due, &mut over);
            over.drain(..).for_each(|(index, _)| ends[index] = crate::num::secs(due));
            due
        } else {
            break;
        };
        net.settle(now);
        for (link, capacity) in capacities.iter().enumerate() {
            excess = excess.max(net.used(u32::try_from(link).unwrap()) / capacity - 1.0);
        }
        assert_eq!(net.unsettled, 0, "the levels come to rest");
    }
    assert_eq!(net.live(), 0, "every flow ends: {rates:?} {hot_from}");
    (ends, excess)
}

fn case() -> impl Strategy<Value = (Vec<f64>, Vec<(Vec<u32>, f64)>)> {
    let links = prop::collection::vec(1.0f64..100.0, 2..12);
    links.prop_flat_map(|capacities| {
        let count = u32::try_from(capacities.len()).unwrap();
        let way = prop::collection::btree_set(0..count, 1..4).prop_map(|set| set.into_iter().collect::<Vec<u32>>());
        let cap = prop_oneof![3 => Just(f64::INFINITY), 1 => 0.5f64..50.0];
        (Just(capacities), prop::collection::vec((way, cap), 1..40))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn local_relaxation_agrees_with_filling_the_whole_network((capacities, flows) in case()) {
        let expected = oracle(&capacities, &flows);
        for (epsilon, hot_from, tolerance) in [(1e-10, 64, 1e-6), (0.001, 64, 0.02), (1e-10, 3, 1e-6)] {
            let mut net = network(&capacities, Rates::Exact { epsilon }, hot_from);
            let ids: Vec<u32> = flows.iter().map(|(way, cap)| {
                let id = net.start(0, way, 1e12, *cap, 0);
                net.settle(0);
                id
            }).collect();
            for (id, rate) in ids.iter().zip(&expected) {
                let off = (net.rate(*id) / rate - 1.0).abs();
                prop_assert!(off < tolerance, "ε {epsilon}, hot from {hot_from}: {} for {rate}", net.rate(*id));
            }
            prop_assert_eq!(net.unsettled, 0);
        }
    }

    #[test]
    fn all_flows_end_and_no_link_carries_more_than_it_can((capacities, flows) in case(), gap in 0u64..50_000_000) {
        let timed: Vec<_> = flows.iter().enumerate()
            .map(|(i, (way, cap))| (way.clone(), 1.0 + i as f64 % 7.0, *cap, gap * i as u64)).collect();
        let (exact, excess) = run(&capacities, &timed, EXACT, 64);
        prop_assert!(excess < 1e-6, "{excess}");
        let (fast, excess) = run(&capacities, &timed, Rates::Fast, 64);
        prop_assert!(excess < 1e-6, "{excess}");
        prop_assert!(fast.iter().all(|end| end.is_finite()) && exact.iter().all(|end| end.is_finite()));
        let (hot, excess) = run(&capacities, &timed, EXACT, 2);
        prop_assert!(excess < 1e-6, "{excess}");
        prop_assert!(hot.iter().all(|end| end.is_finite()));
    }
}

#[test]
fn equal_flows_of_a_hot_link_end_as_processor_sharing_says() {
    // 500 flows of 1..=500 bytes at once on one link of 1000 bytes/s: the k-th ends when all smaller have ended.
    let flows: Vec<_> = (1..=500).map(|size| (vec![0], f64::from(size), f64::INFINITY, 0)).collect();
    for (rates, hot_from) in [(EXACT, 64), (EXACT, 10_000), (Rates::Fast, 64)] {
        let (ends, excess) = run(&[1000.0], &flows, rates, hot_from);
        assert!(excess < 1e-6);
        let mut expected = 0.0;
        for (index, end) in ends.iter().enumerate() {
            expected += (500 - index) as f64 / 1000.0;
            assert!((end - expected).abs() < 1e-6, "flow {index}: {end} for {expected}");
        }
    }
}
