//! The rules, a module for each part of the specification, and one each for what is not in it: Docker's habits, limits,
//! and the lessons of advisories.

mod advisories;
mod base;
mod blobs;
mod catalog;
mod chunks;
mod deletes;
mod docker;
mod limits;
mod manifests;
mod mounts;
mod names;
mod ranges;
mod referrers;
mod sessions;
mod set_pulls;
mod set_pushes;
mod tags;
mod uploads;
mod wire;

use shoal_proto::digest::Algorithm;

use super::Table;

/// Both digest algorithms.
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// All rules.
#[must_use]
pub fn tables() -> Vec<Table> {
    vec![
        base::table(),
        names::table(),
        blobs::table(),
        ranges::table(),
        set_pulls::table(),
        uploads::table(),
        sessions::table(),
        chunks::table(),
        mounts::table(),
        manifests::table(),
        set_pushes::table(),
        tags::table(),
        referrers::table(),
        deletes::table(),
        catalog::table(),
        docker::table(),
        limits::table(),
        wire::table(),
        advisories::table(),
    ]
}
