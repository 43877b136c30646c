//! How many pieces are in transmission at once: as few as fill the uplink.
//!
//! A piece that has arrived whole is passed on by whoever got it. Sent thirty at a time, all of them would arrive at the
//! end of thirty pieces' time, and the swarm would have had nothing to pass on meanwhile. So a few are sent at once, the
//! rest wait in order of arrival; more are sent where a piece takes no time, since there the pauses between pieces count;
//! and a node that takes much longer than others do holds no slot, because its own link is the limit, not ours.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// Pieces in transmission on a slow uplink. A connection that sends its first bytes does not fill it, nor does one whose
/// receiver shares its own link with others; four together do.
const SLOTS_MIN: usize = 4;
/// As many are sent at once as go out in this time.
const AHEAD: Duration = Duration::from_millis(20);
/// A piece that takes so many times as long as the fastest of late is held up by its receiver. Those that share the uplink
/// take [`SLOTS_MIN`] times as long.
const SLOW_FACTOR: u32 = 12;
/// Pieces in transmission, with those that hold no slot any more, for each slot: of too many on a narrow link beyond our
/// own none would come to its end.
const SENDING_FACTOR: usize = 8;
/// A slot is held for at least this: below it, chance decides.
const SPAN_MIN: Duration = Duration::from_millis(50);
/// A slot is held for no longer than this, whatever others took.
const SPAN_MAX: Duration = Duration::from_secs(5);
/// What is shorter may all lie in the kernel when it counts as sent: it says nothing of the uplink.
const LEARN_MIN: u64 = 128 << 10;
/// Rates are told per so many bytes.
const UNIT: u64 = 1 << 20;

/// The slots.
#[derive(Debug)]
pub(crate) struct Slots {
    state: Mutex<State>,
    /// Whoever holds it is the next in line.
    turnstile: tokio::sync::Mutex<()>,
    freed: Notify,
}

/// A slot, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    of: Arc<Slots>,
    id: u64,
}

#[derive(Debug)]
struct Sending {
    since: Instant,
    bytes: u64,
}

/// What is being sent and how fast it goes. Pure: the clock is an argument.
#[derive(Debug)]
struct State {
    sending: BTreeMap<u64, Sending>,
    next: u64,
    most: usize,
    /// Time between the ends of transmissions while there were any, for each [`UNIT`]; zero: nothing is known.
    pace: Duration,
    /// The least time that a [`UNIT`] took of late; zero: nothing is known.
    best: Duration,
    ended: Option<Instant>,
}

