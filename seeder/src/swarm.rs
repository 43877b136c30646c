//! Who is interested in which image: introductions, and the candidate lists from which the owners of pieces are elected.
//!
//! Kept in memory alone: after a restart the next pulls fill it again. Bounded in images and in members an image. Pure:
//! the clock is an argument.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::{IpAddr, SocketAddr},
};

use shoal_proto::{
    Digest,
    envelope::{Envelope, KeyId},
    message::{ADDRESSES_MAX, PeerInfo},
    signed::{CANDIDATES_MAX, Candidates, Labels, NodeId, Scope, Version},
};

/// Most members named in one reply.
pub const INTRODUCTIONS_MAX: usize = 20;
/// A member counts as interested in an image for so long after it asked for it.
pub const INTEREST_MS: u64 = 600_000;
/// A member is told of to those that have just come for so long after it came by. Whoever is gone by then costs a newcomer
/// a dial, whoever is left out costs nothing: the fleet's DHT has it.
pub const PRESENCE_MS: u64 = 24 * 3_600_000;
/// Images whose interested members are remembered.
const IMAGES_MAX: usize = 4096;
/// Members that are remembered for each image.
const MEMBERS_MAX: usize = 256;
/// Candidate lists that are kept signed for each image: the fleet's, and a few for each boundary.
const LISTS_MAX: usize = 64;

#[derive(Debug)]
struct Member {
    info: PeerInfo,
    seen_ms: u64,
}

#[derive(Debug)]
struct List {
    members: Vec<NodeId>,
    counter: u64,
    signed: Envelope,
    used_ms: u64,
}

/// Members and when each was seen last, bounded: the one unseen for longest makes room.
#[derive(Debug, Default)]
struct Members(BTreeMap<NodeId, Member>);

impl Members {
    /// Names some that were seen within `for_ms`, those of `me`'s region first, and remembers `me`.
    fn introduce(&mut self, me: PeerInfo, now_ms: u64, for_ms: u64) -> Vec<PeerInfo> {
        self.0.retain(|_, member| now_ms < member.seen_ms + for_ms);
        let mut others: Vec<_> = self
            .0
            .values()
            .filter(|member| member.info.node != me.node)
            .map(|member| {
                let here = member.info.labels.shared(&me.labels) < Scope::Fleet;
                (!here, pairing(&me.node, &member.info.node, now_ms), &member.info)
            })
            .collect();
        others.sort_unstable_by_key(|(far, pairing, _)| (*far, *pairing));
        let named = others.into_iter().take(INTRODUCTIONS_MAX).map(|(_, _, info)| info.clone()).collect();
        self.remember(me, now_ms);
        named
    }

    /// Nobody is introduced whose addresses are none.
    fn remember(&mut self, me: PeerInfo, now_ms: u64) {
        if me.peer.is_empty() && me.libp2p.is_empty() {
            return;
        }
        if self.0.len() >= MEMBERS_MAX && !self.0.contains_key(&me.node) {
            let oldest = self.0.values().min_by_key(|member| member.seen_ms).map(|member| member.info.node);
            oldest.and_then(|node| self.0.remove(&node));
        }
        self.0.insert(me.node, Member { info: me, seen_ms: now_ms });
    }
}

#[derive(Debug, Default)]
struct Image {
    members: Members,
    lists: BTreeMap<(Scope, Labels), List>,
    used_ms: u64,
}

/// The interested members of all images.
#[derive(Debug, Default)]
pub struct Swarm {
    /// Whoever came by last, for whatever.
    present: Members,
    images: BTreeMap<Digest, Image>,
}

impl Swarm {
    /// `me` has come up: remembers it, and names others of the fleet.
    pub fn meet(&mut self, me: PeerInfo, now_ms: u64) -> Vec<PeerInfo> {
        self.present.introduce(me, now_ms, PRESENCE_MS)
    }

    /// `me` asks for `image`: remembers it, and names others. Nobody is introduced whose addresses are none.
    pub fn introduce(&mut self, image: &Digest, me: PeerInfo, now_ms: u64) -> Vec<PeerInfo> {
        if !self.images.contains_key(image) && self.images.len() >= IMAGES_MAX {
            let oldest = self.images.iter().min_by_key(|(_, image)| image.used_ms).map(|(digest, _)| *digest);
            oldest.and_then(|digest| self.images.remove(&digest));
        }
        let entry = self.images.entry(*image).or_default();
        entry.used_ms = now_ms;
        self.present.remember(me.clone(), now_ms);
        entry.members.introduce(me, now_ms, INTEREST_MS)
    }

