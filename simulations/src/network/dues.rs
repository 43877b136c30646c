//! When each link has to be looked at next: a heap of four-way nodes that knows where each link stands, so that a moment
//! that moves is moved and leaves nothing behind.

use crate::num::{at, small};

const WAYS: usize = 4;
/// Not in the heap.
const OUT: u32 = u32::MAX;

/// Links by the moment at which they are due.
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

    /// The links that are due at `now` or before, by their numbers. They stay due.
    pub(super) fn until(&self, now: u64, links: &mut Vec<u32>) {
        self.collect(0, now, links);
        links.sort_unstable();
    }

    fn collect(&self, place: usize, now: u64, links: &mut Vec<u32>) {
        if let Some(&(_, link)) = self.heap.get(place).filter(|entry| entry.0 <= now) {
            links.push(link);
            let first = WAYS * place + 1;
            (first..first + WAYS).for_each(|child| self.collect(child, now, links));
        }
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
        if place > 0 && entry.0 < self.heap[(place - 1) / WAYS].0 {
            self.up(place, entry);
        } else {
            self.down(place, entry);
        }
    }

    fn up(&mut self, mut place: usize, entry: (u64, u32)) {
        while place > 0 {
            let parent = (place - 1) / WAYS;
            if self.heap[parent].0 <= entry.0 {
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
            let Some(children) = self.heap.get(first..(first + WAYS).min(self.heap.len())) else { break };
            let (mut least, mut at) = (entry, place);
            for (index, child) in children.iter().enumerate() {
                if child.0 < least.0 {
                    (least, at) = (*child, first + index);
                }
            }
            if at == place {
                break;
            }
            self.land(place, least);
            place = at;
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
            let mut oracle = [u64::MAX; 20];
            for (link, due) in sets {
                dues.set(link, due);
                oracle[at(link)] = due;
                prop_assert_eq!(dues.first(), *oracle.iter().min().unwrap());
                let mut links = Vec::new();
                dues.until(15, &mut links);
                let expected: Vec<u32> = (0..20).filter(|link| oracle[at(*link)] <= 15).collect();
                prop_assert_eq!(links, expected);
            }
        }
    }
}
