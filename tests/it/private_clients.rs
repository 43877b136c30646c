//! Real clients pull private images through an agent: with credentials in the ways that docs/clients.md names, and not at all
//! without.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use shoal_tests::{
    cluster::Cluster,
    daemons::{self, Containerd, Docker, Login, Podman},
    image::real::GREETING,
    push,
};

use crate::images;

const REPOSITORY: &str = "blue/app";
const PUBLIC: &str = "public/app";
/// Programs that the daemons are run with.
const ISOLATION: [&str; 2] = ["unshare", "runc"];

/// A closed seeder with a private and a public image, and an agent.
struct Private {
    cluster: Cluster,
    password: String,
    /// The private image at the agent's own address, and under the seeder's name.
    names: [String; 2],
    /// The public one at the agent's own address.
    public: String,
}

impl Private {
    async fn start() -> Result<Self> {
        let cluster = Cluster::members_with(1, "", "access_rules = true\n", &[]).await?;
        cluster.order(&["user", "put", "anonymous", "--pull", "public/**"]).await?;
        let rights = ["user", "put", "blue", "--push", "blue/**", "--push", "public/**"];
        let password = cluster.order(&rights).await?.trim().to_owned();
        let seeder = cluster.seeder.client().user("blue", &password);
        for repository in [REPOSITORY, PUBLIC] {
            push::image(&seeder, repository, "1", &images::runnable()?.image).await?;
        }
        let at = |address: SocketAddr| format!("{address}/{REPOSITORY}:1");
        let names = [at(cluster.agents[0].addresses().registry), at(cluster.seeder.addresses().registry)];
        let public = format!("{}/{PUBLIC}:1", cluster.agents[0].addresses().registry);
        Ok(Self { cluster, password, names, public })
    }

    fn agent(&self) -> SocketAddr {
        self.cluster.agents[0].addresses().registry
    }
}

fn refused<T>(result: Result<T>, who: &str) -> Result<()> {
    let error = format!("{:#}", result.err().with_context(|| format!("{who} pulls a private image"))?);
    let words = ["401", "403", "unauthorized", "Unauthorized", "no basic auth", "authentication required", "denied"];
    ensure!(words.iter().any(|word| error.contains(word)), "{who} fails for another reason: {error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_a_private_image_by_the_agents_address_after_a_login_there() -> Result<()> {
    if !daemons::available(&["docker", "dockerd", "containerd", "ctr", ISOLATION[0], ISOLATION[1]])? {
        return Ok(());
    }
    let private = Private::start().await?;
    let docker = Docker::start(private.cluster.path()).await?;
    let [name, _] = &private.names;
    refused(docker.pull(name).await, "docker without a login")?;
    docker.pull(&private.public).await.context("what is public needs no login")?;
    let agent = private.agent().to_string();
    let wrong = docker.docker(&["login", "--username", "blue", "--password", "wrong", &agent]).await;
    refused(wrong, "docker with a wrong password")?;
    docker.docker(&["login", "--username", "blue", "--password", &private.password, &agent]).await?;
    docker.pull(name).await?;
    let said = docker.run(name).await?;
    ensure!(said.contains(GREETING), "the container said {said:?}");
    docker.pull(&private.public).await.context("nor does it mind one")?;
    docker.stop().await?;
    private.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_sends_a_mirror_the_pulls_credentials_or_those_of_its_hosts_toml() -> Result<()> {
    if !daemons::available(&["containerd", "ctr", ISOLATION[0], ISOLATION[1]])? {
        return Ok(());
    }
    let private = Private::start().await?;
    let containerd = Containerd::start(private.cluster.path()).await?;
    let (agent, [_, name]) = (private.agent(), &private.names);
    let user = format!("blue:{}", private.password);
    let header = format!("Basic {}", STANDARD.encode(&user));
    refused(containerd.pull_through_as(agent, name, &Login::None).await, "containerd without credentials")?;
    refused(
        containerd.pull_through_as(agent, name, &Login::User("blue:x".into())).await,
        "containerd with wrong ones",
    )?;
    for login in [Login::User(user), Login::Header(header)] {
        containerd.pull_through_as(agent, name, &login).await?;
        let said = containerd.run(name).await?;
        ensure!(said.contains(GREETING), "the container said {said:?}");
        containerd.forget(name).await?;
    }
    containerd.stop().await?;
    private.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_sends_a_mirror_the_credentials_that_it_has_for_the_mirrors_address() -> Result<()> {
    if !daemons::available(&["podman", ISOLATION[1]])? {
        return Ok(());
    }
    let private = Private::start().await?;
    let podman = Podman::new(private.cluster.path())?;
    let (agent, [direct, name]) = (private.agent().to_string(), &private.names);
    let seeder = private.cluster.seeder.addresses().registry.to_string();
    podman.mirror(&seeder, &agent)?;
    let empty = private.cluster.path().join("empty.json");
    std::fs::write(&empty, "{}")?;
    let empty = format!("--authfile={}", empty.display());
    for name in [name, direct] {
        let without = podman.podman(&["pull", "--tls-verify=false", &empty, name]).await;
        refused(without, "podman without credentials")?;
    }
    podman.podman(&["pull", "--tls-verify=false", &empty, &private.public]).await.context("what is public")?;
    let own = private.cluster.path().join("auth.json");
    let auth = STANDARD.encode(format!("blue:{}", private.password));
    // What `podman login 127.0.0.1:5050` writes.
    std::fs::write(&own, format!("{{\"auths\":{{\"{agent}\":{{\"auth\":\"{auth}\"}}}}}}"))?;
    let own = format!("--authfile={}", own.display());
    for name in [name, direct] {
        podman.podman(&["pull", "--tls-verify=false", &own, name]).await?;
        let said = podman.run(name).await?;
        ensure!(said.contains(GREETING), "the container said {said:?}");
        podman.forget(name).await?;
    }
    private.cluster.finish().await
}
