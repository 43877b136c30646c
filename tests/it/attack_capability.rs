//! What thousands of digests are covered by: small, good for its node alone, and of no use to another tenant's.

use anyhow::{Result, ensure};
use hyper::{Method, StatusCode};
use shoal_tests::{cluster::Cluster, image::Image, metrics::names, pull, push};

const REPOSITORY: &str = "blue/large";
/// More than a capability lists.
const LAYERS: usize = 700;

#[tokio::test(flavor = "multi_thread")]
async fn a_private_image_of_hundreds_of_layers_goes_from_node_to_node_under_a_merkle_root() -> Result<()> {
    let cluster = Cluster::members_with(2, "", "access_rules = true\n", &[]).await?;
    let user = async |name: &str| {
        let rights = format!("{name}/**");
        anyhow::Ok(cluster.order(&["user", "put", name, "--push", &rights]).await?.trim().to_owned())
    };
    let (blue, red) = (user("blue").await?, user("red").await?);
    let image = Image::synthetic(151, &[3000; LAYERS]);
    push::image(&cluster.seeder.client().user("blue", &blue), REPOSITORY, "1", &image).await?;
    let (first, second) = (&cluster.agents[0], &cluster.agents[1]);
    let options = pull::Options::default();
    pull::image(&first.client().user("blue", &blue), REPOSITORY, "1", &options).await?;
    pull::image(&second.client().user("blue", &blue), REPOSITORY, "1", &options).await?;
    let metrics = second.metrics().await?;
    let from_peers = metrics.count(names::AGENT_RECEIVED, &[names::FROM_PEERS]);
    let all = metrics.count(names::AGENT_RECEIVED, &[]);
    ensure!(from_peers * 2 > all, "{from_peers} of {all} bytes came from the other node");
    let target = format!("/v2/{REPOSITORY}/blobs/{}", image.layers[LAYERS - 1].blob.digest);
    let reply = second.client().user("red", &red).fetch(Method::GET, &target, &[]).await?;
    ensure!(reply.status == StatusCode::FORBIDDEN, "{} {}", reply.status, reply.text());
    cluster.finish().await
}
