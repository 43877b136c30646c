//! libp2p: this node's identity on the network, and the DHT in which holders of a blob find each other.
//!
//! TCP, Noise and yamux carry identify, ping and Kademlia under a protocol name of our own. Every agent is a server.
//! Pieces never travel here; a look-up ends with the *peer protocol's* addresses of those who hold something.
//!
//! **How those addresses travel.** Kademlia sends a provider's confirmed external addresses along with its record. Among
//! them each node puts its peer port as `/ip4/…/tcp/<port>/tls` (the marker is the same in mode `plain`): libp2p's TCP
//! transport refuses to dial such an address, and we know it by its end. Addresses of a provider are known only while
//! the query lives, so they are read in the very event that names the provider (`Worker::contact`).
//!
//! **Members only.** Nobody speaks any of this before its membership was judged ([`gate`]).
//!
//! **Keys** are the 32 bytes that the seeder derives; records with other keys are refused. Values are never stored.
//!
//! **Traffic.** Kademlia's own announcements carry one key each and begin with a look-up; they are neither sent nor taken
//! here. Kademlia finds the nodes that are to keep a key, at most [`PROVIDES_MAX`] look-ups at once; these are remembered,
//! and each is told of all its keys together ([`batch`]) every [`REFRESH`], well within the records' [`RECORD_TTL`]
//! ([`announce`]). A record cannot be withdrawn: a node stops refreshing and answers "not held".

pub mod announce;
pub mod batch;
pub mod gate;
#[cfg(test)]
#[path = "../../../proto/fuzz/mutate.rs"]
mod mutate;
pub mod records;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, identity, multiaddr::Protocol};
use shoal_proto::{
    message::{ADDRESSES_MAX, PeerInfo},
    signed::{DiscoveryKey, Labels, NodeId},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{gate::Gate, worker::Worker};

/// Kademlia's protocol name: another network's nodes never enter the routing table.
pub const KAD_PROTOCOL: &str = "/shoal/kad/1";
/// How long others keep our records: a node that is gone is dialled in vain for at most so long.
pub const RECORD_TTL: Duration = Duration::from_secs(60 * 60);
/// How often records are refreshed. Two refreshes fit into the life of a record, so one may fail.
pub const REFRESH: Duration = Duration::from_secs(25 * 60);
/// Nodes that keep each record, and that a look-up ends at. Stock is 20, which makes a look-up cost 200 KB. A record
/// is gone before its time only if all of them leave within [`REFRESH`].
pub const REPLICATION: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not 0");
/// Look-ups under way at once of those who are to keep a key. Each asks about twenty nodes; a thousand keys take minutes,
/// and nobody notices.
pub const PROVIDES_MAX: usize = 4;
/// Announcements under way at once, a batch to a node each.
pub const BATCHES_MAX: usize = 8;
/// Look-ups under way at once; further ones wait.
pub const FINDS_MAX: usize = 16;
/// Look-ups that wait. The policy asks again every few seconds, so what does not fit is not lost.
pub const FINDS_WAITING_MAX: usize = 256;
/// Longest look-up or announcement. Stock is 60 s; whoever has not answered within 10 is of no use to a pull.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that nothing uses is closed after this.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// libp2p connections in all: a routing table of a large fleet has a few hundred entries, few of them connected.
pub const CONNECTIONS_MAX: u32 = 256;
/// Incoming libp2p handshakes at once.
pub const PENDING_INCOMING_MAX: u32 = 64;
/// Keys that this node announces: some thousand blobs, each in the fleet and in its region.
pub const ANNOUNCED_MAX: usize = 16_384;
/// Commands that may wait; each carries a batch.
const COMMANDS_MAX: usize = 256;
/// Events that may wait for the loop.
const EVENTS_MAX: usize = 256;

/// How libp2p is set up.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// Addresses to be named instead of those of the interfaces.
    pub advertise: Vec<IpAddr>,
    /// The bound addresses of the peer protocol.
    pub peer: Vec<SocketAddr>,
}

/// libp2p does not start.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for libp2p: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: String,
    },
    /// A library refuses its set-up.
    #[error("cannot set up libp2p: {0}")]
    Setup(String),
}

