//! What happens next: a calendar queue on integer nanoseconds. Entries come out by time, and by order of insertion where
//! times are equal, whatever the widths of the buckets are. The widths follow what is asked of it, so that a bucket holds
//! a few entries; they stand in one array and are chained, so that nothing is allocated once there are enough.

use std::{cmp::Ordering, collections::BinaryHeap};

/// Buckets of the ring: enough that round trips and transfers fall into it, few enough to stay in the cache.
const BUCKETS: usize = 1 << 14;
const MASK: u64 = BUCKETS as u64 - 1;
const WORDS: usize = BUCKETS / 64;
/// No entry.
const NONE: u32 = u32::MAX;
/// Entries taken between two looks at the width.
const LOOK_EVERY: u32 = 1 << 14;
/// Entries to a bucket that are as they should be: fewer, and empty buckets are passed by in vain; more, and they are
/// sorted for long.
const FEW: u32 = 2;
const MANY: u32 = 12;
/// Widths as powers of two: below, the ring would reach less far than a round trip, above, more than a timeout.
const SHIFT_MIN: u32 = 8;
const SHIFT_MAX: u32 = 30;

#[derive(Debug, Clone, Copy)]
struct Entry<E> {
    time: u64,
    sequence: u64,
    event: E,
}

impl<E> Entry<E> {
    const fn key(&self) -> (u64, u64) {
        (self.time, self.sequence)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    /// Reversed: the heap of the standard library gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// Events in order of time.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// Width of a bucket as power of two, in nanoseconds.
    shift: u32,
    /// Number of the bucket that is being emptied.
    current: u64,
    /// Its entries, the next one last.
    near: Vec<Entry<E>>,
    /// What was added to it since it was opened.
    late: BinaryHeap<Entry<E>>,
    /// The buckets after it, by number modulo their count: each the first of a chain in `cells`.
    ring: Vec<u32>,
    /// Which of them hold something.
    occupied: Vec<u64>,
    cells: Vec<(Entry<E>, u32)>,
    /// The first of the chain of cells that are free.
    free: u32,
    in_ring: usize,
    /// What lies beyond.
    far: BinaryHeap<Entry<E>>,
    sequence: u64,
    /// Entries taken, and buckets opened, since the width was looked at.
    taken: u32,
    opened: u32,
}

impl<E: Copy> Queue<E> {
    /// An empty queue whose buckets are `2^shift` ns wide at first.
    pub(crate) fn new(shift: u32) -> Self {
        Self {
            shift,
            current: 0,
            near: Vec::new(),
            late: BinaryHeap::new(),
            ring: vec![NONE; BUCKETS],
            occupied: vec![0; WORDS],
            cells: Vec::new(),
            free: NONE,
            in_ring: 0,
            far: BinaryHeap::new(),
            sequence: 0,
            taken: 0,
            opened: 0,
        }
    }

    /// A width for the beginning when `nodes` nodes are busy.
    pub(crate) fn shift_for(nodes: usize) -> u32 {
        24u32.saturating_sub(nodes.max(1).ilog2()).max(10)
    }

    /// How many events wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.near.len() + self.late.len() + self.in_ring + self.far.len()
    }

    /// Adds an event. Its time must not lie before that of the event taken last.
    pub(crate) fn push(&mut self, time: u64, event: E) {
        self.sequence += 1;
        let entry = Entry { time, sequence: self.sequence, event };
        self.place(entry);
    }

    fn place(&mut self, entry: Entry<E>) {
        let bucket = entry.time >> self.shift;
        if bucket <= self.current {
            self.late.push(entry);
        } else if bucket - self.current < BUCKETS as u64 {
            let slot = usize::try_from(bucket & MASK).expect("a bucket of the ring");
            self.occupied[slot / 64] |= 1 << (slot % 64);
            self.in_ring += 1;
            let next = core::mem::replace(&mut self.ring[slot], self.free);
            if self.free == NONE {
                self.ring[slot] = crate::num::small(self.cells.len());
                self.cells.push((entry, next));
            } else {
                let cell = &mut self.cells[crate::num::at(self.free)];
                self.free = core::mem::replace(&mut cell.1, next);
                cell.0 = entry;
            }
        } else {
            self.far.push(entry);
        }
    }

