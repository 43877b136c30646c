//! What agents ask for.

use std::{collections::BTreeSet, net::SocketAddr};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use http::{Method, StatusCode};
use shoal_proto::{
    Digest,
    api::{
        CONTENT_TYPE, Info, Join, Joined, Meet, Met, PiecesGiven, PiecesWanted, Pull, Pulled, REPLY_LEN_MAX, join_bytes,
    },
    codec::{decode, encode},
    envelope::Envelope,
    have::HaveSet,
    layout::Layout,
    message::PeerInfo,
    signed::{Candidates, Capability, KeySet, Labels, Membership, NodeId, Scope, Statement, TagRecord},
    tree::PieceHashes,
};

use super::client::{Got, TestSeeder, noise};
use crate::{metrics::Payload, time::unix_seconds};

struct Node {
    key: SigningKey,
    labels: Labels,
    membership: Option<Envelope>,
}

impl Node {
    fn new(n: u8, region: &str) -> Self {
        let labels = Labels { region: region.parse().ok(), ..Labels::default() };
        Self { key: SigningKey::from_bytes(&[n; 32]), labels, membership: None }
    }

    fn id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    fn join(&self, root: &[u8; 32], time: u64) -> Join {
        let signature = self.key.sign(&join_bytes(root, &self.id(), time)).to_bytes();
        Join { node: self.id(), time, labels: self.labels.clone(), token: None, signature }
    }

    fn pull(&self, port: u16) -> Pull {
        let addr = SocketAddr::from(([0, 0, 0, 0], port));
        let me = PeerInfo { node: self.id(), peer: vec![addr], libp2p: vec![addr], labels: Labels::default() };
        Pull { membership: self.membership.clone(), me }
    }
}

fn read<T: bincode::Decode<()>>(got: &Got) -> T {
    assert_eq!((got.status, got.header("content-type")), (StatusCode::OK, CONTENT_TYPE), "{:?}", got.body);
    decode::<T, REPLY_LEN_MAX>(&got.body).unwrap()
}

impl TestSeeder {
    async fn post<T: bincode::Encode>(&self, path: &str, body: &T) -> Got {
        self.ask(Method::POST, path).body(encode(body)).send().await
    }

    async fn info(&self) -> Info {
        read(&self.get("/v2/_shoal/info").await)
    }

    async fn keys(&self) -> KeySet {
        let info = self.info().await;
        info.keys.open(&VerifyingKey::from_bytes(&info.root).unwrap()).unwrap()
    }

    async fn member(&self, n: u8, region: &str) -> Node {
        let mut node = Node::new(n, region);
        let root = self.info().await.root;
        let joined: Joined = read(&self.post("/v2/_shoal/join", &node.join(&root, unix_seconds())).await);
        node.membership = Some(joined.membership);
        node
    }

    /// Asks for pieces of a blob of repository `a`; returns which came, and their bytes.
    async fn pieces(
        &self,
        digest: &Digest,
        node: &Node,
        want: &HaveSet,
        max: u16,
        stalled: bool,
    ) -> (PiecesGiven, Bytes) {
        let labels = node.labels.clone();
        let wanted = PiecesWanted { node: node.id(), labels, want: want.to_bytes(), urgent: None, max, stalled };
        let got = self.post(&format!("/v2/a/_shoal/pieces/{digest}"), &wanted).await;
        assert_eq!(got.status, StatusCode::OK, "{:?}", got.body);
        let len = u32::from_le_bytes(got.body[..4].try_into().unwrap()) as usize;
        (decode::<_, REPLY_LEN_MAX>(&got.body[4..4 + len]).unwrap(), got.body.slice(4 + len..))
    }
}

