//! The peer protocol: one TCP connection a pair of nodes, for all blobs, in both directions.
//!
//! ```text
//! Endpoint::listen ─┐                      ┌─ reader task: frames → checks → PieceWriter / Event ─► the loop
//!                   ├─ TLS ─ greeting ─ Up ┤
//! Endpoint::dial  ──┘                      └─ writer task: control frames, then pieces            ◄─ Link
//! ```
//!
//! A connection that got through TLS and greeting ends up as one [`Event::Up`] with a [`Link`], whoever dialled; all
//! that is heard on it follows as further events on the same bounded queue, and [`Event::Down`] is the last. When that
//! queue is full the readers stop reading, so a busy loop slows its peers instead of piling up their words.
//!
//! **What a peer can do to us.** Nothing before it has shown who it is and that it is a member. Afterwards: a frame
//! that cannot be read, is too long, or carries data that nobody asked for ends the connection; bytes go to disk only
//! for requests that are open, never past the piece's end, and count only once their hash is right. Each bound has a
//! name below. Who may read what is not decided here but in the loop, from the capabilities that this module checks
//! and passes up.
//!
//! **Keep-alive.** A side that has nothing to say sends an empty [`Signed`](shoal_proto::message::Message::Signed) every [`KEEP_ALIVE`]; silence for
//! [`SILENCE_MAX`] ends the connection. There is no acknowledgement: TCP has its own.

mod buffers;
mod counters;
mod disk;
mod frames;
mod greeting;
mod link;
mod listener;
mod piece;
mod reader;
mod stride;
#[cfg(test)]
mod tests;
mod tls;
mod wire;
mod writer;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use shoal_proto::{
    Digest,
    envelope::Envelope,
    have::Have,
    layout::PieceIndex,
    message::{Answer, CloseReason, PeerInfo, Priority, Proof, Question, RefuseReason},
    signed::{Capability, KeySet, Labels, Membership, NodeId},
};
use shoal_transfer::ids::{RequestId, UploadId};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use counters::{Counters, Refused};
pub use greeting::{GreetError, Greeted};
pub use link::{Fetch, Link, Overflow, Serve, TakenBack};
pub use piece::{Partial, Sender};
pub use tls::TlsSetupError;

use self::link::Tasks;
use crate::{identity::Identity, rate::Rate};

/// Time for TCP alone: an address that is dead must not hold up the next.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for TLS and greeting together, on either side: a few round trips across the world, and a loaded CPU.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Incoming handshakes at once. Each costs two signatures and about 40 KiB; a flood must not cost more.
pub const HANDSHAKES_MAX: usize = 64;
/// Of those from one address: many nodes may share one (a test on loopback, NAT), none may take all places.
pub const HANDSHAKES_PER_IP_MAX: usize = 32;
/// Time that one address has for itself before the next is tried beside it: who answers at all mostly does so sooner.
pub const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Incoming connections that are up, unless configured. The policy dials at most 200; twice as many may dial us.
pub const INCOMING_MAX: usize = 400;
/// Reads of stored pieces at once. A page that is not cached holds a thread until the disk has it; more at once than a
/// disk serves in parallel only cost threads.
pub const COLD_READS_MAX: usize = 16;
/// Control frames that may wait for the writer. More than a peer can owe us answers for; a peer that lets this many pile
/// up does not read, and is dropped.
pub const OUTBOX_MAX: usize = 1024;
/// Bytes of answers that may wait for the writer. Piece hashes are up to 128 KiB each; a peer that asks for more of them
/// than it reads is dropped.
pub const OUTBOX_BYTES_MAX: usize = 2 << 20;
/// Events that may wait for the loop, of all connections together; then readers stop.
pub const EVENTS_MAX: usize = 1024;
/// A peer that takes no byte for so long is dropped.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(20);
/// Pause after which a silent side says that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A peer that says nothing for so long is gone: three keep-alives.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Blob bytes in one data frame that we send, at most: an urgent frame or a cancel waits for one, which is why frames are
/// shorter where the network is slow.
pub const DATA_FRAME_LEN: usize = 128 << 10;
/// Requests that one peer may have open with us. The policy of a peer like us asks for 8; the queue behind refuses
/// earlier.
pub const PEER_REQUESTS_MAX: usize = 64;
/// Time for the last frame to leave after a connection was closed from this side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How bytes travel between peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// TLS 1.3; the certificates are the nodes.
    #[default]
    Tls,
    /// In the clear, with sendfile; nodes sign each other's nonces. For trusted networks only: pieces are verified all
    /// the same, but who stands between can read them and pose as either end after the greeting.
    Plain,
}