    /// Takes the next event with its time, if that lies before `limit`.
    pub(crate) fn pop_before(&mut self, limit: u64) -> Option<(u64, E)> {
        while self.near.is_empty() && self.late.is_empty() {
            if self.taken >= LOOK_EVERY {
                self.look();
            } else {
                self.advance(limit)?;
            }
        }
        let late = match (self.near.last(), self.late.peek()) {
            (Some(near), Some(late)) => late.key() < near.key(),
            (near, _) => near.is_none(),
        };
        let next = if late { self.late.peek() } else { self.near.last() };
        if next.is_none_or(|next| next.time >= limit) {
            return None;
        }
        self.taken += 1;
        let entry = if late { self.late.pop() } else { self.near.pop() };
        entry.map(|entry| (entry.time, entry.event))
    }

    /// Goes on to the next bucket that holds something, unless that begins at `limit` or after it.
    fn advance(&mut self, limit: u64) -> Option<()> {
        let next_far = self.far.peek().map(|entry| entry.time >> self.shift);
        let next = match (self.next_in_ring(), next_far) {
            (Some(ring), Some(far)) => ring.min(far),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return None,
        };
        if next << self.shift >= limit {
            return None;
        }
        self.current = next;
        self.opened += 1;
        let slot = usize::try_from(self.current & MASK).expect("a bucket of the ring");
        self.empty(slot);
        self.near.sort_unstable();
        let end = self.current + BUCKETS as u64;
        while self.far.peek().is_some_and(|entry| entry.time >> self.shift < end) {
            let entry = self.far.pop().expect("just seen");
            self.place(entry);
        }
        Some(())
    }

    /// Takes all of a bucket of the ring into `near`.
    fn empty(&mut self, slot: usize) {
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        let mut at = core::mem::replace(&mut self.ring[slot], NONE);
        while at != NONE {
            let cell = &mut self.cells[crate::num::at(at)];
            self.near.push(cell.0);
            let next = core::mem::replace(&mut cell.1, self.free);
            self.free = core::mem::replace(&mut at, next);
            self.in_ring -= 1;
        }
    }

    /// Makes the buckets wider or narrower if too few or too many entries were in them. All are empty but those of the
    /// ring and beyond.
    fn look(&mut self) {
        let (few, many) = (self.taken / FEW < self.opened, self.taken / MANY > self.opened);
        (self.taken, self.opened) = (0, 0);
        let shift =
            if few { self.shift + 1 } else { self.shift.saturating_sub(u32::from(many)) }.clamp(SHIFT_MIN, SHIFT_MAX);
        if shift == self.shift {
            return;
        }
        let start = self.current << self.shift;
        (0..BUCKETS).for_each(|slot| self.empty(slot));
        self.shift = shift;
        self.current = start >> shift;
        let mut all = core::mem::take(&mut self.near);
        all.drain(..).for_each(|entry| self.place(entry));
        self.near = all;
    }

    fn next_in_ring(&self) -> Option<u64> {
        if self.in_ring == 0 {
            return None;
        }
        let start = self.current + 1;
        let slot = usize::try_from(start & MASK).expect("a bucket of the ring");
        for step in 0..=WORDS {
            let word = (slot / 64 + step) % WORDS;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= !0 << (slot % 64);
            } else if step == WORDS {
                bits &= !(!0 << (slot % 64));
            }
            if bits != 0 {
                let found = word as u64 * 64 + u64::from(bits.trailing_zeros());
                return Some(start + (found.wrapping_sub(slot as u64) & MASK));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gives_events_in_order_of_time_then_of_insertion(
            steps in prop::collection::vec((any::<bool>(), prop_oneof![0u64..40, 0u64..5_000, 0u64..2_000_000]), 0..400),
            shift in 0u32..8,
            wide in 0u32..4,
        ) {
            let (mut queue, mut oracle) = (Queue::new(shift), BTreeMap::new());
            let mut now = 0;
            for (number, (pushes, ahead)) in steps.into_iter().enumerate() {
                if pushes || oracle.is_empty() {
                    queue.push(now + ahead, number);
                    oracle.insert((now + ahead, number), ());
                } else {
                    let ((time, expected), ()) = oracle.pop_first().unwrap();
                    prop_assert_eq!(queue.pop_before(time), None);
                    prop_assert_eq!(queue.pop_before(time + 1 + ahead), Some((time, expected)));
                    now = time;
                }
                prop_assert_eq!(queue.len(), oracle.len());
                if number % 50 == 49 {
                    // Wider or narrower buckets change nothing.
                    (queue.taken, queue.opened) = (LOOK_EVERY, LOOK_EVERY / (1 + 8 * wide));
                }
            }
            while let Some(((time, expected), ())) = oracle.pop_first() {
                prop_assert_eq!(queue.pop_before(u64::MAX), Some((time, expected)));
            }
            prop_assert!(queue.pop_before(u64::MAX).is_none());
        }
    }
}
