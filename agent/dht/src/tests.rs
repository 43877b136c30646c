//! Hosts on loopback.

use std::time::Duration;

use std::sync::Mutex;

use ed25519_dalek::SigningKey;
use shoal_proto::{
    envelope::Envelope,
    member::{NotAdmitted, admit},
    signed::Membership,
};
use tokio::time::timeout;

use super::*;

/// A fleet of which everybody is a member who shows a membership that its key has signed.
#[derive(Debug)]
struct TestGate {
    shown: Option<Envelope>,
    refused: Mutex<Vec<&'static str>>,
    revoked: Mutex<Option<u64>>,
    serials: Mutex<Vec<(NodeId, u64)>>,
}

fn fleet_key() -> SigningKey {
    SigningKey::from_bytes(&[200; 32])
}

fn membership(n: u8) -> Membership {
    Membership { node: node(n), labels: Labels::default(), not_before: 0, not_after: 1000, serial: u64::from(n) }
}

fn gate(shown: Option<Envelope>) -> Arc<TestGate> {
    Arc::new(TestGate { shown, refused: Mutex::default(), revoked: Mutex::default(), serials: Mutex::default() })
}

impl Gate for TestGate {
    fn membership(&self) -> Option<Envelope> {
        self.shown.clone()
    }

    fn admit(&self, node: &NodeId, membership: Option<&Envelope>) -> Result<(), NotAdmitted> {
        let revoked = *self.revoked.lock().unwrap();
        let admitted = admit(membership, node, &fleet_key().verifying_key(), |serial| Some(serial) == revoked, 500);
        match admitted {
            Ok(membership) => self.serials.lock().unwrap().push((*node, membership.serial)),
            Err(reason) => {
                self.refused.lock().unwrap().push(reason.as_str());
                return Err(reason);
            }
        }
        Ok(())
    }

    fn may_stay(&self, node: &NodeId) -> bool {
        let revoked = *self.revoked.lock().unwrap();
        !self.serials.lock().unwrap().iter().any(|(known, serial)| known == node && Some(*serial) == revoked)
    }
}

const SOON: Duration = Duration::from_secs(20);

struct Host {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    node: NodeId,
    peer: SocketAddr,
    gate: Arc<TestGate>,
    _stop: tokio_util::sync::DropGuard,
}

fn node(n: u8) -> NodeId {
    NodeId(SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes())
}

impl Host {
    async fn new(n: u8) -> Self {
        Self::showing(n, Some(Envelope::sign(&membership(n), &fleet_key()))).await
    }

    async fn showing(n: u8, shown: Option<Envelope>) -> Self {
        let gate = gate(shown);
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000 + u16::from(n)));
        let config = NetConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], advertise: vec![], peer: vec![peer] };
        let stop = CancellationToken::new();
        let (net, events) =
            Net::start([n; 32], &config, gate.clone(), &TaskTracker::new(), stop.clone()).await.unwrap();
        Self { net, events, node: node(n), peer, gate, _stop: stop.drop_guard() }
    }

    fn knows(&self, other: &Self) {
        self.net.know(other.node, other.net.listening().to_vec());
    }

    /// Waits until the table has so many nodes.
    async fn table(&mut self, nodes: usize) {
        let reached =
            async { while !matches!(self.events.recv().await, Some(NetEvent::Table(found)) if found >= nodes) {} };
        timeout(SOON, reached).await.expect("the table fills");
    }
}

#[test]
fn a_node_and_its_libp2p_id_lead_to_each_other() {
    let node = node(1);
    assert_eq!(node_id(&peer_id(&node).unwrap()), Some(node));
}

