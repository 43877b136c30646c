//! Who else is interested: the DHT, and what peers tell each other.
//!
//! Peers exchange peers an image at a time: who shows interest hears of up to half a message of others at once; those
//! hear of newcomers in batches, once a second, a few neighbours each. So news spread through the swarm in a few steps,
//! and nobody sends more than a handful of small messages a second for an image.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use shoal_dht::NetEvent;
use shoal_proto::{
    Digest,
    message::{CloseReason, Message, PEERS_MAX, PeerInfo},
    signed::DiscoveryKey,
};
use shoal_transfer::{event::Input, ids::PeerId};
use tokio::time::Instant;

use super::{Shell, blobs::SMALL_BLOB_MAX, links::LINK_IDLE_MAX};

/// Neighbours that hear of newcomers each second.
const EXCHANGE_WITH_MAX: usize = 8;
/// Newcomers in one message.
const NEWS_MAX: usize = PEERS_MAX / 2;
/// Messages that name peers which are taken from one peer a minute. One a second for an image, and a few images.
const EXCHANGES_PER_MINUTE_MAX: u32 = 240;
/// One part in so many of the connections is kept free for newcomers.
const LINKS_SPARE: usize = 4;
/// A connection that was of no use for so long may go to make room.
const LINK_SPARE_AFTER: Duration = Duration::from_secs(20);
/// Look-ups whose blobs are remembered.
const SOUGHT_MAX: usize = 512;
/// Who was told of so many others for an image is found without the DHT for now.
const CROWD: usize = 5;
/// Of a crowd that pulls the same image at once each announces itself at a moment of its own within this: an announcement
/// is some twenty connections, and all of them in the same second would hold up the transfer that they are for.
const ANNOUNCE_SPREAD: Duration = Duration::from_secs(20);

/// What is looked for in the DHT, and what was counted of the whole.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// The blobs that a key was looked up for, and their images.
    sought: BTreeMap<DiscoveryKey, BTreeSet<(Digest, Option<Digest>)>>,
    pub(super) dht_nodes: usize,
    pub(super) seeder_bytes: u64,
    pub(super) bad_pieces: u64,
    /// Spreads the choice of neighbours.
    turn: usize,
    minute: Option<Instant>,
    /// What is announced later, and when. Bounded by the blobs that are open: each comes in once.
    later: Vec<(Instant, Digest)>,
}

impl Discovery {
    /// Another number each time.
    pub(super) const fn next_turn(&mut self) -> usize {
        self.turn = self.turn.wrapping_add(EXCHANGE_WITH_MAX + 1);
        self.turn
    }
}

impl Shell {
    /// The keys under which holders of a blob are found: its own, or its image's where it is small. In the node's region
    /// first, if it has one.
    fn keys_of(&self, digest: &Digest, image: Option<Digest>) -> Vec<DiscoveryKey> {
        let Some(image) = image.or_else(|| self.images.of_blob(digest)) else { return Vec::new() };
        let Some(known) = self.images.get(&image) else { return Vec::new() };
        let open = self.blobs.get(digest).map(|(_, open)| open.blob.layout().size());
        let size = open.or_else(|| self.store.info(digest).map(|info| info.size));
        let under = if size.is_some_and(|size| size >= SMALL_BLOB_MAX) { *digest } else { image };
        let entry = known.discovery.iter().find(|entry| entry.digest == under);
        entry.map_or_else(Vec::new, |entry| match self.labels.region {
            Some(_) => vec![entry.region, entry.key],
            None => vec![entry.key],
        })
    }

    /// Looks for holders of a blob.
    pub(super) fn find_blob(&mut self, digest: &Digest, image: Option<Digest>) {
        let keys = self.keys_of(digest, image);
        for key in &keys {
            if self.discovery.sought.len() < SOUGHT_MAX || self.discovery.sought.contains_key(key) {
                self.discovery.sought.entry(*key).or_default().insert((*digest, image));
            }
        }
        if !keys.is_empty() {
            self.net.find(keys);
        }
    }

