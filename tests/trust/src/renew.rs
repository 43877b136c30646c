//! A membership that is renewed, in a fleet of ten and in one of ten thousand.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use shoal_proto::signed::{Labels, NodeId};
use shoal_seeder::{
    keys::Fleet,
    members::Members,
    store::{Store, local::Local},
};

use crate::{cpu, median};

/// Members of the small fleet and of the large one.
const SIZES: [usize; 2] = [10, 10_000];
/// Renewals of one half of a pair.
const RENEWALS: usize = 4000;
/// Nodes that join at once, each by a token of its own: one token's record would be everybody's.
const LANES: usize = 16;
/// Renewals at once, as a seeder has requests at once.
const AT_ONCE: usize = 16;
/// Any time will do: nobody checks a signature here.
const TIME: u64 = 1000;

struct Populace {
    members: Members,
    fleet: Arc<Fleet>,
    count: usize,
    _dir: tempfile::TempDir,
}

fn node(n: usize) -> NodeId {
    let mut node = [7; 32];
    node[..8].copy_from_slice(&n.to_le_bytes());
    NodeId(node)
}

impl Populace {
    /// In memory: a disk's waiting is not CPU, but what else a disk does would be.
    async fn new(count: usize) -> Result<Self> {
        let dir = tempfile::tempdir_in("/dev/shm").context("a directory in memory")?;
        let store: Arc<dyn Store> = Arc::new(Local::open(dir.path(), 0)?);
        let fleet = Arc::new(Fleet::load(dir.path(), &*store).await?);
        let members = Members::load(store, Arc::clone(&fleet)).await?;
        let joins = (0..LANES).map(async |lane| {
            let uses = u32::try_from(count).context("a token's uses")?;
            let token = members.create_token(uses, 3600, Labels::default()).await?;
            for n in (lane..count).step_by(LANES) {
                let shown = token.show(&node(n), TIME);
                members.join(&node(n), Some(&shown), TIME).await?;
            }
            anyhow::Ok(())
        });
        futures::future::try_join_all(joins).await?;
        Ok(Self { members, fleet, count, _dir: dir })
    }

    /// CPU seconds of many renewals, all over the fleet, each signed as it goes out.
    async fn cost(&self) -> Result<f64> {
        let begun = cpu()?;
        // A step without a common factor visits all of the large fleet.
        let renewals = (0..RENEWALS).map(|n| node(n * 7919 % self.count));
        stream::iter(renewals)
            .map(async |node| {
                let membership = self.members.join(&node, None, TIME).await?;
                drop((self.fleet.sign(&membership), self.members.revocations()));
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(cpu()? - begun)
    }
}

pub(crate) async fn measure(rounds: usize) -> Result<(f64, Value)> {
    let (small, large) = (Populace::new(SIZES[0]).await?, Populace::new(SIZES[1]).await?);
    let (mut ratios, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (few, many) = (small.cost().await?, large.cost().await?);
        ratios.push(many / few);
        pairs.push(json!({ "of_10_cpu_s": few, "of_10k_cpu_s": many }));
    }
    Ok((median(ratios), json!({ "renewals": RENEWALS, "rounds": pairs })))
}
