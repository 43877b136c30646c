//! A swarm in which something goes wrong.

use shoal_proto::{have::Have, message::RefuseReason, signed::Scope};

use super::mesh::{GIVE_UP, MIB, Manner, Mesh, PIECES_PER_MIB, Spec, blob_id};
use crate::{
    config::Config,
    event::{Action, Goal, Input},
    ids::{Id, PeerId},
    node::Node,
    time::{Span, Time},
};

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
fn a_reader_waits_for_no_silent_peer() {
    // Between two that serve, one that does not; the blob is long, so that its end is far.
    let mut spec = Spec::equal(4, 64, UPLINK);
    spec.complete = [0, 1, 2].into();
    spec.manner[0] = Manner::Silent;
    spec.readers = [3].into();
    spec.seeder_up = false;
    let mut mesh = Mesh::new(spec);
    mesh.done = (0..3).map(|at| (at, Time::ZERO)).collect();
    mesh.start();
    let mesh = finish(mesh, "reader");
    let first = mesh.first_piece_at[&3];
    assert!(first <= 8, "the first piece came as number {first} of {}", 64 * PIECES_PER_MIB);
    assert!(mesh.node(3).stats().steals > 0, "what the silent one had was asked of others");
    assert!(mesh.secs() < 64.0 / 10.0 + 6.0, "{}", mesh.secs());
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
    assert_eq!(mesh.node(3).stats().pieces_from_seeder, 16 * PIECES_PER_MIB);
    assert!(mesh.secs() < 30.0, "{}", mesh.secs());
}

#[test]
fn peers_whose_dials_come_to_nothing_cost_less_than_one_of_those_dials() {
    // All others but two: a look at eight at a time would take several times as long as a dial takes to fail.
    let mut spec = Spec::equal(32, 8, UPLINK);
    spec.complete = [30].into();
    spec.seeder_up = false;
    spec.manner[..30].fill(Manner::BlackHole);
    let mut mesh = Mesh::new(spec);
    mesh.done.insert(30, Time::ZERO);
    mesh.start();
    let mesh = finish(mesh, "black holes");
    let transfer = 8.0 / 5.0;
    let dials = mesh.secs() - transfer;
    assert!(dials < GIVE_UP.as_nanos() as f64 / 1e9, "{dials} s until the one was found");
}

#[test]
fn a_peer_that_comes_and_goes_is_dialled_less_and_less() {
    let mut spec = Spec::equal(3, 64, UPLINK);
    spec.seeder_uplink = UPLINK / 4;
    spec.complete = [0].into();
    spec.manner[0] = Manner::Flapping;
    let mut mesh = Mesh::new(spec);
    mesh.done.insert(0, Time::ZERO);
    mesh.start();
    let mesh = finish(mesh, "flapping");
    // The first pauses are a quarter of a second and double: within a minute there is room for about nine.
    let dials = mesh.actions["connect"];
    assert!(dials <= 2 * 12, "{dials} dials in {} s", mesh.secs());
    assert!(mesh.origin_copies() <= 1.2, "{}", mesh.origin_copies());
}

#[test]
fn peers_that_lack_what_they_claim_cost_a_pause_each_and_no_more() {
    for reason in [RefuseReason::NotHeld, RefuseReason::Busy, RefuseReason::Failed] {
        let mut spec = Spec::equal(8, 32, UPLINK);
        spec.complete = [0, 1, 2, 3].into();
        spec.manner[..4].fill(Manner::Refusing(reason));
        let mut mesh = Mesh::new(spec);
        mesh.done = (0..4).map(|at| (at, Time::ZERO)).collect();
        mesh.start();
        let mesh = finish(mesh, "claims");
        assert!(mesh.origin_copies() <= 2.0, "{reason:?}: {}", mesh.origin_copies());
        assert!(mesh.secs() < 25.0, "{reason:?}: {}", mesh.secs());
        let asked: u64 = (4..8).map(|at| mesh.node(at).stats().refusals).sum();
        let most = if reason == RefuseReason::Busy { 4000 } else { 400 };
        assert!(asked < most, "{reason:?}: {asked} requests were refused");
    }
}