impl Slots {
    /// At most `most` pieces at once, however fast they go.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        let state =
            State { sending: BTreeMap::new(), next: 0, most, pace: Duration::ZERO, best: Duration::ZERO, ended: None };
        Arc::new(Self { state: Mutex::new(state), turnstile: tokio::sync::Mutex::new(()), freed: Notify::new() })
    }

    /// Waits for a slot to send `bytes`, first come, first served. May be cancelled.
    pub(crate) async fn take(self: &Arc<Self>, bytes: u64) -> Slot {
        let _turn = self.turnstile.lock().await;
        loop {
            let freed = self.freed.notified();
            let due = match self.state().take(bytes, Instant::now()) {
                Ok(id) => return Slot { of: Arc::clone(self), id },
                Err(due) => due,
            };
            tokio::select! {
                () = freed => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    /// Whether the uplink is so slow, or so little known, that a piece waits in the kernel for longer than it takes.
    pub(crate) fn is_slow(&self) -> bool {
        let pace = self.state().pace;
        pace.is_zero() || pace > AHEAD
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding the slots")
    }
}

impl Slot {
    /// All is sent: what that took tells how many may go at once.
    pub(crate) fn sent(&self) {
        self.of.state().learn(self.id, Instant::now());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.of.state().sending.remove(&self.id);
        // One waits at most: the others wait for their turn.
        self.of.freed.notify_one();
    }
}

impl State {
    /// A slot, or when one is free at the latest.
    fn take(&mut self, bytes: u64, now: Instant) -> Result<u64, Instant> {
        let held = self.sending.values().filter_map(|sending| {
            let until = sending.since + self.span(sending.bytes);
            (until > now).then_some(until)
        });
        let (held, due) = held.fold((0, None::<Instant>), |(count, due), until| {
            (count + 1, Some(due.map_or(until, |earlier| earlier.min(until))))
        });
        if held >= self.slots() || self.sending.len() >= SENDING_FACTOR * self.slots() {
            return Err(due.unwrap_or(now + SPAN_MAX));
        }
        self.next += 1;
        self.sending.insert(self.next, Sending { since: now, bytes });
        Ok(self.next)
    }

    fn slots(&self) -> usize {
        let ahead = AHEAD.as_nanos().checked_div(self.pace.as_nanos()).unwrap_or(0);
        usize::try_from(ahead).unwrap_or(self.most).clamp(SLOTS_MIN.min(self.most), self.most)
    }

    fn span(&self, bytes: u64) -> Duration {
        if self.best.is_zero() {
            return SPAN_MAX;
        }
        let usual = self.best.as_secs_f64() * bytes.max(1) as f64 / UNIT as f64;
        Duration::from_secs_f64(usual * f64::from(SLOW_FACTOR)).clamp(SPAN_MIN, SPAN_MAX)
    }

    fn learn(&mut self, id: u64, now: Instant) {
        let Some(Sending { since, bytes }) = self.sending.get(&id) else { return };
        if *bytes < LEARN_MIN {
            return;
        }
        let unit = |time: Duration| time.div_f64(*bytes as f64 / UNIT as f64).max(Duration::from_nanos(1));
        let took = unit(now.saturating_duration_since(*since));
        let busy = unit(now.saturating_duration_since(self.ended.map_or(*since, |ended| ended.max(*since))));
        // The fastest is forgotten slowly: a link that has become slower is believed in the end.
        self.best = if self.best.is_zero() { took } else { took.min(self.best + self.best / 32) };
        self.pace = if self.pace.is_zero() { busy } else { self.pace - self.pace / 8 + busy / 8 };
        self.ended = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn state(most: usize) -> State {
        State { sending: BTreeMap::new(), next: 0, most, pace: Duration::ZERO, best: Duration::ZERO, ended: None }
    }

    fn end(state: &mut State, id: u64, now: Instant) {
        state.learn(id, now);
        state.sending.remove(&id);
    }

    #[test]
    fn on_a_slow_uplink_few_pieces_go_at_once() {
        let (mut state, mut now) = (state(32), Instant::now());
        for _ in 0..20 {
            let all: Vec<u64> = (0..SLOTS_MIN).map(|_| state.take(UNIT, now).unwrap()).collect();
            state.take(UNIT, now).unwrap_err();
            for id in all {
                now += 170 * MILLI;
                end(&mut state, id, now);
            }
        }
    }

    #[test]
    fn what_lies_in_the_kernel_at_once_tells_nothing_of_the_uplink() {
        let (mut state, mut now) = (state(32), Instant::now());
        for bytes in [UNIT, 100, 64 << 10] {
            let id = state.take(bytes, now).unwrap();
            now += if bytes == UNIT { 170 * MILLI } else { MILLI };
            end(&mut state, id, now);
        }
        assert_eq!((state.best, state.slots()), (170 * MILLI, SLOTS_MIN));
    }

    #[test]
    fn on_a_fast_uplink_many_go_at_once_but_no_more_than_allowed() {
        let (mut state, mut now) = (state(8), Instant::now());
        for _ in 0..20 {
            let id = state.take(UNIT, now).unwrap();
            now += MILLI;
            end(&mut state, id, now);
        }
        for _ in 0..8 {
            state.take(UNIT, now).unwrap();
        }
        state.take(UNIT, now).unwrap_err();
    }

    #[test]
    fn who_is_slow_holds_its_slot_only_for_a_while() {
        let (mut state, mut now) = (state(SLOTS_MIN), Instant::now());
        for _ in 0..4 {
            let id = state.take(UNIT, now).unwrap();
            now += 100 * MILLI;
            end(&mut state, id, now);
        }
        for _ in 0..SLOTS_MIN {
            state.take(UNIT, now).unwrap();
        }
        let due = state.take(UNIT, now).unwrap_err();
        assert_eq!(due - now, 100 * SLOW_FACTOR * MILLI);
        state.take(UNIT, due).unwrap();
    }

    #[test]
    fn those_that_hold_no_slot_are_few_as_well() {
        let (mut state, now) = (state(SLOTS_MIN), Instant::now());
        let id = state.take(UNIT, now).unwrap();
        let mut now = now + 10 * MILLI;
        end(&mut state, id, now);
        let mut begun = Vec::new();
        for _ in 0..=SENDING_FACTOR {
            now += SPAN_MAX;
            begun.extend((0..SLOTS_MIN).map_while(|_| state.take(UNIT, now).ok()));
        }
        assert_eq!(begun.len(), SENDING_FACTOR * SLOTS_MIN);
        end(&mut state, begun[0], now);
        state.take(UNIT, now).unwrap();
    }

    #[tokio::test]
    async fn a_slot_that_is_given_back_goes_to_the_next_in_line() {
        let slots = Slots::new(1);
        let first = slots.take(UNIT).await;
        let mut second = Box::pin(slots.take(UNIT));
        assert!(futures::poll!(&mut second).is_pending());
        first.sent();
        drop(first);
        drop(second.await);
    }
}
