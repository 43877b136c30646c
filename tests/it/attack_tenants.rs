//! What one tenant may read, another may not: at the seeder, at an agent that has it stored, and without the seeder.

use anyhow::{Result, ensure};
use hyper::{Method, StatusCode};
use shoal_tests::{cluster::Cluster, http::Client, image::Image, pull, push};

use crate::images::MIB;

const RULES: &str = "access_rules = true\n";
const PRIVATE: &str = "blue/app";
const PUBLIC: &str = "public/app";

struct Tenants {
    cluster: Cluster,
    blue: String,
    red: String,
}

impl Tenants {
    async fn new(agents: usize, flags: &[&str]) -> Result<Self> {
        let cluster = Cluster::members_with(agents, "", RULES, flags).await?;
        let user = async |rights: &[&str]| {
            let command = [["user", "put"].as_slice(), rights].concat();
            anyhow::Ok(cluster.order(&command).await?.trim().to_owned())
        };
        user(&["anonymous", "--pull", "public/**"]).await?;
        let blue = user(&["blue", "--push", "blue/**", "--push", "public/**"]).await?;
        let red = user(&["red", "--push", "red/**"]).await?;
        Ok(Self { cluster, blue, red })
    }

    fn clients(&self, at: &Client) -> [(&'static str, Client, StatusCode); 3] {
        [
            ("nobody", at.clone(), StatusCode::UNAUTHORIZED),
            ("red", at.clone().user("red", &self.red), StatusCode::FORBIDDEN),
            ("a wrong password", at.clone().user("blue", &self.red), StatusCode::UNAUTHORIZED),
        ]
    }

    fn blue_at(&self, at: Client) -> Client {
        at.user("blue", &self.blue)
    }
}

async fn answers(client: &Client, method: Method, target: &str, status: StatusCode) -> Result<()> {
    let reply = client.fetch(method.clone(), target, &[]).await?;
    ensure!(reply.status == status, "{method} {target}: {} {}", reply.status, reply.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_is_its_tenants_alone_at_the_seeder_and_at_an_agent_that_has_it_stored() -> Result<()> {
    let tenants = Tenants::new(1, &[]).await?;
    let (seeder, agent) = (tenants.cluster.seeder.client(), tenants.cluster.agents[0].client());
    let image = Image::synthetic(95, &[MIB]);
    push::image(&tenants.blue_at(seeder.clone()), PRIVATE, "1", &image).await?;
    push::image(&tenants.blue_at(seeder.clone()), PUBLIC, "1", &Image::synthetic(96, &[MIB])).await?;
    let options = pull::Options::default();
    pull::image(&tenants.blue_at(agent.clone()), PRIVATE, "1", &options).await?;
    pull::image(&agent, PUBLIC, "1", &options).await?;
    let (manifest, layer) = (image.manifest.digest, image.layers[0].blob.digest);
    for at in [&seeder, &agent] {
        for (who, client, status) in tenants.clients(at) {
            for target in [
                format!("/v2/{PRIVATE}/manifests/1"),
                format!("/v2/{PRIVATE}/manifests/{manifest}"),
                format!("/v2/{PRIVATE}/blobs/{layer}"),
                format!("/v2/{PRIVATE}/tags/list"),
                // What does not exist looks the same.
                "/v2/blue/none/manifests/1".to_owned(),
            ] {
                for method in [Method::GET, Method::HEAD] {
                    let result = answers(&client, method, &target, status).await;
                    result.map_err(|error| error.context(format!("{who} at {}", at.authority())))?;
                }
            }
            let part =
                client.fetch(Method::GET, &format!("/v2/{PRIVATE}/blobs/{layer}"), &[("range", "bytes=0-9")]).await?;
            ensure!(part.status == status, "{who}: a part of it: {}", part.status);
        }
        // By the back door of a repository that anybody may read.
        for target in [format!("/v2/{PUBLIC}/blobs/{layer}"), format!("/v2/{PUBLIC}/manifests/{manifest}")] {
            answers(at, Method::GET, &target, StatusCode::NOT_FOUND).await?;
            answers(at, Method::HEAD, &target, StatusCode::NOT_FOUND).await?;
        }
        pull::image(&tenants.blue_at(at.clone()), PRIVATE, "1", &options).await?;
        pull::image(at, PUBLIC, "1", &options).await?;
    }
    tenants.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_pushes_deletes_or_mounts_what_is_not_its_own() -> Result<()> {
    let tenants = Tenants::new(0, &[]).await?;
    let seeder = tenants.cluster.seeder.client();
    let image = Image::synthetic(97, &[MIB]);
    push::image(&tenants.blue_at(seeder.clone()), PRIVATE, "1", &image).await?;
    let layer = image.layers[0].blob.digest;
    for (_, client, status) in tenants.clients(&seeder) {
        answers(&client, Method::POST, &format!("/v2/{PRIVATE}/blobs/uploads/"), status).await?;
        answers(&client, Method::DELETE, &format!("/v2/{PRIVATE}/manifests/1"), status).await?;
        answers(&client, Method::GET, "/v2/_catalog", status).await?;
    }
    let red = seeder.clone().user("red", &tenants.red);
    let mount = format!("/v2/red/app/blobs/uploads/?mount={layer}&from={PRIVATE}");
    answers(&red, Method::POST, &mount, StatusCode::ACCEPTED).await?;
    answers(&red, Method::HEAD, &format!("/v2/red/app/blobs/{layer}"), StatusCode::NOT_FOUND).await?;
    let blue = tenants.blue_at(seeder.clone());
    let mount = format!("/v2/blue/other/blobs/uploads/?mount={layer}&from={PRIVATE}");
    answers(&blue, Method::POST, &mount, StatusCode::CREATED).await?;
    answers(&blue, Method::DELETE, &format!("/v2/{PRIVATE}/manifests/1"), StatusCode::FORBIDDEN).await?;
    // What `docker login` asks.
    answers(&seeder, Method::GET, "/v2/", StatusCode::UNAUTHORIZED).await?;
    answers(&blue, Method::GET, "/v2/", StatusCode::OK).await?;
    tenants.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_seeder_a_private_image_is_denied_and_by_configuration_goes_on_for_whoever_was_let_in() -> Result<()>
{
    for goes_on in [false, true] {
        let directory = shoal_tests::cluster::scratch()?;
        let file = directory.path().join("agent.toml");
        let seconds = if goes_on { 600 } else { 0 };
        std::fs::write(&file, format!("[registry]\nprivate_offline_s = {seconds}\n"))?;
        let mut tenants = Tenants::new(1, &["--config", &file.display().to_string()]).await?;
        let (seeder, agent) = (tenants.cluster.seeder.client(), tenants.cluster.agents[0].client());
        push::image(&tenants.blue_at(seeder.clone()), PRIVATE, "1", &Image::synthetic(98, &[MIB])).await?;
        push::image(&tenants.blue_at(seeder), PUBLIC, "1", &Image::synthetic(99, &[MIB])).await?;
        let options = pull::Options::default();
        let blue = tenants.blue_at(agent.clone());
        pull::image(&blue, PRIVATE, "1", &options).await?;
        pull::image(&agent, PUBLIC, "1", &options).await?;
        tenants.cluster.seeder.kill().await?;
        let target = format!("/v2/{PRIVATE}/manifests/1");
        for (who, client, _) in tenants.clients(&agent) {
            let reply = client.fetch(Method::GET, &target, &[]).await?;
            ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{who}: {} {}", reply.status, reply.text());
        }
        let reply = blue.fetch(Method::GET, &target, &[]).await?;
        let expected = if goes_on { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        ensure!(reply.status == expected, "{} {}", reply.status, reply.text());
        pull::image(&agent, PUBLIC, "1", &options).await?;
        tenants.cluster.seeder.launch().await?;
        pull::image(&blue, PRIVATE, "1", &options).await?;
        tenants.cluster.finish().await?;
    }
    Ok(())
}
