//! The seeder's introductions and candidate lists, by the seeder's own rules: a bounded table of members that asked for
//! the image lately, those of the asker's region named first, in an order that differs for each asker and second; lists
//! that change only when a member of them is gone or there is room.

use std::{collections::BTreeMap, rc::Rc};

use shoal_proto::signed::Scope;

use crate::{num::at, rng::mix, scenario::spots::Spots};

/// The lists that one node knows: scope, version, ranks of the members.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists(pub(super) Vec<(Scope, u64, Rc<[u64]>)>);

#[derive(Debug)]
struct List {
    /// Sorted by rank.
    members: Vec<u32>,
    version: u64,
    ranks: Rc<[u64]>,
}

/// Members interested in the image.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    /// The one that asked longest ago first.
    members: std::collections::VecDeque<u32>,
    lists: BTreeMap<(Scope, u32), List>,
}

impl Tracker {
    /// `me` asks for the image: remembers it, and names up to `names` others, near ones first where there are labels.
    pub(super) fn introduce(
        &mut self,
        me: u32,
        spots: Option<&Spots>,
        names: usize,
        members: usize,
        now: u64,
    ) -> Vec<u32> {
        let second = now / 1_000_000_000;
        let pairing = |other: u32| mix(mix(u64::from(me) << 32 | u64::from(other)) ^ second);
        let far = |other: u32| spots.is_some_and(|spots| spots.shared(me, other) == Scope::Fleet);
        let mut others: Vec<(bool, u64, u32)> = self
            .members
            .iter()
            .filter(|other| **other != me)
            .map(|&other| (far(other), pairing(other), other))
            .collect();
        if others.len() > names {
            others.select_nth_unstable(names);
            others.truncate(names);
        }
        others.sort_unstable();
        self.members.retain(|other| *other != me);
        self.members.push_back(me);
        while self.members.len() > members.max(1) {
            self.members.pop_front();
        }
        others.into_iter().map(|(_, _, other)| other).collect()
    }

    /// The candidate lists of the scopes that hold `me`.
    pub(super) fn lists(&mut self, me: u32, spots: &Spots, ranks: &[u64], most: usize, now: u64) -> Lists {
        let mut all = Lists::default();
        if most == 0 {
            return all;
        }
        let spot = &spots.nodes[at(me)];
        for (scope, label) in [(Scope::Region, spot.region), (Scope::Zone, spot.zone), (Scope::Site, spot.site)] {
            if label == crate::scenario::spots::NONE {
                continue;
            }
            let inside = |node: u32| spots.shared(me, node) <= scope;
            let old = self.lists.get(&(scope, label));
            let mut members: Vec<u32> = old.map_or_else(Vec::new, |old| {
                old.members.iter().copied().filter(|node| self.members.contains(node)).collect()
            });
            if members.len() < most {
                let mut others: Vec<u32> =
                    self.members.iter().copied().filter(|node| inside(*node) && !members.contains(node)).collect();
                others.sort_unstable_by_key(|node| ranks[at(*node)]);
                members.extend(others.into_iter().take(most - members.len()));
            }
            members.sort_unstable_by_key(|node| ranks[at(*node)]);
            if old.is_none_or(|old| old.members != members) {
                let version = old.map_or(0, |old| old.version + 1).max(now / 1_000_000);
                let ranks = members.iter().map(|node| ranks[at(*node)]).collect();
                self.lists.insert((scope, label), List { members, version, ranks });
            }
            let list = &self.lists[&(scope, label)];
            all.0.push((scope, list.version, list.ranks.clone()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::spots::{NONE, Spot};

    fn spots(count: u32) -> Spots {
        let spot = |node| Spot { region: node % 4, zone: node % 4, site: NONE, group: NONE, up: 1.0, down: 1.0 };
        let regions = (0..4).map(|r| r.to_string()).collect();
        Spots { regions, nodes: (0..count).map(spot).collect(), groups: Vec::new(), names: Vec::new() }
    }

    #[test]
    fn members_of_the_own_region_are_named_first_and_nobody_to_itself() {
        let (spots, mut tracker) = (spots(41), Tracker::default());
        (0..40).for_each(|node| drop(tracker.introduce(node, Some(&spots), 20, 256, 0)));
        let named = tracker.introduce(40, Some(&spots), 20, 256, 0);
        let near: Vec<bool> = named.iter().map(|node| node % 4 == 0).collect();
        assert_eq!((near.len(), near.iter().filter(|near| **near).count()), (20, 10));
        assert!(near.is_sorted_by(|a, b| a >= b) && !named.contains(&40));
    }

    #[test]
    fn a_full_list_stays_and_what_is_forgotten_leaves_it() {
        let (spots, mut tracker) = (spots(200), Tracker::default());
        let ranks: Vec<u64> = (0..200).map(mix).collect();
        (0..32).for_each(|node| drop(tracker.introduce(4 * node, Some(&spots), 20, 40, 0)));
        let before = tracker.lists(0, &spots, &ranks, 32, 5_000_000);
        tracker.introduce(132, Some(&spots), 20, 40, 0);
        assert_eq!(tracker.lists(132, &spots, &ranks, 32, 6_000_000).0[0].1, before.0[0].1);
        (40..60).for_each(|node| drop(tracker.introduce(node, Some(&spots), 20, 40, 0)));
        assert!(tracker.lists(132, &spots, &ranks, 32, 7_000_000).0[0].1 > before.0[0].1);
    }
}
