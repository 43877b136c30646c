//! Nodes for which a Kubernetes cluster vouches join without a join token, and nobody else does by such a way.

#[path = "../../seeder/src/kubernetes/tests/issuer.rs"]
mod issuer;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shoal_tests::{
    cluster::{Binaries, Cluster, Daemon},
    image::Image,
    process, pull, push, wait,
};

use self::issuer::{ISSUER, KeyServer, Signer, claims, key_set};
use crate::images::MIB;

const REPOSITORY: &str = "it/kubernetes";
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// A seeder without join tokens, and a cluster that vouches for `shoal/agent`.
struct Fleet {
    cluster: Cluster,
    keys: KeyServer,
    signer: Signer,
    root: String,
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}

impl Fleet {
    async fn start(signer: Signer) -> Result<Self> {
        let keys = KeyServer::start(key_set(&[&signer])).await;
        let config = format!(
            "[[join.kubernetes]]\nname = \"prod\"\nissuer = \"{ISSUER}\"\nkeys_url = \"http://{}/openid/v1/jwks\"\n\
             [[join.kubernetes.allow]]\nnamespace = \"shoal\"\nservice_account = \"agent\"\nmachine = \"eu-a-*\"\n\
             labels = {{ region = \"eu\", zone = \"a\" }}\n",
            keys.address
        );
        let cluster = Cluster::members_with(0, "", &config, &[]).await?;
        let status: Value = serde_json::from_str(&cluster.order(&["status", "--json"]).await?)?;
        let root = status["root"].as_str().context("the root key")?.to_owned();
        Ok(Self { cluster, keys, signer, root })
    }

    /// Writes a token as the kubelet does: beside, then moved into place.
    fn project(&self, name: &str, token: &str) -> Result<PathBuf> {
        let (path, new) = (self.cluster.path().join(name), self.cluster.path().join(format!("{name}.new")));
        std::fs::write(&new, format!("{token}\n"))?;
        std::fs::rename(&new, &path)?;
        Ok(path)
    }

    async fn agent(&self, name: &str, token: &Path) -> Result<Daemon> {
        let token = token.display().to_string();
        self.cluster.another(name, &["--join-jwt", &token, "--fleet-key", &self.root, "--region", "us"]).await
    }

    /// What an agent says that the seeder does not let in.
    async fn refused(&self, name: &str, flags: &[&str]) -> Result<String> {
        let data = self.cluster.path().join(name).display().to_string();
        let seeder = format!("http://{}", self.cluster.seeder.addresses().registry);
        let any = "127.0.0.1:0";
        let fixed = ["agent", "--seeder", &seeder, "--data-dir", &data, "--listen", any, "--status", any];
        let ports = ["--libp2p-listen", any, "--peer-listen", any];
        let arguments = fixed.into_iter().chain(ports).chain(flags.iter().copied());
        let program = Binaries::find()?.agent.display().to_string();
        let output = process::run(&program, arguments, &[], LONG).await?;
        ensure!(output.code == Some(1), "{name}: {output:?}");
        Ok(output.stderr)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_cluster_vouches_for_joins_and_a_stranger_or_a_thief_does_not() -> Result<()> {
    let fleet = Fleet::start(Signer::rs256("one")).await?;
    let token = fleet.signer.sign(&claims(now()?));
    let file = fleet.project("token", &token)?;
    let agent = fleet.agent("first", &file).await?;
    let account = agent.account().await?;
    ensure!(account["swarm"]["labels"] == "eu/a", "{account}");
    let listed = fleet.cluster.order(&["member", "list"]).await?;
    ensure!(listed.contains("\"service_account\":\"shoal/agent\"") && listed.contains("eu-a-17"), "{listed}");
    let image = Image::synthetic(131, &[MIB]);
    push::image(&fleet.cluster.seeder.client(), REPOSITORY, "1", &image).await?;
    pull::image(&agent.client(), REPOSITORY, "1", &pull::Options::default()).await?;

    let mut other = claims(now()?);
    other["sub"] = "system:serviceaccount:default:default".into();
    let mut elsewhere = claims(now()?);
    elsewhere["aud"] = "https://kubernetes.default.svc".into();
    let mut ended = claims(now()? - 7200);
    ended["exp"] = (now()? - 3600).into();
    let forger = Signer::rs256("one");
    let write = |name: &str, token: &str| fleet.project(name, token).map(|path| path.display().to_string());
    for (name, token, expected) in [
        ("thief", write("thief.token", &token)?, "a token is good for one node"),
        ("stranger", write("stranger.token", &fleet.signer.sign(&other))?, "lets default/default on eu-a-17 in"),
        ("audience", write("audience.token", &fleet.signer.sign(&elsewhere))?, "is not for this seeder"),
        ("late", write("late.token", &fleet.signer.sign(&ended))?, "has ended"),
        ("forger", write("forger.token", &forger.sign(&claims(now()?)))?, "signature of the service-account token"),
        ("nothing", write("nothing.token", "")?, "no service-account token"),
        ("missing", "/nonexistent/token".to_owned(), "cannot read the service-account token"),
    ] {
        let said = fleet.refused(name, &["--join-jwt", &token, "--fleet-key", &fleet.root]).await?;
        ensure!(said.contains(expected), "{name}: {said}");
    }
    let impostor = "11".repeat(32);
    let said =
        fleet.refused("impostor", &["--join-jwt", &file.display().to_string(), "--fleet-key", &impostor]).await?;
    ensure!(said.contains("somebody stands between"), "{said}");
    let secret = token.rsplit('.').next().context("a signature")?;
    for log in [fleet.cluster.seeder.log(), agent.log()] {
        ensure!(!std::fs::read_to_string(&log)?.contains(secret), "{} shows the token", log.display());
    }
    let Fleet { mut cluster, .. } = fleet;
    cluster.agents = vec![agent];
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_read_again_at_each_renewal_and_an_outage_of_the_cluster_ends_no_membership() -> Result<()> {
    let fleet = Fleet::start(Signer::es256("one")).await?;
    let file = fleet.project("token", &fleet.signer.sign(&claims(now()?)))?;
    let mut agent = fleet.agent("first", &file).await?;
    let renewed = async |machine: &str| {
        // Three rotations: the membership no longer counts, and is renewed within seconds.
        for _ in 0..3 {
            fleet.cluster.order(&["key", "rotate"]).await?;
        }
        let list =
            async || Ok(Some(fleet.cluster.order(&["member", "list"]).await?).filter(|list| list.contains(machine)));
        wait::until(&format!("a renewal by {machine}"), LONG, list).await.map(|_| ())
    };
    let mut moved = claims(now()?);
    moved["kubernetes.io"]["node"]["name"] = "eu-a-99".into();
    fleet.project("token", &fleet.signer.sign(&moved))?;
    renewed("eu-a-99").await?;
    // The cluster is away; the node restarts, and pulls by the membership that it has.
    fleet.keys.publish(String::new());
    agent.stop().await?;
    agent.launch().await?;
    let image = Image::synthetic(132, &[MIB]);
    push::image(&fleet.cluster.seeder.client(), REPOSITORY, "2", &image).await?;
    pull::image(&agent.client(), REPOSITORY, "2", &pull::Options::default()).await?;
    let Fleet { mut cluster, .. } = fleet;
    cluster.agents = vec![agent];
    cluster.finish().await
}
