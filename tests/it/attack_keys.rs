//! The fleet's keys change while it works, and only its root key changes them.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use shoal_tests::{
    cluster::{Cluster, Daemon},
    image::Image,
    pull, push, wait,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/keys";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// An agent asks for newer keys at most every ten seconds; nothing else may keep a pull from going well.
async fn pulls_again(agent: &Daemon, tag: &str) -> Result<()> {
    let options = pull::Options::default();
    let done = async || Ok(pull::image(&agent.client(), REPOSITORY, tag, &options).await.ok());
    wait::until(&format!("a pull of {tag} by {}", agent.name()), LONG, done).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_without_a_restart_and_old_statements_are_signed_anew() -> Result<()> {
    let cluster = Cluster::members(2, "").await?;
    let (first, second) = (&cluster.agents[0], &cluster.agents[1]);
    let options = pull::Options::default();
    let old = Image::synthetic(101, &[3 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "old", &old).await?;
    pull::image(&first.client(), REPOSITORY, "old", &options).await?;
    cluster.order(&["key", "rotate"]).await?;
    // One rotation is noticed by nobody: the very first pull goes well.
    let new = Image::synthetic(102, &[3 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "new", &new).await?;
    for agent in [first, second] {
        pull::image(&agent.client(), REPOSITORY, "new", &options).await?;
    }
    // Three more at once: nothing that the first keys have signed holds any longer, memberships included.
    for _ in 0..3 {
        cluster.order(&["key", "rotate"]).await?;
    }
    let image = Image::synthetic(103, &[3 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "newest", &image).await?;
    for agent in [first, second] {
        pulls_again(agent, "newest").await?;
        pulls_again(agent, "old").await?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_can_be_taken_offline_is_shown_to_nobody_and_no_other_key_passes_for_it() -> Result<()> {
    let cluster = Cluster::members(0, "").await?;
    let here = cluster.seeder.data_dir().join("root.key");
    let secret = std::fs::read_to_string(&here)?;
    let (safe, forged) = (cluster.path().join("safe"), cluster.path().join("forged"));
    let exported = cluster.order(&["key", "export-root", &text(&safe), "--remove"]).await?;
    ensure!(exported.is_empty() && !here.exists(), "the root key is still there: {exported}");
    ensure!(std::fs::metadata(&safe)?.permissions().mode() & 0o777 == 0o600, "others can read the root key");
    ensure!(std::fs::read_to_string(&safe)? == secret, "another key was exported");
    std::fs::write(&forged, "ab".repeat(32))?;
    for (flags, expected) in
        [(vec![], "root.key"), (vec!["--root-key".to_owned(), text(&forged)], "not this fleet's root key")]
    {
        let command: Vec<&str> = ["key", "rotate"].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let refused = cluster.order(&command).await.err().with_context(|| format!("{command:?} is carried out"))?;
        ensure!(format!("{refused:#}").contains(expected), "{command:?}: {refused:#}");
    }
    let rotated = cluster.order(&["key", "rotate", "--root-key", &text(&safe)]).await?;
    ensure!(rotated.contains("\"counter\":2") && !rotated.contains(&secret), "{rotated}");
    ensure!(!std::fs::read_to_string(cluster.seeder.log())?.contains(&secret), "the log shows the root key");
    cluster.finish().await
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
