//! A swarm in which something goes wrong.

use super::mesh::{MIB, Manner, Mesh, Spec};
use crate::time::{Span, Time};

const UPLINK: u64 = 5 * MIB;

fn finish(mut mesh: Mesh, name: &str) -> Mesh {
    assert!(mesh.run(Span::from_secs(900)), "{name}: all living nodes complete");
    mesh.report(name);
    mesh
}

#[test]
fn a_peer_that_sends_bad_pieces_is_banned_by_all_that_asked_it() {
    let mut spec = Spec::equal(8, 32, UPLINK);
    spec.complete = [0].into();
    spec.manner[0] = Manner::Corrupt;
    let mut mesh = Mesh::new(spec);
    mesh.done.insert(0, Time::ZERO);
    mesh.start();
    let mesh = finish(mesh, "corrupt");
    for at in 1..8 {
        assert!(mesh.banned.contains(&(at, 0)), "node {at} asked it and banned it");
        assert_eq!(mesh.banned.iter().filter(|(by, _)| *by == at).count(), 1, "nobody else is banned");
    }
    assert!(mesh.origin_copies() <= 1.5, "{}", mesh.origin_copies());
}

#[test]
fn a_silent_peer_loses_its_pieces() {
    let mut spec = Spec::equal(6, 32, UPLINK);
    spec.complete = [0, 1].into();
    spec.manner[0] = Manner::Silent;
    let mut mesh = Mesh::new(spec);
    mesh.done = [(0, Time::ZERO), (1, Time::ZERO)].into();
    mesh.start();
    let mesh = finish(mesh, "silent");
    let taken: u64 = (2..6).map(|at| mesh.node(at).stats().timeouts + mesh.node(at).stats().steals).sum();
    assert!(taken > 0, "requests were taken back");
    assert!(mesh.secs() < 60.0, "{}", mesh.secs());
}

#[test]
fn a_slow_peer_loses_its_piece_in_the_endgame() {
    let mut spec = Spec::equal(4, 16, UPLINK);
    spec.complete = [0, 1].into();
    spec.uplink[0] = UPLINK / 100;
    spec.seeder_up = false;
    let mut mesh = Mesh::new(spec);
    mesh.done = [(0, Time::ZERO), (1, Time::ZERO)].into();
    mesh.start();
    let mesh = finish(mesh, "slow");
    let stolen: u64 = (2..4).map(|at| mesh.node(at).stats().steals).sum();
    assert!(stolen > 0, "the slow peer lost pieces");
    assert!(mesh.secs() < 25.0, "{} s; a piece of the slow peer alone takes 20 s", mesh.secs());
}

#[test]
fn peers_that_vanish_cost_time_but_nothing_else() {
    let mut spec = Spec::equal(12, 48, UPLINK);
    spec.readers = (0..12).collect();
    let mut mesh = Mesh::new(spec);
    mesh.start();
    for (at, secs) in [(1, 2), (3, 4), (5, 5), (7, 6)] {
        mesh.kill(at, Time::ZERO + Span::from_secs(secs));
    }
    let mesh = finish(mesh, "vanish");
    assert_eq!(mesh.done.len(), 8);
    assert!(mesh.origin_copies() <= 1.5, "{}", mesh.origin_copies());
}

#[test]
fn dead_peers_among_the_introduced_do_not_hold_a_pull_up() {
    let mut spec = Spec::equal(20, 16, UPLINK);
    for at in 5..20 {
        spec.manner[at] = Manner::Dead;
    }
    let mut mesh = Mesh::new(spec);
    mesh.start();
    let mesh = finish(mesh, "dead");
    assert!(mesh.secs() < 3.0 * 16.0 / 5.0, "{}", mesh.secs());
}

#[test]
fn a_node_with_none_but_silent_peers_falls_back_to_the_seeder() {
    let mut spec = Spec::equal(4, 16, UPLINK);
    spec.complete = [0, 1, 2].into();
    for at in 0..3 {
        spec.manner[at] = Manner::Silent;
    }
    let mut mesh = Mesh::new(spec);
    mesh.done = (0..3).map(|at| (at, Time::ZERO)).collect();
    mesh.start();
    let mesh = finish(mesh, "fallback");
    assert_eq!(mesh.node(3).stats().pieces_from_seeder, 16);
    assert!(mesh.secs() < 30.0, "{}", mesh.secs());
}
