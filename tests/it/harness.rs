//! The harness itself, held against a registry that is not ours: if one of these fails, Shoal is not to blame.

use anyhow::{Result, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use shoal_tests::{
    cluster,
    daemons::Registry,
    image::{Blob, Image, Source},
    pull, push,
};

use crate::images;

const REPOSITORY: &str = "harness/image";

#[tokio::test]
async fn what_the_client_pushes_it_pulls_again_in_every_way() -> Result<()> {
    if !shoal_tests::daemons::on_path("docker-registry") {
        shoal_tests::report::note("SKIPPED: no docker-registry here");
        return Ok(());
    }
    let directory = cluster::scratch()?;
    let registry = Registry::start(directory.path()).await?;
    let client = registry.client();
    for (name, image) in images::odd() {
        let digest = push::image(&client, REPOSITORY, name, &image).await?;
        ensure!(digest == image.manifest.digest, "{name}: pushed as {digest}");
        for range_len in [None, Some(300_000)] {
            let options = pull::Options { range_len, ..Default::default() };
            let report = pull::image(&client, REPOSITORY, name, &options).await?;
            ensure!(report.manifest == digest && !report.stopped, "{name}: {report:?}");
            ensure!(report.bytes + image.manifest.size == image.unique_bytes(), "{name}: {report:?}");
        }
    }
    let bytes = Bytes::from_iter(Source::Seeded { seed: 3, size: 700_000 }.chunks()?.flat_map(|chunk| chunk.unwrap()));
    push::upload_in_parts(&client, REPOSITORY, &bytes, 250_000).await?;
    push::upload_streamed(&client, REPOSITORY, &Blob::seeded(4, 700_000)).await?;
    registry.stop().await
}

#[tokio::test]
async fn a_wrong_byte_does_not_pass_the_client() -> Result<()> {
    if !shoal_tests::daemons::on_path("docker-registry") {
        shoal_tests::report::note("SKIPPED: no docker-registry here");
        return Ok(());
    }
    let directory = cluster::scratch()?;
    let registry = Registry::start(directory.path()).await?;
    let client = registry.client();
    let image = Image::synthetic(1, &[1 << 20]);
    push::image(&client, REPOSITORY, "1", &image).await?;
    let layer = &image.layers[0].blob;
    let hex = layer.digest.hex();
    let file = directory.path().join(format!("registry/data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = std::fs::read(&file)?;
    bytes[700_000] ^= 1;
    std::fs::write(&file, bytes)?;
    let error = pull::image(&client, REPOSITORY, "1", &pull::Options::default()).await.unwrap_err();
    ensure!(format!("{error:#}").contains(&layer.digest.to_string()), "{error:#}");
    let reply = client.fetch(Method::HEAD, &format!("/v2/{REPOSITORY}/blobs/{}", layer.digest), &[]).await?;
    ensure!(reply.status == StatusCode::OK, "the registry still offers it: {}", reply.status);
    registry.stop().await
}
