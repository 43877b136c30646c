//! What agents ask for.

use std::{collections::BTreeSet, net::SocketAddr};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use http::{Method, StatusCode};
use shoal_proto::{
    Digest,
    api::{
        CONTENT_TYPE, Info, Join, Joined, Meet, Met, PiecesGiven, PiecesWanted, Pull, Pulled, REPLY_LEN_MAX,
        Revocations, Shown, join_bytes,
    },
    codec::{decode, encode},
    envelope::Envelope,
    have::HaveSet,
    layout::Layout,
    member::{CALLER_HEADER, Caller, caller_bytes},
    message::PeerInfo,
    signed::{Candidates, Capability, KeySet, Labels, Membership, NodeId, RevocationList, Scope, Statement, TagRecord},
    token::JoinToken,
    tree::PieceHashes,
};

mod accounts;
mod capability;
mod clocks;

use super::client::{Got, TestSeeder, noise};
use crate::{metrics::Payload, time::unix_seconds};

#[derive(Clone)]
struct Node {
    key: SigningKey,
    labels: Labels,
    membership: Option<Envelope>,
    root: [u8; 32],
}

impl Node {
    fn new(n: u8, region: &str) -> Self {
        let labels = Labels { region: region.parse().ok(), ..Labels::default() };
        Self { key: SigningKey::from_bytes(&[n; 32]), labels, membership: None, root: [0; 32] }
    }

    fn id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    fn join(&self, root: &[u8; 32], time: u64) -> Join {
        let signature = self.key.sign(&join_bytes(root, &self.id(), time)).to_bytes();
        Join { node: self.id(), time, labels: self.labels.clone(), shown: Shown::Nothing, signature }
    }

    fn pull(&self, port: u16) -> Pull {
        let addr = SocketAddr::from(([0, 0, 0, 0], port));
        let me = PeerInfo { node: self.id(), peer: vec![addr], libp2p: vec![addr], labels: Labels::default() };
        Pull { me }
    }

