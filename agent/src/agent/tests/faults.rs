//! Peers and seeders that do what they should not. Whatever they do, a pull that can succeed does, what is stored is right,
//! and what they cost is bounded.

use futures::future::join_all;
use http::StatusCode;
use shoal_proto::{
    have::Have,
    message::{Message, Priority, RefuseReason},
};

use super::*;
use crate::{
    store::ImageRecord,
    testing::{BadPeer, Fault, Manner, Wire},
};

const LAYER: usize = 6 * MIB;
const MANNERS: [Manner; 10] = [
    Manner::Wrong,
    Manner::Silent,
    Manner::Trickle,
    Manner::TooMuch,
    Manner::Unasked,
    Manner::WrongSet,
    Manner::Flap,
    Manner::Refuse(RefuseReason::NotHeld),
    Manner::Refuse(RefuseReason::Busy),
    Manner::Refuse(RefuseReason::Failed),
];

async fn plain(rig: &Rig, n: u8) -> Agent {
    Agent::start(rig.address, n, tempfile::tempdir().unwrap(), |config| config.mode = PeerMode::Plain).await
}

/// An agent pulls a layer beside a peer of that manner; without the seeder if there is a good peer besides. Gives the
/// agent's bytes from the seeder, and what it made of the bad peer.
async fn beside(n: u8, manner: Manner, good: bool) -> (u64, Made) {
    let (rig, layers) = (Rig::new().await, vec![content(n, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    let mut peers = vec![BadPeer::start(100 + n, &rig.seeder, manner).await];
    if good {
        peers.push(BadPeer::start(200 + n, &rig.seeder, Manner::Good).await);
    }
    *lock(&rig.seeder.introductions) = peers.iter().map(|peer| peer.info.clone()).collect();
    let agent = plain(&rig, n).await;
    let context = agent.resolve("v1").await;
    rig.seeder.down.store(good, Ordering::Relaxed);
    check(&agent.finish(&context).await, &layers);
    let status = agent.handle.status().await.unwrap();
    let banned = status.banned;
    let from_seeder = agent.received("seeder");
    agent.stop().await;
    assert!(banned.iter().all(|node| *node == peers[0].info.node.to_string()), "{manner:?}: {banned:?}");
    let made = Made {
        banned: !banned.is_empty(),
        bad_pieces: status.bad_pieces,
        connections: peers[0].connections(),
        requests: peers[0].requests(),
    };
    (from_seeder, made)
}

/// What an agent made of a bad peer.
#[derive(Debug)]
struct Made {
    banned: bool,
    bad_pieces: u64,
    connections: u32,
    requests: u32,
}

/// Tells which peers were banned, and how little was made of each. A good one may be faster than one whose pieces are
/// wrong, which then is not found out.
fn judge(manner: Manner, made: &Made, good: bool) {
    let &Made { banned, bad_pieces, connections, requests } = made;
    let found_out = matches!(manner, Manner::Wrong | Manner::WrongSet);
    let escaped = good && manner == Manner::Wrong && bad_pieces == 0;
    assert_eq!(banned, found_out && !escaped, "{manner:?}: {made:?}");
    assert!(connections <= 16, "{manner:?}: connected to {connections} times");
    // Who says that it is busy may be asked every few milliseconds: it is an uploader's usual word.
    let most = if manner == Manner::Refuse(RefuseReason::Busy) { 20_000 } else { 100 };
    assert!(requests <= most, "{manner:?}: asked {requests} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn beside_one_good_peer_no_bad_one_makes_a_pull_fail() {
    let cases = (1..).zip(MANNERS).map(async |(n, manner)| (manner, beside(n, manner, true).await));
    for (manner, seen) in join_all(cases).await {
        assert_eq!(seen.0, 0, "{manner:?}: the seeder was down");
        judge(manner, &seen.1, true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_none_but_bad_peers_the_seeder_brings_it_all_once() {
    let cases = (1..).zip(MANNERS).map(async |(n, manner)| (manner, beside(n, manner, false).await));
    for (manner, seen) in join_all(cases).await {
        // The first bytes of a piece may be another's.
        let (least, most) = (LAYER as u64 / 2, 3 * LAYER as u64 / 2);
        assert!((least..most).contains(&seen.0), "{manner:?}: {} bytes from the seeder", seen.0);
        judge(manner, &seen.1, false);
    }
}

async fn with_fault(fault: Fault, times: u32) -> Duration {
    let (rig, layers) = (Rig::new().await, vec![content(9, LAYER)]);
    rig.seeder.push(REPOSITORY, "v1", &layers);
    *lock(&rig.seeder.fault) = Some((fault, times));
    let (agent, start) = (rig.agent(9).await, Instant::now());
    check(&agent.pull("v1").await, &layers);
    let took = start.elapsed();
    assert_eq!(*lock(&rig.seeder.fault), None, "{fault:?}: it was asked that often");
    agent.stop().await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_seeder_that_fails_for_a_while_delays_a_pull_and_no_more() {
    let faults = [
        Fault::Status(StatusCode::INTERNAL_SERVER_ERROR),
        Fault::Status(StatusCode::BAD_GATEWAY),
        Fault::Status(StatusCode::SERVICE_UNAVAILABLE),
        Fault::Truncate,
        Fault::Others,
    ];
    let took = join_all(faults.map(|fault| with_fault(fault, 5))).await;
    assert!(took.iter().all(|took| *took < Duration::from_secs(15)), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_seeder_that_asks_to_wait_is_not_asked_before() {
    let took = with_fault(Fault::Busy(2), 2).await;
    assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_that_a_seeder_leaves_hanging_are_made_again() {
    // One of two: the other goes on. Both: until patience ends.
    assert!(with_fault(Fault::Hang, 1).await < Duration::from_secs(10));
    assert!(with_fault(Fault::Hang, 2).await < Duration::from_secs(28));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_gets_what_its_capability_covers_and_a_flood_of_requests_costs_it_the_connection() {
    let (rig, layers) = (Rig::new().await, vec![content(3, LAYER)]);
    let image = rig.seeder.push(REPOSITORY, "v1", &layers);
    let agent = plain(&rig, 1).await;
    agent.pull("v1").await;
    let digest = shoal_proto::Digest::of(&layers[0]);
    let mut wire = Wire::dial(agent.info().peer[0], [100; 32], &rig.seeder).await.unwrap();
    let ask = |id| Message::Request { id, digest, piece: 0, offset: 0, priority: Priority::Reader };
    wire.say(&ask(1)).await.unwrap();
    let refusal = Message::Refuse { id: 1, reason: RefuseReason::NotHeld };
    assert_eq!(timeout(SOON, wire.hear()).await.unwrap(), Some(refusal), "nothing by bare digest");
    let capability = rig.seeder.capability(&[image, digest]);
    wire.say(&Message::Capability { capability, proofs: vec![] }).await.unwrap();
    wire.say(&Message::Have { digest, have: Have::Set(vec![0; have_len(LAYER)]) }).await.unwrap();
    let told = async { while !matches!(wire.hear().await, Some(Message::Have { have: Have::All, .. })) {} };
    timeout(SOON, told).await.expect("it hears what is held");
    // It asks without end, and takes none of the answers.
    let flood = async {
        let mut id = 10;
        while wire.say(&ask(id)).await.is_some() {
            id += 1;
        }
        id
    };
    let asked = timeout(SOON, flood).await.expect("the connection ends");
    assert!(asked > 64, "{asked} requests");
    agent.handle.status().await.expect("the agent lives");
    agent.stop().await;
}

/// Bytes of a have-set.
fn have_len(size: usize) -> usize {
    shoal_proto::layout::Layout::new(size as u64).unwrap().pieces().div_ceil(8) as usize
}

/// Pins an image as the registry would have stored it.
fn pin(agent: &Agent, context: &ImageContext, blobs: &[Arc<Blob>]) {
    let record = ImageRecord {
        image: context.image,
        repository: context.repository.clone(),
        media_type: "x".into(),
        blobs: blobs.iter().map(|blob| *blob.digest()).collect(),
        statements: vec![],
        capability: context.capability.clone(),
        discovery: vec![],
        bundle: None,
        pinned: false,
        pulled_at: 1,
    };
    agent.store.put_image(record).unwrap();
    assert!(agent.store.pin(&context.image, true).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_its_quota_an_agent_serves_and_pulls_and_lets_nothing_go_that_is_pinned_or_read() {
    let (rig, images) = (Rig::new().await, [1, 2, 3].map(|n| vec![content(n, LAYER)]));
    for (tag, layers) in ["v1", "v2", "v3"].into_iter().zip(&images) {
        rig.seeder.push(REPOSITORY, tag, layers);
    }
    // Room for two of them.
    let tight = |config: &mut Config| config.quota_bytes = 2 * LAYER as u64 + MIB as u64;
    let a = Agent::start(rig.address, 1, tempfile::tempdir().unwrap(), tight).await;
    let (b, c) = (rig.agent(2).await, rig.agent(3).await);
    let (v1, v2) = (a.pull("v1").await, a.pull("v2").await);
    let read = v1.iter().map(Blob::guard).collect::<Vec<_>>();
    pin(&a, &a.resolve("v2").await, &v2);
    drop(v2);
    rig.introduce(&[&a]);
    // It serves both while it is asked for a third that has no room.
    let (context, serving) = (a.resolve("v3").await, async { tokio::join!(b.pull("v1"), c.pull("v2")) });
    let (refused, (of_b, of_c)) = tokio::join!(a.want(&context), serving);
    assert!(refused.iter().any(|result| matches!(result, Err(WantError::Store { full: true, .. }))), "{refused:?}");
    check(&of_b, &images[0]);
    check(&of_c, &images[1]);
    check(&v1, &images[0]);
    assert_eq!((b.received("seeder"), c.received("seeder")), (0, 0), "it had both to give");
    // Read to the end, the first may go.
    drop((read, v1));
    check(&a.pull("v3").await, &images[2]);
    check(&a.pull("v2").await, &images[1]);
    for agent in [a, b, c] {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_warmed_yields_to_what_is_pulled() {
    let (rig, images) = (Rig::new().await, [1, 2].map(|n| vec![content(n, LAYER)]));
    for (tag, layers) in ["warm", "pull"].into_iter().zip(&images) {
        rig.seeder.push(REPOSITORY, tag, layers);
    }
    let slow = |config: &mut Config| config.limits.seeder_bytes_per_s = Some(LAYER as u64 / 2);
    let agent = Agent::start(rig.address, 1, tempfile::tempdir().unwrap(), slow).await;
    let (warm, pull) = (agent.resolve("warm").await, agent.resolve("pull").await);
    let warmed: Vec<_> = agent.want_at(&warm, true).await.into_iter().map(Result::unwrap).collect();
    check(&agent.finish(&pull).await, &images[1]);
    // What was asked for before the pull began still comes.
    let layer = warmed.iter().max_by_key(|blob| blob.layout().size()).unwrap();
    assert!(layer.have().len() <= 4, "{layer:?} was warmed while a pull was waiting");
    for blob in &warmed {
        complete(blob).await;
    }
    check(&warmed, &images[0]);
    agent.stop().await;
}