    /// Announces this node as a holder of a blob, or puts that off where many fetch it at once.
    pub(super) fn announce_soon(&mut self, digest: &Digest) {
        let image = self.blobs.get(digest).and_then(|(_, open)| open.image);
        let known = image.and_then(|image| self.images.get(&image)).map_or(0, |image| image.peers.len());
        if known < CROWD {
            return self.announce(digest);
        }
        let mut hasher = DefaultHasher::new();
        (self.me, digest).hash(&mut hasher);
        let share = hasher.finish() as f64 / u64::MAX as f64;
        self.discovery.later.push((Instant::now() + ANNOUNCE_SPREAD.mul_f64(share), *digest));
    }

    /// Announces what was put off until now.
    pub(super) fn tick_announce(&mut self, now: Instant) {
        let due: Vec<Digest> =
            self.discovery.later.extract_if(.., |(at, _)| *at <= now).map(|(_, digest)| digest).collect();
        for digest in due.iter().filter(|digest| self.store.info(digest).is_some_and(|info| info.stored > 0)) {
            self.announce(digest);
        }
    }

    /// Announces this node as a holder of a blob.
    fn announce(&self, digest: &Digest) {
        let image = self.blobs.get(digest).and_then(|(_, open)| open.image);
        let keys = self.keys_of(digest, image);
        if !keys.is_empty() {
            self.net.announce(keys);
        }
    }

    /// Announces all that is stored, after a start.
    pub(super) fn announce_stored(&self) {
        let stored = |digest: &Digest| self.store.info(digest).is_some_and(|info| info.stored > 0);
        let keys: BTreeSet<DiscoveryKey> = self
            .images
            .iter()
            .flat_map(|(image, known)| known.discovery.iter().map(move |entry| (*image, entry.digest)))
            .filter(|(_, digest)| stored(digest))
            .flat_map(|(image, digest)| self.keys_of(&digest, Some(image)))
            .collect();
        if !keys.is_empty() {
            self.net.announce(keys.into_iter().collect());
        }
    }

    /// A blob is gone from the store. An image's own key stays while anything of it is held.
    pub(super) fn withdraw(&self, digest: &Digest) {
        let Some(image) = self.images.of_blob(digest) else { return };
        let Some(known) = self.images.get(&image) else { return };
        let own = known.discovery.iter().filter(|entry| entry.digest == *digest && *digest != image);
        let keys: Vec<DiscoveryKey> = own.flat_map(|entry| [entry.key, entry.region]).collect();
        if !keys.is_empty() {
            self.net.withdraw(keys);
        }
    }

