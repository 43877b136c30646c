//! What this node announces, to whom, and when again.
//!
//! A *keeper* is a node that keeps provider records of ours: one of the [`REPLICATION`] nodes closest to a key. A look-up
//! costs some thirty kilobytes and finds the keepers of one key; telling a known keeper of one more key costs thirty-two
//! bytes. So keepers are remembered: each is told of all its keys together every [`REFRESH`], and they are looked for
//! anew only now and then, when many of a key's keepers are gone, or when the network has grown.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hasher as _},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use shoal_proto::signed::DiscoveryKey;

use crate::{ANNOUNCED_MAX, REFRESH, REPLICATION, batch};

/// How often the keepers of a key are looked for, whatever happens: nodes that joined closer to the key take over.
pub const LOOK_UP_AGAIN: Duration = Duration::from_secs(3 * 60 * 60);
/// Look-ups for a key whose keepers are gone wait so long: while a network is cut off, all of them are.
pub const LOOK_UP_RETRY: Duration = Duration::from_secs(60);
/// With fewer keepers left others are looked for.
const KEEPERS_MIN: usize = REPLICATION.get() / 2;
/// The network has grown when the table has so much more than at the look-up: a part in so many. The table of a large
/// network grows with its logarithm.
const GROWN: usize = 8;
/// Addresses of a keeper that are remembered.
const ADDRESSES_MAX: usize = 4;

/// The keys and their keepers.
#[derive(Debug, Default)]
pub struct Announcements {
    keys: BTreeMap<DiscoveryKey, Announced>,
    keepers: BTreeMap<PeerId, Keeper>,
}

#[derive(Debug)]
struct Announced {
    /// When its keepers are looked for, at the latest.
    look_up: Instant,
    /// When they were, and how many nodes the table had.
    looked: Option<(Instant, usize)>,
    /// At most [`REPLICATION`].
    keepers: Vec<PeerId>,
}

#[derive(Debug)]
struct Keeper {
    addresses: Vec<Multiaddr>,
    keys: BTreeSet<DiscoveryKey>,
    /// Those of which it is told next.
    due: BTreeSet<DiscoveryKey>,
    refresh: Instant,
    /// A message is on its way to it.
    busy: bool,
}

/// A message to a keeper.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The keeper.
    pub to: PeerId,
    /// Where it was found.
    pub addresses: Vec<Multiaddr>,
    /// At most [`batch::KEYS_MAX`].
    pub keys: Vec<DiscoveryKey>,
}

/// A part of `whole` that is always the same for one thing: what was announced together is not refreshed together.
fn share(of: &impl std::hash::Hash, whole: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    whole.mul_f64(hasher.finish() as f64 / u64::MAX as f64)
}

impl Announcements {
    /// Announces `key` from now on. False: it already is, or there are too many.
    pub fn add(&mut self, key: DiscoveryKey, now: Instant) -> bool {
        let fits = self.keys.len() < ANNOUNCED_MAX && !self.keys.contains_key(&key);
        if fits {
            self.keys.insert(key, Announced { look_up: now, looked: None, keepers: Vec::new() });
        }
        fits
    }

    /// No longer announces `key`.
    pub fn remove(&mut self, key: &DiscoveryKey) {
        let Some(gone) = self.keys.remove(key) else { return };
        for keeper in gone.keepers {
            self.release(keeper, key);
        }
    }

    /// At most `room` keys whose keepers are to be looked for, with `table` nodes known. Each counts as looked for.
    pub fn look_ups(&mut self, room: usize, table: usize, now: Instant) -> Vec<DiscoveryKey> {
        let due: Vec<DiscoveryKey> =
            self.keys.iter().filter(|(_, key)| key.is_due(table, now)).take(room).map(|(key, _)| *key).collect();
        for key in &due {
            let again = now + LOOK_UP_AGAIN - share(key, LOOK_UP_AGAIN / 8);
            if let Some(announced) = self.keys.get_mut(key) {
                (announced.look_up, announced.looked) = (again, Some((now, table)));
            }
        }
        due
    }

