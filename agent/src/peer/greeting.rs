//! The greeting: who is there, which version is spoken, and whether it is a member.
//!
//! Both sides send their hello at once. In mode `tls` the certificate has shown who the peer is, and the hello must name
//! the same node; in mode `plain` each then signs the other's nonce. Nothing is read past the greeting's own frames.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use ed25519_dalek::{Signature, VerifyingKey};
use shoal_proto::{
    PROTOCOL,
    envelope::EnvelopeError,
    member::{NotAdmitted, admit},
    message::{ADDRESSES_MAX, CloseReason, FrameHeader, HEADER_LEN, KIND_MESSAGE, Message, PeerInfo, proof_bytes},
    signed::{Membership, NodeId, UnixSeconds},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    CLOSE_TIMEOUT, Refused, Shared,
    frames::Source,
    tls::TlsFault,
    wire::{Busy, Wire},
    writer::Sink,
};

/// Largest frame of a greeting: the hello with its membership is a few hundred bytes. What is larger is garbage, and is
/// not waited for.
const GREETING_LEN_MAX: usize = 8 << 10;
/// Ports below are other services': nobody gets us to dial them.
const PORT_MIN: u16 = 1024;

/// Why no connection came of a dial or an accepted socket.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// No address to dial is known.
    #[error("no address is known")]
    NoAddress,
    /// It took too long.
    #[error("no greeting in time")]
    Timeout,
    /// The socket broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is not the peer protocol.
    #[error("not the peer protocol: {0}")]
    Garbage(String),
    /// The peer closed with a reason.
    #[error("the peer closed the connection: {0:?}")]
    Closed(CloseReason),
    /// The versions have nothing in common.
    #[error("the peer speaks another version of the protocol")]
    Version,
    /// No membership, or none that holds here now.
    #[error("the peer is not let in: {0}")]
    NotAdmitted(#[from] NotAdmitted),
    /// Another node than the one dialled, or this node itself.
    #[error("{found:?} answers there")]
    WrongNode {
        /// Who.
        found: NodeId,
    },
}

impl GreetError {
    /// What is said to the peer; nothing where nobody would understand.
    const fn close_reason(&self) -> Option<CloseReason> {
        match self {
            Self::NoAddress | Self::Timeout | Self::Io(_) | Self::Closed(_) => None,
            Self::Garbage(_) | Self::WrongNode { .. } => Some(CloseReason::Protocol),
            Self::Version => Some(CloseReason::Version),
            Self::NotAdmitted(reason) => Some(reason.close_reason()),
        }
    }

    /// What is counted, if anything is.
    pub(super) const fn refused(&self) -> Option<Refused> {
        match self {
            Self::NoAddress | Self::Closed(_) => None,
            Self::Timeout | Self::Io(_) => Some(Refused::Timeout),
            Self::Garbage(_) => Some(Refused::Garbage),
            Self::Version => Some(Refused::Version),
            Self::NotAdmitted(NotAdmitted::NotYet | NotAdmitted::Expired) => Some(Refused::Expired),
            Self::NotAdmitted(NotAdmitted::Revoked) => Some(Refused::Revoked),
            Self::NotAdmitted(_) => Some(Refused::NotAMember),
            Self::WrongNode { .. } => Some(Refused::WrongNode),
        }
    }
}

impl From<TlsFault> for GreetError {
    fn from(fault: TlsFault) -> Self {
        match fault {
            // rustls reports what it cannot read as invalid data; the rest is the socket's.
            TlsFault::Io(error) if error.kind() != io::ErrorKind::InvalidData => Self::Io(error),
            TlsFault::Io(_) | TlsFault::Alpn | TlsFault::Certificate => Self::Garbage(fault.to_string()),
        }
    }
}

/// A peer that has shown who it is.
pub struct Greeted {
    /// Who, where it says that it listens, and the labels of its membership.
    pub peer: PeerInfo,
    /// By which it was let in.
    pub membership: Membership,
    /// The far end's address.
    pub remote: SocketAddr,
    pub(super) reader: Source,
    pub(super) writer: Sink,
}

impl std::fmt::Debug for Greeted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Greeted").field("peer", &self.peer).field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Greeted {
    /// Closes the connection and says why.
    pub(super) async fn turn_away(mut self, reason: CloseReason) {
        let goodbye = async {
            self.writer.write(&Message::Close { reason }.to_frame()).await?;
            self.writer.shutdown().await
        };
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }
}

