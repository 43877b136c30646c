//! The part of the DHT that this node keeps for others: provider records, bounded in all ways that a stranger could
//! stretch.
//!
//! Kademlia answers with the first twenty records that its store returns. A hot layer has hundreds of holders; who
//! always named the same twenty would send the whole fleet to them. So each answer starts at another place of the list,
//! and of more holders than a key may have, newcomers replace the oldest.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::{HashMap, VecDeque},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;
/// Keys held. Each is kept by about twenty nodes, so a fleet of 1,000 with 1,000 blobs each of which most are shared
/// stays far below.
pub const KEYS_MAX: usize = 16_384;
/// Holders of one key. More than an answer takes, so that answers differ.
pub const PROVIDERS_MAX: usize = 64;
/// Records in all: about 300 bytes each, so 10 MiB.
pub const RECORDS_MAX: usize = 32_768;
/// Records of one node: one that announces more has a fleet's worth of blobs, or means harm.
pub const RECORDS_PER_PEER_MAX: usize = 4096;
/// Addresses in one record.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address in bytes: an IPv6 address with port, marker and peer id has 60.
pub const ADDRESS_LEN_MAX: usize = 80;

/// Provider records, others' and our own.
#[derive(Debug)]
pub struct Records {
    me: PeerId,
    my_addresses: Vec<Multiaddr>,
    keys: HashMap<RecordKey, VecDeque<ProviderRecord>>,
    per_peer: HashMap<PeerId, usize>,
    total: usize,
    /// Where the next answer starts.
    turn: Cell<usize>,
}

impl Records {
    /// None yet, kept by node `me`.
    #[must_use]
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            my_addresses: Vec::new(),
            keys: HashMap::new(),
            per_peer: HashMap::new(),
            total: 0,
            turn: Cell::new(0),
        }
    }

    /// What this node's own records say from now on.
    pub fn set_my_addresses(&mut self, addresses: Vec<Multiaddr>) {
        for record in self.keys.values_mut().flatten().filter(|record| record.provider == self.me) {
            record.addresses.clone_from(&addresses);
        }
        self.my_addresses = addresses;
    }

    /// Records held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.total
    }

    /// Whether none is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Whether a record that came from the network may be kept at all.
    #[must_use]
    pub fn is_acceptable(record: &ProviderRecord) -> bool {
        let fits = |address: &Multiaddr| address.len() <= ADDRESS_LEN_MAX;
        record.key.as_ref().len() == KEY_LEN
            && record.addresses.len() <= ADDRESSES_MAX
            && record.addresses.iter().all(fits)
    }

    /// Drops what has expired.
    pub fn sweep(&mut self, now: Instant) {
        let (per_peer, total) = (&mut self.per_peer, &mut self.total);
        self.keys.retain(|_, records| {
            records.retain(|record| {
                let keep = !record.is_expired(now);
                if !keep {
                    forget(per_peer, total, &record.provider);
                }
                keep
            });
            !records.is_empty()
        });
    }
}

