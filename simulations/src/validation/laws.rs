//! The real policy against laws: what must hold of every run, and what theory says of large swarms.

use proptest::prelude::*;

use super::{run, setup, watched};
use crate::{
    bounds::Fluid,
    job,
    num::{at, secs, small},
    plan::{Plan, Policy},
    world::{Watcher, World},
};

/// Sees that no link carries more than it can.
#[derive(Default)]
struct Capacities {
    looks: u32,
}

impl Watcher for Capacities {
    fn look(&mut self, world: &World) -> bool {
        self.looks += 1;
        for link in 0..small(2 * world.topology.spots.nodes.len()) {
            let (used, capacity) = (world.network.used(link), world.network.capacity(link));
            assert!(used <= capacity * 1.005 + 1.0, "link {link} carries {used} of {capacity}");
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn nothing_is_lost_and_no_bound_is_beaten(
        nodes in 2u32..40, mib in 1u32..40, layers in 1u32..5, up in 20u32..400, down in 20u32..900,
        origin in 50u32..900, seed: u64, regions in 1u32..3, lossy: bool,
    ) {
        let mut settings = vec![
            format!("nodes.count={nodes}"), format!("image.size={mib} MiB"), format!("image.layers={layers}"),
            format!("nodes.up={up} Mb/s"), format!("nodes.down={down} Mb/s"), format!("origin.up={origin} Mb/s"),
        ];
        if regions == 2 {
            settings.push("regions=[{name=\"a\",share=1},{name=\"b\",share=1}]".to_owned());
        }
        if lossy {
            settings.push("faults.corrupt=0.01".to_owned());
            settings.push("faults.crash=0.1".to_owned());
        }
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let setup = setup("lab", &settings, seed);
        for policy in Policy::ALL {
            let mut eyes = Capacities::default();
            let outcome = watched(&setup, policy, &mut eyes);
            let s = &outcome.summary;
            let up: u64 = outcome.logs.iter().map(|log| log.up).sum();
            let down: u64 = outcome.logs.iter().map(|log| log.down).sum();
            let rows: u64 = s.matrix.iter().flatten().sum();
            prop_assert_eq!(up, s.counts.peer_bytes);
            let mirrored = if policy == Policy::MirrorPerRegion { s.origin.bytes } else { 0 };
            prop_assert_eq!(rows, down + mirrored, "every byte has come from somewhere");
            let wanted = u64::from(nodes) * s.image_bytes;
            // Transfers are counted by the floor of their bytes.
            prop_assert!(down + s.counts.transfers >= wanted, "{down} for {wanted}");
            let useful = down + s.counts.transfers - wanted;
            prop_assert!(lossy || useful <= s.counts.wasted_bytes + s.counts.transfers, "{useful} too much");
            let plan = Plan::new(&setup.scenario, seed, policy, setup.rates.with(setup.epsilon)).unwrap();
            let fluid = Fluid::of(&plan, &outcome.spots);
            let bound = if policy == Policy::OriginOnly { fluid.client_server() } else { fluid.all() };
            let bound = if policy == Policy::MirrorPerRegion { s.image_bytes as f64 / plan.scenario.origin.up.0 } else { bound };
            let last = s.arrived.max.unwrap();
            prop_assert!(last >= bound * (1.0 - 1e-3), "{}: {last} beats {bound}", policy.name());
        }
    }
}

#[test]
fn without_peers_the_time_is_that_of_all_copies_in_a_row() {
    let setup = setup("lab", &["nodes.count=40", "image.size=64 MiB"], 1);
    let outcome = run(&setup, Policy::OriginOnly);
    let (last, bound) = (outcome.summary.arrived.max.unwrap(), 40.0 * outcome.summary.bound_s);
    assert!((last / bound - 1.0).abs() < 1e-3, "{last} for {bound}");
}

/// Makespan over the optimum in whole pieces, for equal uplinks.
fn against_the_optimum(nodes: u32, pieces: u32, seed: u64) -> f64 {
    let (count, size) = (format!("nodes.count={nodes}"), format!("image.size={pieces} MiB"));
    let outcome = run(&setup("lab", &[&count, &size], seed), Policy::Shoal);
    assert!(outcome.summary.origin.copies <= 1.3, "origin copies {}", outcome.summary.origin.copies);
    outcome.summary.ratio_to_rounds.unwrap()
}

/// Where links are no wider down than up, several uploaders meet at one receiver and share its link. One upload at a time
/// would leave half of all uplinks unused.
#[test]
fn swarms_whose_downlinks_are_no_wider_lose_little_to_chance_meetings() {
    let ratios = job::spread(2, job::cores(), |seed| {
        let narrow = ["nodes.count=63", "image.size=128 MiB", "nodes.down=100 Mb/s"];
        run(&setup("lab", &narrow, seed as u64 + 1), Policy::Shoal).summary.ratio_to_bound.unwrap()
    });
    assert!(ratios.iter().all(|ratio| (1.0..=1.70).contains(ratio)), "{ratios:?}");
}

#[test]
fn equal_swarms_come_close_to_the_optimum() {
    let cases = [(31, 128), (127, 128), (127, 256)];
    let ratios = job::spread(cases.len(), job::cores(), |case| against_the_optimum(cases[case].0, cases[case].1, 1));
    eprintln!("makespan ÷ (M + ⌊log2 N⌋) τ: {cases:?} {ratios:?}");
    assert!(ratios.iter().all(|ratio| (1.0..=1.20).contains(ratio)), "{cases:?} {ratios:?}");
}

#[test]
#[ignore = "minutes: large swarms"]
fn large_equal_swarms_come_close_to_the_optimum() {
    let ratios = [against_the_optimum(1023, 256, 1), against_the_optimum(16383, 128, 1)];
    eprintln!("makespan ÷ optimum at 1023 and 16383 nodes: {ratios:?}");
    assert!(ratios.iter().all(|ratio| (1.0..=1.20).contains(ratio)), "{ratios:?}");
}

#[test]
fn time_grows_with_the_logarithm_of_the_nodes() {
    let sizes = [16u32, 32, 64, 128, 256, 512, 1024];
    let times = job::spread(sizes.len(), job::cores(), |case| {
        let count = format!("nodes.count={}", sizes[case]);
        let of = |seed| run(&setup("lab", &[&count, "image.size=32 MiB"], seed), Policy::Shoal).summary.arrived.max;
        // One run is off by some percent, the mean of four by less than a doubling adds.
        (1..=4).map(|seed| of(seed).unwrap()).sum::<f64>() / 4.0
    });
    let n = sizes.len() as f64;
    let logs: Vec<f64> = sizes.iter().map(|size| f64::from(size.ilog2())).collect();
    let (x, y) = (logs.iter().sum::<f64>() / n, times.iter().sum::<f64>() / n);
    let sxy: f64 = logs.iter().zip(&times).map(|(a, b)| (a - x) * (b - y)).sum();
    let sxx: f64 = logs.iter().map(|a| (a - x) * (a - x)).sum();
    let syy: f64 = times.iter().map(|b| (b - y) * (b - y)).sum();
    let (slope, fit) = (sxy / sxx, sxy * sxy / (sxx * syy));
    eprintln!("{sizes:?}: {times:?}; {slope:.3} s for each doubling, R² {fit:.3}");
    assert!(slope > 0.0 && fit >= 0.95, "R² {fit}: {times:?}");
}

#[test]
fn pieces_spread_no_faster_than_they_can_double() {
    let outcome = run(&setup("lab", &["nodes.count=255", "image.size=16 MiB"], 3), Policy::Shoal);
    let tau = 1_048_576.0 / 12.5e6;
    let mut firsts: Vec<f64> = outcome.logs.iter().map(|log| secs(log.first_byte)).collect();
    firsts.sort_unstable_by(f64::total_cmp);
    for (count, time) in (1u32..).zip(&firsts) {
        let most = (time / tau).exp2() - 1.0;
        assert!(f64::from(count) <= most * 1.001 + 1e-6, "{count} nodes hold a piece after {time} s; {most:.1} can");
    }
    let soonest = tau * f64::from((255u32 + 1).ilog2());
    assert!(*firsts.last().unwrap() >= soonest);
}

#[test]
fn random_peers_send_across_regions_what_chance_says() {
    let regions = "regions=[{name=\"a\",share=5},{name=\"b\",share=3},{name=\"c\",share=2}]";
    let settings = [
        "nodes.count=200",
        "image.size=64 MiB",
        regions,
        "wan.rate=100 Gb/s",
        "wan.rtt=0.1 ms",
        "lan.zone_rtt=0.1 ms",
        "arrival.over=1 s",
    ];
    let copies = |seed| run(&setup("lab", &settings, seed), Policy::Random).summary.cross_copies;
    let shares = [0.5f64, 0.3, 0.2];
    let expected = 200.0 * (1.0 - shares.iter().map(|share| share * share).sum::<f64>());
    let found = (1..=4).map(copies).sum::<f64>() / 4.0;
    eprintln!("copies between regions: {found:.1}, by chance {expected:.1}");
    assert!((found / expected - 1.0).abs() < 0.03, "{found} for {expected}");
}

#[test]
fn owners_keep_the_bytes_between_regions_near_one_copy_each() {
    let regions = "regions=[{name=\"a\",share=1},{name=\"b\",share=1},{name=\"c\",share=1}]";
    let settings = ["nodes.count=150", "image.size=64 MiB", regions, "control.candidates=32", "wan.rtt=20 ms"];
    let outcome = run(&setup("lab", &settings, 2), Policy::Shoal);
    let copies = outcome.summary.cross_copies;
    eprintln!("copies between regions: {copies:.2}; 2 are needed");
    assert!((2.0..2.6).contains(&copies), "{copies}");
}

#[test]
fn the_missing_piece_is_survived_if_the_origin_sends_faster_than_nodes_come() {
    // Nodes leave when they are complete: theory says that the swarm stays small if and only if the origin sends more
    // pieces a second than nodes come.
    let nodes_at_the_end = |rate: f64| {
        let arrival = format!("arrival.rate={rate}");
        let settings = [
            "image.size=16 MiB",
            "image.piece=1 MiB",
            "nodes.count=600",
            "nodes.up=40 Mb/s",
            "nodes.down=400 Mb/s",
            "origin.up=16 Mb/s",
            "faults.leave_within=0 s",
            &arrival,
        ];
        let outcome = run(&setup("ephemeral", &settings, 5), Policy::Shoal);
        let start = |node: usize| outcome.logs[node].start;
        let last = (0..outcome.logs.len()).map(start).max().unwrap();
        outcome.logs.iter().filter(|log| log.arrived > last).count()
    };
    let (calm, crowded) = (nodes_at_the_end(0.5), nodes_at_the_end(6.0));
    eprintln!("nodes under way when the last came: {calm} where they come slowly, {crowded} where they come fast");
    assert!(calm < 60 && crowded > 3 * calm.max(20), "{calm} {crowded}");
}

/// Medians and 99th percentiles of what Kraken's README reports, 10 and 18 seconds, with so many of its 2,600 hosts.
fn as_krakens(nodes: u32) -> (f64, f64) {
    let outcome = run(&setup("kraken-2600", &[&format!("nodes.count={nodes}")], 1), Policy::Shoal);
    let took = outcome.summary.took;
    let (p50, p99) = (took.p50.unwrap(), took.p99.unwrap());
    eprintln!("{nodes} hosts: p50 {p50:.1} s (Kraken 10), p99 {p99:.1} s (Kraken 18)");
    (p50, p99)
}

#[test]
fn the_tail_of_krakens_published_run_is_matched_at_a_size_that_fits() {
    let (p50, p99) = as_krakens(200);
    assert!(p99 <= 18.0 * 1.3, "{p50} {p99}");
}

#[test]
#[ignore = "minutes: 2,600 hosts and 3 GB, as Kraken's README reports"]
fn krakens_published_run_is_matched() {
    let (p50, p99) = as_krakens(2600);
    assert!(p50 <= 12.0 && p99 <= 18.0 * 1.3, "{p50} {p99}");
}

#[test]
fn the_same_seed_gives_the_same_run_on_any_number_of_threads() {
    let chaos = [
        "nodes.count=60",
        "image.size=64 MiB",
        "faults.crash=10 %",
        "faults.corrupt=0.01",
        "faults.origin_down_at=0.2 s",
    ];
    let hash = |_| run(&setup("chaos", &chaos, 9), Policy::Shoal).summary.trace_hash;
    if cfg!(not(target_arch = "aarch64")) {
        eprintln!("SKIPPED the same on aarch64: this machine is {}", std::env::consts::ARCH);
    }
    let (one, three) = (job::spread(2, 1, hash), job::spread(3, 3, hash));
    assert!(one.iter().chain(&three).all(|hash| *hash == one[0]), "{one:?} {three:?}");
    assert_ne!(one[0], run(&setup("chaos", &chaos, 10), Policy::Shoal).summary.trace_hash);
}

#[test]
fn chaos_delays_a_rollout_but_does_not_stop_it() {
    let settings = ["nodes.count=120", "image.size=64 MiB", "faults.crash=5 %", "faults.corrupt=0.005"];
    let outcome = run(&setup("chaos", &settings, 4), Policy::Shoal);
    let counts = &outcome.summary.counts;
    assert!(counts.crashes > 0 && counts.corrupt > 0, "{counts:?}");
    let complete = outcome.logs.iter().filter(|log| log.arrived != u64::MAX).count();
    assert_eq!(complete, at(outcome.summary.nodes));
}
