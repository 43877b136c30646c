//! Who does not belong to the fleet gets nothing of it, and who does is hindered by nothing of that.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use shoal_proto::{api, codec, have::HaveSet, layout::Layout};
use shoal_tests::{
    cluster::{Binaries, Cluster, Daemon},
    http,
    image::Image,
    process::{self, Output},
    pull, push, wait,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/members";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// Runs an agent that is expected to end by itself.
async fn start_in_vain(cluster: &Cluster, name: &str, flags: &[&str]) -> Result<Output> {
    let binaries = Binaries::find()?;
    let data = cluster.path().join(name).display().to_string();
    let seeder = format!("http://{}", cluster.seeder.addresses().registry);
    let any = "127.0.0.1:0";
    let fixed = ["agent", "--seeder", &seeder, "--data-dir", &data, "--listen", any, "--status", any];
    let ports = ["--libp2p-listen", any, "--peer-listen", any];
    let arguments = fixed.into_iter().chain(ports).chain(flags.iter().copied());
    process::run(&binaries.agent.display().to_string(), arguments, &[], LONG).await
}

async fn node_of(agent: &Daemon) -> Result<String> {
    let account = agent.account().await?;
    Ok(account["swarm"]["node"].as_str().with_context(|| format!("no node in {account}"))?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_in_as_many_as_it_says_and_its_labels_are_not_the_nodes_to_choose() -> Result<()> {
    let mut cluster = Cluster::members(0, "").await?;
    let token = cluster.token(1, "region=eu,zone=a").await?;
    let with_token = ["--join-token-file", token.as_str()];
    let liar = [with_token.as_slice(), &["--region", "us"]].concat();
    let agent = cluster.another("first", &liar).await?;
    let account = agent.account().await?;
    ensure!(account["swarm"]["labels"] == "eu/a", "{account}");
    let refusals: [(&str, &[&str], &str); 4] = [
        ("second", &with_token, "the join token is used up"),
        ("none", &[], "join token"),
        ("open", &["--insecure-open"], "not in open mode"),
        ("foreign", &["--join-token", FOREIGN_TOKEN], "another fleet"),
    ];
    for (name, flags, expected) in refusals {
        let output = start_in_vain(&cluster, name, flags).await?;
        ensure!(output.code == Some(1) && output.stderr.contains(expected), "{name}: {output:?}");
        ensure!(!output.stderr.contains(&FOREIGN_TOKEN[80..]), "a token is shown: {output:?}");
    }
    // The one that is in needs no token to come back, and no use of it.
    cluster.agents = vec![agent];
    cluster.agents[0].stop().await?;
    cluster.agents[0].launch().await?;
    let image = Image::synthetic(91, &[MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    pull::image(&cluster.agents[0].client(), REPOSITORY, "1", &pull::Options::default()).await?;
    cluster.finish().await
}

/// A token of a fleet that does not exist.
const FOREIGN_TOKEN: &str =
    "shoal-join-1111111111111111111111111111111111111111111111111111111111111111abcdefabcdefabcdefabcdefabcdefab";

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_the_seeder_is_given_no_pieces_no_introductions_and_no_capability() -> Result<()> {
    let cluster = Cluster::members(1, "").await?;
    let image = Image::synthetic(92, &[MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    let digest = image.layers[0].blob.digest;
    let want = HaveSet::full(&Layout::new(MIB)?).to_bytes();
    let pieces = codec::encode(&api::PiecesWanted { want, urgent: None, max: 1, stalled: true });
    for (target, body) in [
        (format!("/v2/{REPOSITORY}/_shoal/pieces/{digest}"), pieces),
        (format!("/v2/{REPOSITORY}/_shoal/pull/1"), Vec::new()),
        ("/v2/_shoal/members".to_owned(), Vec::new()),
    ] {
        let headers = [("content-type", api::CONTENT_TYPE)];
        let reply = cluster.seeder.client().send(Method::POST, &target, &headers, http::full(body)).await?;
        let reply = http::collect(reply).await?;
        ensure!(reply.status == StatusCode::FORBIDDEN, "{target}: {} {}", reply.status, reply.text());
        ensure!(reply.text().contains("no-membership"), "{target}: {}", reply.text());
    }
    pull::image(&cluster.agents[0].client(), REPOSITORY, "1", &pull::Options::default()).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_member_loses_its_connections_and_its_pulls_and_others_notice_nothing() -> Result<()> {
    let cluster = Cluster::members(3, "region=eu").await?;
    let client = cluster.seeder.client();
    let options = pull::Options::default();
    let image = Image::synthetic(93, &[4 * MIB]);
    push::image(&client, REPOSITORY, "1", &image).await?;
    for agent in &cluster.agents {
        pull::image(&agent.client(), REPOSITORY, "1", &options).await?;
    }
    let listed = cluster.order(&["member", "list"]).await?;
    ensure!(listed.lines().count() == 3 && listed.matches("\"region\":\"eu\"").count() == 3, "{listed}");
    let bad = node_of(&cluster.agents[1]).await?;
    cluster.order(&["member", "revoke", &bad]).await?;
    for agent in [&cluster.agents[0], &cluster.agents[2]] {
        wait::until("the revocation", LONG, async || {
            let account = agent.account().await?;
            let peers = account["swarm"]["peers"].to_string();
            Ok((account["swarm"]["revoked"] == 1 && !peers.contains(&bad)).then_some(()))
        })
        .await?;
    }
    let next = Image::synthetic(94, &[4 * MIB]);
    push::image(&client, REPOSITORY, "2", &next).await?;
    let refused = pull::image(&cluster.agents[1].client(), REPOSITORY, "2", &options).await;
    let refused = format!("{:#}", refused.err().context("a revoked member pulls on")?);
    ensure!(refused.contains("403") || refused.contains("revoked"), "{refused}");
    for agent in [&cluster.agents[0], &cluster.agents[2]] {
        pull::image(&agent.client(), REPOSITORY, "2", &options).await?;
    }
    cluster.finish().await
}

#[tokio::test]
async fn nothing_secret_is_readable_by_others() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::members(1, "").await?;
    let secrets = [cluster.seeder.data_dir().join("root.key"), cluster.agents[0].data_dir().join("node.key")];
    let sockets = [cluster.seeder.data_dir().join("admin.sock")];
    for path in secrets.iter().chain(&sockets) {
        let mode = std::fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", path.display());
    }
    let token = std::fs::read_to_string(token_file(&cluster)?)?;
    let secret = &token.trim()[token.trim().len() - 32..];
    for log in [cluster.seeder.log(), cluster.agents[0].log()] {
        ensure!(!std::fs::read_to_string(&log)?.contains(secret), "{} shows the join token", log.display());
    }
    let status = cluster.agents[0].account().await?.to_string();
    ensure!(!status.contains(secret), "the status page shows the join token");
    ensure!(!cluster.order(&["join-token", "list"]).await?.contains(secret), "the list shows the join token");
    cluster.finish().await
}

fn token_file(cluster: &Cluster) -> Result<Box<Path>> {
    let mut entries = std::fs::read_dir(cluster.path())?;
    let found = entries.find_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.starts_with("token-").then(|| path.into_boxed_path())
    });
    found.context("a token file")
}