#[tokio::test]
async fn the_fleet_is_the_same_after_a_restart_and_its_root_key_is_nobodys_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut seeder = TestSeeder::start().await;
    let (info, keys) = (seeder.info().await, seeder.keys().await);
    assert!(info.open && keys.keys.len() == 6);
    let mode = std::fs::metadata(seeder.config.data_dir.join("root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    seeder = seeder.restart().await;
    assert_eq!(seeder.info().await, info);
}

#[tokio::test]
async fn who_signs_for_itself_and_in_time_becomes_a_member() {
    let seeder = TestSeeder::start().await;
    let root = seeder.info().await.root;
    let node = seeder.member(1, "eu").await;
    let membership: Membership = node.membership.as_ref().unwrap().open(&seeder.keys().await).unwrap();
    assert_eq!((membership.node, &membership.labels), (node.id(), &node.labels));
    assert!(membership.not_before <= unix_seconds() && membership.not_after > unix_seconds() + 3600);
    let now = unix_seconds();
    let mut forged = node.join(&root, now);
    forged.node = Node::new(2, "eu").id();
    for join in [node.join(&root, now - 700), node.join(&root, now + 700), node.join(&[1; 32], now), forged] {
        let got = seeder.post("/v2/_shoal/join", &join).await;
        assert_eq!((got.status, got.code().as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    }
    let got = seeder.ask(Method::POST, "/v2/_shoal/join").body("junk").send().await;
    assert_eq!(got.status, StatusCode::BAD_REQUEST);
    let closed = TestSeeder::start_with(|config| config.insecure_open = false).await;
    let join = node.join(&closed.info().await.root, now);
    assert!(!closed.info().await.open);
    assert_eq!(closed.post("/v2/_shoal/join", &join).await.code(), "DENIED");
}

#[tokio::test]
async fn a_pull_brings_all_that_a_node_needs() {
    let seeder = TestSeeder::start().await;
    let layers = [noise(3_000_000, 1), noise(100, 2), noise(100, 2)];
    let manifest = seeder.push_image("a", "v1", &layers).await;
    let keys = seeder.keys().await;
    let node = seeder.member(1, "eu").await;
    let pulled: Pulled = read(&seeder.post("/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
    assert_eq!(pulled.digest, Digest::of(manifest.as_bytes()));
    let contents =
        [Bytes::from(manifest), Bytes::from_static(b"{\"config\":true}"), layers[0].clone(), layers[1].clone()];
    let statements: Vec<Statement> = pulled.statements.iter().map(|envelope| envelope.open(&keys).unwrap()).collect();
    let expected: Vec<_> = contents
        .iter()
        .map(|c| Statement { digest: Digest::of(c), size: c.len() as u64, root: *blake3::hash(c).as_bytes() })
        .collect();
    assert_eq!(statements, expected);
    let capability: Capability = pulled.capability.open(&keys).unwrap();
    assert!(contents.iter().all(|c| capability.covers(&node.id(), &Digest::of(c), unix_seconds())));
    assert!(!capability.covers(&node.id(), &Digest::of(b"other"), unix_seconds()));
    let record: TagRecord = pulled.tag_record.unwrap().open(&keys).unwrap();
    assert_eq!((record.digest, record.public, record.tag.as_str()), (Some(pulled.digest), true, "v1"));
    let keys_of: BTreeSet<_> = pulled.discovery.iter().flat_map(|d| [d.key, d.region]).chain(pulled.bundle).collect();
    assert_eq!(keys_of.len(), 2 * contents.len() + 1, "all keys differ");
    let lists: Vec<Candidates> = pulled.candidates.iter().map(|envelope| envelope.open(&keys).unwrap()).collect();
    assert_eq!(lists.iter().map(|list| list.scope).collect::<Vec<_>>(), [Scope::Fleet, Scope::Region]);
    assert!(lists.iter().all(|list| list.members == [node.id()] && list.image == pulled.digest));
    let by_digest: Pulled = read(&seeder.post(&format!("/v2/a/_shoal/pull/{}", pulled.digest), &node.pull(5052)).await);
    assert_eq!((by_digest.tag_record, by_digest.capability), (None, pulled.capability));
    for (path, code) in [("/v2/a/_shoal/pull/none", "MANIFEST_UNKNOWN"), ("/v2/b/_shoal/pull/v1", "MANIFEST_UNKNOWN")] {
        assert_eq!(seeder.post(path, &node.pull(5052)).await.code(), code);
    }
}

#[tokio::test]
async fn a_moved_tag_has_a_newer_record() {
    let seeder = TestSeeder::start().await;
    let keys = seeder.keys().await;
    let node = seeder.member(1, "eu").await;
    let mut versions = Vec::new();
    for n in 0..3 {
        seeder.push_image("a", "v1", &[noise(10, n)]).await;
        let pulled: Pulled = read(&seeder.post("/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
        versions.push(pulled.tag_record.unwrap().open::<TagRecord>(&keys).unwrap().version);
    }
    let seeder = seeder.restart().await;
    seeder.push_image("a", "v1", &[noise(10, 0)]).await;
    let pulled: Pulled = read(&seeder.post("/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
    versions.push(pulled.tag_record.unwrap().open::<TagRecord>(&keys).unwrap().version);
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

#[tokio::test]
async fn members_that_pull_the_same_image_are_introduced() {
    let seeder = TestSeeder::start().await;
    seeder.push_image("a", "v1", &[noise(10, 1)]).await;
    seeder.push_image("a", "v2", &[noise(10, 2)]).await;
    let (first, second) = (seeder.member(1, "eu").await, seeder.member(2, "us").await);
    let pull = async |node: &Node, tag: &str, port: u16| -> Pulled {
        read(&seeder.post(&format!("/v2/a/_shoal/pull/{tag}"), &node.pull(port)).await)
    };
    assert_eq!(pull(&first, "v1", 6001).await.introductions, []);
    let named = pull(&second, "v1", 6002).await.introductions;
    let addr: SocketAddr = "127.0.0.1:6001".parse().unwrap();
    let expected = PeerInfo { node: first.id(), peer: vec![addr], libp2p: vec![addr], labels: first.labels.clone() };
    assert_eq!(named, [expected], "at the address that the request came from, with the labels of the membership");
    assert_eq!(pull(&second, "v2", 6002).await.introductions, [], "another image, other members");
    let stranger = Node::new(9, "eu");
    assert_eq!(pull(&stranger, "v1", 6009).await.introductions, [], "a stranger hears of nobody");
    let mut liar = Node::new(3, "eu");
    liar.membership.clone_from(&first.membership);
    let got = seeder.post("/v2/a/_shoal/pull/v1", &liar.pull(6003)).await;
    assert_eq!(got.code(), "DENIED", "with another's membership nobody is let in");
    assert_eq!(pull(&first, "v1", 80).await.introductions.len(), 1);
    assert_eq!(pull(&second, "v1", 6002).await.introductions.len(), 1, "a port under 1024 does not replace a good one");
}

#[tokio::test]
async fn a_member_that_has_pulled_nothing_hears_of_the_fleet() {
    let seeder = TestSeeder::start().await;
    seeder.push_image("a", "v1", &[noise(10, 1)]).await;
    let (first, second) = (seeder.member(1, "eu").await, seeder.member(2, "us").await);
    let meet = async |node: &Node, port: u16| {
        let Pull { membership, me } = node.pull(port);
        let met: Met = read(&seeder.post("/v2/_shoal/members", &Meet { membership, me }).await);
        met.introductions.into_iter().map(|info| info.node).collect::<Vec<_>>()
    };
    assert_eq!(meet(&Node::new(9, "eu"), 6009).await, [], "a stranger hears of nobody, and nobody of it");
    let _: Pulled = read(&seeder.post("/v2/a/_shoal/pull/v1", &first.pull(6001)).await);
    assert_eq!(meet(&second, 6002).await, [first.id()], "whoever pulls is present too");
    assert_eq!(meet(&first, 6001).await, [second.id()]);
}

#[tokio::test]
async fn piece_hashes_lead_to_the_signed_root() {
    let seeder = TestSeeder::start().await;
    let keys = seeder.keys().await;
    for size in [0usize, 5, 1 << 20, (5 << 20) + 3] {
        let content = noise(size, 1);
        let digest = seeder.push("a", content.clone()).await;
        let envelope: Envelope = read(&seeder.get(&format!("/v2/a/_shoal/statement/{digest}")).await);
        let statement: Statement = envelope.open(&keys).unwrap();
        assert!(statement.check(&digest, Some(size as u64)).is_ok());
        assert_eq!(statement.root, *blake3::hash(&content).as_bytes());
        let hashes = seeder.get(&format!("/v2/a/_shoal/hashes/{digest}")).await.body;
        let hashes: Vec<[u8; 32]> = hashes.chunks(32).map(|hash| hash.try_into().unwrap()).collect();
        let layout = Layout::new(size as u64).unwrap();
        assert!(PieceHashes::check(layout, hashes, &statement.root).is_ok(), "{size}");
        for path in ["statement", "hashes"] {
            let got = seeder.get(&format!("/v2/b/_shoal/{path}/{digest}")).await;
            assert_eq!(got.code(), "BLOB_UNKNOWN", "not by digest alone");
        }
    }
}

#[tokio::test]
async fn eight_nodes_are_sent_disjoint_pieces_and_each_piece_once() {
    let seeder = TestSeeder::start().await;
    let content = noise((20 << 18) + 5, 1);
    let digest = seeder.push("a", content.clone()).await;
    let layout = Layout::new(content.len() as u64).unwrap();
    let want = HaveSet::full(&layout);
    let nodes: Vec<_> = (0..8).map(|n| Node::new(n, "eu")).collect();
    let mut out = BTreeSet::new();
    while out.len() < layout.pieces() as usize {
        let given =
            futures::future::join_all(nodes.iter().map(|node| seeder.pieces(&digest, node, &want, 1, false))).await;
        for (given, body) in given {
            let mut at = 0;
            for index in given.pieces {
                let range = layout.range(layout.piece(index).unwrap());
                let len = usize::try_from(range.end - range.start).unwrap();
                let start = usize::try_from(range.start).unwrap();
                assert!(body[at..at + len] == content[start..start + len]);
                at += len;
                assert!(out.insert(index), "piece {index} was sent twice");
            }
            assert_eq!(at, body.len());
        }
    }
    assert_eq!(seeder.running.metrics.payload_bytes(Payload::Pieces), content.len() as u64);
    let late = Node::new(20, "eu");
    let (given, body) = seeder.pieces(&digest, &late, &want, 4, false).await;
    assert!(given.pieces.is_empty() && given.retry_after_ms > 0 && body.is_empty());
    assert_eq!(seeder.pieces(&digest, &late, &want, 4, true).await.0.pieces.len(), 4, "without progress it is served");
    let far = Node::new(21, "us");
    assert_eq!(
        seeder.pieces(&digest, &far, &want, 100, false).await.0.pieces.len(),
        16,
        "another region, another count"
    );
}

#[tokio::test]
async fn pieces_that_a_leaving_node_did_not_get_go_to_the_next() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let seeder = TestSeeder::start().await;
    let content = noise(16 << 18, 1);
    let digest = seeder.push("a", content).await;
    let want = HaveSet::full(&Layout::new(16 << 18).unwrap());
    let leaving = Node::new(1, "eu");
    let labels = leaving.labels.clone();
    let body = encode(&PiecesWanted {
        node: leaving.id(),
        labels,
        want: want.to_bytes(),
        urgent: None,
        max: 16,
        stalled: false,
    });
    let mut stream = tokio::net::TcpStream::connect(seeder.running.registry_addr).await.unwrap();
    let head =
        format!("POST /v2/a/_shoal/pieces/{digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    // More than a piece, whatever the headers take.
    stream.read_exact(&mut vec![0; 3 << 18]).await.unwrap();
    drop(stream);
    let next = Node::new(2, "eu");
    let mut given = Vec::new();
    while given.is_empty() {
        given = seeder.pieces(&digest, &next, &want, 16, false).await.0.pieces;
    }
    assert!(given.len() < 16, "some were sent");
}

#[tokio::test]
async fn bad_piece_requests_are_refused() {
    let seeder = TestSeeder::start().await;
    let small = seeder.push("a", noise(100, 1)).await;
    let node = Node::new(1, "eu");
    let one = HaveSet::full(&Layout::new(100).unwrap());
    let (given, body) = seeder.pieces(&small, &node, &one, 4, false).await;
    assert_eq!((given.pieces, body), (vec![0], noise(100, 1)), "a small blob is one piece");
    let path = format!("/v2/a/_shoal/pieces/{small}");
    let wanted = |want: Vec<u8>| PiecesWanted {
        node: node.id(),
        labels: Labels::default(),
        want,
        urgent: None,
        max: 4,
        stalled: true,
    };
    for want in [vec![], vec![2], vec![1, 0]] {
        assert_eq!(seeder.post(&path, &wanted(want)).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(seeder.post(&format!("/v2/b/_shoal/pieces/{small}"), &wanted(vec![1])).await.code(), "BLOB_UNKNOWN");
    let long = vec![0; 100_000];
    assert_eq!(seeder.ask(Method::POST, &path).body(long).send().await.status, StatusCode::PAYLOAD_TOO_LARGE);
}
