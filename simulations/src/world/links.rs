//! Connections between nodes.

use shoal_transfer::{event::Input, ids::PeerId};

use super::{End, Word, World};
use crate::num::at;

/// Ways between dialling and being up: a round trip for TCP, one for TLS.
const DIAL_WAYS: u64 = 3;
/// A dial that nothing answers is given up after so long.
const DIAL_TIMEOUT: u64 = 5_000_000_000;

impl World {
    /// Makes sure that `node` knows `other`, and tells its policy; the slot, unless the policy wants no more.
    pub(super) fn know(&mut self, node: u32, other: u32) -> Option<u32> {
        if let Some(slot) = self.agent(node)?.peers.find(other) {
            return Some(slot);
        }
        let away = self.topology.latency(End::Node(node), End::Node(other));
        let away = u32::try_from(away).unwrap_or(super::agent::Peer::FAR);
        let agent = self.agent(node)?;
        let slot = agent.peers.add(other, away);
        let peer = agent.peers.id(slot);
        let scope = match self.plan.scenario.control.labels {
            true => self.topology.spots.shared(node, other),
            false => shoal_proto::signed::Scope::Fleet,
        };
        let rank = self.ranks[at(other)];
        self.feed(node, Input::PeerKnown { peer, scope, rank, fixed: false });
        self.agent(node)?.peers.get(peer).map(|_| slot)
    }

    pub(super) fn connect(&mut self, node: u32, peer: PeerId) {
        let (now, life) = (self.now, self.lives[at(node)]);
        let Some(agent) = self.agent(node) else { return };
        let Some(&super::agent::Peer { node: to, conn, .. }) = agent.peers.get(peer) else { return };
        let banned = agent.peers.bans.iter().any(|(other, until)| *other == to && *until > now);
        if conn != 0 || banned {
            let input = if conn != 0 { Input::Connected { peer } } else { Input::ConnectFailed { peer } };
            return self.say(now, Word::Input { node, life, input: Box::new(input) });
        }
        let way = self.topology.latency(End::Node(node), End::Node(to));
        let when = self.reach(End::Node(node), End::Node(to)) + (DIAL_WAYS - 1) * way;
        if when > now + DIAL_TIMEOUT {
            let input = Box::new(Input::ConnectFailed { peer });
            return self.say(now + DIAL_TIMEOUT, Word::Input { node, life, input });
        }
        let slot = crate::num::small(shoal_transfer::ids::Id::slot(peer));
        self.say(when, Word::Dial { from: node, slot, life, to });
    }

    pub(super) fn dialled(&mut self, from: u32, slot: u32, life: u32, to: u32) {
        let alive = self.lives[at(from)] == life;
        let Some(dialler) = self.agents[at(from)].as_deref().filter(|_| alive) else { return };
        let Some(&super::agent::Peer { node: meant, conn, .. }) = dialler.peers.list.get(at(slot)) else { return };
        if conn != 0 || meant != to {
            return;
        }
        let (peer, now) = (dialler.peers.id(slot), self.now);
        let when = self.reach(End::Node(to), End::Node(from));
        let banned =
            |agent: &super::Agent| agent.peers.bans.iter().any(|(other, until)| *other == from && *until > now);
        let refused = self.agents[at(to)].as_deref().is_none_or(banned);
        let theirs = if refused { None } else { self.know(to, from) };
        let Some(theirs) = theirs else {
            let input = Box::new(Input::ConnectFailed { peer });
            return self.say(when, Word::Input { node: from, life, input });
        };
        self.conns += 1;
        let conn = self.conns;
        for (node, own, other) in [(from, slot, theirs), (to, theirs, slot)] {
            if let Some(agent) = self.agent(node) {
                agent.peers.list[at(own)].conn = conn;
                agent.peers.list[at(own)].theirs = other;
            }
        }
        self.say(when, Word::Up { node: from, slot, conn });
        self.up(to, theirs, conn);
    }

    pub(super) fn up(&mut self, node: u32, slot: u32, conn: u32) {
        if !self.is_linked(node, slot, conn) {
            return;
        }
        let Some(agent) = self.agent(node) else { return };
        let peer = agent.peers.id(slot);
        agent.fresh.push(slot);
        self.feed(node, Input::Connected { peer });
        self.plan_exchange(node);
    }

    /// Ends a connection. The node of `slot` hears of it now, the other end as soon as word gets there.
    pub(super) fn unlink(&mut self, node: u32, slot: u32) {
        let Some(agent) = self.agent(node) else { return };
        let super::agent::Peer { node: other, conn, theirs, .. } = agent.peers.list[at(slot)];
        if conn == 0 {
            return;
        }
        agent.peers.list[at(slot)].conn = 0;
        let peer = agent.peers.id(slot);
        self.drop_asks(node, other);
        let (now, when) = (self.now, self.reach(End::Node(node), End::Node(other)));
        let life = self.lives[at(node)];
        self.say(now, Word::Input { node, life, input: Box::new(Input::Disconnected { peer }) });
        self.drop_asks(other, node);
        let life = self.lives[at(other)];
        if let Some(far) = self.agent(other) {
            far.peers.list[at(theirs)].conn = 0;
            let input = Box::new(Input::Disconnected { peer: far.peers.id(theirs) });
            self.say(when, Word::Input { node: other, life, input });
        }
    }

    pub(super) fn ban(&mut self, node: u32, peer: PeerId, span: u64) {
        let now = self.now;
        let Some(agent) = self.agent(node) else { return };
        let Some(banned) = agent.peers.get(peer).map(|peer| peer.node) else { return };
        agent.peers.bans.retain(|(other, until)| *other != banned && *until > now);
        agent.peers.bans.push((banned, now.saturating_add(span)));
        self.meter.bans += 1;
        self.unlink(node, crate::num::small(shoal_transfer::ids::Id::slot(peer)));
    }

    pub(super) fn forget(&mut self, node: u32, peer: PeerId) {
        let slot = crate::num::small(shoal_transfer::ids::Id::slot(peer));
        if self.agent(node).is_none_or(|agent| agent.peers.get(peer).is_none()) {
            return;
        }
        self.unlink(node, slot);
        if let Some(agent) = self.agent(node) {
            agent.fresh.retain(|other| *other != slot);
            agent.peers.remove(slot);
        }
    }
}
