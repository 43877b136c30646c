//! Two endpoints on loopback, in both modes, and raw clients that misbehave.
#![expect(clippy::wildcard_enum_match_arm, reason = "a test names the event that it expects")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use shoal_proto::{
    PROTOCOL, ProtocolVersion,
    layout::Layout,
    message::{CloseReason, FrameHeader, HEADER_LEN, Message, data_header, proof_bytes},
    signed::{Membership, Purpose, Statement, Version},
    tree::{BlobHasher, PieceHashes},
};
use shoal_transfer::ids::{Id as _, RequestId, UploadId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use super::*;
use crate::store::{Blob, OpenedStatement, Store, StoreConfig};

mod attacks;
mod manners;

const PIECE: usize = 256 << 10;
const _: () = assert!(PIECE as u64 == shoal_proto::layout::PIECE_LEN_MIN);
const SOON: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct TestFleet {
    keys: Arc<KeySet>,
    membership: Mutex<Option<Envelope>>,
    revoked: Option<u64>,
}

impl Fleet for TestFleet {
    fn keys(&self) -> Arc<KeySet> {
        self.keys.clone()
    }

    fn membership(&self) -> Option<Envelope> {
        self.membership.lock().unwrap().clone()
    }

    fn is_revoked(&self, serial: u64) -> bool {
        self.revoked == Some(serial)
    }

    fn unknown_key(&self) {}
}

fn seeder_key() -> SigningKey {
    SigningKey::from_bytes(&[200; 32])
}

fn identity(n: u8) -> Identity {
    Identity::from_secret(&[n; 32])
}

fn membership(n: u8) -> Membership {
    let now = greeting::unix_now();
    let labels = Labels { region: Some("eu".parse().unwrap()), ..Labels::default() };
    Membership { node: identity(n).node(), labels, not_before: now - 60, not_after: now + 600, serial: u64::from(n) }
}

fn fleet(membership: &Membership, signer: &SigningKey) -> TestFleet {
    let key = seeder_key().verifying_key().to_bytes();
    let keys = KeySet { version: Version::default(), keys: vec![(Purpose::Member, key), (Purpose::Capability, key)] };
    let membership = Mutex::new(Some(Envelope::sign(membership, signer)));
    TestFleet { keys: Arc::new(keys), membership, revoked: None }
}

struct Side {
    endpoint: Endpoint,
    events: mpsc::Receiver<Event>,
    address: SocketAddr,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Side {
    async fn new(n: u8, mode: Mode) -> Self {
        Self::with(n, mode, fleet(&membership(n), &seeder_key())).await
    }

    async fn with(n: u8, mode: Mode, fleet: TestFleet) -> Self {
        Self::configured(n, EndpointConfig { mode, ..EndpointConfig::default() }, fleet).await
    }

    async fn configured(n: u8, config: EndpointConfig, fleet: TestFleet) -> Self {
        let stop = CancellationToken::new();
        let (endpoint, events) = Endpoint::new(identity(n), config, Arc::new(fleet), TaskTracker::new(), stop).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        endpoint.listen(listener);
        let unspecified = SocketAddr::from(([0, 0, 0, 0], address.port()));
        let node = identity(n).node();
        endpoint.set_self(PeerInfo { node, peer: vec![unspecified], libp2p: vec![], labels: Labels::default() });
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { dir: dir.path().to_owned(), quota_bytes: 1 << 30, boot_id: "boot".into() };
        let store = Store::open(config).unwrap();
        Self { endpoint, events, address, store, _dir: dir }
    }

    fn blob(&self, data: &[u8]) -> Arc<Blob> {
        let (statement, hashes) = describe(data);
        let envelope = Envelope::sign(&statement, &seeder_key());
        self.store.begin(&OpenedStatement { envelope, statement }, hashes).unwrap()
    }

    fn full_blob(&self, data: &[u8]) -> Arc<Blob> {
        let blob = self.blob(data);
        for piece in blob.layout().iter() {
            let range = blob.layout().range(piece);
            let mut writer = blob.writer(piece).unwrap();
            writer.write(&data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]).unwrap();
            writer.finish().unwrap();
        }
        blob
    }

    async fn event(&mut self) -> Event {
        timeout(SOON, self.events.recv()).await.expect("an event comes soon").expect("the endpoint lives")
    }

    async fn up(&mut self) -> Up {
        match self.event().await {
            Event::Up(up) => *up,
            other => panic!("{other:?}"),
        }
    }

    async fn down(&mut self) -> Down {
        loop {
            if let Event::Down { down, .. } = self.event().await {
                return down;
            }
        }
    }

    /// The next thing heard but progress.
    async fn heard(&mut self) -> Heard {
        loop {
            match self.event().await {
                Event::Heard { heard: Heard::Progress { .. }, .. } => {}
                Event::Heard { heard, .. } => return heard,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn dial_failed(&mut self) -> GreetError {
        match self.event().await {
            Event::DialFailed { error, .. } => error,
            other => panic!("{other:?}"),
        }
    }

    async fn wait_refused(&self, why: Refused) {
        let counted = async {
            while self.endpoint.counters().refused(why) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, counted).await.unwrap_or_else(|_| panic!("{why:?} is counted"));
    }
}

fn describe(data: &[u8]) -> (Statement, PieceHashes) {
    let mut hasher = BlobHasher::new();
    hasher.update(data);
    let (root, hashes) = hasher.finish().unwrap();
    (Statement { digest: Digest::of(data), size: data.len() as u64, root }, hashes)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap()).collect()
}

fn request(n: u32) -> RequestId {
    RequestId::new(n, 0)
}

async fn pair(mode: Mode) -> (Side, Up, Side, Up) {
    connected(Side::new(1, mode).await, Side::new(2, mode).await).await
}

async fn connected(mut a: Side, mut b: Side) -> (Side, Up, Side, Up) {
    a.endpoint.dial(7, vec![b.address], Some(identity(2).node()));
    let (up_a, up_b) = (a.up().await, b.up().await);
    (a, up_a, b, up_b)
}

/// `to` asks `from` for a piece and gets it, or what goes wrong.
async fn pull(to: &mut Side, link: &Link, partial: Partial, from: &mut Side, back: &Link, blob: &Arc<Blob>) -> Heard {
    link.fetch(Fetch { request: request(1), partial, priority: Priority::Normal }).unwrap();
    let Heard::Request { id, digest, piece, offset, priority } = from.heard().await else { panic!("a request comes") };
    assert_eq!(digest, *blob.digest());
    let piece = blob.layout().piece(piece).unwrap();
    let upload = UploadId::new(id, 0);
    back.serve(Serve { upload, request: id, blob: blob.clone(), piece, offset, priority }).unwrap();
    let Heard::UploadEnded { bytes, .. } = from.heard().await else { panic!("the upload ends") };
    assert_eq!(bytes, blob.layout().len_of(piece) - u64::from(offset));
    to.heard().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_moves_between_two_nodes_in_both_modes() {
    for mode in [Mode::Tls, Mode::Plain] {
        let (mut a, up_a, mut b, up_b) = pair(mode).await;
        assert_eq!((up_a.peer.node, up_a.dial), (identity(2).node(), Some(7)));
        assert_eq!((up_b.peer.node, up_b.dial), (identity(1).node(), None));
        assert_eq!(up_b.peer.peer, [a.address], "an unspecified address is the one it is seen at");
        assert_eq!(up_b.peer.labels, membership(1).labels, "labels are the membership's");
        let data = bytes(2 * PIECE + 5);
        let (full, empty) = (a.full_blob(&data), b.blob(&data));
        for piece in full.layout().iter() {
            let partial = Partial::new(empty.writer(piece).unwrap());
            let heard = pull(&mut b, &up_b.link, partial, &mut a, &up_a.link, &full).await;
            let Heard::Stored { request: of, piece: stored, bytes, .. } = heard else { panic!("{heard:?}") };
            assert_eq!((of, stored, bytes), (request(1), piece, full.layout().len_of(piece)));
        }
        assert!(empty.is_complete());
        assert_eq!(
            (a.endpoint.counters().sent(), b.endpoint.counters().received()),
            (data.len() as u64, data.len() as u64)
        );
        up_a.link.close(CloseReason::Shutdown);
        assert!(matches!(b.down().await, Down::Closed(CloseReason::Shutdown)));
        assert!(matches!(a.down().await, Down::Here(CloseReason::Shutdown)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_of_a_piece_is_kept_when_the_request_is_taken_back() {
    let (mut a, up_a, mut b, up_b) = pair(Mode::Plain).await;
    let data = bytes(PIECE + 5);
    let (full, empty) = (a.full_blob(&data), b.blob(&data));
    let piece = full.layout().piece(0).unwrap();
    let mut partial = Partial::new(empty.writer(piece).unwrap());
    partial.write(&data[..1000], Sender::Seeder).unwrap();
    up_b.link.fetch(Fetch { request: request(9), partial, priority: Priority::Normal }).unwrap();
    assert!(matches!(a.heard().await, Heard::Request { offset: 1000, .. }));
    let TakenBack::Partial(partial) = up_b.link.take_back(request(9)).unwrap() else { panic!("nothing is in hand") };
    assert!(matches!(a.heard().await, Heard::Cancel { .. }));
    assert!(matches!(up_b.link.take_back(request(9)), Ok(TakenBack::Over)));
    let heard = pull(&mut b, &up_b.link, *partial, &mut a, &up_a.link, &full).await;
    assert!(matches!(heard, Heard::Stored { .. }), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_told_and_counts_for_nothing() {
    for mode in [Mode::Tls, Mode::Plain] {
        let (mut a, up_a, mut b, up_b) = pair(mode).await;
        let data = bytes(PIECE + 5);
        let (full, empty) = (a.full_blob(&data), b.blob(&data));
        std::os::unix::fs::FileExt::write_all_at(&**full.file(), &[data[3] ^ 1], 3).unwrap();
        let piece = full.layout().piece(0).unwrap();
        let partial = Partial::new(empty.writer(piece).unwrap());
        let heard = pull(&mut b, &up_b.link, partial, &mut a, &up_a.link, &full).await;
        assert!(matches!(heard, Heard::Corrupt { sole_sender: true, .. }), "{heard:?}");
        let mut partial = Partial::new(empty.writer(piece).unwrap());
        partial.write(&data[..1], Sender::Seeder).unwrap();
        let heard = pull(&mut b, &up_b.link, partial, &mut a, &up_a.link, &full).await;
        assert!(matches!(heard, Heard::Corrupt { sole_sender: false, .. }), "{heard:?}");
        assert!(!empty.has(piece) && empty.writer(piece).is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_pieces_overtake_others() {
    // Slow enough that the first piece is not through before the last was handed over.
    let slow = EndpointConfig { upload_bytes_per_s: Some(2 * PIECE as u64), ..EndpointConfig::default() };
    let a = Side::configured(1, slow, fleet(&membership(1), &seeder_key())).await;
    let (mut a, up_a, b, up_b) = connected(a, Side::new(2, Mode::Tls).await).await;
    let data = bytes(8 * PIECE);
    let (full, empty) = (a.full_blob(&data), b.blob(&data));
    for piece in full.layout().iter() {
        let partial = Partial::new(empty.writer(piece).unwrap());
        let fetch = Fetch { request: request(piece.get()), partial, priority: Priority::Normal };
        up_b.link.fetch(fetch).unwrap();
    }
    let mut asked = Vec::new();
    while asked.len() < 8 {
        let Heard::Request { id, piece, offset, .. } = a.heard().await else { panic!("only requests come") };
        asked.push((id, full.layout().piece(piece).unwrap(), offset));
    }
    let urgent = asked[7].1;
    for (id, piece, offset) in asked {
        let priority = if piece == urgent { Priority::Reader } else { Priority::Normal };
        let upload = UploadId::new(piece.get(), 0);
        up_a.link.serve(Serve { upload, request: id, blob: full.clone(), piece, offset, priority }).unwrap();
    }
    let Heard::UploadEnded { upload, .. } = a.heard().await else { panic!("an upload ends") };
    assert_eq!(upload, UploadId::new(urgent.get(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_than_the_one_dialled_is_not_taken() {
    for mode in [Mode::Tls, Mode::Plain] {
        let (mut a, b) = (Side::new(1, mode).await, Side::new(2, mode).await);
        a.endpoint.dial(1, vec![b.address], Some(identity(3).node()));
        let error = a.dial_failed().await;
        assert!(matches!(error, GreetError::WrongNode { found } if found == identity(2).node()), "{error:?}");
        a.endpoint.dial(2, vec![a.address], None);
        let error = a.dial_failed().await;
        assert!(matches!(error, GreetError::WrongNode { .. } | GreetError::Closed(_)), "itself: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_member_is_turned_away_and_told_why() {
    let now = greeting::unix_now();
    let good = membership(2);
    let stranger = SigningKey::from_bytes(&[99; 32]);
    let cases = [
        (fleet(&good, &stranger), CloseReason::NotAMember, Refused::NotAMember),
        (fleet(&membership(3), &seeder_key()), CloseReason::NotAMember, Refused::NotAMember),
        (
            fleet(&Membership { not_after: now - 1, ..good.clone() }, &seeder_key()),
            CloseReason::Expired,
            Refused::Expired,
        ),
        (
            TestFleet { membership: Mutex::new(None), ..fleet(&good, &seeder_key()) },
            CloseReason::NotAMember,
            Refused::NotAMember,
        ),
        (fleet(&Membership { serial: 666, ..good }, &seeder_key()), CloseReason::Revoked, Refused::Revoked),
    ];
    for (fleet_of_b, told, counted) in cases {
        let fleet_of_a = TestFleet { revoked: Some(666), ..fleet(&membership(1), &seeder_key()) };
        let a = Side::with(1, Mode::Tls, fleet_of_a).await;
        let mut b = Side::with(2, Mode::Tls, fleet_of_b).await;
        b.endpoint.dial(1, vec![a.address], None);
        // The side that is fine may have seen a good membership before it hears that its own is none.
        let reason = match b.event().await {
            Event::DialFailed { error: GreetError::Closed(reason), .. } => reason,
            Event::Up(up) => match b.event().await {
                Event::Down { down: Down::Closed(reason), link } if link == up.link.id() => reason,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, told);
        a.wait_refused(counted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_is_closed_and_counted_and_nothing_else() {
    for mode in [Mode::Tls, Mode::Plain] {
        let mut a = Side::new(1, mode).await;
        let mut socket = TcpStream::connect(a.address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(SOON, socket.read_to_end(&mut rest)).await.expect("it is closed");
        a.wait_refused(Refused::Garbage).await;
        assert!(a.events.try_recv().is_err());
    }
}

/// A client of mode `plain` that greets as it should, and then says what the test wants.
struct Raw {
    socket: TcpStream,
}

impl Raw {
    async fn connect(address: SocketAddr, protocol: ProtocolVersion) -> Self {
        let mut raw = Self { socket: TcpStream::connect(address).await.unwrap() };
        let (me, nonce) = (identity(9), [5; 32]);
        let info = PeerInfo { node: me.node(), peer: vec![], libp2p: vec![], labels: Labels::default() };
        let envelope = Envelope::sign(&membership(9), &seeder_key());
        raw.say(&Message::Hello { protocol, me: info, nonce, membership: Some(envelope) }).await;
        if let Message::Hello { me: peer, nonce: theirs, .. } = raw.hear().await {
            let signature = me.sign(&proof_bytes(&me.node(), &peer.node, &theirs, &nonce));
            raw.say(&Message::Proof { signature }).await;
        }
        raw
    }

    async fn say(&mut self, message: &Message) {
        self.socket.write_all(&message.to_frame()).await.unwrap();
    }

    async fn hear(&mut self) -> Message {
        let mut header = [0; HEADER_LEN];
        self.socket.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; FrameHeader::parse(header).unwrap().body_len];
        self.socket.read_exact(&mut body).await.unwrap();
        Message::from_body(&body).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_major_version_is_closed_with_that_reason() {
    let a = Side::new(1, Mode::Plain).await;
    let next = ProtocolVersion { major: PROTOCOL.major + 1, minor: 0 };
    let mut raw = Raw::connect(a.address, next).await;
    assert_eq!(raw.hear().await, Message::Close { reason: CloseReason::Version });
    a.wait_refused(Refused::Version).await;
    let later = ProtocolVersion { minor: PROTOCOL.minor + 1, ..PROTOCOL };
    let (mut a, mut raw) = (a, Raw::connect(a_address(&Side::new(1, Mode::Plain).await), later).await);
    drop(a.events.try_recv());
    assert!(matches!(raw.hear().await, Message::Proof { .. }), "a later minor is welcome");
}

fn a_address(side: &Side) -> SocketAddr {
    side.address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_breaks_the_protocol_ends_the_connection() {
    let bad_frames: [&[u8]; 5] = [
        &[0xff, 0xff, 0xff, 0x7f, 1],
        &[0, 0, 0, 0, 1],
        &[3, 0, 0, 0, 1, 0xff, 0xff],
        &data_header(1, 0),
        &[data_header(1, 3).as_slice(), b"abc"].concat(),
    ];
    for frame in bad_frames {
        let mut a = Side::new(1, Mode::Plain).await;
        let mut raw = Raw::connect(a.address, PROTOCOL).await;
        assert!(matches!(raw.hear().await, Message::Proof { .. }));
        let _up = a.up().await;
        raw.socket.write_all(frame).await.unwrap();
        let down = a.down().await;
        assert!(matches!(down, Down::Protocol(_)), "{frame:?}: {down:?}");
        assert_eq!(raw.hear().await, Message::Close { reason: CloseReason::Protocol });
        assert_eq!(a.endpoint.counters().refused(Refused::Violation), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_data_than_was_asked_for_ends_the_connection_and_stores_nothing() {
    let mut a = Side::new(1, Mode::Plain).await;
    let mut raw = Raw::connect(a.address, PROTOCOL).await;
    assert!(matches!(raw.hear().await, Message::Proof { .. }));
    let up = a.up().await;
    let blob = a.blob(&bytes(1000));
    let piece = Layout::new(1000).unwrap().piece(0).unwrap();
    let partial = Partial::new(blob.writer(piece).unwrap());
    up.link.fetch(Fetch { request: request(1), partial, priority: Priority::Normal }).unwrap();
    let Message::Request { id, .. } = raw.hear().await else { panic!("a request comes") };
    raw.socket.write_all(&[data_header(id, 1001).as_slice(), &bytes(1001)].concat()).await.unwrap();
    assert!(matches!(a.down().await, Down::Protocol(_)));
    assert!(!blob.has(piece));
    assert_eq!(up.link.leftovers().len(), 1, "what was begun can go on elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_later_versions_are_skipped() {
    let mut a = Side::new(1, Mode::Plain).await;
    let mut raw = Raw::connect(a.address, PROTOCOL).await;
    assert!(matches!(raw.hear().await, Message::Proof { .. }));
    let _up = a.up().await;
    raw.socket.write_all(&[3, 0, 0, 0, 77, 1, 2]).await.unwrap();
    raw.say(&Message::Cancel { id: 3 }).await;
    assert!(matches!(a.heard().await, Heard::Cancel { id: 3 }));
}
