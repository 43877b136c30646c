//! Boundaries: each is crossed about once.

use super::mesh::{MIB, Mesh, PIECES_PER_MIB, Spec};
use crate::time::{Span, Time};

fn two_regions(seed: u64) -> Spec {
    let mut spec = Spec::equal(12, 64, 5 * MIB);
    spec.region = (0..12).map(|at| at / 6).collect();
    spec.lists = true;
    spec.seed = seed;
    spec
}

#[test]
fn owners_bring_each_piece_into_their_region_about_once() {
    for seed in 0..5 {
        let mut mesh = Mesh::new(two_regions(seed));
        mesh.start();
        assert!(mesh.run(Span::from_secs(600)));
        mesh.report("regions");
        // Each region may be fed by the seeder or by the other region; both count as bytes into it.
        let into = (mesh.seeder_pieces + mesh.crossed_pieces) as f64 / (64 * PIECES_PER_MIB) as f64;
        // Short queues at uploaders cost a few pieces more here than long ones, and a tenth less time everywhere.
        assert!(into <= 2.0 * 1.2, "{into} copies into two regions");
    }
}

#[test]
fn others_cross_when_an_owner_dies() {
    let mut mesh = Mesh::new(two_regions(1));
    mesh.start();
    mesh.kill(0, Time::ZERO + Span::from_secs(1));
    mesh.kill(7, Time::ZERO + Span::from_secs(2));
    assert!(mesh.run(Span::from_secs(600)));
    mesh.report("owners die");
    let into = (mesh.seeder_pieces + mesh.crossed_pieces) as f64 / (64 * PIECES_PER_MIB) as f64;
    assert!(into <= 2.0 * 1.4, "{into} copies into two regions");
}