#[test]
fn the_peer_port_is_told_from_the_libp2p_port() {
    let at: SocketAddr = "10.0.0.1:5052".parse().unwrap();
    assert!(matches!(door(&peer_address(at)), Some(Door::Peer(found)) if found == at));
    assert!(matches!(door(&libp2p_address(at)), Some(Door::Libp2p(found)) if found == at));
    let v6: SocketAddr = "[fd00::1]:5052".parse().unwrap();
    assert!(matches!(door(&peer_address(v6)), Some(Door::Peer(found)) if found == v6));
    assert!(door(&"/dns4/x/tcp/1".parse().unwrap()).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_is_found_through_a_third_node_with_its_peer_address() {
    let (mut holder, middle, mut seeker) = (Host::new(1).await, Host::new(2).await, Host::new(3).await);
    holder.knows(&middle);
    seeker.knows(&middle);
    holder.table(1).await;
    seeker.table(1).await;
    let key = [7; 32];
    holder.net.announce(vec![key]);
    // An announcement is no promise: whoever looks too early looks again, as the policy does.
    let found = async {
        loop {
            seeker.net.find(vec![key]);
            loop {
                match seeker.events.recv().await.expect("the host lives") {
                    NetEvent::Found { contacts, .. } => return contacts,
                    NetEvent::Done { .. } => break,
                    NetEvent::Table(_) => {}
                }
            }
        }
    };
    let contacts = timeout(SOON, found).await.expect("the holder is found");
    assert_eq!(contacts.len(), 1);
    assert_eq!((contacts[0].node, &contacts[0].peer), (holder.node, &vec![holder.peer]));
    assert_eq!(contacts[0].libp2p, holder.net.listening());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_announced_at_once_are_all_found() {
    let (mut holder, middle, mut seeker) = (Host::new(1).await, Host::new(2).await, Host::new(3).await);
    holder.knows(&middle);
    seeker.knows(&middle);
    holder.table(1).await;
    seeker.table(1).await;
    // More than one message holds.
    let key = |n: usize| {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    };
    let keys: Vec<DiscoveryKey> = (0..batch::KEYS_MAX + 10).map(key).collect();
    holder.net.announce(keys.clone());
    let mut missing: std::collections::BTreeSet<DiscoveryKey> = keys.into_iter().collect();
    let found = async {
        while !missing.is_empty() {
            let asked: Vec<DiscoveryKey> = missing.iter().take(FINDS_MAX).copied().collect();
            let mut open = asked.len();
            seeker.net.find(asked);
            while open > 0 {
                match seeker.events.recv().await.expect("the host lives") {
                    NetEvent::Found { key, .. } => drop(missing.remove(&key)),
                    NetEvent::Done { .. } => open -= 1,
                    NetEvent::Table(_) => {}
                }
            }
        }
    };
    timeout(SOON, found).await.expect("all are found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = NetConfig { listen: vec![address], advertise: vec![], peer: vec![] };
    let result = Net::start([1; 32], &config, gate(None), &TaskTracker::new(), CancellationToken::new()).await;
    assert!(matches!(result, Err(NetError::Listen { address: found, .. }) if found == address));
}

/// Waits until a gate has refused somebody, and says why.
async fn refused(gate: &TestGate) -> &'static str {
    let refused = async {
        loop {
            if let Some(reason) = gate.refused.lock().unwrap().pop() {
                return reason;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("somebody is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_good_membership_gets_no_further_than_the_handshake() {
    let stranger_key = SigningKey::from_bytes(&[99; 32]);
    let sign = |membership: &Membership| Some(Envelope::sign(membership, &fleet_key()));
    let cases = [
        (None, "no-membership"),
        (Some(Envelope::sign(&membership(2), &stranger_key)), "foreign-membership"),
        (sign(&membership(3)), "stolen-membership"),
        (sign(&Membership { not_after: 499, ..membership(2) }), "membership-expired"),
        (sign(&Membership { not_before: 501, ..membership(2) }), "membership-not-yet-valid"),
        (sign(&Membership { serial: 666, ..membership(2) }), "membership-revoked"),
    ];
    for (shown, reason) in cases {
        let (mut good, bad) = (Host::new(1).await, Host::showing(2, shown).await);
        *good.gate.revoked.lock().unwrap() = Some(666);
        bad.knows(&good);
        // A look-up makes it dial.
        bad.net.find(vec![[7; 32]]);
        assert_eq!(refused(&good.gate).await, reason);
        // Nothing but handshakes was spoken: the table, which identify fills, is as empty as before.
        let mut tables = 0;
        while tables < 4 {
            match good.events.recv().await.expect("the host lives") {
                NetEvent::Table(nodes) => {
                    assert_eq!(nodes, 0, "{reason}");
                    tables += 1;
                }
                other @ (NetEvent::Found { .. } | NetEvent::Done { .. }) => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_nodes_open_connection_is_closed() {
    let (mut good, mut bad) = (Host::new(1).await, Host::new(2).await);
    bad.knows(&good);
    bad.net.find(vec![[7; 32]]);
    good.table(1).await;
    bad.table(1).await;
    *good.gate.revoked.lock().unwrap() = Some(2);
    good.net.recheck();
    let emptied = async { while !matches!(good.events.recv().await, Some(NetEvent::Table(0))) {} };
    timeout(SOON, emptied).await.expect("it leaves the table");
    bad.net.find(vec![[8; 32]]);
    assert_eq!(refused(&good.gate).await, "membership-revoked", "and does not come back");
}

#[test]
fn fuzz_announcement() {
    mutate::fuzz("announcement", std::path::Path::new("fuzz/corpus/announcement"), &[], |data| {
        let Ok(announcement) = batch::Announcement::decode(data) else { return };
        assert!(announcement.keys.len() <= batch::KEYS_MAX && announcement.addresses.len() <= records::ADDRESSES_MAX);
        let found = contact(NodeId([1; 32]), &announcement.addresses);
        assert!(found.is_none_or(|found| found.peer.len() + found.libp2p.len() <= records::ADDRESSES_MAX));
    });
}
