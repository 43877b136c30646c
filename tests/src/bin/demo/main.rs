//! `make demo`: one seeder and eight agents, nine processes on loopback; a real image is pushed to the seeder and pulled
//! through all agents at the same time, and every byte is checked. The last line says whether it did what it should.

mod docker;
mod figures;
mod progress;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use shoal_tests::{
    clone,
    cluster::Cluster,
    image::real::{self, RealImage, Spec},
    pull, push,
    report::{human, line},
};
use tokio::task::JoinSet;

use figures::{AgentFigures, Figures};

/// The repository that is pushed.
const REPOSITORY: &str = "demo/image";
/// Its tag.
const TAG: &str = "1";

/// One seeder, some agents, a real image through all of them at once.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many agents pull.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    agents: u16,
    /// The image has at least so many MiB, compressed.
    #[arg(long, default_value_t = 200)]
    image_mib: u64,
    /// Where the image is kept between runs and the report is written [default: target/demo of the clone].
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Leaves the Docker daemon alone even if there is one.
    #[arg(long)]
    no_docker: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::select! {
        outcome = demo(&arguments) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(figures) => {
            line(&figures.verdict());
            if figures.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            line(&format!("demo: FAIL {}", format!("{error:#}").replace('\n', " | ")));
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: &Arguments) -> Result<Figures> {
    let directory = match &arguments.directory {
        Some(directory) => directory.clone(),
        None => clone::root()?.join("target/demo"),
    };
    let image = make_image(&directory, arguments.image_mib).await?;
    let mut cluster =
        Cluster::members(usize::from(arguments.agents), "region=demo").await.context("start the processes")?;
    // Ctrl-C drops it: nobody wants to read nine logs then.
    cluster.keep_quiet();
    let result = measure(arguments, &cluster, &image).await;
    let mut figures = result.inspect_err(|_| cluster.show_logs())?;
    if !figures.failures.is_empty() {
        cluster.show_logs();
    }
    if let Err(error) = cluster.finish().await {
        figures.failures.push(format!("{error:#}"));
    }
    figures.print();
    figures.write(&directory.join("report.json"))?;
    Ok(figures)
}

/// Pushes, pulls through all, and holds what was measured against what it must be.
async fn measure(arguments: &Arguments, cluster: &Cluster, image: &RealImage) -> Result<Figures> {
    line(&format!(
        "seeder at {}, {} agents at {}",
        cluster.seeder.addresses().registry,
        cluster.agents.len(),
        cluster.agents.iter().map(|agent| agent.addresses().registry.to_string()).collect::<Vec<_>>().join(" "),
    ));
    let started = Instant::now();
    push::image(&cluster.seeder.client(), REPOSITORY, TAG, &image.image).await.context("push to the seeder")?;
    line(&format!("pushed to the seeder in {:.1} s", started.elapsed().as_secs_f64()));
    let sent_before = figures::sent_by(&cluster.seeder).await?;
    let reports = pull_through_all(cluster, image).await?;
    let sent = figures::sent_by(&cluster.seeder).await?.saturating_sub(sent_before);
    let mut figures = Figures::new(image.image.unique_bytes(), sent);
    let needed = figures::needed(&image.image);
    for (agent, report) in cluster.agents.iter().zip(&reports) {
        figures.agents.push(AgentFigures::read(agent, report, needed).await?);
    }
    if !arguments.no_docker {
        docker::leg(cluster, image, &mut figures).await;
    }
    figures.judge(cluster, &image.image);
    Ok(figures)
}

async fn make_image(directory: &Path, mib: u64) -> Result<RealImage> {
    let (cache, spec) = (directory.join(format!("image-{mib}")), Spec::demo(mib << 20));
    let image =
        tokio::task::spawn_blocking(move || real::build(&cache, &spec, &|what| line(&format!("image: {what}"))));
    let image = image.await.context("making the image")??;
    line(&format!(
        "image: {} layers, {} compressed; base: {}{}",
        image.image.layers.len(),
        human(image.image.unique_bytes()),
        image.base,
        if image.cached { " (kept from an earlier run)" } else { "" },
    ));
    Ok(image)
}

/// Pulls through every agent at once, with a display. The reports are in the agents' order.
async fn pull_through_all(cluster: &Cluster, image: &RealImage) -> Result<Vec<pull::Report>> {
    let options: Vec<pull::Options> = cluster.agents.iter().map(|_| pull::Options::default()).collect();
    let total = image.image.blobs().map(|blob| blob.size).sum();
    let counters = cluster.agents.iter().zip(&options).map(|(agent, options)| (agent.name(), options.received.clone()));
    let mut display = progress::Display::new(counters, total);
    let mut pulls = JoinSet::new();
    for (index, (agent, options)) in cluster.agents.iter().zip(options).enumerate() {
        let (name, client) = (agent.name().to_owned(), agent.client());
        pulls.spawn(async move {
            let report = pull::image(&client, REPOSITORY, TAG, &options).await;
            report.map(|report| (index, report)).with_context(|| format!("pull through {name}"))
        });
    }
    let mut reports = Vec::with_capacity(cluster.agents.len());
    let mut ticks = tokio::time::interval(progress::INTERVAL);
    loop {
        tokio::select! {
            report = pulls.join_next() => match report {
                Some(report) => reports.push(report.context("a pull")??),
                None => break,
            },
            _ = ticks.tick() => display.show(),
        }
    }
    display.finish();
    reports.sort_unstable_by_key(|&(index, _)| index);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}