    pub(super) fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Table(nodes) => self.discovery.dht_nodes = nodes,
            NetEvent::Done { key } => {
                self.discovery.sought.remove(&key);
                self.bundle_sought(&key);
            }
            NetEvent::Found { key, contacts } => {
                let sought = self.discovery.sought.get(&key).cloned().unwrap_or_default();
                for contact in contacts {
                    let Some(peer) = self.know(contact, false) else { continue };
                    self.bundle_holder(peer, &key);
                    for (digest, image) in &sought {
                        if let Some(image) = image {
                            self.interested(peer, image);
                        }
                        if let Some((blob, _)) = self.blobs.get(digest) {
                            self.feed(Input::PeerIntroduced { peer, blob });
                        }
                    }
                }
            }
        }
    }

    /// A connection is up: what waits for anybody's word is asked at once.
    pub(super) fn on_connected(&mut self, peer: PeerId) {
        self.ask_for_bundles(peer);
    }

    /// A connected peer has spoken of a blob of the image. `entitled`: it may read it, so it may hear who else does.
    pub(super) fn on_interest(&mut self, peer: PeerId, image: &Digest, entitled: bool) {
        self.interested(peer, image);
        let fresh = self.peers.link_mut(peer).is_some_and(|state| state.exchanged.insert(*image));
        if !fresh || !entitled {
            return;
        }
        let peers = self.others(peer, image);
        if !peers.is_empty() {
            self.send(peer, Message::Peers { image: *image, peers });
        }
        let lists = self.images.candidate_lists(image);
        if !lists.is_empty() {
            self.send(peer, Message::Signed(lists));
        }
        if let Some(known) = self.images.get_mut(image)
            && known.news.len() < NEWS_MAX
        {
            known.news.push(peer);
        }
    }

    /// Tells some neighbours of newcomers.
    pub(super) fn tick_exchange(&mut self) {
        let now = Instant::now();
        if self.discovery.minute.is_none_or(|since| now - since >= Duration::from_secs(60)) {
            self.discovery.minute = Some(now);
            for (_, known) in self.peers.arena.iter_mut() {
                if let Some(state) = &mut known.link {
                    state.exchanges = 0;
                }
            }
        }
        let fresh: Vec<(Digest, Vec<PeerId>, Vec<PeerId>)> = self
            .images
            .iter_mut()
            .filter(|(_, image)| !image.news.is_empty())
            .map(|(digest, image)| (*digest, std::mem::take(&mut image.news), image.peers.iter().copied().collect()))
            .collect();
        for (image, news, peers) in fresh {
            let linked: Vec<PeerId> = peers.into_iter().filter(|peer| self.peers.link(*peer).is_some()).collect();
            let start = self.discovery.next_turn() % linked.len().max(1);
            let chosen: Vec<PeerId> =
                linked.iter().skip(start).chain(linked.iter().take(start)).copied().take(EXCHANGE_WITH_MAX).collect();
            for peer in chosen {
                let others = news.iter().filter(|other| **other != peer).filter_map(|other| self.peers.get(*other));
                let named: Vec<PeerInfo> =
                    others.map(|known| known.info.clone()).filter(|info| !info.peer.is_empty()).collect();
                // Who may not read the image does not hear who does.
                if !named.is_empty() && self.may_read(peer, &image) {
                    self.send(peer, Message::Peers { image, peers: named });
                }
            }
        }
    }

    /// A peer names others.
    pub(super) fn on_exchange(&mut self, peer: PeerId, image: &Digest, peers: Vec<PeerInfo>) {
        let Some(state) = self.peers.link_mut(peer) else { return };
        state.exchanges += 1;
        if state.exchanges > EXCHANGES_PER_MINUTE_MAX || self.images.get(image).is_none() {
            return;
        }
        for info in peers {
            if let Some(peer) = self.know(info, false) {
                self.interested(peer, image);
            }
        }
    }

    /// Closes connections that have served nobody for long. While there is little room for others, those that were of
    /// least use go sooner: the ones unused for longest, and among them the ones that carried least.
    pub(super) fn close_idle_links(&self, now: Instant) {
        let most = self.config.limits.peer_connections_max;
        let many = self.peers.connected().count().saturating_sub(most - most / LINKS_SPARE);
        let spare = self
            .peers
            .connected()
            .filter(|(peer, known, state)| {
                let spare = now - state.used >= LINK_SPARE_AFTER && state.uploads.is_empty();
                spare && !known.fixed && !self.fetches.any_of(*peer)
            })
            .map(|(_, _, state)| (state.used, state.bytes_in + state.bytes_out, state));
        for state in least_useful(spare.collect(), many, now) {
            state.link.close(CloseReason::Idle);
        }
    }
}

/// Which of these connections go, each with when it was last used and the bytes that it has carried: `many` of them, and
/// all that were of no use for [`LINK_IDLE_MAX`].
fn least_useful<T>(mut spare: Vec<(Instant, u64, T)>, many: usize, now: Instant) -> Vec<T> {
    spare.sort_by_key(|(used, carried, _)| (*used, *carried));
    let goes = |at: usize, used: Instant| at < many || now - used >= LINK_IDLE_MAX;
    spare.into_iter().enumerate().filter(|(at, (used, ..))| goes(*at, *used)).map(|(_, (.., link))| link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_useful_connections_go_first_and_no_more_than_needed() {
        let start = Instant::now();
        let now = start + LINK_IDLE_MAX + Duration::from_secs(60);
        let recent = now - LINK_SPARE_AFTER;
        let links = || vec![(recent, 500, 'a'), (recent, 5, 'b'), (recent - Duration::from_secs(9), 1 << 30, 'c')];
        assert!(least_useful(links(), 0, now).is_empty());
        assert_eq!(least_useful(links(), 1, now), ['c'], "unused for longest, whatever it carried");
        assert_eq!(least_useful(links(), 2, now), ['c', 'b'], "of equals the one that carried least");
        assert_eq!(least_useful(links(), 9, now), ['c', 'b', 'a']);
        let old = vec![(start, 7, 'x'), (recent, 7, 'y')];
        assert_eq!(least_useful(old, 0, now), ['x'], "what nobody has used for minutes goes in any case");
    }
}
