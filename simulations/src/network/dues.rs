//! When each link has to be looked at next: a heap of four-way nodes that knows where each link stands, so that a moment
//! that moves is moved and leaves nothing behind.

use crate::num::{at, small};

const WAYS: usize = 4;
/// Not in the heap.
const OUT: u32 = u32::MAX;

/// Links by the moment at which they are due. Equal moments come by the links' numbers, whatever happened before.
#[derive(Debug, Default)]
pub(super) struct Dues {
    heap: Vec<(u64, u32)>,
    places: Vec<u32>,
}

impl Dues {
    /// One link more, which is never due.
    pub(super) fn add_link(&mut self) {
        self.places.push(OUT);
    }

    /// The first moment; `u64::MAX` without one.
    #[inline]
    pub(super) fn first(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |entry| entry.0)
    }

    /// The link that is due first.
    pub(super) fn first_link(&self) -> Option<u32> {
        self.heap.first().map(|entry| entry.1)
    }

    /// Sets when a link is due; `u64::MAX` for never.
    pub(super) fn set(&mut self, link: u32, due: u64) {
        let place = self.places[at(link)];
        match (place == OUT, due == u64::MAX) {
            (true, true) => {}
            (true, false) => {
                self.heap.push((due, link));
                self.up(self.heap.len() - 1, (due, link));
            }
            (false, true) => {
                self.places[at(link)] = OUT;
                let last = self.heap.pop().expect("it stands in the heap");
                if last.1 != link {
                    self.put(at(place), last);
                }
            }
            (false, false) => {
                if self.heap[at(place)].0 != due {
                    self.put(at(place), (due, link));
                }
            }
        }
    }

    /// Puts an entry in place of another, and moves it to where it belongs.
    fn put(&mut self, place: usize, entry: (u64, u32)) {
        if place > 0 && entry < self.heap[(place - 1) / WAYS] {
            self.up(place, entry);
        } else {
            self.down(place, entry);
        }
    }

    fn up(&mut self, mut place: usize, entry: (u64, u32)) {
        while place > 0 {
            let parent = (place - 1) / WAYS;
            if self.heap[parent] <= entry {
                break;
            }
            self.land(place, self.heap[parent]);
            place = parent;
        }
        self.land(place, entry);
    }

    fn down(&mut self, mut place: usize, entry: (u64, u32)) {
        loop {
            let first = WAYS * place + 1;
            let children = first..(first + WAYS).min(self.heap.len());
            let Some(least) = children.min_by_key(|child| self.heap[*child]) else { break };
            if entry <= self.heap[least] {
                break;
            }
            self.land(place, self.heap[least]);
            place = least;
        }
        self.land(place, entry);
    }

    fn land(&mut self, place: usize, entry: (u64, u32)) {
        self.heap[place] = entry;
        self.places[at(entry.1)] = small(place);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_the_least_whatever_was_set_before(
            sets in prop::collection::vec((0u32..20, prop_oneof![4 => 0u64..30, 1 => Just(u64::MAX)]), 0..200),
        ) {
            let mut dues = Dues::default();
            (0..20).for_each(|_| dues.add_link());
            let mut oracle = vec![u64::MAX; 20];
            for (link, due) in sets {
                dues.set(link, due);
                oracle[at(link)] = due;
                let least = (0u32..).zip(&oracle).map(|(link, due)| (*due, link)).min().unwrap();
                prop_assert_eq!(dues.first(), least.0);
                prop_assert_eq!(dues.first_link(), (least.0 < u64::MAX).then_some(least.1));
            }
        }
    }
}