/// What a connection must know of the fleet. Asked anew for each greeting.
pub trait Fleet: fmt::Debug + Send + Sync + 'static {
    /// The keys that may sign.
    fn keys(&self) -> Arc<KeySet>;
    /// This node's membership, to be shown.
    fn membership(&self) -> Option<Envelope>;
    /// Whether the membership of that serial was revoked.
    fn is_revoked(&self, serial: u64) -> bool;
    /// Somebody showed an envelope of a key that is not known: a newer key set may exist.
    fn unknown_key(&self);
}

/// Names a connection; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What happens on connections.
#[derive(Debug)]
pub enum Event {
    /// A connection is up, its peer known and a member.
    Up(Box<Up>),
    /// A dial failed.
    DialFailed {
        /// As given to [`Endpoint::dial`].
        dial: u64,
        /// Why.
        error: GreetError,
    },
    /// Something was heard.
    Heard {
        /// On which connection.
        link: LinkId,
        /// What.
        heard: Heard,
    },
    /// The connection is gone. The last event of it.
    Down {
        /// Which.
        link: LinkId,
        /// Why.
        down: Down,
    },
}

/// A new connection.
#[derive(Debug)]
pub struct Up {
    /// Its near end.
    pub link: Link,
    /// Who is at the far end, where it can be reached, and where it stands by its membership.
    pub peer: PeerInfo,
    /// The membership by which it was let in.
    pub membership: Membership,
    /// The far end's address.
    pub remote: SocketAddr,
    /// The dial that it comes from; `None` if the peer dialled.
    pub dial: Option<u64>,
}

/// What was heard on a connection.
#[derive(Debug)]
pub enum Heard {
    /// A capability that the fleet has signed, with what is to prove that it covers digests which it does not list. Subject,
    /// time and proofs are for the one who acts on it to check.
    Capability(Box<Capability>, Vec<Proof>),
    /// Signed things, not yet opened.
    Signed(Vec<Envelope>),
    /// A question.
    Ask {
        /// To be repeated.
        id: u32,
        /// What.
        question: Question,
    },
    /// An answer.
    Tell {
        /// The question's.
        id: u32,
        /// What.
        answer: Answer,
    },
    /// What the peer holds.
    Have {
        /// The blob.
        digest: Digest,
        /// Which pieces.
        have: Have,
    },
    /// The peer asks for a piece.
    Request {
        /// The peer's id for it.
        id: u32,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
        /// From which byte of the piece on.
        offset: u32,
        /// How urgent.
        priority: Priority,
    },
    /// The peer takes a request back.
    Cancel {
        /// The peer's id for it.
        id: u32,
    },
    /// The peer will not serve a request of ours.
    Refused {
        /// The core's request.
        request: RequestId,
        /// Why.
        reason: RefuseReason,
    },
    /// The peer names others.
    Peers {
        /// Interested in this image.
        image: Digest,
        /// Who.
        peers: Vec<PeerInfo>,
    },
    /// The peer got a bad piece from us.
    BadPiece {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: u32,
    },
    /// Bytes have come for a request.
    Progress {
        /// The core's request.
        request: RequestId,
        /// Bytes of the piece that are there.
        bytes: u64,
    },
    /// A piece is verified and stored.
    Stored {
        /// The core's request.
        request: RequestId,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Bytes of it that came on this connection.
        bytes: u64,
    },
    /// A piece did not have its hash.
    Corrupt {
        /// The core's request.
        request: RequestId,
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: PieceIndex,
        /// Whether every byte came from this peer.
        sole_sender: bool,
    },
    /// A piece could not be written here.
    WriteFailed {
        /// The core's request.
        request: RequestId,
        /// The blob.
        digest: Digest,
        /// Whether the disk is full.
        full: bool,
    },
    /// What came of a piece whose request was taken back while its bytes were being written.
    Returned(Box<Partial>),
    /// All bytes of an upload are with the kernel, or it was taken back, or failed here.
    UploadEnded {
        /// The upload.
        upload: UploadId,
        /// Bytes sent.
        bytes: u64,
    },
}

/// Why a connection is gone.
#[derive(Debug, thiserror::Error)]
pub enum Down {
    /// The peer said so.
    #[error("the peer closed the connection: {0:?}")]
    Closed(CloseReason),
    /// This side ended it.
    #[error("closed from here: {0:?}")]
    Here(CloseReason),
    /// The socket broke, or ended without a word.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer fell silent, or took nothing.
    #[error("the peer {0}")]
    Stalled(&'static str),
}

/// All that connections of one node share.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    /// `None` in mode `plain`.
    tls: Option<tls::Tls>,
    fleet: Arc<dyn Fleet>,
    me: RwLock<PeerInfo>,
    counters: Arc<Counters>,
    events: mpsc::Sender<Event>,
    tasks: TaskTracker,
    stop: CancellationToken,
    next_link: AtomicU64,
    upload: Rate,
    download: Rate,
    /// Places for incoming connections.
    incoming: Arc<Semaphore>,
    disk: disk::Disk,
    buffers: Arc<buffers::Buffers>,
}