/// Greets on a fresh socket. `dialled`: this side has dialled, and whom if it knows.
pub(super) async fn greet(
    shared: &Shared,
    tcp: TcpStream,
    dialled: Option<Option<NodeId>>,
) -> Result<Greeted, GreetError> {
    let remote = tcp.peer_addr()?;
    tcp.set_nodelay(true)?;
    let expected = dialled.flatten();
    match &shared.tls {
        Some(tls) => {
            let wire = Wire::new(tcp, Arc::clone(&shared.buffers));
            let (busy, unsent) = (wire.busy(), wire.unsent());
            let (mut stream, node) =
                if dialled.is_some() { tls.connect(wire).await? } else { tls.accept(wire).await? };
            let (peer, membership) = exchange(shared, &mut stream, Some(node), expected, remote.ip()).await?;
            let (reader, writer) = tokio::io::split(stream);
            let reader = Source { bytes: Box::new(reader), busy };
            Ok(Greeted { peer, membership, remote, reader, writer: Sink::Tls(writer, unsent) })
        }
        None => {
            let mut stream = tcp;
            let (peer, membership) = exchange(shared, &mut stream, None, expected, remote.ip()).await?;
            let (reader, writer) = stream.into_split();
            Ok(Greeted {
                peer,
                membership,
                remote,
                reader: Source { bytes: Box::new(reader), busy: Busy::default() },
                writer: Sink::Plain(writer),
            })
        }
    }
}

/// Exchanges greetings; a peer that is turned away is told why.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    stream: &mut S,
    shown: Option<NodeId>,
    expected: Option<NodeId>,
    remote: IpAddr,
) -> Result<(PeerInfo, Membership), GreetError> {
    let result = converse(shared, stream, shown, expected, remote).await;
    if let Err(error) = &result
        && let Some(reason) = error.close_reason()
    {
        let goodbye = async {
            stream.write_all(&Message::Close { reason }.to_frame()).await?;
            stream.shutdown().await
        };
        let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    }
    result
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    shared: &Shared,
    stream: &mut S,
    shown: Option<NodeId>,
    expected: Option<NodeId>,
    remote: IpAddr,
) -> Result<(PeerInfo, Membership), GreetError> {
    let me = shared.me.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let my_node = me.node;
    let mut my_nonce = [0; 32];
    getrandom::fill(&mut my_nonce).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let membership = shared.fleet.membership();
    send(stream, &Message::Hello { protocol: PROTOCOL, me, nonce: my_nonce, membership }).await?;
    let Message::Hello { protocol, me: peer, nonce, membership } = receive(stream).await? else {
        return Err(GreetError::Garbage("it does not begin with a hello".into()));
    };
    if PROTOCOL.agree(protocol).is_none() {
        return Err(GreetError::Version);
    }
    let node = peer.node;
    let other = shown.is_some_and(|shown| shown != node) || expected.is_some_and(|expected| expected != node);
    if other || node == my_node {
        return Err(GreetError::WrongNode { found: shown.unwrap_or(node) });
    }
    if shown.is_none() {
        let signature = shared.identity.sign(&proof_bytes(&my_node, &node, &nonce, &my_nonce));
        send(stream, &Message::Proof { signature }).await?;
        let Message::Proof { signature } = receive(stream).await? else {
            return Err(GreetError::Garbage("the proof is missing".into()));
        };
        let key = VerifyingKey::from_bytes(&node.0).ok();
        let bytes = proof_bytes(&node, &my_node, &my_nonce, &nonce);
        let holds = key.is_some_and(|key| key.verify_strict(&bytes, &Signature::from_bytes(&signature)).is_ok());
        if !holds {
            return Err(GreetError::WrongNode { found: node });
        }
    }
    let fleet = &*shared.fleet;
    let admitted = admit(membership.as_ref(), &node, &*fleet.keys(), |serial| fleet.is_revoked(serial), unix_now());
    if let Err(NotAdmitted::Foreign(EnvelopeError::Key { .. })) = &admitted {
        fleet.unknown_key();
    }
    let membership = admitted?;
    Ok((PeerInfo { labels: membership.labels.clone(), ..tidy(peer, Some(remote)) }, membership))
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &Message) -> Result<(), GreetError> {
    stream.write_all(&message.to_frame()).await?;
    Ok(stream.flush().await?)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Message, GreetError> {
    let garbage = |error: shoal_proto::message::FrameError| GreetError::Garbage(error.to_string());
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::parse(header).map_err(garbage)?;
    if header.kind != KIND_MESSAGE || header.body_len > GREETING_LEN_MAX {
        return Err(GreetError::Garbage("it does not begin with a hello".into()));
    }
    let mut body = vec![0; header.body_len];
    stream.read_exact(&mut body).await?;
    let message = Message::from_body(&body).map_err(garbage)?;
    if let Message::Close { reason } = message { Err(GreetError::Closed(reason)) } else { Ok(message) }
}

/// A node's addresses as far as they may be dialled: bounded, real, and no well-known ports. An unspecified address
/// stands for the one that the node is seen at; without that it is dropped.
pub(super) fn tidy(mut peer: PeerInfo, seen_at: Option<IpAddr>) -> PeerInfo {
    for list in [&mut peer.peer, &mut peer.libp2p] {
        let mut kept = Vec::new();
        for address in &*list {
            let ip = if address.ip().is_unspecified() { seen_at } else { Some(address.ip()) };
            let Some(ip) = ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_multicast()) else { continue };
            let address = SocketAddr::new(ip, address.port());
            if address.port() >= PORT_MIN && !kept.contains(&address) && kept.len() < ADDRESSES_MAX {
                kept.push(address);
            }
        }
        *list = kept;
    }
    peer
}

pub(super) fn unix_now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
