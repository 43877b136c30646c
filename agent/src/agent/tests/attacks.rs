//! Members that mean harm to many at once.

use futures::future::join_all;
use shoal_proto::{
    have::Have,
    layout::Layout,
    merkle::MerkleTree,
    message::{Answer, Message, Priority, Proof, Question, RefuseReason},
};

use super::*;
use crate::testing::{BadPeer, Manner, Wire};

const LAYER: usize = 6 * MIB;
/// Providers that do not exist, and how many of them one answer names.
const POISON: usize = 100_000;
const ANSWER: usize = 500;

async fn plain(rig: &Rig, n: u8) -> Agent {
    Agent::start(rig.address, n, tempfile::tempdir().unwrap(), |config| config.mode = PeerMode::Plain).await
}

/// A node that nobody has ever seen, at an address where nobody listens.
fn phantom(n: usize) -> PeerInfo {
    let mut node = [0xfe; 32];
    node[..8].copy_from_slice(&n.to_le_bytes());
    let address = SocketAddr::from(([127, 77, node[1], node[0]], 1024));
    PeerInfo { node: NodeId(node), peer: vec![address], libp2p: vec![address], labels: Labels::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_thousand_holders_that_do_not_exist_few_are_remembered_and_the_pull_succeeds() {
    let (rig, layers) = (Rig::new().await, vec![content(11, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let (good, agent) = (rig.agent(201).await, rig.agent(202).await);
    good.pull("v1").await;
    rig.introduce(&[&good]);
    let honest = agent.resolve("v1").await;
    let poison = async {
        for first in (0..POISON).step_by(ANSWER) {
            let introductions = (first..first + ANSWER).map(phantom).collect();
            agent.handle.image(ImageContext { introductions, ..honest.clone() }).await;
        }
    };
    // Half of the lies come before the pull begins.
    let ((), blobs) = tokio::join!(poison, agent.finish(&honest));
    check(&blobs, &layers);
    let status = agent.handle.status().await.unwrap();
    let most = shoal_transfer::config::Config::default().known_peers_max as usize;
    assert!(status.known <= most, "{} nodes are remembered", status.known);
    assert!(status.banned.is_empty(), "nobody that exists was harmed");
    // And it finds the next image where it is.
    let more = vec![content(12, LAYER)];
    rig.seeder.push(REPOSITORY, "v2", &more);
    check(&agent.pull("v2").await, &more);
    agent.stop().await;
    good.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_that_sends_bad_pieces_to_a_third_of_the_fleet_is_banned_there_and_harms_nobody() {
    let (rig, layers) = (Rig::new().await, vec![content(13, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let holder = plain(&rig, 210).await;
    holder.pull("v1").await;
    let bad = BadPeer::start(150, &rig.seeder, Manner::Wrong).await;
    let mut fleet = Vec::new();
    for n in 211..220 {
        let hears_of = if n % 3 == 0 { vec![holder.info(), bad.info.clone()] } else { vec![holder.info()] };
        *lock(&rig.seeder.introductions) = hears_of;
        let agent = plain(&rig, n).await;
        let context = agent.resolve("v1").await;
        fleet.push((agent, context));
    }
    rig.seeder.down.store(true, Ordering::Relaxed);
    let pulls = join_all(fleet.iter().map(|(agent, context)| agent.finish(context))).await;
    pulls.iter().for_each(|blobs| check(blobs, &layers));
    let (mut bad_pieces, mut banned) = (0, 0);
    for (agent, _) in &fleet {
        let status = agent.handle.status().await.unwrap();
        assert!(status.banned.iter().all(|node| *node == bad.info.node.to_string()), "{:?}", status.banned);
        (bad_pieces, banned) = (bad_pieces + status.bad_pieces, banned + status.banned.len());
        assert_eq!(agent.received("seeder"), 0, "the seeder was down");
    }
    assert!(banned > 0 && bad.requests() > 0, "it was asked {} times", bad.requests());
    // Each node believes it until the first bad pieces, a handful that were asked for at once.
    assert!(bad_pieces <= 16 * fleet.len() as u64, "{bad_pieces} bad pieces");
    for (agent, _) in fleet {
        agent.stop().await;
    }
    holder.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_a_merkle_root_a_member_gets_what_it_proves_to_be_covered_and_nothing_else() {
    let (rig, layers) = (Rig::new().await, [content(3, LAYER), content(4, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let agent = plain(&rig, 1).await;
    agent.pull("v1").await;
    let [covered, other] = [&layers[0], &layers[1]].map(|layer| shoal_proto::Digest::of(layer));
    let mut digests: Vec<_> = (0..2000u32).map(|n| shoal_proto::Digest::of(&n.to_le_bytes())).collect();
    digests.push(covered);
    let tree = MerkleTree::of(digests);
    let proof = tree.proof(&covered).unwrap();
    let mut wire = Wire::dial(agent.info().peer[0], [100; 32], &rig.seeder).await.unwrap();
    let mut id = 0;
    let mut asked = async |digest, proofs: Vec<Proof>, wire: &mut Wire| {
        wire.say(&Message::Capability { capability: rig.seeder.capability_under(&tree), proofs }).await.unwrap();
        id += 1;
        let (piece, offset, priority) = (0, 0, Priority::Reader);
        wire.say(&Message::Request { id, digest, piece, offset, priority }).await.unwrap();
        (id, timeout(SOON, wire.hear()).await.unwrap())
    };
    for (digest, proofs) in [
        (covered, vec![]),
        (covered, vec![(covered, proof[1..].to_vec())]),
        (other, vec![(other, proof.clone())]),
        (other, vec![(covered, proof.clone())]),
    ] {
        let (id, answer) = asked(digest, proofs, &mut wire).await;
        assert_eq!(answer, Some(Message::Refuse { id, reason: RefuseReason::NotHeld }));
    }
    // Proven once, it stays so.
    let pieces = Layout::new(LAYER as u64).unwrap().pieces().div_ceil(8) as usize;
    wire.say(&Message::Have { digest: covered, have: Have::Set(vec![0; pieces]) }).await.unwrap();
    let told = async { while !matches!(wire.hear().await, Some(Message::Have { have: Have::All, .. })) {} };
    timeout(SOON, told).await.expect("it hears what is held");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_question_about_a_blob_is_answered_without_a_capability_for_it() {
    let (rig, layers) = (Rig::new().await, vec![content(5, LAYER)]);
    let image = rig.seeder.push(REPOSITORY, "v1", &layers);
    let agent = plain(&rig, 1).await;
    agent.pull("v1").await;
    let layer = shoal_proto::Digest::of(&layers[0]);
    let mut wire = Wire::dial(agent.info().peer[0], [100; 32], &rig.seeder).await.unwrap();
    let questions =
        [Question::Statement(layer), Question::Hashes(layer), Question::Peers(image), Question::Bundle([9; 32])];
    let absent = [Question::Statement(shoal_proto::Digest::of(b"absent")), Question::Peers(layer)];
    let mut id = 0;
    let mut ask = async |question: Question, wire: &mut Wire| {
        id += 1;
        wire.say(&Message::Ask { id, question }).await.unwrap();
        loop {
            let heard = timeout(SOON, wire.hear()).await.unwrap().unwrap();
            // Of what it holds, and of others, it is told only after the capability.
            assert!(!matches!(heard, Message::Have { .. } | Message::Peers { .. }), "{heard:?}");
            if let Message::Tell { id: of, answer } = heard
                && of == id
            {
                return answer;
            }
        }
    };
    // It says that it wants the blob, which is not heard.
    let pieces = Layout::new(LAYER as u64).unwrap().pieces().div_ceil(8) as usize;
    wire.say(&Message::Have { digest: layer, have: Have::Set(vec![0; pieces]) }).await.unwrap();
    for question in questions.iter().chain(&absent) {
        assert_eq!(ask(question.clone(), &mut wire).await, Answer::Nothing, "{question:?}: held or not looks the same");
    }
    // Another digest's capability changes nothing.
    let capability = rig.seeder.capability(&[shoal_proto::Digest::of(b"absent")]);
    wire.say(&Message::Capability { capability, proofs: vec![] }).await.unwrap();
    for question in &questions[..3] {
        assert_eq!(ask(question.clone(), &mut wire).await, Answer::Nothing, "{question:?}");
    }
    let capability = rig.seeder.capability(&[image, layer]);
    wire.say(&Message::Capability { capability, proofs: vec![] }).await.unwrap();
    assert!(matches!(ask(questions[0].clone(), &mut wire).await, Answer::Signed(_)));
    assert!(matches!(ask(questions[1].clone(), &mut wire).await, Answer::Hashes(_)));
    assert!(matches!(ask(questions[2].clone(), &mut wire).await, Answer::Peers(_)));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_only_some_may_read_does_not_go_in_the_clear_unless_the_network_is_trusted() {
    let (rig, layers) = (Rig::new().await, vec![content(6, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let digest = shoal_proto::Digest::of(&layers[0]);
    let secret = [100; 32];
    for (n, trusted) in [(1, false), (2, true)] {
        let adapt = |config: &mut Config| (config.mode, config.trusted_network) = (PeerMode::Plain, trusted);
        let agent = Agent::start(rig.address, n, tempfile::tempdir().unwrap(), adapt).await;
        agent.pull("v1").await;
        let mut wire = Wire::dial(agent.info().peer[0], secret, &rig.seeder).await.unwrap();
        let capability = rig.seeder.capability_of(Identity::from_secret(&secret).node(), &[digest]);
        wire.say(&Message::Capability { capability, proofs: vec![] }).await.unwrap();
        wire.say(&Message::Ask { id: 1, question: Question::Statement(digest) }).await.unwrap();
        let answer = async {
            loop {
                if let Some(Message::Tell { id: 1, answer }) = wire.hear().await {
                    return answer;
                }
            }
        };
        let answer = timeout(SOON, answer).await.expect("an answer comes");
        assert_eq!(matches!(answer, Answer::Signed(_)), trusted, "{answer:?}");
        agent.stop().await;
    }
}
