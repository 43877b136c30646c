//! Connections: one a pair of nodes, whoever dialled.
//!
//! **Two nodes that dial each other** at once get two connections. The one that the node with the lower id has dialled
//! stays, by both sides' own reckoning; the other is closed as a duplicate. The side that keeps its own dial notices
//! nothing. The other side moves over: the core is not told, what it had said is said again on the connection that
//! stays. The goodbye may come before that connection is up here; then the peer is an *orphan* for [`ORPHAN_MAX`].
//! With requests or uploads under way the core is told of the loss instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use shoal_proto::{
    Digest,
    message::{CloseReason, Message},
    signed::{UnixSeconds, Version},
};
use shoal_transfer::{
    event::Input,
    ids::{BlobId, PeerId, UploadId},
};
use tokio::time::Instant;

use super::{Shell, rights::Rights, unix_now};
use crate::peer::{Down, Event, Heard, Link, LinkId, Overflow, Up};

/// How long a peer whose connection was a duplicate may take to come up on the other.
const ORPHAN_MAX: Duration = Duration::from_secs(2);
/// A connection that served nobody for so long is closed.
pub(super) const LINK_IDLE_MAX: Duration = Duration::from_secs(300);

/// A connection and what is known of its far end.
#[derive(Debug)]
pub(super) struct LinkState {
    pub(super) link: Link,
    pub(super) remote: SocketAddr,
    /// Whether this node dialled.
    dialled: bool,
    pub(super) rights: Rights,
    /// The membership's serial, and when it ends.
    pub(super) serial: u64,
    pub(super) member_until: UnixSeconds,
    /// Versions of key set and revocation list that the peer has, as far as is known.
    pub(super) news: (Version, Version),
    /// Which capability was shown for an image.
    pub(super) shown: BTreeMap<Digest, Shown>,
    /// Blobs that the peer was told of and not told off.
    pub(super) told: BTreeSet<BlobId>,
    /// Open uploads by the peer's ids.
    pub(super) uploads: BTreeMap<u32, UploadId>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) used: Instant,
    /// Images whose interested nodes were told to the peer.
    pub(super) exchanged: BTreeSet<Digest>,
    /// Messages that name other nodes, of this minute.
    pub(super) exchanges: u32,
}

/// A capability that was shown to a peer.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// When it ends.
    pub(super) until: UnixSeconds,
    /// What was proven to be covered, where it names a root.
    pub(super) proven: BTreeSet<Digest>,
}

/// A peer whose connection was a duplicate of one that is not up here yet.
#[derive(Debug)]
pub(super) struct Orphan {
    until: Instant,
    peer: PeerId,
    told: BTreeSet<BlobId>,
}

impl Shell {
    pub(super) fn on_peer(&mut self, event: Event) {
        match event {
            Event::Up(up) => self.on_up(*up),
            Event::DialFailed { dial, error } => {
                if let Some(peer) = self.dialled(dial) {
                    tracing::debug!(%error, node = ?self.peers.get(peer).map(|known| known.info.node), "a dial failed");
                    self.feed(Input::ConnectFailed { peer });
                }
            }
            Event::Heard { link, heard } => match self.peers.by_link.get(&link) {
                Some(&peer) => self.on_heard(peer, heard),
                None => self.on_heard_late(link, heard),
            },
            Event::Down { link, down } => self.on_down(link, &down),
        }
    }

    /// Words of a connection that was let go: only what was in its hands matters.
    fn on_heard_late(&mut self, link: LinkId, heard: Heard) {
        if let Heard::Returned(partial) = heard {
            self.keep_partial(*partial);
        } else if let Heard::Stored { request, digest, piece, bytes } = heard {
            self.on_stored(self.peers.buried(link), request, &digest, piece, bytes);
        } else if let Heard::Corrupt { digest, piece, .. } = heard {
            self.unpark(&(digest, piece));
        }
    }