fn forget(per_peer: &mut HashMap<PeerId, usize>, total: &mut usize, peer: &PeerId) {
    *total -= 1;
    if let Some(count) = per_peer.get_mut(peer) {
        *count -= 1;
        if *count == 0 {
            per_peer.remove(peer);
        }
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        let mine = record.provider == self.me;
        if mine {
            record.addresses.clone_from(&self.my_addresses);
        } else if !Self::is_acceptable(&record) {
            return Err(Error::ValueTooLarge);
        }
        if let Some(known) = self.keys.get_mut(&record.key)
            && let Some(at) = known.iter().position(|other| other.provider == record.provider)
        {
            // To the back: the front is who was not heard of for longest.
            known.remove(at);
            known.push_back(record);
            return Ok(());
        }
        let count = self.per_peer.get(&record.provider).copied().unwrap_or(0);
        let full = self.total >= RECORDS_MAX || count >= RECORDS_PER_PEER_MAX;
        let no_key = self.keys.len() >= KEYS_MAX && !self.keys.contains_key(&record.key);
        if !mine && (full || no_key) {
            return Err(Error::MaxProvidedKeys);
        }
        *self.per_peer.entry(record.provider).or_default() += 1;
        self.total += 1;
        let records = self.keys.entry(record.key.clone()).or_default();
        records.push_back(record);
        if records.len() > PROVIDERS_MAX {
            let oldest = records.iter().position(|record| record.provider != self.me);
            if let Some(gone) = oldest.and_then(|at| records.remove(at)) {
                forget(&mut self.per_peer, &mut self.total, &gone.provider);
            }
        }
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let Some(records) = self.keys.get(key) else { return Vec::new() };
        let turn = self.turn.get();
        // A step that has no factor in common with most lengths visits every start.
        self.turn.set(turn.wrapping_add(17));
        let start = turn % records.len().max(1);
        records.iter().skip(start).chain(records.iter().take(start)).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        // Only Kademlia's own republishing asks, and that is off.
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        let Some(records) = self.keys.get_mut(key) else { return };
        if let Some(at) = records.iter().position(|record| record.provider == *provider) {
            records.remove(at);
            if records.is_empty() {
                self.keys.remove(key);
            }
            forget(&mut self.per_peer, &mut self.total, provider);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::*;

    fn key(n: usize) -> RecordKey {
        let mut key = [0; KEY_LEN];
        key[..8].copy_from_slice(&n.to_le_bytes());
        RecordKey::new(&key)
    }

    fn record(n: usize, provider: PeerId) -> ProviderRecord {
        ProviderRecord::new(key(n), provider, vec!["/ip4/10.0.0.1/tcp/5052/tls".parse().unwrap()])
    }

    #[test]
    fn answers_name_different_holders_in_turn() {
        let mut records = Records::new(PeerId::random());
        let providers: Vec<_> = (0..50).map(|_| PeerId::random()).collect();
        for provider in &providers {
            records.add_provider(record(1, *provider)).unwrap();
        }
        let mut named = HashSet::new();
        for _ in 0..10 {
            named.extend(records.providers(&key(1)).into_iter().take(20).map(|record| record.provider));
        }
        assert_eq!(named.len(), 50);
    }

    #[test]
    fn newcomers_replace_the_oldest_holder_but_never_this_node() {
        let me = PeerId::random();
        let mut records = Records::new(me);
        records.add_provider(record(1, me)).unwrap();
        let providers: Vec<_> = (0..PROVIDERS_MAX + 10).map(|_| PeerId::random()).collect();
        for provider in &providers {
            records.add_provider(record(1, *provider)).unwrap();
        }
        let held: HashSet<_> = records.providers(&key(1)).into_iter().map(|record| record.provider).collect();
        assert_eq!((held.len(), records.len()), (PROVIDERS_MAX, PROVIDERS_MAX));
        assert!(held.contains(&me) && held.contains(providers.last().unwrap()) && !held.contains(&providers[0]));
    }

    #[test]
    fn no_node_fills_the_store() {
        let mut records = Records::new(PeerId::random());
        let greedy = PeerId::random();
        let taken = (0..RECORDS_PER_PEER_MAX + 5).filter(|n| records.add_provider(record(*n, greedy)).is_ok()).count();
        assert_eq!(taken, RECORDS_PER_PEER_MAX);
        records.add_provider(record(0, PeerId::random())).unwrap();
        let many: Vec<_> = (0..8).map(|_| PeerId::random()).collect();
        for n in 0..KEYS_MAX {
            for provider in &many {
                let _ = records.add_provider(record(n, *provider));
            }
        }
        assert!(records.len() <= RECORDS_MAX && records.keys.len() <= KEYS_MAX, "{}", records.len());
    }

    #[test]
    fn of_a_million_records_as_many_are_kept_as_there_is_room_for() {
        let mut records = Records::new(PeerId::random());
        let providers: Vec<_> = (0..500).map(|_| PeerId::random()).collect();
        for n in 0..2000 {
            for provider in &providers {
                let _ = records.add_provider(record(n, *provider));
            }
            assert!(records.len() <= RECORDS_MAX && records.keys.len() <= KEYS_MAX && records.per_peer.len() <= 500);
            assert!(records.keys[&key(n.min(RECORDS_MAX / PROVIDERS_MAX - 1))].len() <= PROVIDERS_MAX);
        }
        let held: usize = records.keys.values().map(VecDeque::len).sum();
        let counted: usize = records.per_peer.values().sum();
        assert_eq!((held, counted), (records.len(), records.len()), "the counts are right");
        // Whoever was heard of in time is still found.
        assert_eq!(records.providers(&key(0)).len(), PROVIDERS_MAX);
    }

    #[test]
    fn strange_records_are_refused() {
        let mut records = Records::new(PeerId::random());
        let good = record(1, PeerId::random());
        let short = ProviderRecord { key: RecordKey::new(b"short"), ..good.clone() };
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let crowded = ProviderRecord { addresses: vec![address; ADDRESSES_MAX + 1], ..good.clone() };
        let long = format!("/dns4/{}/tcp/1", "x".repeat(ADDRESS_LEN_MAX)).parse().unwrap();
        let long = ProviderRecord { addresses: vec![long], ..good };
        for bad in [short, crowded, long] {
            assert!(records.add_provider(bad).is_err());
        }
        assert!(records.put(Record::new(key(1), vec![1])).is_err(), "values are never kept");
        assert!(records.is_empty());
    }

    #[test]
    fn expired_records_go() {
        let mut records = Records::new(PeerId::random());
        let now = Instant::now();
        let soon = ProviderRecord { expires: Some(now + Duration::from_secs(1)), ..record(1, PeerId::random()) };
        records.add_provider(soon.clone()).unwrap();
        records.sweep(now);
        assert_eq!(records.len(), 1);
        records.sweep(now + Duration::from_secs(2));
        assert!(records.is_empty() && records.per_peer.is_empty() && records.keys.is_empty());
        records.add_provider(soon.clone()).unwrap();
        records.remove_provider(&soon.key, &soon.provider);
        assert!(records.is_empty() && records.per_peer.is_empty() && records.keys.is_empty());
    }
}
