//! Narrow links between places: how often do an image's bytes cross them?
//!
//! `regions`: three regions of six agents with fast links inside and slow ones between; the seeder stands in the first.
//! `edge`: a site of eight agents behind one slow uplink; the seeder is on the other side.
//!
//! What has crossed is read from the counters of the uplink itself: all that TCP carried, the protocols' own messages
//! and repeats included, so nothing that an agent believes of itself goes into it.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};

use super::{
    Log, Options,
    content::Content,
    fleet::{Fleet, Start},
    host, links,
    record::{Run, contender},
    room::Room,
    topology::{Network, Site},
};

/// The cases' names.
pub const REGIONS: &str = "regions";
/// The cases' names.
pub const EDGE: &str = "edge";
/// MiB of the blob; over the slow uplinks this takes half a minute.
const SIZE_MIB: u64 = 32;
/// Mbit/s of the agents' own links.
const INSIDE: u32 = 100;
/// Mbit/s between regions.
const BETWEEN: u32 = 20;
/// Mbit/s of the site's uplink.
const UPLINK: u32 = 10;
/// Room for what is not the blob.
const SLACK: u64 = 1 << 30;

/// A case of this kind.
struct Shape {
    case: &'static str,
    sites: Vec<Site>,
    /// Sites that bytes have to get into, and hosts there.
    remote: &'static [usize],
    /// What the highest count of copies is called.
    figure: &'static str,
}

/// Runs the one, the other, or both.
///
/// # Errors
/// The network cannot be built.
pub async fn run(options: &Options, log: &mut Log, cases: &[&str]) -> Result<()> {
    if let Some(why) = host::cannot() {
        log.skip(REGIONS, why);
        return Ok(());
    }
    host::sweep()?;
    let regions = Shape {
        case: REGIONS,
        // The seeder is one more host of the first.
        sites: vec![
            Site::of(7, INSIDE, Some(BETWEEN)),
            Site::of(6, INSIDE, Some(BETWEEN)),
            Site::of(6, INSIDE, Some(BETWEEN)),
        ],
        remote: &[1, 2],
        figure: "cross_copies_max",
    };
    let edge = Shape {
        case: EDGE,
        sites: vec![Site::of(1, INSIDE, None), Site::of(8, INSIDE, Some(UPLINK))],
        remote: &[1],
        figure: "uplink_copies",
    };
    let mib = options.sizes_or(&[SIZE_MIB])[0];
    let content = Content::new(mib, mib << 20)?;
    for shape in [regions, edge].iter().filter(|shape| cases.contains(&shape.case)) {
        for round in 0..options.rounds {
            let run = one(options, shape, round, &content).await;
            log.take(&format!("{} round {round}", shape.case), run);
        }
    }
    Ok(())
}

async fn one(options: &Options, shape: &Shape, round: usize, content: &Content) -> Result<Run> {
    let network = Network::build(&shape.sites).await?;
    let receivers = network.all().count() - 1;
    let directory = Room::new(content.len() * (receivers as u64 + 2) + SLACK)?;
    let run = Run {
        case: shape.case.to_owned(),
        variant: format!("{receivers} agents"),
        contender: contender::TLS.to_owned(),
        round,
        receivers,
        bytes: content.len(),
        ..Run::default()
    };
    let run = measured(options, run, shape, &network, content, directory.path()).await;
    super::kept(options, directory);
    run
}

async fn measured(
    options: &Options,
    run: Run,
    shape: &Shape,
    network: &Network,
    content: &Content,
    directory: &Path,
) -> Result<Run> {
    let mut fleet = Fleet::start(&network.site(0)[0], directory, &options.seeder(), content).await?;
    let mut agents = Vec::new();
    for s in 0..shape.sites.len() {
        // The seeder's host is the first of the first site.
        for host in network.site(s).iter().skip(usize::from(s == 0)) {
            let flags = options.agent_flags.clone();
            let start = Start { flags, region: Some(format!("r{s}")), ..Start::default() };
            agents.push((format!("{}-{}", shape.case, host.name()), Arc::clone(host), start));
        }
    }
    fleet.add(directory, agents).await?;
    let into = |site: usize| Ok::<_, anyhow::Error>(network.uplink_traffic(site)?.sent);
    let before: Vec<_> = shape.remote.iter().map(|&site| into(site)).collect::<Result<_>>()?;
    let mut run = links::timed(run, &mut fleet, content, &[]).await?;
    let mut most: f64 = 0.0;
    for (&site, before) in shape.remote.iter().zip(&before) {
        let crossed = into(site)?.since(before).payload();
        let copies = crossed as f64 / content.image.unique_bytes() as f64;
        most = most.max(copies);
        run = run.with(&format!("copies_into_{site}"), copies);
    }
    if run.failed > 0 {
        fleet.show_logs();
    }
    let rate = shape.sites[shape.remote[0]].uplink.context("a remote site has an uplink")?;
    let floor_s = content.len() as f64 * 8.0 / (f64::from(rate) * 1e6);
    Ok(run.with(shape.figure, most).with("one_copy_s", floor_s))
}
