//! A swarm where all goes well.

use super::mesh::{MIB, Mesh, PIECES_PER_MIB, Spec};
use crate::time::{Span, Time};

const UPLINK: u64 = 5 * MIB;

fn run(spec: Spec, name: &str) -> Mesh {
    let mut mesh = Mesh::new(spec);
    mesh.start();
    assert!(mesh.run(Span::from_secs(600)), "all complete");
    mesh.report(name);
    mesh
}

#[test]
fn a_simultaneous_cold_pull_takes_about_one_origin_copy_and_nearly_the_optimal_time() {
    for (nodes, pieces) in [(8, 64), (16, 64), (32, 64), (31, 256)] {
        let mut spec = Spec::equal(nodes, pieces, UPLINK);
        spec.readers = (0..nodes).collect();
        let t3 = spec.t3_secs();
        let mesh = run(spec, "cold");
        assert!(mesh.origin_copies() <= 1.15, "{nodes}: {}", mesh.origin_copies());
        assert!(mesh.secs() <= 1.25 * t3, "{nodes}: {} of {t3}", mesh.secs());
    }
}

#[test]
fn few_pieces_are_in_transmission_at_once() {
    let mesh = run(Spec::equal(16, 64, UPLINK), "slots");
    let config = &mesh.spec.config;
    let most = (config.upload_sending_factor * (config.upload_slots + config.upload_spread_max)) as usize;
    assert!(mesh.transmissions_max <= most, "{}", mesh.transmissions_max);
}

#[test]
fn a_reading_client_gets_its_first_piece_early() {
    let mut spec = Spec::equal(8, 64, UPLINK);
    spec.readers = (0..8).collect();
    let mesh = run(spec, "readers");
    let late = mesh.first_piece_at.values().max().unwrap();
    assert!(*late <= 16, "the first piece came as number {late} of 64");
}

#[test]
fn a_lone_node_takes_all_from_the_seeder_without_pauses() {
    let mesh = run(Spec::equal(1, 32, UPLINK), "lone");
    assert!((mesh.origin_copies() - 1.0).abs() < f64::EPSILON);
    assert!(mesh.secs() < 1.1 * 32.0 / 5.0, "{}", mesh.secs());
}

#[test]
fn a_late_node_takes_nothing_from_the_seeder() {
    let mut spec = Spec::equal(8, 32, UPLINK);
    spec.complete = (0..7).collect();
    let mesh = {
        let mut mesh = Mesh::new(spec);
        mesh.done = (0..7).map(|at| (at, Time::ZERO)).collect();
        mesh.start();
        assert!(mesh.run(Span::from_secs(600)));
        mesh
    };
    assert_eq!(mesh.seeder_pieces, 0);
    assert_eq!(mesh.node(7).stats().pieces_from_peers, 32 * PIECES_PER_MIB);
}

#[test]
fn the_swarm_finishes_from_one_complete_node_when_the_seeder_is_down() {
    let mut spec = Spec::equal(8, 32, UPLINK);
    spec.complete = [0].into();
    spec.seeder_up = false;
    let mut mesh = Mesh::new(spec);
    mesh.done.insert(0, Time::ZERO);
    mesh.start();
    assert!(mesh.run(Span::from_secs(600)));
    mesh.report("seeder down");
    assert_eq!(mesh.seeder_pieces, 0);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut spec = Spec::equal(12, 32, UPLINK);
        spec.seed = seed;
        spec.readers = [0, 5].into();
        let mut mesh = Mesh::new(spec);
        mesh.tracing = true;
        mesh.start();
        assert!(mesh.run(Span::from_secs(600)));
        mesh.trace
    };
    assert!(trace(3) == trace(3), "equal seeds");
    assert!(trace(3) != trace(4), "other seeds choose otherwise");
}
