//! One question at a time: who asks what is being asked already gets the same answer.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};

/// Questions under way. The work goes on while at least one asker waits; with the last one it is dropped.
#[derive(Debug)]
pub(super) struct Flights<K, T: Clone> {
    flights: Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>,
}

impl<K: Eq + Hash, T: Clone> Flights<K, T> {
    pub(super) fn new() -> Self {
        Self { flights: Mutex::new(HashMap::new()) }
    }

    /// Joins the flight of `key`, or starts one.
    pub(super) fn join(&self, key: K, start: impl FnOnce() -> BoxFuture<'static, T>) -> Shared<BoxFuture<'static, T>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let running = flights.get(&key).and_then(WeakShared::upgrade).filter(|flight| flight.peek().is_none());
        if let Some(flight) = running {
            return flight;
        }
        // As many entries as requests are open, at most: the ended ones go whenever one starts.
        flights.retain(|_, flight| flight.upgrade().is_some_and(|flight| flight.peek().is_none()));
        let flight = start().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn concurrent_askers_share_one_answer_and_later_ones_ask_anew() {
        let (flights, gate, asked) = (Flights::new(), Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let ask = || {
            let (gate, asked) = (gate.clone(), asked.clone());
            flights.join("tag", || {
                async move {
                    gate.notified().await;
                    asked.fetch_add(1, Ordering::Relaxed)
                }
                .boxed()
            })
        };
        let (one, two) = (ask(), ask());
        gate.notify_one();
        assert_eq!(futures::join!(one, two), (0, 0));
        let three = ask();
        gate.notify_one();
        assert_eq!(three.await, 1);
    }
}
