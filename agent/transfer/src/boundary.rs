//! Who crosses a boundary. One rule for site, zone, region and the way to the seeder: within a scope that has a
//! candidate list, a piece is brought in by its owner, the rendezvous-hash winner among the candidates (Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", 1998); the others wait until it is held inside.
//!
//! A source that lies beyond several boundaries is judged by the widest one with a list: who brings a piece into the
//! region brings it into its own zone and site too. A candidate that this node has seen go does not count: all that were
//! connected to it see the same, and elect the same successor at once.

use alloc::{boxed::Box, vec, vec::Vec};

use shoal_proto::{layout::Layout, signed::Scope};

use crate::{holders::Holders, rng::mix};

/// Candidates from which on a zone elects owners. Lists of few change from one moment to the next while a swarm begins, and
/// nodes with different lists leave pieces to each other; between zones that costs more than the bytes it saves.
const ZONE_CANDIDATES_MIN: usize = 8;

/// One scope's candidates, and the pieces that this node won among them.
#[derive(Debug)]
struct List {
    ranks: Box<[u64]>,
    owned: Box<[u64]>,
    /// Who stood for election last.
    stood: Vec<u64>,
}

impl List {
    fn new(ranks: &[u64]) -> Self {
        Self { ranks: ranks.into(), owned: Box::default(), stood: Vec::new() }
    }

    /// Elects the owners anew; whether that has changed anything for `me`.
    fn elect(&mut self, layout: &Layout, me: u64, absent: &[u64]) -> bool {
        let words = layout.pieces().div_ceil(64) as usize;
        if self.owned.len() != words {
            self.owned = vec![0; words].into();
        }
        let present: Vec<u64> = self.ranks.iter().copied().filter(|rank| !absent.contains(rank)).collect();
        if present == self.stood {
            return false;
        }
        let candidate = self.ranks.contains(&me);
        // If nobody has gone, what was won can be lost to those who have come, and nothing else changes.
        let grown = self.stood.contains(&me) && self.stood.iter().all(|rank| present.contains(rank));
        let new = |rank: &u64| !grown || !self.stood.contains(rank);
        let rivals: Vec<u64> = present.iter().copied().filter(new).collect();
        let mut changed = false;
        for (base, owned) in (0..layout.pieces()).step_by(64).zip(&mut self.owned) {
            let all = !0u64 >> (64 - (layout.pieces() - base).min(64));
            let mut asked = match (candidate, grown) {
                (false, _) => 0,
                (true, true) => *owned,
                (true, false) => all,
            };
            let mut won = 0;
            while asked != 0 {
                let bit = asked.trailing_zeros();
                asked &= asked - 1;
                won |= u64::from(wins(layout, base + bit, me, &rivals)) << bit;
            }
            changed |= core::mem::replace(owned, won) != won;
        }
        self.stood = present;
        changed
    }
}

/// Whether `me` wins a piece against all of `rivals`.
fn wins(layout: &Layout, piece: u32, me: u64, rivals: &[u64]) -> bool {
    let salt = mix(layout.size() ^ mix(u64::from(piece)));
    let weight = |rank: u64| (mix(rank ^ salt), rank);
    rivals.iter().all(|&rank| weight(rank) <= weight(me))
}

/// The candidate lists of the scopes that hold this node.
#[derive(Debug, Default)]
pub(crate) struct Boundaries {
    site: Option<List>,
    zone: Option<List>,
    region: Option<List>,
}

/// What may be taken from a source: pieces of `owned` that nobody within `inside` holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossing<'a> {
    owned: &'a [u64],
    inside: Scope,
}

impl Boundaries {
    /// Takes the candidate list of `scope`; an empty one takes the boundary away. Whether there was one that is gone.
    pub(crate) fn set(&mut self, scope: Scope, ranks: &[u64]) -> bool {
        let ranks = if scope == Scope::Zone && ranks.len() < ZONE_CANDIDATES_MIN { &[] } else { ranks };
        let place = match scope {
            Scope::Site => &mut self.site,
            Scope::Zone => &mut self.zone,
            Scope::Region => &mut self.region,
            Scope::Fleet => return false,
        };
        let had = place.is_some();
        match place {
            // What was won stays until the election.
            Some(old) if !ranks.is_empty() => old.ranks = ranks.into(),
            _ => *place = (!ranks.is_empty()).then(|| List::new(ranks)),
        }
        had && ranks.is_empty()
    }

    /// Whether the node of that rank is a candidate anywhere.
    pub(crate) fn names(&self, rank: u64) -> bool {
        [&self.site, &self.zone, &self.region].into_iter().flatten().any(|list| list.ranks.contains(&rank))
    }

    /// Elects the owners of all pieces among the candidates that are not `absent`; `me` owns what it wins. Whether that
    /// has changed anything for this node.
    pub(crate) fn elect(&mut self, layout: &Layout, me: u64, absent: &[u64]) -> bool {
        let lists = [&mut self.site, &mut self.zone, &mut self.region].into_iter().flatten();
        lists.fold(false, |changed, list| list.elect(layout, me, absent) | changed)
    }

    /// What may be taken from a source that shares `shared` with this node ([`Scope::Fleet`] for the seeder); none if
    /// no boundary with a list lies between.
    pub(crate) fn towards<'a>(&'a self, shared: Scope) -> Option<Crossing<'a>> {
        let lists = [(Scope::Region, &self.region), (Scope::Zone, &self.zone), (Scope::Site, &self.site)];
        let crossed = |(inside, list): (Scope, &'a Option<List>)| {
            let list = list.as_ref().filter(|_| shared > inside)?;
            Some(Crossing { owned: &list.owned, inside })
        };
        lists.into_iter().find_map(crossed)
    }
}

impl Crossing<'_> {
    /// The pieces of word `at` that may be taken, given who holds what.
    pub(crate) fn word(&self, at: usize, holders: &Holders) -> u64 {
        let owned = self.owned[at];
        // Between zones bytes are cheap: a node that hears of nobody in its own waits for nobody there.
        if self.inside == Scope::Zone && !holders.any_inside(Scope::Zone) {
            return !0;
        }
        if owned == 0 { 0 } else { owned & !holders.inside(self.inside, at) }
    }
}
