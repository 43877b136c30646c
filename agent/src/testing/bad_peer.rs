//! Peers that speak the peer protocol (mode `plain`) and then do what no agent does.
#![expect(clippy::wildcard_enum_match_arm, reason = "it answers what its script is about, and ignores the rest")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use shoal_proto::{
    Digest, PROTOCOL,
    have::Have,
    layout::Layout,
    message::{
        Answer, FrameHeader, HEADER_LEN, KIND_MESSAGE, Message, PeerInfo, Question, RefuseReason, data_header,
        proof_bytes,
    },
    signed::Labels,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{FakeSeeder, lock};
use crate::identity::Identity;

/// Blob bytes in a frame of a bad peer.
const FRAME: usize = 64 << 10;

/// What a peer that claims to hold everything does when it is asked for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Serves it: the one that makes a pull possible.
    Good,
    /// Flips a bit.
    Wrong,
    /// Nothing.
    Silent,
    /// Sends a byte a second.
    Trickle,
    /// Sends a byte too many.
    TooMuch,
    /// Sends it under the id of a request that nobody made.
    Unasked,
    /// It comes to no request: the have-set is of another length.
    WrongSet,
    /// Ends the connection.
    Flap,
    /// Refuses.
    Refuse(RefuseReason),
}

#[derive(Debug, Default)]
struct Seen {
    connections: AtomicU32,
    requests: AtomicU32,
}

/// A peer on a port of its own.
#[derive(Debug)]
pub(crate) struct BadPeer {
    pub(crate) info: PeerInfo,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// All that its sessions share.
#[derive(Debug)]
struct Script {
    manner: Manner,
    secret: [u8; 32],
    seeder: Arc<FakeSeeder>,
    blobs: BTreeMap<Digest, Bytes>,
    seen: Arc<Seen>,
}

impl BadPeer {
    /// A member of the seeder's fleet that claims to hold all that the seeder holds now.
    pub(crate) async fn start(n: u8, seeder: &Arc<FakeSeeder>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (secret, seen) = ([n; 32], Arc::new(Seen::default()));
        let peer = vec![listener.local_addr().unwrap()];
        let node = Identity::from_secret(&secret).node();
        let info = PeerInfo { node, peer, libp2p: vec![], labels: Labels::default() };
        let blobs = lock(&seeder.blobs).clone();
        let script = Arc::new(Script { manner, secret, seeder: seeder.clone(), blobs, seen: seen.clone() });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                script.seen.connections.fetch_add(1, Ordering::Relaxed);
                let script = script.clone();
                sessions.spawn(async move { script.session(socket).await });
            }
        });
        Self { info, seen, _tasks: tasks }
    }

    pub(crate) fn connections(&self) -> u32 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u32 {
        self.seen.requests.load(Ordering::Relaxed)
    }
}

impl Script {
    /// Talks until the other side or the manner ends it.
    async fn session(&self, socket: TcpStream) -> Option<()> {
        let mut wire = Wire::greet(socket, self.secret, &self.seeder).await?;
        let mut told = Vec::new();
        loop {
            match wire.hear().await? {
                Message::Have { digest, .. } if self.blobs.contains_key(&digest) && !told.contains(&digest) => {
                    told.push(digest);
                    let have = if self.manner == Manner::WrongSet { Have::Set(vec![0xff; 77]) } else { Have::All };
                    wire.say(&Message::Have { digest, have }).await?;
                }
                Message::Ask { id, question: Question::Hashes(digest) } => {
                    let mut hashes = self.seeder.describe(&digest)?.1.as_slice().to_vec();
                    if self.manner != Manner::Good {
                        hashes.iter_mut().for_each(|hash| hash[0] ^= 1);
                    }
                    wire.say(&Message::Tell { id, answer: Answer::Hashes(hashes) }).await?;
                }
                Message::Ask { id, .. } => wire.say(&Message::Tell { id, answer: Answer::Nothing }).await?,
                Message::Request { id, digest, piece, offset, .. } => {
                    self.seen.requests.fetch_add(1, Ordering::Relaxed);
                    let data = self.blobs.get(&digest)?;
                    let layout = Layout::new(data.len() as u64).ok()?;
                    let range = layout.range(layout.piece(piece)?);
                    let from = usize::try_from(range.start).ok()? + usize::try_from(offset).ok()?;
                    self.asked(&mut wire, id, &data[from..usize::try_from(range.end).ok()?]).await?;
                }
                _ => {}
            }
        }
    }

    async fn asked(&self, wire: &mut Wire, id: u32, data: &[u8]) -> Option<()> {
        match self.manner {
            Manner::Good => wire.data(id, data).await,
            Manner::Wrong => {
                let mut data = data.to_vec();
                data[0] ^= 1;
                wire.data(id, &data).await
            }
            Manner::Silent | Manner::WrongSet => Some(()),
            Manner::Trickle => {
                for byte in data {
                    wire.data(id, &[*byte]).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Some(())
            }
            Manner::TooMuch => wire.data(id, &[data, &[0]].concat()).await,
            Manner::Unasked => wire.data(id.wrapping_add(1000), data).await,
            Manner::Flap => None,
            Manner::Refuse(reason) => wire.say(&Message::Refuse { id, reason }).await,
        }
    }
}

/// A greeted connection of mode `plain`, to say on it what one wants. `None`: it has ended.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: TcpStream,
}

impl Wire {
    /// Dials as the member with that secret.
    pub(crate) async fn dial(address: SocketAddr, secret: [u8; 32], seeder: &FakeSeeder) -> Option<Self> {
        Self::greet(TcpStream::connect(address).await.ok()?, secret, seeder).await
    }

    async fn greet(socket: TcpStream, secret: [u8; 32], seeder: &FakeSeeder) -> Option<Self> {
        let (mut wire, me, nonce) = (Self { socket }, Identity::from_secret(&secret), [5; 32]);
        let info = PeerInfo { node: me.node(), peer: vec![], libp2p: vec![], labels: Labels::default() };
        let membership = Some(seeder.membership(me.node(), &Labels::default()));
        wire.say(&Message::Hello { protocol: PROTOCOL, me: info, nonce, membership }).await?;
        let Message::Hello { me: peer, nonce: theirs, .. } = wire.hear().await? else { return None };
        let signature = me.sign(&proof_bytes(&me.node(), &peer.node, &theirs, &nonce));
        wire.say(&Message::Proof { signature }).await?;
        matches!(wire.hear().await?, Message::Proof { .. }).then_some(wire)
    }

    pub(crate) async fn say(&mut self, message: &Message) -> Option<()> {
        self.socket.write_all(&message.to_frame()).await.ok()
    }

    /// The next message; data is skipped.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        loop {
            let mut header = [0; HEADER_LEN];
            self.socket.read_exact(&mut header).await.ok()?;
            let header = FrameHeader::parse(header).ok()?;
            let mut body = vec![0; header.body_len];
            self.socket.read_exact(&mut body).await.ok()?;
            if header.kind == KIND_MESSAGE {
                return Message::from_body(&body).ok();
            }
        }
    }

    pub(crate) async fn data(&mut self, id: u32, data: &[u8]) -> Option<()> {
        for part in data.chunks(FRAME) {
            self.socket.write_all(&[data_header(id, part.len()).as_slice(), part].concat()).await.ok()?;
        }
        Some(())
    }
}
