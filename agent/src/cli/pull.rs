//! `shoal pull`: through the running agent, or, with `--seeder`, a temporary one that is gone afterwards.

use std::{net::SocketAddr, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use shoal_proto::{Digest, name::Reference};

use super::{
    export::{DockerArchive, Layout, Target, discard},
    fetch::{Manifest, Source},
    out::{Out, human},
    progress::Progress,
    reference::ImageName,
};
use crate::{
    Agent, Config, Running,
    config::{Platform, REGISTRY_PORT},
    http::manifest::{Children, Descriptor, Image},
};

/// Blobs at once: what container runtimes do. The agent fetches all of them meanwhile.
const BLOBS_AT_ONCE: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// NAME, NAME:TAG or NAME@DIGEST
    image: ImageName,
    /// Export it: `oci:DIR` or `docker-archive:FILE`; its SHA-256 digests are checked
    #[arg(short, long, value_name = "TARGET")]
    output: Option<Target>,
    /// The running agent's registry
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], REGISTRY_PORT)))]
    agent: SocketAddr,
    /// Pull by a temporary agent of this seeder instead (the seeder must be in open mode)
    #[arg(long, value_name = "URL", conflicts_with = "agent")]
    seeder: Option<String>,
    /// Which image of a multi-platform one [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Yield to all other pulls: for images that are to be there before they are asked for
    #[arg(long)]
    low: bool,
    /// No progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    image: String,
    digest: Digest,
    media_type: String,
    bytes: u64,
    blobs: usize,
    seconds: f64,
    stale: bool,
}

pub(super) async fn run(args: &PullArgs, out: &mut Out) -> Result<()> {
    let Some(seeder) = &args.seeder else {
        return pull(args, args.agent, out).await;
    };
    let (config, folder) = temporary(seeder)?;
    let running: Running = Agent::start(config).await?;
    let address = running.addresses().registry;
    let result = tokio::select! {
        result = pull(args, address, out) => result,
        // Before the folder goes, the agent must have stopped.
        signal = tokio::signal::ctrl_c() => signal.map_err(Into::into).and_then(|()| bail!("interrupted")),
    };
    let stopped = running.shutdown().await;
    drop(folder);
    result.and(stopped)
}

/// A folder that goes with this value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a temporary folder is left behind");
        }
    }
}

fn temporary(seeder: &str) -> Result<(Config, Folder)> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).context("no random bytes")?;
    let path = std::env::temp_dir().join(format!("shoal-pull-{}", hex::encode(random)));
    let config = Config::temporary(seeder, path.clone())?;
    Ok((config, Folder(path)))
}

async fn pull(args: &PullArgs, agent: SocketAddr, out: &mut Out) -> Result<()> {
    let (started, source, name) = (Instant::now(), Source::new(agent, args.low), &args.image);
    let progress = Progress::new(args.quiet || args.json);
    let asked =
        source.manifest(&name.repository, &name.reference).await.with_context(|| format!("cannot pull {name}"))?;
    if asked.stale {
        out.note("the seeder is out of reach; the tag is as this agent last heard it, and may have moved");
    }
    let manifest = select(args, &source, asked.clone()).await?;
    let image = Image::of(&manifest.bytes).map_err(|error| anyhow::anyhow!("{name} is no container image: {error}"))?;
    let blobs = unique(&image);
    match &args.output {
        None => {
            let all =
                stream::iter(blobs.clone()).map(Ok).try_for_each_concurrent(BLOBS_AT_ONCE, async |(what, blob)| {
                    let line = progress.line(what, &blob.digest, blob.size);
                    discard(source.blob(&name.repository, &blob.digest, blob.size).await?, line).await
                });
            all.await?;
        }
        Some(Target::Oci(dir)) => {
            let layout = Layout::create(dir)?;
            let all =
                stream::iter(blobs.clone()).map(Ok).try_for_each_concurrent(BLOBS_AT_ONCE, async |(what, blob)| {
                    let line = progress.line(what, &blob.digest, blob.size);
                    layout.blob(&blob, source.blob(&name.repository, &blob.digest, blob.size).await?, line).await
                });
            all.await?;
            layout.finish(&manifest, &name.reference)?;
        }
        Some(Target::Archive(path)) => {
            let mut archive = DockerArchive::create(path)?;
            // One after the other: they share a file. The agent fetches them all at once meanwhile.
            for (what, blob) in &blobs {
                let line = progress.line(what, &blob.digest, blob.size);
                let stream = source.blob(&name.repository, &blob.digest, blob.size).await?;
                archive.blob(blob, *what == CONFIG, stream, line).await?;
            }
            archive.finish(&name.repository, &name.reference, &image.config, &image.layers)?;
        }
    }
    let report = Report {
        image: name.to_string(),
        digest: asked.digest,
        media_type: asked.media_type,
        bytes: blobs.iter().map(|(_, blob)| blob.size).sum(),
        blobs: blobs.len(),
        seconds: started.elapsed().as_secs_f64(),
        stale: asked.stale,
    };
    if args.json {
        return out.json(&report);
    }
    let Report { image, digest, bytes, seconds, .. } = &report;
    out.line(&format!("{image}  {digest}  {}  {seconds:.1} s", human(*bytes)));
    Ok(())
}

/// The manifest itself, or the one of an index that is for the platform.
async fn select(args: &PullArgs, source: &Source, manifest: Manifest) -> Result<Manifest> {
    let Some(children) = Children::of_index(&manifest.bytes) else { return Ok(manifest) };
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let Some(digest) = children.manifest_for(&platform).map(|found| found.digest) else {
        bail!("{} has no image for {platform}; choose another with --platform", args.image)
    };
    let manifest = source.manifest(&args.image.repository, &Reference::Digest(digest)).await?;
    Ok(manifest)
}

const CONFIG: &str = "config";

/// Config and layers, each once, with what to call them.
fn unique(image: &Image) -> Vec<(&'static str, Descriptor)> {
    let mut list = vec![(CONFIG, image.config.clone())];
    for layer in &image.layers {
        if !list.iter().any(|(_, known)| known.digest == layer.digest) {
            list.push(("layer", layer.clone()));
        }
    }
    list
}