    /// A look-up has found who is closest to `key`. Without anybody it is repeated soon.
    pub fn found(&mut self, key: &DiscoveryKey, closest: Vec<(PeerId, Vec<Multiaddr>)>, now: Instant) {
        let Some(announced) = self.keys.get_mut(key) else { return };
        if closest.is_empty() {
            announced.look_up = announced.look_up.min(now + LOOK_UP_RETRY);
            return;
        }
        let before = std::mem::take(&mut announced.keepers);
        announced.keepers = closest.iter().take(REPLICATION.get()).map(|(peer, _)| *peer).collect();
        let gone: Vec<PeerId> = before.iter().filter(|peer| !announced.keepers.contains(peer)).copied().collect();
        for peer in gone {
            self.release(peer, key);
        }
        for (peer, addresses) in closest.into_iter().take(REPLICATION.get()) {
            let keeper = self.keepers.entry(peer).or_insert_with(|| Keeper {
                addresses: Vec::new(),
                keys: BTreeSet::new(),
                due: BTreeSet::new(),
                refresh: now + REFRESH - share(&peer, REFRESH / 8),
                busy: false,
            });
            keeper.addresses = addresses.into_iter().take(ADDRESSES_MAX).collect();
            if keeper.keys.insert(*key) {
                keeper.due.insert(*key);
            }
        }
    }

    /// At most `room` messages that are to be sent now.
    pub fn batches(&mut self, room: usize, now: Instant) -> Vec<Batch> {
        let ready = |keeper: &Keeper| !keeper.busy && (!keeper.due.is_empty() || keeper.refresh <= now);
        let mut batches = Vec::new();
        for (peer, keeper) in self.keepers.iter_mut().filter(|(_, keeper)| ready(keeper)).take(room) {
            // Who is told of something new is told of everything, if the time for that is near.
            if keeper.refresh <= now + REFRESH / 8 {
                keeper.due.clone_from(&keeper.keys);
                keeper.refresh = now + REFRESH - share(peer, REFRESH / 8);
            }
            let keys: Vec<DiscoveryKey> = keeper.due.iter().take(batch::KEYS_MAX).copied().collect();
            keeper.busy = true;
            batches.push(Batch { to: *peer, addresses: keeper.addresses.clone(), keys });
        }
        batches
    }

    /// The keeper has answered a message with these keys.
    pub fn delivered(&mut self, to: &PeerId, keys: &[DiscoveryKey]) {
        let Some(keeper) = self.keepers.get_mut(to) else { return };
        keeper.busy = false;
        for key in keys {
            keeper.due.remove(key);
        }
        self.drop_idle(to);
    }

    /// The keeper cannot be reached: it is none any more. Its keys look for others if they have too few left.
    pub fn failed(&mut self, to: &PeerId, now: Instant) {
        let Some(gone) = self.keepers.remove(to) else { return };
        for key in gone.keys {
            let Some(announced) = self.keys.get_mut(&key) else { continue };
            announced.keepers.retain(|keeper| keeper != to);
            if announced.keepers.len() < KEEPERS_MIN {
                announced.look_up = announced.look_up.min(now + LOOK_UP_RETRY);
            }
        }
    }

    fn release(&mut self, peer: PeerId, key: &DiscoveryKey) {
        let Some(keeper) = self.keepers.get_mut(&peer) else { return };
        keeper.keys.remove(key);
        keeper.due.remove(key);
        self.drop_idle(&peer);
    }

    fn drop_idle(&mut self, peer: &PeerId) {
        if self.keepers.get(peer).is_some_and(|keeper| keeper.keys.is_empty() && !keeper.busy) {
            self.keepers.remove(peer);
        }
    }
}

impl Announced {
    fn is_due(&self, table: usize, now: Instant) -> bool {
        let grown = |(at, before): (Instant, usize)| now >= at + REFRESH && table > before + before / GROWN;
        self.look_up <= now || self.looked.is_some_and(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|_| PeerId::random()).collect()
    }

    fn closest(peers: &[PeerId]) -> Vec<(PeerId, Vec<Multiaddr>)> {
        peers.iter().map(|peer| (*peer, vec!["/ip4/10.0.0.1/tcp/5051".parse().unwrap()])).collect()
    }

    fn key(n: u8) -> DiscoveryKey {
        [n; 32]
    }

    /// Keys 0..n, all kept by `keepers` and told to them at `now`.
    fn announced(n: u8, keepers: &[PeerId], now: Instant) -> Announcements {
        let mut all = Announcements::default();
        for n in 0..n {
            assert!(all.add(key(n), now));
        }
        for key in all.look_ups(usize::MAX, keepers.len(), now) {
            all.found(&key, closest(keepers), now);
        }
        for batch in all.batches(usize::MAX, now) {
            all.delivered(&batch.to, &batch.keys);
        }
        all
    }