    /// The signed candidate lists of `image` for a node with `labels`, the widest first. A list changes only when a member
    /// of it has lost interest or there is room for another: all nodes must elect among the same. Lists that another key than
    /// `key` has signed are signed anew.
    pub fn candidates(
        &mut self,
        image: &Digest,
        labels: &Labels,
        now_ms: u64,
        key: KeyId,
        mut sign: impl FnMut(&Candidates) -> Envelope,
        version: impl Fn(u64) -> Version,
    ) -> Vec<Envelope> {
        let Some(entry) = self.images.get_mut(image) else { return Vec::new() };
        let mut lists = Vec::new();
        for scope in [Scope::Fleet, Scope::Region, Scope::Zone, Scope::Site] {
            let of = labels.within(scope);
            let labelled = match scope {
                Scope::Fleet => true,
                Scope::Region => of.region.is_some(),
                Scope::Zone => of.region.is_some() && of.zone.is_some(),
                Scope::Site => of.region.is_some() && of.zone.is_some() && of.site.is_some(),
            };
            if !labelled {
                break;
            }
            let members = entry.elect(scope, &of);
            let place = (scope, of);
            let old = entry.lists.get(&place);
            if let Some(list) = old.filter(|list| list.members == members && list.signed.key() == key) {
                lists.push(list.signed.clone());
                continue;
            }
            // The time keeps it growing over restarts.
            let counter = old.map_or(0, |list| list.counter + 1).max(now_ms);
            let (scope, labels) = place.clone();
            let payload =
                Candidates { image: *image, labels, scope, version: version(counter), members: members.clone() };
            let signed = sign(&payload);
            lists.push(signed.clone());
            if entry.lists.len() >= LISTS_MAX && !entry.lists.contains_key(&place) {
                let oldest = entry.lists.iter().min_by_key(|(_, list)| list.used_ms).map(|(key, _)| key.clone());
                oldest.and_then(|key| entry.lists.remove(&key));
            }
            entry.lists.insert(place, List { members, counter, signed, used_ms: now_ms });
        }
        lists
    }
}

impl Image {
    /// The members of a scope's list: those who were on it and are still there, then the others in order of name, which
    /// says nothing about who came first and so spreads the work.
    fn elect(&self, scope: Scope, labels: &Labels) -> Vec<NodeId> {
        let inside = |node: &NodeId| self.members.0.get(node).is_some_and(|m| m.info.labels.within(scope) == *labels);
        let key = (scope, labels.clone());
        let mut members: Vec<NodeId> = self
            .lists
            .get(&key)
            .map(|list| list.members.iter().filter(|node| inside(node)).copied().collect())
            .unwrap_or_default();
        let others = self.members.0.keys().filter(|node| inside(node) && !members.contains(node)).copied();
        let room = CANDIDATES_MAX - members.len();
        let others: Vec<_> = others.take(room).collect();
        members.extend(others);
        members.sort_unstable();
        members
    }
}

/// Orders members differently for each node and each second, so that the graph of introductions is a random one.
fn pairing(me: &NodeId, other: &NodeId, now_ms: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (me, other, now_ms / 1000).hash(&mut hasher);
    hasher.finish()
}

/// Which addresses a member may be introduced with.
#[derive(Debug, Clone, Default)]
pub struct AddressRule {
    /// Allowed besides the address that the request came from.
    pub ranges: Vec<Range>,
}

impl AddressRule {
    /// The addresses of `claimed` that count for a request from `source`: the source itself, or an allowed range; ports
    /// above 1023. An unspecified address stands for the source's.
    #[must_use]
    pub fn filter(&self, claimed: &[SocketAddr], source: IpAddr) -> Vec<SocketAddr> {
        let source = source.to_canonical();
        let mut kept = Vec::new();
        for addr in claimed {
            let ip = if addr.ip().is_unspecified() { source } else { addr.ip().to_canonical() };
            let allowed = ip == source
                || (ip.is_loopback() && source.is_loopback())
                || self.ranges.iter().any(|range| range.contains(ip));
            let addr = SocketAddr::new(ip, addr.port());
            if allowed && addr.port() > 1023 && !kept.contains(&addr) && kept.len() < ADDRESSES_MAX {
                kept.push(addr);
            }
        }
        kept
    }
}

/// A range of addresses such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    bits: u32,
}

