//! Who crosses a boundary. One rule for site, zone, region and the way to the seeder: within a scope that has a
//! candidate list, a piece is brought in by its owner, the rendezvous-hash winner among the candidates (Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", 1998); the others wait until it is held inside.
//!
//! A source that lies beyond several boundaries is judged by the widest one with a list: who brings a piece into the
//! region brings it into its own zone and site too.

use alloc::{boxed::Box, vec};

use shoal_proto::{layout::Layout, signed::Scope};

use crate::{blob::Holder, rng::mix};

/// The pieces that this node owns in each scope with a candidate list.
#[derive(Debug, Default)]
pub(crate) struct Boundaries {
    site: Option<Box<[u64]>>,
    zone: Option<Box<[u64]>>,
    region: Option<Box<[u64]>>,
}

/// What may be taken from a source: pieces of `owned` that nobody within `inside` holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossing<'a> {
    owned: &'a [u64],
    inside: Scope,
}

impl Boundaries {
    /// Elects the owners within `scope` among the nodes of these ranks; `me` owns what it wins.
    pub(crate) fn elect(&mut self, scope: Scope, layout: &Layout, me: u64, ranks: &[u64]) {
        let mut owned = vec![0u64; layout.pieces().div_ceil(64) as usize].into_boxed_slice();
        for piece in layout.iter() {
            let salt = mix(layout.size() ^ mix(u64::from(piece.get())));
            let weight = |rank: u64| (mix(rank ^ salt), rank);
            if ranks.contains(&me) && ranks.iter().all(|&rank| weight(rank) <= weight(me)) {
                owned[piece.as_usize() / 64] |= 1 << (piece.get() % 64);
            }
        }
        let slot = match scope {
            Scope::Site => &mut self.site,
            Scope::Zone => &mut self.zone,
            Scope::Region => &mut self.region,
            Scope::Fleet => return,
        };
        *slot = (!ranks.is_empty()).then_some(owned);
    }

    /// What may be taken from a source that shares `shared` with this node ([`Scope::Fleet`] for the seeder); none if
    /// no boundary with a list lies between.
    pub(crate) fn towards(&self, shared: Scope) -> Option<Crossing<'_>> {
        let crossed = |scope: Scope, owned: &'_ Option<Box<[u64]>>| shared > scope && owned.is_some();
        let (inside, owned) = if crossed(Scope::Region, &self.region) {
            (Scope::Region, &self.region)
        } else if crossed(Scope::Zone, &self.zone) {
            (Scope::Zone, &self.zone)
        } else if crossed(Scope::Site, &self.site) {
            (Scope::Site, &self.site)
        } else {
            return None;
        };
        owned.as_deref().map(|owned| Crossing { owned, inside })
    }
}

impl Crossing<'_> {
    /// The pieces of word `at` that may be taken, given who holds what.
    pub(crate) fn word(&self, at: usize, holders: &[Holder]) -> u64 {
        let held = holders.iter().filter(|h| h.scope <= self.inside).fold(0, |held, h| held | h.word(at));
        self.owned[at] & !held
    }
}
