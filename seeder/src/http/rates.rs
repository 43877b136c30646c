//! How many requests a client may make in a second: a bucket for each address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// Clients that are told apart. Beyond, those that have been quiet are forgotten, and then all.
const CLIENTS_MAX: usize = 1 << 16;
/// Seconds' worth of requests that a quiet client may make at once: a pull begins with a burst.
const BURST_S: f64 = 2.0;

/// The buckets.
#[derive(Debug)]
pub(super) struct Rates {
    per_s: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, per_s: f64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * per_s).min(per_s * BURST_S);
        self.at = now;
    }
}

impl Rates {
    /// `per_s` requests a second for each client; 0 for as many as they like.
    pub(super) fn new(per_s: u32) -> Self {
        Self { per_s: f64::from(per_s), buckets: Mutex::default() }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<IpAddr, Bucket>> {
        self.buckets.lock().expect("nobody panics while holding the buckets")
    }

    /// Lets one request of `client` pass, or says for how long it should wait.
    pub(super) fn pass(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        if self.per_s == 0.0 {
            return Ok(());
        }
        let client = network(client);
        let per_s = self.per_s;
        let mut buckets = self.buckets();
        if buckets.len() >= CLIENTS_MAX && !buckets.contains_key(&client) {
            buckets.retain(|_, bucket| {
                bucket.fill(per_s, now);
                bucket.tokens < per_s * BURST_S
            });
            // Looking through them all is paid for by many newcomers, or they would slow down everybody.
            if buckets.len() > CLIENTS_MAX / 2 {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(client).or_insert(Bucket { tokens: per_s * BURST_S, at: now });
        bucket.fill(per_s, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64(((1.0 - bucket.tokens) / per_s).max(1.0)))
        }
    }
}

/// Who counts as one client: an address, or the /64 of an IPv6 address, which one host may have whole.
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_beyond_its_rate_waits_and_others_do_not() {
        let rates = Rates::new(10);
        let (now, busy, other) = (Instant::now(), "10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!((0..20).all(|_| rates.pass(busy, now).is_ok()));
        assert_eq!(rates.pass(busy, now), Err(Duration::from_secs(1)));
        assert!(rates.pass(other, now).is_ok());
        assert!(rates.pass(busy, now + Duration::from_millis(101)).is_ok());
        assert!(Rates::new(0).pass(busy, now).is_ok());
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), busy);
        assert_eq!(network("fd00::1:2".parse().unwrap()), network("fd00::ffff:0:0:1".parse().unwrap()));
    }

    #[test]
    fn clients_are_forgotten_rather_than_remembered_without_bound() {
        let rates = Rates::new(1);
        let now = Instant::now();
        for number in 0..u32::try_from(CLIENTS_MAX).unwrap() + 10 {
            assert!(rates.pass(IpAddr::V4(number.into()), now).is_ok());
        }
        assert!(rates.buckets().len() <= CLIENTS_MAX);
    }
}
