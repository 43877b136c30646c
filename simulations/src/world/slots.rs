//! How many pieces the seeder has in transmission at once, by the seeder's own rules: as few as fill its uplink, more
//! where a piece takes no time; whose link is slower than the seeder's holds a slot only for a while.

use crate::num::{at, floor};

const MS: u64 = 1_000_000;
/// Pieces in transmission on a slow uplink.
const SLOTS_MIN: usize = 4;
/// As many are sent at once as go out in this time.
const AHEAD: u64 = 20 * MS;
/// A piece that takes so many times as long as the fastest of late holds no slot any more.
const SLOW_FACTOR: u64 = 12;
/// Pieces in transmission for each slot, with those that hold none any more.
const SENDING_FACTOR: usize = 8;
/// A slot is held for at least and at most so long.
const SPAN_MIN: u64 = 50 * MS;
const SPAN_MAX: u64 = 5_000 * MS;
/// What is shorter says nothing of the uplink.
const LEARN_MIN: u64 = 128 << 10;
/// Times are told per so many bytes.
const UNIT: u64 = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Sending {
    number: u64,
    since: u64,
    bytes: u64,
}

/// What is being sent and how fast it goes. Moments and times in nanoseconds.
#[derive(Debug)]
pub(super) struct Slots {
    sending: Vec<Sending>,
    most: usize,
    /// Time between the ends of sends while there were any, for each [`UNIT`]; 0: nothing is known.
    pace: u64,
    /// The least time that a [`UNIT`] took of late; 0: nothing is known.
    best: u64,
    ended: Option<u64>,
}

impl Slots {
    /// At most `most` at once, however fast they go.
    pub(super) const fn new(most: u32) -> Self {
        Self { sending: Vec::new(), most: at(most), pace: 0, best: 0, ended: None }
    }

    /// Whether another send may begin, or when it may at the latest.
    pub(super) fn free(&self, now: u64) -> Result<(), u64> {
        let until = |sending: &Sending| sending.since + self.span(sending.bytes);
        let held = self.sending.iter().map(until).filter(|until| *until > now);
        if held.clone().count() < self.slots() && self.sending.len() < SENDING_FACTOR * self.slots() {
            return Ok(());
        }
        Err(held.min().unwrap_or(now + SPAN_MAX))
    }

    /// A send of that number begins.
    pub(super) fn take(&mut self, number: u64, bytes: u64, now: u64) {
        self.sending.push(Sending { number, since: now, bytes });
    }

    /// A send is over; whether all has been taken, so that the time says something.
    pub(super) fn end(&mut self, number: u64, whole: bool, now: u64) {
        let Some(place) = self.sending.iter().position(|sending| sending.number == number) else { return };
        let Sending { since, bytes, .. } = self.sending.swap_remove(place);
        if !whole || bytes < LEARN_MIN {
            return;
        }
        let unit = |time: u64| floor(time as f64 * UNIT as f64 / bytes as f64).max(1);
        let took = unit(now - since);
        let busy = unit(now - self.ended.map_or(since, |ended| ended.max(since)));
        // The fastest is forgotten slowly: a link that has become slower is believed in the end.
        self.best = if self.best == 0 { took } else { took.min(self.best + self.best / 32) };
        self.pace = if self.pace == 0 { busy } else { self.pace - self.pace / 8 + busy / 8 };
        self.ended = Some(now);
    }

    fn slots(&self) -> usize {
        let ahead = AHEAD.checked_div(self.pace).unwrap_or(0);
        usize::try_from(ahead).unwrap_or(self.most).clamp(SLOTS_MIN.min(self.most), self.most)
    }

    fn span(&self, bytes: u64) -> u64 {
        if self.best == 0 {
            return SPAN_MAX;
        }
        let usual = floor(self.best as f64 * bytes.max(1) as f64 / UNIT as f64);
        (SLOW_FACTOR * usual).clamp(SPAN_MIN, SPAN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_uplink_has_four_slots_and_a_fast_one_as_many_as_go_out_in_twenty_milliseconds() {
        let (mut slow, mut fast) = (Slots::new(32), Slots::new(32));
        let mut now = 0;
        for number in 0..100 {
            slow.take(number, UNIT, 40 * now);
            fast.take(number, UNIT, now);
            now += MS;
            slow.end(number, true, 40 * now);
            fast.end(number, true, now);
        }
        assert_eq!((slow.slots(), fast.slots()), (SLOTS_MIN, 20));
        (0..4).for_each(|number| slow.take(number, UNIT, 0));
        // Forty milliseconds for each, so twelve times that.
        assert_eq!(slow.free(MS), Err(480 * MS));
        assert_eq!(slow.free(480 * MS), Ok(()));
        slow.end(0, false, MS);
        assert_eq!(slow.free(MS), Ok(()));
    }
}