    #[test]
    fn a_keeper_is_told_of_all_its_keys_in_one_message_and_again_at_each_refresh() {
        let (now, keepers) = (Instant::now(), peers(3));
        let mut all = Announcements::default();
        for n in 0..200 {
            all.add(key(n), now);
        }
        assert_eq!(all.look_ups(4, 3, now).len(), 4, "no more than there is room for");
        for n in 0..200 {
            all.found(&key(n), closest(&keepers), now);
        }
        let first = all.batches(usize::MAX, now);
        assert_eq!(first.iter().map(|batch| batch.keys.len()).collect::<Vec<_>>(), [200; 3]);
        assert!(all.batches(usize::MAX, now).is_empty(), "one message at a time");
        for batch in &first {
            all.delivered(&batch.to, &batch.keys);
        }
        assert!(all.batches(usize::MAX, now + REFRESH / 2).is_empty());
        let again = all.batches(usize::MAX, now + REFRESH);
        assert_eq!(again.iter().map(|batch| batch.keys.len()).collect::<Vec<_>>(), [200; 3]);
    }

    #[test]
    fn keys_that_do_not_fit_one_message_follow_in_the_next() {
        let (now, keepers) = (Instant::now(), peers(1));
        let mut all = Announcements::default();
        let many = batch::KEYS_MAX + 5;
        for n in 0..many {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            all.add(key, now);
            all.found(&key, closest(&keepers), now);
        }
        let first = all.batches(9, now);
        assert_eq!((first.len(), first[0].keys.len()), (1, batch::KEYS_MAX));
        all.delivered(&first[0].to, &first[0].keys);
        let second = all.batches(9, now);
        assert_eq!((second.len(), second[0].keys.len()), (1, 5));
    }

    #[test]
    fn keepers_are_looked_for_again_only_when_it_is_time_or_the_network_has_grown() {
        let (now, keepers) = (Instant::now(), peers(8));
        let mut all = announced(10, &keepers, now);
        assert!(all.look_ups(99, 8, now + LOOK_UP_AGAIN / 2).is_empty());
        assert!(all.look_ups(99, 16, now + REFRESH / 2).is_empty(), "not while it grows");
        assert_eq!(all.look_ups(99, 16, now + REFRESH).len(), 10);
        assert!(all.look_ups(99, 16, now + REFRESH).is_empty());
        assert_eq!(all.look_ups(99, 16, now + REFRESH + LOOK_UP_AGAIN).len(), 10);
    }

    #[test]
    fn lost_keepers_are_replaced_once_half_of_them_are_gone() {
        let (now, keepers) = (Instant::now(), peers(8));
        let mut all = announced(1, &keepers, now);
        let at = now + LOOK_UP_RETRY;
        for gone in &keepers[..4] {
            all.failed(gone, now);
        }
        assert!(all.look_ups(9, 8, at).is_empty(), "four are enough for now");
        all.failed(&keepers[4], now);
        assert!(all.look_ups(9, 8, now).is_empty(), "not at once: the network may be down");
        assert_eq!(all.look_ups(9, 8, at), [key(0)]);
        let fresh = peers(8);
        all.found(&key(0), closest(&fresh), at);
        let told: BTreeSet<PeerId> = all.batches(99, at).into_iter().map(|batch| batch.to).collect();
        assert_eq!(told, fresh.iter().copied().collect());
        assert_eq!(all.keepers.len(), 8, "the old ones are forgotten");
    }

    #[test]
    fn a_look_up_that_finds_nobody_is_repeated_soon() {
        let now = Instant::now();
        let mut all = Announcements::default();
        all.add(key(1), now);
        assert_eq!(all.look_ups(9, 1, now), [key(1)]);
        all.found(&key(1), Vec::new(), now);
        assert!(all.look_ups(9, 1, now).is_empty());
        assert_eq!(all.look_ups(9, 1, now + LOOK_UP_RETRY), [key(1)]);
    }

    #[test]
    fn what_is_withdrawn_is_told_to_nobody_and_keepers_of_nothing_are_forgotten() {
        let (now, keepers) = (Instant::now(), peers(8));
        let mut all = announced(2, &keepers, now);
        all.remove(&key(0));
        let again = all.batches(99, now + REFRESH);
        assert!(again.len() == 8 && again.iter().all(|batch| batch.keys == [key(1)]));
        all.remove(&key(1));
        for batch in again {
            all.delivered(&batch.to, &batch.keys);
        }
        assert!(all.keepers.is_empty() && all.keys.is_empty());
    }

    #[test]
    fn keys_are_bounded() {
        let now = Instant::now();
        let mut all = Announcements::default();
        let taken = (0..ANNOUNCED_MAX + 3).filter(|n| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            all.add(key, now)
        });
        assert_eq!(taken.count(), ANNOUNCED_MAX);
    }
}
