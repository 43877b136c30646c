//! What capabilities are of a transfer's cost: what they make both ends do, counted and priced, beside all that the two
//! agents use for a transfer that runs.

use anyhow::Result;
use ed25519_dalek::SigningKey;
use serde_json::{Value, json};
use shoal_agent::agent::rights::{CAPABILITIES_MAX, Rights};
use shoal_proto::{
    Digest,
    envelope::Envelope,
    layout::Layout,
    signed::{Capability, Covered, KeySet, NodeId, Purpose, Subject, Version},
};
use shoal_tests::{cluster::Cluster, image::Image, pull, push};

use crate::{cpu, cpu_of};

const REPOSITORY: &str = "bench/capability";
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;
/// Digests of one capability: an image with more layers than most.
const DIGESTS: u64 = 32;
/// Questions for which a piece's right is looked up, at the most: the request, what is held, what is told.
const LOOK_UPS_A_PIECE: u32 = 3;
/// Times that a capability is opened: by the node that pulls, and by each end when the other shows it; twice as often, since
/// a connection may break.
const OPENED: u32 = 6;
/// Repetitions of what is priced.
const TIMES: u32 = 200;

/// CPU seconds of what capabilities make the two ends of a transfer of so many pieces do.
fn price(pieces: u32) -> Result<f64> {
    let key = SigningKey::from_bytes(&[3; 32]);
    let keys =
        KeySet { version: Version::default(), keys: vec![(Purpose::Capability, key.verifying_key().to_bytes())] };
    let node = NodeId([5; 32]);
    let capability = |image: u64| {
        let digests = (0..DIGESTS).map(|n| Digest::of(&(image * DIGESTS + n).to_le_bytes())).collect();
        let (subject, covered) = (Subject::Node(node), Covered::List(digests));
        Capability { subject, covered, discovery: [0; 32], not_before: 0, not_after: 10 }
    };
    // As many as a connection remembers, and the one that is looked for is the last that is looked at.
    let mut rights = Rights::new(node);
    (0..CAPABILITIES_MAX as u64).for_each(|image| rights.add(capability(image), &[]));
    let wanted = Digest::of(&0u64.to_le_bytes());
    let signed = Envelope::sign(&capability(0), &key);
    let (begun, mut opened, mut found) = (cpu()?, 0, 0);
    for _ in 0..TIMES {
        for _ in 0..OPENED {
            opened += u32::from(signed.open::<Capability>(&keys).is_ok());
        }
        for _ in 0..pieces * LOOK_UPS_A_PIECE {
            found += u32::from(rights.may_read(&wanted, 5));
        }
    }
    anyhow::ensure!(opened == TIMES * OPENED && found == TIMES * pieces * LOOK_UPS_A_PIECE, "nothing was looked up");
    Ok((cpu()? - begun) / f64::from(TIMES))
}

pub(crate) async fn measure(mib: u64) -> Result<(f64, Value)> {
    let cluster = Cluster::members(2, "").await?;
    let image = Image::synthetic(1, &[mib * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let options = pull::Options::default();
    let (first, second) = (&cluster.agents[0], &cluster.agents[1]);
    pull::image(&first.client(), REPOSITORY, "1", &options).await?;
    let agents = [first.pid()?, second.pid()?];
    let begun = cpu_of(&agents)?;
    pull::image(&second.client(), REPOSITORY, "1", &options).await?;
    let transfer = cpu_of(&agents)? - begun;
    let from_peers = second.metrics().await?.count("shoal_agent_received_bytes_total", &["from=\"peer\""]);
    anyhow::ensure!(from_peers > mib * MIB / 2, "only {from_peers} bytes came from the peer");
    cluster.finish().await?;
    let pieces = Layout::new(mib * MIB)?.pieces();
    let capabilities = price(pieces)?;
    let detail = json!({
        "transfer_cpu_s": transfer, "capabilities_cpu_s": capabilities, "mib": mib, "pieces": pieces,
        "look_ups_a_piece": LOOK_UPS_A_PIECE, "opened": OPENED, "shown_on_the_connection": CAPABILITIES_MAX,
    });
    Ok((capabilities / transfer, detail))
}