    fn on_up(&mut self, up: Up) {
        let Up { link, peer: info, membership, remote, dial } = up;
        let (node, now) = (info.node, Instant::now());
        let dialled = dial.and_then(|dial| self.dialled(dial)).is_some();
        if self.peers.is_banned(&node, now) {
            return link.close(CloseReason::Banned);
        }
        let labels = info.labels.clone();
        let Some(peer) = self.know(info, false) else { return link.close(CloseReason::Protocol) };
        self.learn_labels(peer, &labels);
        let keeper_dialled = self.me < node;
        let old = self.peers.link(peer).map(|old| old.dialled);
        if old.is_some_and(|old| old != dialled && old == keeper_dialled) {
            return link.close(CloseReason::Duplicate);
        }
        let orphan = self.peers.orphans.iter().position(|orphan| orphan.peer == peer);
        let orphan = orphan.map(|at| self.peers.orphans.swap_remove(at).told);
        let told = self.let_go(peer, CloseReason::Duplicate).or(orphan);
        let id = link.id();
        let state = LinkState {
            link,
            remote,
            dialled,
            rights: Rights::new(node),
            serial: membership.serial,
            member_until: membership.not_after,
            news: Default::default(),
            shown: BTreeMap::new(),
            told: BTreeSet::new(),
            uploads: BTreeMap::new(),
            bytes_in: 0,
            bytes_out: 0,
            used: now,
            exchanged: BTreeSet::new(),
            exchanges: 0,
        };
        let Some(known) = self.peers.arena.get_mut(peer) else { return };
        known.link = Some(state);
        known.proven = true;
        self.peers.by_link.insert(id, peer);
        tracing::debug!(%node, %remote, dialled, moved = told.is_some(), "connected");
        match told {
            // Moved over: the core never lost the peer.
            Some(told) => told.into_iter().for_each(|blob| self.tell_again(peer, blob)),
            None => self.feed(Input::Connected { peer }),
        }
        self.on_connected(peer);
        self.pass_news(peer);
    }

    /// Closes connections to those whose membership holds no longer. Whoever has a newer one comes back with it.
    pub(super) fn close_outsiders(&self) {
        let now = unix_now();
        for (_, known, state) in self.peers.connected() {
            let reason = if self.upstream.trust().is_revoked(state.serial) {
                CloseReason::Revoked
            } else if state.member_until <= now {
                CloseReason::Expired
            } else {
                continue;
            };
            tracing::info!(node = %known.info.node, ?reason, "a peer is no member any more");
            state.link.close(reason);
        }
    }

    /// Gives up the peer's present connection for another. If nothing was under way on it, the blobs that it was told
    /// of, and the core need not know; else the core is told of the loss.
    fn let_go(&mut self, peer: PeerId, reason: CloseReason) -> Option<BTreeSet<BlobId>> {
        let old = self.peers.arena.get_mut(peer)?.link.take()?;
        self.peers.by_link.remove(&old.link.id());
        old.link.close(reason);
        let busy = self.fetches.any_of(peer) || !old.uploads.is_empty();
        let told = old.told.clone();
        self.bury(peer, old);
        if busy {
            self.feed(Input::Disconnected { peer });
            return None;
        }
        Some(told)
    }

    /// Saves what can be saved of a connection that is gone.
    fn bury(&mut self, peer: PeerId, old: LinkState) {
        self.peers.bury(old.link.id(), peer);
        for partial in old.link.leftovers() {
            self.keep_partial(partial);
        }
        self.fetches.forget_peer(peer);
        self.uploads.forget(old.uploads.into_values());
        self.asks.forget_peer(peer);
    }

    fn on_down(&mut self, link: LinkId, down: &Down) {
        let Some(peer) = self.peers.by_link.remove(&link) else { return };
        let Some(old) = self.peers.arena.get_mut(peer).and_then(|known| known.link.take()) else { return };
        tracing::debug!(%down, node = ?self.peers.get(peer).map(|known| known.info.node), "disconnected");
        let busy = self.fetches.any_of(peer) || !old.uploads.is_empty();
        let told = old.told.clone();
        self.bury(peer, old);
        if matches!(down, Down::Closed(CloseReason::Duplicate)) && !busy {
            self.peers.orphans.push(Orphan { until: Instant::now() + ORPHAN_MAX, peer, told });
        } else {
            self.feed(Input::Disconnected { peer });
        }
    }

    /// The connection that was to replace a duplicate did not come up.
    pub(super) fn tick_orphans(&mut self, now: Instant) {
        while let Some(at) = self.peers.orphans.iter().position(|orphan| orphan.until <= now) {
            let Orphan { peer, .. } = self.peers.orphans.swap_remove(at);
            self.feed(Input::Disconnected { peer });
        }
    }

    /// Sends to a peer; one that does not read is dropped.
    pub(super) fn send(&mut self, peer: PeerId, message: Message) {
        let sent = self.peers.link(peer).map_or(Ok(()), |state| state.link.send(message));
        self.check(peer, sent);
    }

    /// Drops a peer that does not read.
    pub(super) fn check(&self, peer: PeerId, sent: Result<(), Overflow>) {
        if let Err(error) = sent {
            self.drop_link(peer, CloseReason::Limit, &error.to_string());
        }
    }

    /// Closes a peer's connection; what follows from it comes with [`Event::Down`].
    pub(super) fn drop_link(&self, peer: PeerId, reason: CloseReason, why: &str) {
        if let Some(known) = self.peers.get(peer)
            && let Some(state) = &known.link
        {
            tracing::debug!(node = %known.info.node, why, "closing a connection");
            state.link.close(reason);
        }
    }
}