    /// Says whose request this is; nothing for a stranger.
    fn caller(&self, path: &str, body: &[u8]) -> Option<Caller> {
        let (node, time, membership) = (self.id(), unix_seconds(), self.membership.clone()?);
        let signature = self.key.sign(&caller_bytes(&self.root, &node, time, path, body)).to_bytes();
        Some(Caller { node, membership, time, signature })
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

    /// A request that a node sends.
    async fn call<T: bincode::Encode>(&self, node: &Node, path: &str, body: &T) -> Got {
        let body = encode(body);
        let ask = self.ask(Method::POST, path);
        let ask = match node.caller(path, &body) {
            Some(caller) => ask.header(CALLER_HEADER, &caller.to_header()),
            None => ask,
        };
        ask.body(body).send().await
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
        node.root = root;
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
        let wanted = PiecesWanted { want: want.to_bytes(), urgent: None, max, stalled };
        let got = self.call(node, &format!("/v2/a/_shoal/pieces/{digest}"), &wanted).await;
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
}

impl TestSeeder {
    async fn closed() -> Self {
        Self::start_with(|config| config.insecure_open = false).await
    }

    /// Joins by a token; the seeder's word why not.
    async fn join_by(&self, n: u8, token: &JoinToken) -> Result<Node, String> {
        let mut node = Node::new(n, "made-up");
        let time = unix_seconds();
        let join = Join { shown: Shown::Token(token.show(&node.id(), time)), ..node.join(&token.root, time) };
        let got = self.post("/v2/_shoal/join", &join).await;
        if got.status != StatusCode::OK {
            assert_eq!(got.code(), "DENIED");
            return Err(got.reason());
        }
        node.membership = Some(read::<Joined>(&got).membership);
        node.root = token.root;
        Ok(node)
    }
}

impl Got {
    /// The word that programs tell a refusal by.
    fn reason(&self) -> String {
        self.json()["errors"][0]["detail"]["reason"].as_str().unwrap_or_default().to_owned()
    }
}

#[tokio::test]
async fn a_closed_seeder_admits_by_token_alone_and_labels_come_from_the_token() {
    let seeder = TestSeeder::closed().await;
    let info = seeder.info().await;
    assert!(!info.open);
    let join = Node::new(1, "eu").join(&info.root, unix_seconds());
    assert_eq!(seeder.post("/v2/_shoal/join", &join).await.reason(), "token-needed");
    let labels = Labels { region: "eu".parse().ok(), ..Labels::default() };
    let token = seeder.running.members.create_token(1, 60, labels.clone()).await.unwrap();
    let joins = futures::future::join_all((1..9).map(|n| seeder.join_by(n, &token))).await;
    let (joined, refused): (Vec<_>, Vec<_>) = joins.into_iter().partition(Result::is_ok);
    assert_eq!(joined.len(), 1, "of eight in the same instant");
    assert!(refused.iter().all(|refused| matches!(refused, Err(reason) if reason == "token-used-up")));
    let node = joined.into_iter().next().unwrap().unwrap();
    let membership: Membership = node.membership.as_ref().unwrap().open(&seeder.keys().await).unwrap();
    assert_eq!((membership.node, membership.labels), (node.id(), labels), "not those that it would like");
    let renewal: Joined = read(&seeder.post("/v2/_shoal/join", &node.join(&info.root, unix_seconds())).await);
    assert_eq!(renewal.membership.open::<Membership>(&seeder.keys().await).unwrap().serial, membership.serial);
}

#[tokio::test]
async fn only_a_member_that_proves_its_key_is_served_what_members_are() {
    let seeder = TestSeeder::closed().await;
    let small = noise(100, 1);
    let digest = seeder.push("a", small.clone()).await;
    seeder.push_image("a", "v1", &[small]).await;
    let token = seeder.running.members.create_token(9, 60, Labels::default()).await.unwrap();
    let (good, other) = (seeder.join_by(1, &token).await.unwrap(), seeder.join_by(2, &token).await.unwrap());
    let want = HaveSet::full(&Layout::new(100).unwrap()).to_bytes();
    let wanted = PiecesWanted { want, urgent: None, max: 1, stalled: false };
    let path = format!("/v2/a/_shoal/pieces/{digest}");
    let asks = async |node: &Node| {
        let pieces = seeder.call(node, &path, &wanted).await;
        let pull = seeder.call(node, "/v2/a/_shoal/pull/v1", &node.pull(6001)).await;
        let meet = seeder.call(node, "/v2/_shoal/members", &Meet { me: node.pull(6001).me }).await;
        [pieces, pull, meet]
            .map(|got| (got.status, if got.status == StatusCode::OK { String::new() } else { got.reason() }))
    };
    let all = |status, reason: &str| [(); 3].map(|()| (status, reason.to_owned()));
    assert_eq!(asks(&good).await, all(StatusCode::OK, ""));
    assert_eq!(asks(&Node::new(3, "eu")).await, all(StatusCode::FORBIDDEN, "no-membership"));
    let thief = Node { key: SigningKey::from_bytes(&[66; 32]), ..good.clone() };
    assert_eq!(asks(&thief).await, all(StatusCode::FORBIDDEN, "stolen-membership"));
    let now = unix_seconds();
    let member = good.membership.as_ref().unwrap().open::<Membership>(&seeder.keys().await).unwrap();
    let signed = |membership: &Membership| Some(seeder.running.fleet.sign(membership));
    let expired = Membership { not_after: now - 1, ..member.clone() };
    let expired = Node { membership: signed(&expired), ..good.clone() };
    assert_eq!(asks(&expired).await, all(StatusCode::FORBIDDEN, "membership-expired"));
    let foreign = Envelope::sign(&member, &SigningKey::from_bytes(&[9; 32]));
    let foreign = Node { membership: Some(foreign), ..good.clone() };
    assert_eq!(asks(&foreign).await, all(StatusCode::FORBIDDEN, "foreign-membership"));
    // A member that gives itself out as another.
    let posing = Pull { me: other.pull(6001).me };
    assert_eq!(seeder.call(&good, "/v2/a/_shoal/pull/v1", &posing).await.reason(), "another-node");
    assert_eq!(seeder.call(&good, "/v2/_shoal/members", &Meet { me: posing.me }).await.reason(), "another-node");
    // Overheard: the same words for another request, or long ago.
    let header = good.caller("/v2/a/_shoal/pull/v1", &encode(&good.pull(6001))).unwrap();
    let replayed = seeder.ask(Method::POST, &path).header(CALLER_HEADER, &header.to_header()).body(encode(&wanted));
    assert_eq!(replayed.send().await.reason(), "bad-signature");
    let body = encode(&wanted);
    let mut old = good.caller(&path, &body).unwrap();
    old.time = now - 700;
    old.signature = good.key.sign(&caller_bytes(&good.root, &good.id(), old.time, &path, &body)).to_bytes();
    let old = seeder.ask(Method::POST, &path).header(CALLER_HEADER, &old.to_header()).body(body);
    assert_eq!(old.send().await.reason(), "bad-time");
    seeder.running.members.revoke(&good.id()).await.unwrap();
    assert_eq!(asks(&good).await, all(StatusCode::FORBIDDEN, "membership-revoked"));
    assert_eq!(asks(&other).await, all(StatusCode::OK, ""));
    let told: Revocations = read(&seeder.get("/v2/_shoal/revocations").await);
    let list: RevocationList = told.list.unwrap().open(&seeder.keys().await).unwrap();
    assert_eq!(list.serials, [member.serial]);
}

#[tokio::test]
async fn a_pull_brings_all_that_a_node_needs() {
    let seeder = TestSeeder::start().await;
    let layers = [noise(3_000_000, 1), noise(100, 2), noise(100, 2)];
    let manifest = seeder.push_image("a", "v1", &layers).await;
    let keys = seeder.keys().await;
    let node = seeder.member(1, "eu").await;
    let pulled: Pulled = read(&seeder.call(&node, "/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
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
    let by_digest: Pulled =
        read(&seeder.call(&node, &format!("/v2/a/_shoal/pull/{}", pulled.digest), &node.pull(5052)).await);
    assert_eq!((by_digest.tag_record, by_digest.capability), (None, pulled.capability));
    for (path, code) in [("/v2/a/_shoal/pull/none", "MANIFEST_UNKNOWN"), ("/v2/b/_shoal/pull/v1", "MANIFEST_UNKNOWN")] {
        assert_eq!(seeder.call(&node, path, &node.pull(5052)).await.code(), code);
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
        let pulled: Pulled = read(&seeder.call(&node, "/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
        versions.push(pulled.tag_record.unwrap().open::<TagRecord>(&keys).unwrap().version);
    }
    let seeder = seeder.restart().await;
    seeder.push_image("a", "v1", &[noise(10, 0)]).await;
    let pulled: Pulled = read(&seeder.call(&node, "/v2/a/_shoal/pull/v1", &node.pull(5052)).await);
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
        read(&seeder.call(node, &format!("/v2/a/_shoal/pull/{tag}"), &node.pull(port)).await)
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
    let got = seeder.call(&liar, "/v2/a/_shoal/pull/v1", &liar.pull(6003)).await;
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
        let Pull { me } = node.pull(port);
        let met: Met = read(&seeder.call(node, "/v2/_shoal/members", &Meet { me }).await);
        met.introductions.into_iter().map(|info| info.node).collect::<Vec<_>>()
    };
    assert_eq!(meet(&Node::new(9, "eu"), 6009).await, [], "a stranger hears of nobody, and nobody of it");
    let _: Pulled = read(&seeder.call(&first, "/v2/a/_shoal/pull/v1", &first.pull(6001)).await);
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
    let nodes = futures::future::join_all((0..8).map(|n| seeder.member(n, "eu"))).await;
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
    let late = seeder.member(20, "eu").await;
    let (given, body) = seeder.pieces(&digest, &late, &want, 4, false).await;
    assert!(given.pieces.is_empty() && given.retry_after_ms > 0 && body.is_empty());
    assert_eq!(seeder.pieces(&digest, &late, &want, 4, true).await.0.pieces.len(), 4, "without progress it is served");
    let far = seeder.member(21, "us").await;
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
    let leaving = seeder.member(1, "eu").await;
    let body = encode(&PiecesWanted { want: want.to_bytes(), urgent: None, max: 16, stalled: false });
    let mut stream = tokio::net::TcpStream::connect(seeder.running.registry_addr).await.unwrap();
    let path = format!("/v2/a/_shoal/pieces/{digest}");
    let caller = leaving.caller(&path, &body).unwrap().to_header();
    let len = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{CALLER_HEADER}: {caller}\r\ncontent-length: {len}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    // More than a piece, whatever the headers take.
    stream.read_exact(&mut vec![0; 3 << 18]).await.unwrap();
    drop(stream);
    let next = seeder.member(2, "eu").await;
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
    let node = seeder.member(1, "eu").await;
    let one = HaveSet::full(&Layout::new(100).unwrap());
    let (given, body) = seeder.pieces(&small, &node, &one, 4, false).await;
    assert_eq!((given.pieces, body), (vec![0], noise(100, 1)), "a small blob is one piece");
    let path = format!("/v2/a/_shoal/pieces/{small}");
    let wanted = |want: Vec<u8>| PiecesWanted { want, urgent: None, max: 4, stalled: true };
    for want in [vec![], vec![2], vec![1, 0]] {
        assert_eq!(seeder.post(&path, &wanted(want)).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(seeder.post(&format!("/v2/b/_shoal/pieces/{small}"), &wanted(vec![1])).await.code(), "BLOB_UNKNOWN");
    let long = vec![0; 100_000];
    assert_eq!(seeder.ask(Method::POST, &path).body(long).send().await.status, StatusCode::PAYLOAD_TOO_LARGE);
}