#[test]
fn a_tenth_of_the_owners_may_die_in_mid_transfer() {
    for seed in 0..4 {
        let mut spec = Spec::equal(20, 64, UPLINK);
        (spec.lists, spec.seed) = (true, seed);
        spec.readers = (0..20).collect();
        let mut mesh = Mesh::new(spec);
        mesh.start();
        for at in [3, 11] {
            mesh.kill(at, Time::ZERO + Span::from_secs(6));
        }
        let mesh = finish(mesh, "owners die");
        assert_eq!(mesh.done.len(), 18);
        assert!(mesh.origin_copies() <= 1.2, "{}", mesh.origin_copies());
    }
}

/// A node that fetches a blob of eight pieces, with one peer connected.
fn one_peer() -> (Node, PeerId) {
    let (mut node, peer) = (Node::new(Config::default(), 1, Time::ZERO), PeerId::new(0, 0));
    let none = Have::Set([0].into());
    let goal = Goal::Fetch { background: false };
    let (introduced, blob) = ([].as_slice().into(), blob_id());
    let opened = Input::BlobOpened { blob, size: 8 * MIB, piece_len: MIB, have: none, goal, prefix: None, introduced };
    node.handle(opened, Time::ZERO);
    node.handle(Input::PeerKnown { peer, scope: Scope::Site, rank: 2, fixed: false }, Time::ZERO);
    node.handle(Input::Connected { peer }, Time::ZERO);
    while node.poll_action().is_some() {}
    (node, peer)
}

#[test]
fn a_have_set_that_is_none_of_the_blob_bans_its_sender() {
    let wrong =
        [Have::Set([].into()), Have::Set([0, 0].into()), Have::Added([8].into()), Have::Added([u32::MAX].into())];
    for have in wrong {
        let (mut node, peer) = one_peer();
        // Of what it added is only heard after its set.
        node.handle(Input::PeerHas { peer, blob: blob_id(), have: Have::Set([1].into()) }, Time::ZERO);
        node.handle(Input::PeerHas { peer, blob: blob_id(), have: have.clone() }, Time::ZERO);
        node.check();
        let banned =
            core::iter::from_fn(|| node.poll_action()).any(|a| matches!(a, Action::Ban { peer: p, .. } if p == peer));
        assert!(banned, "{have:?}");
    }
}

#[test]
fn a_seeder_that_asks_to_be_left_alone_is_left_alone() {
    let (mut node, _) = one_peer();
    let (mut now, mut asked_at) = (Time::ZERO, std::vec::Vec::new());
    while now < Time::ZERO + Span::from_secs(60) {
        while let Some(action) = node.poll_action() {
            if let Action::AskSeeder { request, .. } = action {
                asked_at.push(now);
                node.handle(Input::SeederBusy { request, retry_after: Span::from_secs(10) }, now);
            }
        }
        now = node.poll_timeout().expect("it tries again").max(now);
        node.handle(Input::Timeout, now);
    }
    // At most two requests are open at a time; then ten to fifteen seconds of quiet.
    assert!((4..=14).contains(&asked_at.len()), "{asked_at:?}");
}

#[test]
fn a_seeder_that_never_answers_is_told_of_once_and_asked_again() {
    let (mut node, _) = one_peer();
    let (mut now, mut asked, mut stalled) = (Time::ZERO, 0, std::vec::Vec::new());
    let end = Time::ZERO + Span::from_secs(200);
    while now < end {
        while let Some(action) = node.poll_action() {
            asked += u32::from(matches!(action, Action::AskSeeder { .. }));
            if let Action::Stalled { .. } = action {
                stalled.push(now);
            }
        }
        node.check();
        now = node.poll_timeout().expect("it tries again").max(now);
        node.handle(Input::Timeout, now);
    }
    assert_eq!(stalled.len(), 1, "{stalled:?}");
    assert!(stalled[0] <= Time::ZERO + Span::from_secs(31));
    assert!((8..=30).contains(&asked), "asked {asked} times in 200 s");
}
