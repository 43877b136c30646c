//! Peers: what is known of each, whom to dial, whom to leave alone for a while.

use alloc::vec::Vec;

use shoal_proto::signed::Scope;

use crate::{
    Node,
    blob::Blob,
    config::Config,
    event::Action,
    ids::{BlobId, Id, PeerId},
    time::{Span, Time},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Down,
    Dialling,
    Up,
}

/// Dials under way in all, as a multiple of the fresh ones: bounds the sockets that wait for the dead.
const DIALS_STALE_FACTOR: u32 = 4;

/// A known peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) scope: Scope,
    /// Its number for rendezvous hashing.
    pub(crate) rank: u64,
    /// Its connection ended or a dial failed, and it has not been back since.
    pub(crate) absent: bool,
    pub(crate) fixed: bool,
    pub(crate) link: Link,
    /// Bytes a second while it sends, smoothed; 0 until measured.
    pub(crate) rate: u64,
    /// When it last finished a piece for us.
    pub(crate) finished_at: Time,
    /// Uploads to it in transmission.
    pub(crate) uploading: u16,
    /// Uploads to it that wait.
    pub(crate) queued: u16,
    /// When it was dialled, while it is.
    dialled_at: Time,
    /// Failures since it was last of use: dials, timeouts, refusals, connections that it ended. That it can be connected
    /// to says nothing: who comes and goes would be asked again each time.
    pub(crate) failures: u32,
    failed_at: Time,
    /// How often in a row it was busy, and since when.
    pub(crate) busy: u32,
    busy_since: Time,
    /// Not to be dialled or asked before.
    pub(crate) rest_until: Time,
    pub(crate) bans: u32,
    pub(crate) banned_until: Time,
}

impl Peer {
    const fn new(scope: Scope, rank: u64, fixed: bool) -> Self {
        Self {
            scope,
            rank,
            absent: false,
            fixed,
            link: Link::Down,
            rate: 0,
            finished_at: Time::ZERO,
            uploading: 0,
            queued: 0,
            dialled_at: Time::ZERO,
            failures: 0,
            failed_at: Time::ZERO,
            busy: 0,
            busy_since: Time::ZERO,
            rest_until: Time::ZERO,
            bans: 0,
            banned_until: Time::ZERO,
        }
    }

    /// Notes a failure: it is left alone for longer each time.
    fn fail(&mut self, config: &Config, now: Time) {
        let quiet = now.since(self.failed_at).as_nanos() / config.backoff_max.as_nanos().max(1);
        self.failures = self.failures.checked_shr(u32::try_from(quiet).unwrap_or(u32::MAX)).unwrap_or(0);
        self.rest_until = now + backoff(config.backoff_base, config.backoff_max, self.failures);
        self.failures += 1;
        self.failed_at = now;
    }
}

/// What decides whether a peer can be asked. It stands apart from the rest, by the peer's slot, because each choice looks
/// at all peers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lane {
    /// Open requests to it: the number of requests that name it.
    pub(crate) open: u32,
    /// Bytes that it sends in `pipeline_ahead`, at most 4 GiB.
    pub(crate) ahead: u32,
    /// Whether it is connected and does not rest.
    pub(crate) ready: bool,
    /// Whether it was busy when it was last asked: one request at a time finds out whether it still is.
    pub(crate) busy: bool,
}

impl Node {
    /// What decides whether a peer can be asked.
    ///
    /// # Panics
    /// For a peer that was never known.
    pub(crate) fn lane(&mut self, peer: PeerId) -> &mut Lane {
        &mut self.lanes[peer.slot()]
    }

    /// Works out whether a peer can be asked after its link has changed, or it is to rest.
    fn set_ready(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get(peer) {
            self.lanes[peer.slot()].ready = known.link == Link::Up && known.rest_until <= self.now;
        }
    }

    /// Those that have rested enough can be asked again.
    pub(crate) fn wake_rested(&mut self) {
        for (id, peer) in self.peers.iter() {
            self.lanes[id.slot()].ready = peer.link == Link::Up && peer.rest_until <= self.now;
        }
    }