/// What the DHT says.
#[derive(Debug)]
pub enum NetEvent {
    /// Holders were found; more may follow.
    Found {
        /// Under which key.
        key: DiscoveryKey,
        /// Who, with the addresses that they gave. Their labels are not known.
        contacts: Vec<PeerInfo>,
    },
    /// A look-up is over.
    Done {
        /// Under which key.
        key: DiscoveryKey,
    },
    /// How many nodes the routing table has.
    Table(usize),
}

#[derive(Debug)]
enum Command {
    Announce(Vec<DiscoveryKey>),
    Withdraw(Vec<DiscoveryKey>),
    Find(Vec<DiscoveryKey>),
    Know(NodeId, Vec<SocketAddr>),
    Recheck,
}

/// The near end of the DHT. Its calls never wait: they are hints, and the policy repeats what matters.
#[derive(Debug)]
pub struct Net {
    commands: mpsc::Sender<Command>,
    listening: Vec<SocketAddr>,
}

impl Net {
    /// Starts libp2p under the Ed25519 key of this `secret`; it ends when `stop` is cancelled.
    ///
    /// # Errors
    /// A port is taken, or a library refuses.
    pub async fn start(
        secret: [u8; 32],
        config: &NetConfig,
        gate: Arc<dyn Gate>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), NetError> {
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let (commands, orders) = mpsc::channel(COMMANDS_MAX);
        let mut worker = Worker::new(secret, config, gate, events)?;
        let listening = worker.listen().await?;
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = worker.run(orders) => {}
            }
        });
        Ok((Self { commands, listening }, queue))
    }

    /// The bound addresses.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Announces this node under `keys` from now on.
    pub fn announce(&self, keys: Vec<DiscoveryKey>) {
        self.command(Command::Announce(keys));
    }

    /// No longer announces this node under `keys`.
    pub fn withdraw(&self, keys: Vec<DiscoveryKey>) {
        self.command(Command::Withdraw(keys));
    }

    /// Looks for holders. Answered by [`NetEvent::Found`] and [`NetEvent::Done`] for each key.
    pub fn find(&self, keys: Vec<DiscoveryKey>) {
        self.command(Command::Find(keys));
    }

    /// A node and where it speaks libp2p.
    pub fn know(&self, node: NodeId, addresses: Vec<SocketAddr>) {
        if !addresses.is_empty() {
            self.command(Command::Know(node, addresses));
        }
    }

    /// Closes connections to nodes that may not stay: somebody was revoked.
    pub fn recheck(&self) {
        self.command(Command::Recheck);
    }

    fn command(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) {
            tracing::warn!(?command, "the DHT is overloaded; a hint is dropped");
        }
    }
}

/// The libp2p id of a node.
#[must_use]
pub fn peer_id(node: &NodeId) -> Option<PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(PeerId::from(identity::PublicKey::from(key)))
}

/// The node of a libp2p id: for Ed25519 keys the id holds the key itself.
#[must_use]
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    // Identity multihash of 36 bytes: a protobuf with key type 1 and 32 bytes.
    let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
    Some(NodeId(key.try_into().ok()?))
}

/// What an address in the DHT leads to.
enum Door {
    Libp2p(SocketAddr),
    Peer(SocketAddr),
}

fn libp2p_address(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty().with(address.ip().into()).with(Protocol::Tcp(address.port()))
}

fn peer_address(address: SocketAddr) -> Multiaddr {
    libp2p_address(address).with(Protocol::Tls)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "there are dozens of other protocols")]
fn door(address: &Multiaddr) -> Option<Door> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let Some(Protocol::Tcp(port)) = parts.next() else { return None };
    let address = SocketAddr::new(ip.to_canonical(), port);
    match parts.next() {
        None | Some(Protocol::P2p(_)) => Some(Door::Libp2p(address)),
        Some(Protocol::Tls) => Some(Door::Peer(address)),
        Some(_) => None,
    }
}

/// A node with those of its addresses that can be dialled; `None` if it has none for the peer protocol.
fn contact(node: NodeId, addresses: &[Multiaddr]) -> Option<PeerInfo> {
    let mut info = PeerInfo { node, peer: Vec::new(), libp2p: Vec::new(), labels: Labels::default() };
    for address in addresses {
        let (list, address) = match door(address) {
            Some(Door::Libp2p(address)) => (&mut info.libp2p, address),
            Some(Door::Peer(address)) => (&mut info.peer, address),
            None => continue,
        };
        if list.len() < ADDRESSES_MAX && !list.contains(&address) {
            list.push(address);
        }
    }
    (!info.peer.is_empty()).then_some(info)
}
