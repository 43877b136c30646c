//! The `shoal` command as a person types it.

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    cluster::{Binaries, Cluster},
    image::{Blob, Image, Source},
    process::{self, Output},
    pull, push,
};

use crate::images::{self, MIB};

const REPOSITORY: &str = "it/cli";
/// How long one command may take on a loaded machine.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

pub(crate) async fn shoal(arguments: &[&str]) -> Result<Output> {
    let none: [(&str, OsString); 0] = [];
    process::run(&Binaries::find()?.agent.display().to_string(), arguments, &none, COMMAND_TIME_MAX).await
}

async fn json(arguments: &[&str]) -> Result<serde_json::Value> {
    let output = shoal(arguments).await?.success(&format!("shoal {}", arguments.join(" ")))?;
    serde_json::from_str(&output).with_context(|| format!("shoal {}: {output:?} is no JSON", arguments.join(" ")))
}

/// Every blob of the image is in the layout, and is what its digest says.
fn holds(layout: &Path, image: &Image) -> Result<()> {
    for blob in image.blobs().chain([&image.manifest]) {
        let found = Blob::new(Source::File(layout.join("blobs/sha256").join(blob.digest.hex())))?;
        ensure!(found.digest == blob.digest, "{} has other bytes", blob.digest);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_exports_an_image_through_the_running_agent() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let image = Image::synthetic(101, &[3 * MIB, 1000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let agent = cluster.agents[0].addresses().registry.to_string();
    let layout = cluster.path().join("layout");
    let (name, target) = (format!("{REPOSITORY}:1"), format!("oci:{}", layout.display()));
    let report = json(&["pull", &name, "--agent", &agent, "-o", &target, "--json"]).await?;
    ensure!(report["digest"] == image.manifest.digest.to_string(), "{report}");
    holds(&layout, &image)?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_needs_no_agent_where_it_is_told_the_seeder() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let image = images::runnable()?.image;
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let seeder = format!("http://{}", cluster.seeder.addresses().registry);
    let layout = cluster.path().join("layout");
    let archive = cluster.path().join("archive.tar");
    let name = format!("{REPOSITORY}:1");
    let targets = [format!("oci:{}", layout.display()), format!("docker-archive:{}", archive.display())];
    for target in &targets {
        shoal(&["pull", &name, "--seeder", &seeder, "-o", target]).await?.success("shoal pull")?;
    }
    holds(&layout, &image)?;
    let none: [(&str, OsString); 0] = [];
    let list = process::run("tar", ["-tf".as_ref(), archive.as_os_str()], &none, COMMAND_TIME_MAX).await?;
    ensure!(list.success("tar")?.contains("manifest.json"), "a Docker archive has a manifest.json");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_pinned_and_removed() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let image = Image::synthetic(103, &[2 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let (name, agent) = (format!("{REPOSITORY}:1"), cluster.agents[0].addresses().registry.to_string());
    shoal(&["pull", &name, "--agent", &agent, "--quiet"]).await?.success("shoal pull")?;
    let data = cluster.agents[0].data_dir().display().to_string();
    let listed = json(&["image", "ls", "--json", "--data-dir", &data]).await?;
    ensure!(listed[0]["digest"] == image.manifest.digest.to_string(), "{listed}");
    ensure!(listed[0]["complete"] == true && listed[0]["pinned"] == false, "{listed}");
    shoal(&["image", "pin", &name, "--data-dir", &data]).await?.success("shoal image pin")?;
    let listed = json(&["image", "ls", "--json", "--data-dir", &data]).await?;
    ensure!(listed[0]["pinned"] == true, "{listed}");
    shoal(&["image", "rm", &name, "--data-dir", &data]).await?.success("shoal image rm")?;
    let listed = json(&["image", "ls", "--json", "--data-dir", &data]).await?;
    ensure!(listed.as_array().is_some_and(Vec::is_empty), "{listed}");
    let status = json(&["status", "--json", "--data-dir", &data]).await?;
    ensure!(status["addresses"]["registry"] == agent, "{status}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_in_one_line() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let agent = cluster.agents[0].addresses().registry.to_string();
    let nowhere = cluster.path().join("nowhere").display().to_string();
    let data = cluster.agents[0].data_dir().display().to_string();
    let cases: [(&[&str], i32, &str); 4] = [
        (&["pull", "it/no-such-image:1", "--agent", &agent, "--quiet"], 1, "it/no-such-image"),
        (&["pull", "IT/Bad Name", "--agent", &agent], 64, "IT/Bad Name"),
        (&["status", "--data-dir", &nowhere], 1, &nowhere),
        (&["image", "rm", "it/no-such-image:1", "--data-dir", &data], 1, "it/no-such-image"),
    ];
    for (arguments, code, names) in cases {
        let output = shoal(arguments).await?;
        let said = output.stderr.trim();
        ensure!(output.code == Some(code), "{arguments:?} ended with {:?}: {said}", output.code);
        ensure!(said.lines().count() == 1 && said.contains(names), "{arguments:?} said {said:?}");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_for_each_layer_who_brought_it_and_why_the_seeder_was_asked() -> Result<()> {
    let cluster = Cluster::start(2).await?;
    let image = Image::synthetic(105, &[6 * MIB, 1000]);
    push::image(&cluster.seeder.client(), REPOSITORY, "explained", &image).await?;
    let name = format!("{REPOSITORY}:explained");
    for agent in &cluster.agents {
        pull::image(&agent.client(), REPOSITORY, "explained", &pull::Options::default()).await?;
    }
    // The first had nobody to ask; the second got the large layer from the first.
    for (agent, source) in cluster.agents.iter().zip(["seeder", "fleet"]) {
        let data = agent.data_dir().display().to_string();
        let pulls = json(&["explain", &name, "--data-dir", &data, "--json"]).await?;
        let pull = &pulls[0];
        ensure!(pulls.as_array().is_some_and(|pulls| pulls.len() == 1) && pull["repository"] == REPOSITORY, "{pulls}");
        let blobs = pull["blobs"].as_array().context("the pull has blobs")?;
        let large = blobs.iter().find(|blob| blob["size"] == 6 * MIB).context("the layer of 6 MiB is told of")?;
        ensure!(large["complete"] == true && large["local"] == 0, "{large}");
        let shares = large["shares"].as_array().context("shares")?;
        let bytes =
            |of: &str| shares.iter().filter(|s| s["source"] == of).filter_map(|s| s["bytes"].as_u64()).sum::<u64>();
        ensure!(bytes(source) == 6 * MIB, "{}: not all from {source}: {large}", agent.name());
        let reasons = large["fallbacks"].as_array().context("fallbacks")?;
        ensure!((source == "seeder") != reasons.is_empty(), "{large}");
        let text = shoal(&["explain", &name, "--data-dir", &data]).await?.success("shoal explain")?;
        ensure!(text.contains(&image.manifest.digest.to_string()) && text.contains("6.00 MiB"), "{text}");
    }
    let data = cluster.agents[0].data_dir().display().to_string();
    let output = shoal(&["explain", "it/never:1", "--data-dir", &data]).await?;
    ensure!(output.success("it").is_err(), "an image that was never pulled is explained");
    cluster.finish().await
}