/// How an endpoint behaves.
#[derive(Debug, Clone, Default)]
pub struct EndpointConfig {
    /// How bytes travel. Both ends must agree.
    pub mode: Mode,
    /// Most blob bytes a second sent to peers.
    pub upload_bytes_per_s: Option<u64>,
    /// Most blob bytes a second taken from peers.
    pub download_bytes_per_s: Option<u64>,
    /// Caps that what is sent to peers counts for besides.
    pub upload_within: Vec<Arc<Rate>>,
    /// Caps that what is taken from peers counts for besides.
    pub download_within: Vec<Arc<Rate>>,
    /// Most incoming connections, if not [`INCOMING_MAX`].
    pub incoming_max: Option<usize>,
}

impl Endpoint {
    /// An endpoint for `identity`. Its events go to the returned queue; its tasks end when `stop` is cancelled.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        identity: Identity,
        config: EndpointConfig,
        fleet: Arc<dyn Fleet>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<(Self, mpsc::Receiver<Event>), TlsSetupError> {
        let tls = match config.mode {
            Mode::Tls => Some(tls::Tls::new(&identity)?),
            Mode::Plain => None,
        };
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let me = PeerInfo { node: identity.node(), peer: Vec::new(), libp2p: Vec::new(), labels: Labels::default() };
        let shared = Shared {
            identity,
            tls,
            fleet,
            me: RwLock::new(me),
            counters: Arc::default(),
            events,
            tasks,
            stop,
            next_link: AtomicU64::new(1),
            upload: Rate::new(config.upload_bytes_per_s).within(config.upload_within),
            download: Rate::new(config.download_bytes_per_s).within(config.download_within),
            incoming: Arc::new(Semaphore::new(config.incoming_max.unwrap_or(INCOMING_MAX))),
            disk: disk::Disk::default(),
            buffers: Arc::default(),
        };
        Ok((Self { shared: Arc::new(shared) }, queue))
    }

    /// Who this node is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.identity.node()
    }

    /// What greetings say of this node from now on.
    pub fn set_self(&self, me: PeerInfo) {
        *self.shared.me.write().unwrap_or_else(PoisonError::into_inner) = me;
    }

    /// What greetings say of this node.
    #[must_use]
    pub fn me(&self) -> PeerInfo {
        self.shared.me.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// Dials the addresses, best first, until one answers as `node` (as anybody, if `None`). Answered by [`Event::Up`] or
    /// [`Event::DialFailed`] with the number `dial`.
    pub fn dial(&self, dial: u64, addresses: Vec<SocketAddr>, node: Option<NodeId>) {
        let endpoint = self.clone();
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = endpoint.dial_any(dial, addresses, node) => {}
            }
        });
    }

    /// Tries the addresses one beside the other, each a little after the one before, and greets on those that answer. An
    /// address at which nobody is costs its head start and no more.
    async fn dial_any(&self, dial: u64, addresses: Vec<SocketAddr>, node: Option<NodeId>) {
        let (mut left, mut connecting) = (addresses.into_iter(), FuturesUnordered::new());
        let mut error = GreetError::NoAddress;
        loop {
            match left.next() {
                Some(address) => connecting.push(timeout(CONNECT_TIMEOUT, TcpStream::connect(address))),
                None if connecting.is_empty() => break,
                None => {}
            }
            let tcp = tokio::select! {
                Some(tcp) = connecting.next() => tcp,
                () = tokio::time::sleep(NEXT_ADDRESS_AFTER), if left.len() > 0 => continue,
            };
            let greet =
                async { greeting::greet(&self.shared, tcp.map_err(|_| GreetError::Timeout)??, Some(node)).await };
            match timeout(HANDSHAKE_TIMEOUT, greet).await {
                Ok(Ok(greeted)) => return self.up(greeted, Some(dial), None).await,
                Ok(Err(failed)) => error = failed,
                Err(_) => error = GreetError::Timeout,
            }
        }
        let _ = self.shared.events.send(Event::DialFailed { dial, error }).await;
    }

    /// Announces a greeted connection and starts its tasks. `place`: held while it lasts.
    async fn up(&self, greeted: Greeted, dial: Option<u64>, place: Option<OwnedSemaphorePermit>) {
        let shared = &self.shared;
        let id = LinkId(shared.next_link.fetch_add(1, Ordering::Relaxed));
        let (link, tasks, queue) = Tasks::new(id, shared, greeted.peer.node);
        let Greeted { peer, membership, remote, reader, writer } = greeted;
        if shared.events.send(Event::Up(Box::new(Up { link, peer, membership, remote, dial }))).await.is_err() {
            return;
        }
        shared.counters.connected();
        shared.tasks.spawn(async move {
            tasks.run(reader, writer, queue).await;
            drop(place);
        });
    }
}
