//! Where a Docker daemon is at hand: push to the seeder, pull through an agent, run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    cluster::Cluster,
    image::real::{GREETING, RealImage},
    process,
    report::line,
};

use crate::figures::Figures;

/// How long Docker may take to say whether it is there.
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);
/// How long one command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);

/// Does it, and notes in `figures` what came of it.
pub(crate) async fn leg(cluster: &Cluster, image: &RealImage, figures: &mut Figures) {
    let version = match daemon().await {
        Ok(version) => version,
        Err(why) => {
            figures.docker = Some(format!("left out: {why}"));
            return;
        }
    };
    line(&format!("docker {version}: push to the seeder, pull through {}, run", cluster.agents[0].name()));
    let (pushed, pulled) = (cluster.seeder.addresses().registry, cluster.agents[0].addresses().registry);
    let (pushed, pulled) = (format!("{pushed}/demo/docker:1"), format!("{pulled}/demo/docker:1"));
    let result = push_pull_run(image, &pushed, &pulled).await;
    // Whatever was made is removed, also when a step failed.
    for name in [&pushed, &pulled] {
        let _ = docker(&["rmi", "--force", name]).await;
    }
    match result {
        Ok(()) => figures.docker = Some(format!("{version} pushed, pulled and ran an image")),
        Err(error) => figures.failures.push(format!("docker: {error:#}").replace('\n', " | ")),
    }
}

async fn push_pull_run(image: &RealImage, pushed: &str, pulled: &str) -> Result<()> {
    let command = format!("CMD [\"/bin/sh\",\"-c\",\"echo {GREETING}\"]");
    let root = image.base_file.display().to_string();
    docker(&["import", "--change", &command, &root, pushed]).await?;
    docker(&["push", pushed]).await?;
    docker(&["rmi", pushed]).await?;
    docker(&["pull", pulled]).await?;
    let said = docker(&["run", "--rm", "--network=none", pulled]).await?;
    ensure!(said.contains(GREETING), "the container said {said:?}");
    Ok(())
}

/// The version of a Docker daemon that can reach this machine's loopback, or why there is none.
async fn daemon() -> Result<String, String> {
    let ask = ["info", "--format", "{{.ServerVersion}}\t{{.OperatingSystem}}\t{{.SecurityOptions}}"];
    let none: [(&str, std::ffi::OsString); 0] = [];
    let output = process::run("docker", ask, &none, LOOK_TIME_MAX).await;
    let output = output.map_err(|_| "no docker command".to_owned())?;
    let mut parts = output.stdout.trim().split('\t');
    let version = parts.next().unwrap_or_default().to_owned();
    if output.code != Some(0) || version.is_empty() {
        return Err("no Docker daemon answers".to_owned());
    }
    if parts.any(|part| part.contains("Docker Desktop") || part.contains("rootless")) {
        return Err("this Docker has a network of its own and cannot reach loopback".to_owned());
    }
    Ok(version)
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let none: [(&str, std::ffi::OsString); 0] = [];
    let output = process::run("docker", arguments, &none, COMMAND_TIME_MAX).await?;
    output.success(&format!("docker {}", arguments.join(" "))).context("Docker")
}
