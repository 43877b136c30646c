//! Hosts on loopback.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(20);

struct Host {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    node: NodeId,
    peer: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

fn node(n: u8) -> NodeId {
    NodeId(SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes())
}

impl Host {
    async fn new(n: u8) -> Self {
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000 + u16::from(n)));
        let config = NetConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], advertise: vec![], peer: vec![peer] };
        let stop = CancellationToken::new();
        let (net, events) = Net::start([n; 32], &config, &TaskTracker::new(), stop.clone()).await.unwrap();
        Self { net, events, node: node(n), peer, _stop: stop.drop_guard() }
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
async fn a_port_that_is_taken_is_an_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = NetConfig { listen: vec![address], advertise: vec![], peer: vec![] };
    let result = Net::start([1; 32], &config, &TaskTracker::new(), CancellationToken::new()).await;
    assert!(matches!(result, Err(NetError::Listen { address: found, .. }) if found == address));
}