impl Range {
    /// Whether `ip` lies in the range.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => (base.to_bits() ^ ip.to_bits()).leading_zeros() >= self.bits,
            (IpAddr::V6(base), IpAddr::V6(ip)) => (base.to_bits() ^ ip.to_bits()).leading_zeros() >= self.bits,
            _ => false,
        }
    }
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address range; write it as 10.0.0.0/8 or fd00::/8");
        let (base, bits) = text.split_once('/').ok_or_else(wrong)?;
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let bits: u32 = bits.parse().map_err(|_| wrong())?;
        if bits <= if base.is_ipv4() { 32 } else { 128 } { Ok(Self { base, bits }) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;

    fn info(n: u16, region: Option<&str>) -> PeerInfo {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let labels = Labels { region: region.map(|r| r.parse().unwrap()), ..Labels::default() };
        let addr = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 2000 + n);
        PeerInfo { node: NodeId(id), peer: vec![addr], libp2p: vec![addr], labels }
    }

    fn lists(swarm: &mut Swarm, image: &Digest, labels: &Labels, now: u64) -> Vec<Candidates> {
        let key = SigningKey::from_bytes(&[1; 32]);
        let sign = |payload: &Candidates| Envelope::sign(payload, &key);
        let id = KeyId::of(&key.verifying_key());
        let envelopes = swarm.candidates(image, labels, now, id, sign, |counter| Version { epoch: 1, counter });
        envelopes.iter().map(|envelope| envelope.open(&key.verifying_key()).unwrap()).collect()
    }

    #[test]
    fn members_of_the_own_region_are_named_first_and_nobody_is_named_to_itself() {
        let (mut swarm, image) = (Swarm::default(), Digest::of(b"image"));
        for n in 0..40 {
            swarm.introduce(&image, info(n, Some(if n % 4 == 0 { "a" } else { "b" })), 0);
        }
        let named = swarm.introduce(&image, info(0, Some("a")), 1);
        assert_eq!(named.len(), INTRODUCTIONS_MAX);
        let here: Vec<_> = named.iter().map(|info| info.labels.region.as_ref().unwrap().as_str() == "a").collect();
        assert_eq!(here.iter().filter(|here| **here).count(), 9);
        assert!(here.is_sorted_by(|a, b| a >= b), "{here:?}");
        assert!(named.iter().all(|named| named.node != info(0, None).node));
        assert_eq!(swarm.introduce(&Digest::of(b"other"), info(1, None), 1), []);
        assert_eq!(swarm.introduce(&image, info(50, None), INTEREST_MS + 1), [], "interest passes");
    }

    #[test]
    fn candidate_lists_change_only_with_their_members() {
        let (mut swarm, image) = (Swarm::default(), Digest::of(b"image"));
        let labels = info(0, Some("a")).labels;
        for n in 0..32 {
            swarm.introduce(&image, info(n, Some("a")), 5);
        }
        let before = lists(&mut swarm, &image, &labels, 10);
        assert_eq!(
            before.iter().map(|list| (list.scope, list.members.len())).collect::<Vec<_>>(),
            [(Scope::Fleet, 32), (Scope::Region, 32)]
        );
        swarm.introduce(&image, info(40, Some("a")), 20);
        assert_eq!(lists(&mut swarm, &image, &labels, 30), before, "a full list stays");
        for n in 1..32 {
            swarm.introduce(&image, info(n, Some("a")), INTEREST_MS);
        }
        swarm.introduce(&image, info(40, Some("a")), INTEREST_MS + 6);
        let after = lists(&mut swarm, &image, &labels, INTEREST_MS + 6);
        assert!(after[0].version > before[0].version);
        assert!(after[0].members.contains(&info(40, None).node) && !after[0].members.contains(&info(0, None).node));
    }

    #[test]
    fn only_addresses_that_the_asker_can_have_are_passed_on() {
        let rule = AddressRule { ranges: vec!["10.0.0.0/8".parse().unwrap()] };
        let claimed: Vec<SocketAddr> = [
            "192.0.2.7:5052",
            "192.0.2.8:5052",
            "0.0.0.0:5052",
            "10.1.2.3:5052",
            "192.0.2.7:80",
            "127.0.0.1:5052",
            "[::]:6000",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let kept = rule.filter(&claimed, "192.0.2.7".parse().unwrap());
        assert_eq!(
            kept,
            ["192.0.2.7:5052", "10.1.2.3:5052", "192.0.2.7:6000"].map(|t| t.parse::<SocketAddr>().unwrap())
        );
        let local = rule.filter(&claimed, "127.0.0.9".parse().unwrap());
        assert!(local.contains(&"127.0.0.1:5052".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Range>().is_err() && "x/8".parse::<Range>().is_err());
        assert!("::/0".parse::<Range>().unwrap().contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn the_table_stays_bounded() {
        let mut swarm = Swarm::default();
        for n in 0..u16::try_from(IMAGES_MAX + 10).unwrap() {
            swarm.introduce(&Digest::of(&n.to_le_bytes()), info(1, None), u64::from(n));
        }
        assert_eq!(swarm.images.len(), IMAGES_MAX);
        let image = Digest::of(b"image");
        for n in 0..u16::try_from(MEMBERS_MAX + 10).unwrap() {
            swarm.introduce(&image, info(n, None), u64::from(n));
        }
        assert_eq!(swarm.images[&image].members.0.len(), MEMBERS_MAX);
        assert_eq!(swarm.present.0.len(), MEMBERS_MAX);
    }
}
