//! What members pass on to one another, and what follows from it.

use ed25519_dalek::SigningKey;
use shoal_proto::{
    envelope::Envelope,
    signed::{RevocationList, Version},
};

use super::*;
use crate::{config::StaticPeer, handle::LoopStatus};

fn node(n: u8) -> NodeId {
    Identity::from_secret(&[n; 32]).node()
}

/// Waits until an agent's status is as it should be.
async fn status_until(agent: &Agent, what: &str, look: impl Fn(&LoopStatus) -> bool) {
    let reached = async {
        while !look(&agent.handle.status().await.expect("the loop lives")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{what} at {}", agent.n));
}

/// Agents of which each is connected to the next, and to no other.
async fn chain(rig: &Rig, first: u8, count: u8) -> Vec<Agent> {
    let mut agents: Vec<Agent> = Vec::new();
    for n in first..first + count {
        let before = agents.last().map(|agent| (node(agent.n), agent.running.peer[0].port()));
        let adapt = |config: &mut Config| {
            let fixed = before.map(|(node, port)| StaticPeer { node, host: "127.0.0.1".into(), port });
            config.peers = fixed.into_iter().collect();
        };
        agents.push(Agent::start(rig.address, n, tempfile::tempdir().unwrap(), adapt).await);
    }
    for (at, agent) in agents.iter().enumerate() {
        let neighbours = usize::from(at > 0) + usize::from(at + 1 < agents.len());
        status_until(agent, "neighbours", |status| status.peers.len() == neighbours).await;
    }
    agents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revocation_goes_from_member_to_member_and_ends_open_connections() {
    let rig = Rig::new().await;
    let agents = chain(&rig, 101, 4).await;
    rig.seeder.down.store(true, Ordering::Relaxed);
    // The last of the chain is revoked, and the first one is told.
    agents[0].upstream.trust().accept_revocations(&rig.seeder.revocations(1, &[node(104)])).unwrap();
    for agent in &agents[..3] {
        status_until(agent, "the list", |status| status.revoked == 1).await;
    }
    status_until(&agents[2], "the revoked neighbour is gone", |status| status.peers.len() == 1).await;
    status_until(&agents[3], "nobody is left", |status| status.peers.is_empty()).await;
    status_until(&agents[0], "others stay", |status| status.peers.len() == 1).await;
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_newer_key_set_goes_from_member_to_member_and_nothing_forged_or_older_does() {
    let rig = Rig::new().await;
    let agents = chain(&rig, 111, 3).await;
    rig.seeder.down.store(true, Ordering::Relaxed);
    let trust = agents[0].upstream.trust().clone();
    let stranger = SigningKey::from_bytes(&[99; 32]);
    let forged = RevocationList { version: Version { epoch: 9, counter: 9 }, serials: vec![1] };
    assert!(trust.accept_revocations(&Envelope::sign(&forged, &stranger)).is_err());
    assert!(trust.accept_revocations(&rig.seeder.key_set_at(9)).is_err(), "another type");
    assert!(trust.accept_keys(&rig.seeder.revocations(9, &[])).is_err(), "another type");
    trust.accept_keys(&rig.seeder.key_set_at(5)).unwrap();
    let last = agents[2].upstream.trust();
    let arrived = async {
        while last.keys().version.counter != 5 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, arrived).await.expect("the key set arrives");
    trust.accept_revocations(&rig.seeder.revocations(7, &[node(200), node(201)])).unwrap();
    for older in [rig.seeder.revocations(6, &[]), rig.seeder.revocations(7, &[])] {
        trust.accept_revocations(&older).unwrap();
    }
    trust.accept_keys(&rig.seeder.key_set_at(4)).unwrap();
    assert_eq!((trust.revoked(), trust.keys().version.counter), (2, 5), "older ones change nothing");
    for agent in agents {
        agent.stop().await;
    }
}