    pub(crate) fn peer_known(&mut self, peer: PeerId, scope: Scope, rank: u64, fixed: bool) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.scope = scope;
            known.fixed |= fixed;
            return;
        }
        if let Some(old) = self.peers.occupant(peer) {
            self.disconnected(old);
            self.forget(old);
        }
        if self.peers.len() >= self.config.known_peers_max as usize {
            self.forget_worst();
        }
        if self.peers.len() >= self.config.known_peers_max as usize {
            self.actions.push_back(Action::Forget { peer });
            return;
        }
        self.peers.place(peer, Peer::new(scope, rank, fixed));
        if self.lanes.len() <= peer.slot() {
            self.lanes.resize(peer.slot() + 1, Lane::default());
        }
        self.lanes[peer.slot()] = Lane::default();
        if fixed {
            self.dial_due = true;
        }
    }

    /// Makes room: the unconnected peer that failed most goes. Banned peers stay, or their bans would go with them.
    fn forget_worst(&mut self) {
        let now = self.now;
        let worst = self
            .peers
            .iter()
            .filter(|(_, p)| p.link == Link::Down && !p.fixed && p.banned_until <= now)
            .max_by_key(|(_, p)| p.failures)
            .map(|(id, _)| id);
        if let Some(peer) = worst {
            self.forget(peer);
            self.actions.push_back(Action::Forget { peer });
        }
    }

    fn set_link(&mut self, peer: PeerId, link: Link) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        let old = core::mem::replace(&mut known.link, link);
        self.dialling += u32::from(link == Link::Dialling);
        self.dialling -= u32::from(old == Link::Dialling);
        self.links += u32::from(link != Link::Down);
        self.links -= u32::from(old != Link::Down);
        if (link == Link::Down) != (old == Link::Down) {
            for (_, blob) in self.blobs.iter_mut().filter(|(_, blob)| blob.candidates.contains(&peer)) {
                blob.linked = if link == Link::Down { blob.linked - 1 } else { blob.linked + 1 };
            }
        }
        self.set_ready(peer);
    }

    fn forget(&mut self, peer: PeerId) {
        self.set_link(peer, Link::Down);
        self.peers.remove(peer);
        for (_, blob) in self.blobs.iter_mut() {
            blob.candidates.retain(|candidate| *candidate != peer);
        }
    }

    pub(crate) fn connected(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if known.banned_until > self.now {
            let span = known.banned_until.since(self.now);
            self.actions.push_back(Action::Ban { peer, span });
            return;
        }
        if known.link == Link::Dialling {
            let dialled = known.dialled_at;
            self.answered = self.answered.max(Some(dialled));
            self.wake_at(dialled + self.config.dial_hedge);
        }
        self.set_link(peer, Link::Up);
        // There is room for another dial.
        self.dial_due = true;
        self.set_absent(peer, false);
        let blobs: Vec<BlobId> = self.blobs.iter().filter(|(_, b)| b.fetching()).map(|(id, _)| id).collect();
        for blob in blobs {
            self.introduce_self(peer, blob);
        }
    }

    /// Tells a connected peer what this node holds of a blob, once.
    pub(crate) fn introduce_self(&mut self, peer: PeerId, blob_id: BlobId) {
        let Some(blob) = self.blobs.get_mut(blob_id) else { return };
        if let Some(at) = blob.holders.find(peer) {
            if blob.holders.tell(at) {
                return;
            }
        } else if !blob.fetching() {
            return;
        }
        let have = blob.own_have();
        self.actions.push_back(Action::TellHave { peer, blob: blob_id, have });
    }

    pub(crate) fn connect_failed(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get_mut(peer).filter(|p| p.link == Link::Dialling) {
            known.fail(&self.config, self.now);
            let at = known.rest_until;
            self.set_link(peer, Link::Down);
            self.stats.dials_failed += 1;
            self.wake_at(at);
            self.set_absent(peer, true);
            self.dial_due = true;
        }
    }

    /// Notes whether a peer is there; where it is a candidate, owners are elected anew.
    fn set_absent(&mut self, peer: PeerId, absent: bool) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        if core::mem::replace(&mut known.absent, absent) == absent {
            return;
        }
        let rank = known.rank;
        let named: Vec<BlobId> =
            self.blobs.iter().filter(|(_, blob)| blob.boundaries.names(rank)).map(|(id, _)| id).collect();
        named.into_iter().for_each(|blob| self.elect(blob));
    }

    /// Elects the owners of a blob's pieces among the candidates that are there.
    pub(crate) fn elect(&mut self, blob: BlobId) {
        let absent: Vec<u64> = self.peers.iter().filter(|(_, p)| p.absent).map(|(_, p)| p.rank).collect();
        let me = self.config.rank;
        let Some(entry) = self.blobs.get_mut(blob) else { return };
        let changed = entry.boundaries.elect(&entry.layout, me, &absent);
        if changed && entry.background() {
            self.fill_due = true;
        } else if changed && entry.fetching() {
            self.fill_blob(blob);
            self.ask_seeder(blob);
        }
    }

    /// The connection is gone: what was asked of the peer is missing again, what it asked is void.
    pub(crate) fn disconnected(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        known.fail(&self.config, self.now);
        let at = known.rest_until;
        self.set_link(peer, Link::Down);
        self.wake_at(at);
        self.drop_requests_of(peer);
        self.drop_uploads_of(peer);
        self.set_absent(peer, true);
        for (_, blob) in self.blobs.iter_mut() {
            blob.holders.forget(peer);
        }
        self.dial_due = true;
    }

    pub(crate) fn ban(&mut self, peer: PeerId) {
        let now = self.now;
        let Some(known) = self.peers.get_mut(peer) else { return };
        // The count halves with each first-ban span that has passed since the last ban ended.
        let quiet = now.since(known.banned_until).as_nanos() / self.config.ban_base.as_nanos().max(1);
        known.bans = known.bans.checked_shr(u32::try_from(quiet).unwrap_or(u32::MAX)).unwrap_or(0);
        let span = backoff(self.config.ban_base, self.config.ban_max, known.bans);
        known.bans += 1;
        known.banned_until = now + span;
        self.stats.bans += 1;
        self.disconnected(peer);
        if let Some(known) = self.peers.get_mut(peer) {
            known.rest_until = known.banned_until;
        }
        self.actions.push_back(Action::Ban { peer, span });
    }

    /// Leaves a peer alone for a while: it refused, or let a request starve.
    pub(crate) fn rest(&mut self, peer: PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.fail(&self.config, self.now);
            let at = known.rest_until;
            self.wake_at(at);
            self.set_ready(peer);
        }
    }

    /// Leaves a busy peer alone, each time for twice as long until it serves something. Whether it has been busy for so
    /// long, and never served anything, that it counts for one that holds nothing: what it claims must not keep others
    /// from being asked.
    pub(crate) fn rest_briefly(&mut self, peer: PeerId) -> bool {
        let mut vain = false;
        // Those who were refused together must not come back together.
        let jitter = (u128::from(self.rng.next()) * u128::from(self.config.busy_rest_min.as_nanos())) >> 64;
        let jitter = Span::from_nanos(u64::try_from(jitter).unwrap_or(0));
        if let Some(known) = self.peers.get_mut(peer) {
            if known.busy == 0 {
                known.busy_since = self.now;
            }
            known.busy = known.busy.saturating_add(1);
            let pause = backoff(self.config.busy_rest_min, self.config.busy_rest_max, known.busy - 1);
            let long = self.now.since(known.busy_since) >= self.config.busy_in_vain;
            vain = long && known.rate == 0 && known.busy > self.config.busy_often;
            let pause = if vain { pause.max(self.config.busy_often_max) } else { pause };
            let until = self.now + pause + jitter;
            known.rest_until = until;
            self.wake_at(until);
            self.set_ready(peer);
            self.lane(peer).busy = true;
        }
        vain
    }

    pub(crate) fn introduced(&mut self, peer: PeerId, blob_id: BlobId) {
        let Some(link) = self.peers.get(peer).map(|p| p.link) else { return };
        let grace = self.now + self.config.introduction_grace;
        let (few, find_at) = (self.config.few(), self.now + self.config.find_interval);
        let Some(blob) = self.blobs.get_mut(blob_id) else { return };
        if blob.candidates.contains(&peer) || blob.candidates.len() >= crate::blob::CANDIDATES_MAX {
            return;
        }
        if blob.candidates.is_empty() && blob.have.is_empty() && blob.seeder.open == 0 {
            blob.grace_until = grace;
            self.wake_at(grace);
        }
        let blob = self.blobs.get_mut(blob_id).expect("looked up above");
        blob.candidates.push(peer);
        if blob.candidates.len() == few {
            // Others are looked for when these turn out to be of no use.
            blob.find_at = blob.find_at.max(find_at);
            self.wake_at(find_at);
        }
        let Some(blob) = self.blobs.get_mut(blob_id) else { return };
        blob.linked += u32::from(link != Link::Down);
        let lacks = blob.linked < self.config.degree;
        if link == Link::Up {
            self.introduce_self(peer, blob_id);
        } else {
            self.dial_due |= lacks;
        }
    }

    /// Dials towards the degree for every blob that is fetched.
    pub(crate) fn dial(&mut self) {
        if !core::mem::take(&mut self.dial_due) {
            return;
        }
        let stale = self.stale_dials();
        let mut room = self.config.dials_max.saturating_sub(self.dialling - stale);
        room = room.min((DIALS_STALE_FACTOR * self.config.dials_max).saturating_sub(self.dialling));
        // Who does not answer takes no connection from those that would.
        room = room.min(self.config.connections_max.saturating_sub(self.links - stale));
        if room == 0 {
            return;
        }
        if self.blobs.iter().any(|(_, blob)| blob.fetching()) && self.peers.iter().any(|(_, peer)| peer.fixed) {
            let fixed: Vec<PeerId> = self.peers.iter().filter(|(_, p)| p.fixed).map(|(id, _)| id).collect();
            room = self.dial_among(&fixed, u32::MAX, room);
        }
        let lacking: Vec<BlobId> =
            self.blobs.iter().filter(|(_, b)| self.lack(b, stale > 0) > 0).map(|(id, _)| id).collect();
        for id in lacking {
            let Some(blob) = self.blobs.get(id).filter(|_| room > 0) else { continue };
            // What was dialled for another blob meanwhile counts for this one too.
            let (lack, candidates) = (self.lack(blob, stale > 0), blob.candidates.clone());
            room = self.dial_among(&candidates, lack, room);
        }
    }

    /// Connections that a blob lacks; `stale`: some dials under way are not fresh, and count for nothing.
    fn lack(&self, blob: &Blob, stale: bool) -> u32 {
        if !blob.fetching() {
            return 0;
        }
        let known = blob.candidates.iter().filter_map(|peer| self.peers.get(*peer));
        let stale = if stale { known.filter(|peer| self.is_stale(peer)).count() } else { 0 };
        self.config.degree.saturating_sub(blob.linked - u32::try_from(stale).unwrap_or(0))
    }

    /// Whether a dial of it is under way that was not answered for long.
    fn is_stale(&self, peer: &Peer) -> bool {
        self.hedged_at(peer).is_some_and(|at| at <= self.now)
    }

    fn stale_dials(&self) -> u32 {
        if self.dialling == 0 {
            return 0;
        }
        u32::try_from(self.peers.iter().filter(|(_, peer)| self.is_stale(peer)).count()).unwrap_or(u32::MAX)
    }

    /// When a dial of the peer that is under way is no longer fresh.
    pub(crate) fn hedged_at(&self, peer: &Peer) -> Option<Time> {
        let others_answer = self.answered.is_some_and(|dialled| dialled >= peer.dialled_at);
        let span = if others_answer { self.config.dial_hedge } else { self.config.dial_hedge_max };
        (peer.link == Link::Dialling).then(|| peer.dialled_at + span)
    }

    /// Dials up to `lack` of `peers`, near ones first and random among them; returns the room that is left.
    fn dial_among(&mut self, peers: &[PeerId], lack: u32, mut room: u32) -> u32 {
        for _ in 0..lack.min(room) {
            let (now, rng) = (self.now, &mut self.rng);
            let next = peers
                .iter()
                .filter_map(|id| self.peers.get(*id).map(|peer| (*id, peer)))
                .filter(|(_, p)| p.link == Link::Down && p.rest_until <= now && p.banned_until <= now)
                .map(|(id, p)| ((p.failures, p.scope, rng.next()), id))
                .min();
            let Some((_, peer)) = next else { break };
            self.set_link(peer, Link::Dialling);
            if let Some(known) = self.peers.get_mut(peer) {
                known.dialled_at = self.now;
            }
            self.wake_at(self.now + self.config.dial_hedge);
            self.actions.push_back(Action::Connect { peer });
            room -= 1;
        }
        room
    }
}

/// `base` doubled `times` times, at most `max`.
pub(crate) fn backoff(base: Span, max: Span, times: u32) -> Span {
    base.times(1u64.checked_shl(times).unwrap_or(u64::MAX)).min(max)
}
