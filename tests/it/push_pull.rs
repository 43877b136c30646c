//! The registry as clients see it: what is pushed to the seeder comes back the same, from it and through an agent.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use shoal_tests::{
    cluster::Cluster,
    http::{self, Client},
    image::{Blob, Image, Source, descriptor, media},
    pull, push,
};

use crate::images::{self, MIB};

const REPOSITORY: &str = "it/push-pull";

#[tokio::test]
async fn every_kind_of_image_comes_back_as_it_was_pushed() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (seeder, agent) = (cluster.seeder.client(), cluster.agents[0].client());
    for (name, image) in images::odd() {
        let digest = push::image(&seeder, REPOSITORY, name, &image).await.context(name)?;
        ensure!(digest == image.manifest.digest, "{name}: pushed as {digest}");
        for (what, client) in [("seeder", &seeder), ("agent", &agent)] {
            for range_len in [None, Some(300_000)] {
                let options = pull::Options { range_len, ..Default::default() };
                let report = pull::image(client, REPOSITORY, name, &options).await;
                let report = report.with_context(|| format!("{name} from the {what}, ranges of {range_len:?}"))?;
                ensure!(report.manifest == digest, "{name}: {report:?}");
                ensure!(report.bytes + image.manifest.size == image.unique_bytes(), "{name}: {report:?}");
            }
        }
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_blob_may_be_uploaded_in_every_way_of_the_specification() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let client = cluster.seeder.client();
    let bytes = Bytes::from_iter(Source::Seeded { seed: 3, size: 3 * MIB }.chunks()?.flat_map(|chunk| chunk.unwrap()));
    let in_parts = push::upload_in_parts(&client, REPOSITORY, &bytes, 700_001).await?;
    pull::blob(&client, REPOSITORY, &in_parts, 3 * MIB, &pull::Options::default()).await?;

    let streamed = Blob::seeded(4, 2 * MIB + 5);
    push::upload_streamed(&client, REPOSITORY, &streamed).await?;
    pull::blob(&client, REPOSITORY, &streamed.digest, streamed.size, &pull::Options::default()).await?;

    let one_shot = Blob::seeded(5, 100_000);
    let target = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={}", one_shot.digest);
    let headers = [("content-type", "application/octet-stream"), ("content-length", "100000")];
    let reply = http::collect(client.send(Method::POST, &target, &headers, push::body_of(&one_shot)?).await?).await?;
    ensure!(reply.status == StatusCode::CREATED, "one POST: {} {}", reply.status, reply.text());

    let target = format!("/v2/it/elsewhere/blobs/uploads/?mount={}&from={REPOSITORY}", one_shot.digest);
    let reply = client.fetch(Method::POST, &target, &[]).await?;
    ensure!(reply.status == StatusCode::CREATED, "mount: {} {}", reply.status, reply.text());
    pull::blob(&client, "it/elsewhere", &one_shot.digest, one_shot.size, &pull::Options::default()).await?;
    cluster.finish().await
}

#[tokio::test]
async fn an_index_starts_nothing_and_its_image_comes_by_digest() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (seeder, agent) = (cluster.seeder.client(), cluster.agents[0].client());
    let image = Image::synthetic(21, &[2 * MIB]);
    push::image(&seeder, REPOSITORY, "amd64", &image).await?;
    let mut entry = descriptor(image.media_type, &image.manifest);
    entry["platform"] = serde_json::json!({ "architecture": "amd64", "os": "linux" });
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [entry] });
    let index = Blob::of(index.to_string());
    push::manifest(&seeder, REPOSITORY, "multi", media::INDEX, &index).await?;
    let (digest, body) = pull::manifest(&agent, REPOSITORY, "multi", "").await?;
    ensure!(digest == index.digest && body.len() as u64 == index.size, "the index came as {digest}");
    let report = pull::image(&agent, REPOSITORY, &image.manifest.digest.to_string(), &pull::Options::default()).await?;
    ensure!(report.manifest == image.manifest.digest, "{report:?}");
    cluster.finish().await
}

#[tokio::test]
async fn a_head_tells_the_size_of_a_blob_that_is_not_here_yet() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let agent = cluster.agents[0].client();
    let image = Image::synthetic(22, &[5 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "head", &image).await?;
    let digest = image.layers[0].blob.digest;
    let reply = agent.fetch(Method::HEAD, &format!("/v2/{REPOSITORY}/blobs/{digest}"), &[]).await?;
    ensure!(reply.status == StatusCode::OK, "{}", reply.status);
    ensure!(reply.header("content-length") == (5 * MIB).to_string(), "{:?}", reply.headers);
    ensure!(reply.header("docker-content-digest") == digest.to_string(), "{:?}", reply.headers);
    cluster.finish().await
}

#[tokio::test]
async fn tags_are_listed_moved_and_deleted() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let (seeder, agent) = (cluster.seeder.client(), cluster.agents[0].client());
    let (one, two) = (Image::synthetic(23, &[1000]), Image::synthetic(24, &[2000]));
    push::image(&seeder, REPOSITORY, "b", &one).await?;
    push::image(&seeder, REPOSITORY, "a", &one).await?;
    ensure!(tags(&seeder).await? == ["a", "b"], "{:?}", tags(&seeder).await?);
    ensure!(pull::manifest(&agent, REPOSITORY, "a", "").await?.0 == one.manifest.digest, "before the move");
    push::image(&seeder, REPOSITORY, "a", &two).await?;
    // The seeder is authoritative: the next request through an agent sees the move.
    ensure!(pull::manifest(&agent, REPOSITORY, "a", "").await?.0 == two.manifest.digest, "after the move");
    let reply = seeder.fetch(Method::DELETE, &format!("/v2/{REPOSITORY}/manifests/b"), &[]).await?;
    ensure!(reply.status == StatusCode::ACCEPTED, "{}", reply.status);
    ensure!(tags(&seeder).await? == ["a"], "{:?}", tags(&seeder).await?);
    for (what, client) in [("seeder", &seeder), ("agent", &agent)] {
        let reply = client.fetch(Method::GET, &format!("/v2/{REPOSITORY}/manifests/b"), &[]).await?;
        ensure!(reply.status == StatusCode::NOT_FOUND, "{what}: {}", reply.status);
    }
    cluster.finish().await
}

async fn tags(client: &Client) -> Result<Vec<String>> {
    let reply = client.get(&format!("/v2/{REPOSITORY}/tags/list")).await?;
    let list: serde_json::Value = serde_json::from_slice(&reply.body)?;
    let tags = list["tags"].as_array().context("no list of tags")?;
    Ok(tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect())
}
