//! What happens next: a calendar queue on integer nanoseconds. Entries come out by time, and by order of insertion where
//! times are equal, whatever the widths of the buckets are.

use std::{cmp::Ordering, collections::BinaryHeap};

/// Buckets of the ring: enough that round trips and transfers fall into it, few enough to stay in the cache.
const BUCKETS: usize = 1 << 13;
const MASK: u64 = BUCKETS as u64 - 1;
const WORDS: usize = BUCKETS / 64;

#[derive(Debug)]
struct Entry<E> {
    time: u64,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
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
        (other.time, other.sequence).cmp(&(self.time, self.sequence))
    }
}

/// Events in order of time.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// Width of a bucket as power of two, in nanoseconds.
    shift: u32,
    /// Number of the bucket that is being emptied.
    current: u64,
    /// Its entries.
    near: BinaryHeap<Entry<E>>,
    /// The buckets after it, by number modulo their count.
    ring: Vec<Vec<Entry<E>>>,
    /// Which of them hold something.
    occupied: [u64; WORDS],
    in_ring: usize,
    /// What lies beyond.
    far: BinaryHeap<Entry<E>>,
    sequence: u64,
}

impl<E> Queue<E> {
    /// An empty queue whose buckets are `2^shift` ns wide.
    pub(crate) fn new(shift: u32) -> Self {
        Self {
            shift,
            current: 0,
            near: BinaryHeap::new(),
            ring: (0..BUCKETS).map(|_| Vec::new()).collect(),
            occupied: [0; WORDS],
            in_ring: 0,
            far: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// A width that puts some dozens of events into a bucket when `nodes` nodes are busy.
    pub(crate) fn shift_for(nodes: usize) -> u32 {
        let busy = nodes.max(1).ilog2();
        if busy > 14 { 12 } else { 26 - busy }
    }

    /// How many events wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.near.len() + self.in_ring + self.far.len()
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
            self.near.push(entry);
        } else if bucket - self.current < BUCKETS as u64 {
            let slot = usize::try_from(bucket & MASK).expect("a bucket of the ring");
            self.occupied[slot / 64] |= 1 << (slot % 64);
            self.in_ring += 1;
            self.ring[slot].push(entry);
        } else {
            self.far.push(entry);
        }
    }

    /// Takes the next event with its time.
    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        while self.near.is_empty() {
            self.advance()?;
        }
        self.near.pop().map(|entry| (entry.time, entry.event))
    }

    /// Goes on to the next bucket that holds something.
    fn advance(&mut self) -> Option<()> {
        let next_far = self.far.peek().map(|entry| entry.time >> self.shift);
        self.current = match (self.next_in_ring(), next_far) {
            (Some(ring), Some(far)) => ring.min(far),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return None,
        };
        let slot = usize::try_from(self.current & MASK).expect("a bucket of the ring");
        if self.occupied[slot / 64] >> (slot % 64) & 1 == 1 {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            let spare = core::mem::take(&mut self.near).into_vec();
            let bucket = core::mem::replace(&mut self.ring[slot], spare);
            self.in_ring -= bucket.len();
            self.near = BinaryHeap::from(bucket);
        }
        let end = self.current + BUCKETS as u64;
        while self.far.peek().is_some_and(|entry| entry.time >> self.shift < end) {
            let entry = self.far.pop().expect("just seen");
            self.place(entry);
        }
        Some(())
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
        ) {
            let (mut queue, mut oracle) = (Queue::new(shift), BTreeMap::new());
            let mut now = 0;
            for (number, (pushes, ahead)) in steps.into_iter().enumerate() {
                if pushes || oracle.is_empty() {
                    queue.push(now + ahead, number);
                    oracle.insert((now + ahead, number), ());
                } else {
                    let ((time, expected), ()) = oracle.pop_first().unwrap();
                    prop_assert_eq!(queue.pop(), Some((time, expected)));
                    now = time;
                }
                prop_assert_eq!(queue.len(), oracle.len());
            }
            while let Some(((time, expected), ())) = oracle.pop_first() {
                prop_assert_eq!(queue.pop(), Some((time, expected)));
            }
            prop_assert!(queue.pop().is_none());
        }
    }
}
