//! What clients of Docker's registry are used to, in the specification or not.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::{
    conformance::{
        Probe, Table,
        data::{self, DataSet},
        pairs, push,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("docker");
    table.each("accept", pairs(ACCEPTS, &data::docker()), accept);
    table.each("api-version-header", ANSWERS, api_version);
    table.each("etag-of-manifests", data::docker(), etag);
    table.rule("upload-uuid-header", upload_uuid);
    table.rule("range-of-a-new-session-is-0-0", new_range);
    table.each("client-sequence/docker", small(), docker_sequence);
    table.each("client-sequence/containerd", small(), containerd_sequence);
    table.each("client-sequence/skopeo", small(), skopeo_sequence);
    table.each("mirror-namespace-is-no-obstacle", ["docker.io", "ghcr.io", "127.0.0.1:5000"], namespace);
    table.rule("sixty-four-pulls-at-once", many_pulls);
    table
}

type Set = Arc<DataSet>;

/// Header lines, `|` between them. A list and an image are each served as they were pushed.
const ACCEPTS: [&str; 5] = [
    "",
    "*/*",
    "application/vnd.docker.distribution.manifest.v2+json|application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5, application/json, */*;q=0.1",
    "application/vnd.oci.image.manifest.v1+json",
];
const ANSWERS: [&str; 6] =
    ["tags/list", "manifests/none", "blobs/uploads/none", "referrers/sha256:abc", "blobs/sha256:abc", "nothing"];

fn small() -> Vec<Set> {
    data::all().into_iter().filter(|set| matches!(set.name, "image" | "docker-image" | "index")).collect()
}

async fn accept(p: Probe, (accept, set): (&'static str, Set)) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        let mut ask = p.get(stock.at(format!("manifests/{tag}")));
        for line in accept.split('|').filter(|line| !line.is_empty()) {
            ask = ask.header("accept", line);
        }
        ask.await?.is(200)?.says("content-type", &manifest.media_type)?.holds(&manifest.content.bytes)?;
    }
    Ok(())
}

async fn api_version(p: Probe, rest: &'static str) -> Result<()> {
    p.get(p.at(rest)).await?.says("docker-distribution-api-version", "registry/2.0").map(drop)
}

async fn etag(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        let answer = p.head(stock.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?;
        answer.is(200)?.says("etag", format!("\"{}\"", manifest.content.digest))?;
    }
    Ok(())
}

async fn upload_uuid(p: Probe) -> Result<()> {
    let opened = p.post(p.at("blobs/uploads/")).await?;
    let id = opened.is(202)?.header("docker-upload-uuid").to_owned();
    ensure!(!id.is_empty() && opened.location()?.contains(&id), "{}", opened.told());
    let taken = push::chunk(&p, &opened.location()?, 0, p.noise("blob", 10).bytes).await?;
    taken.is(202)?.says("docker-upload-uuid", &id)?;
    p.get(taken.location()?).await?.is(204)?.says("docker-upload-uuid", id).map(drop)
}

async fn new_range(p: Probe) -> Result<()> {
    let opened = p.post(p.at("blobs/uploads/")).await?;
    opened.is(202)?.says("range", "0-0")?;
    p.get(opened.location()?).await?.is(204)?.says("range", "0-0").map(drop)
}

/// As `docker push` and `docker pull` go.
async fn docker_sequence(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    for blob in &set.blobs {
        let target = p.at(format!("blobs/{}", blob.digest));
        p.head(&target).await?.is(404)?;
        let session = push::begin(&p, p.repository(), "").await?;
        let session = p.patch(session).body(blob.bytes.clone()).streamed().await?.is(202)?.location()?;
        p.put(push::with(&session, &format!("digest={}", blob.digest))).await?.is(201)?;
        p.head(&target).await?.is(200)?;
    }
    for manifest in &set.manifests {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    for (tag, manifest) in set.tagged() {
        push::tag(&p, p.repository(), tag, manifest).await?;
        let head = p.head(p.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?;
        head.is(200)?.says("docker-content-digest", manifest.content.digest)?;
    }
    for manifest in &set.manifests {
        let got = p.get(p.at(format!("manifests/{}", manifest.content.digest))).header("accept", ACCEPT).await?;
        got.is(200)?.holds(&manifest.content.bytes)?;
    }
    for blob in &set.blobs {
        p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(200)?.holds(&blob.bytes)?;
    }
    Ok(())
}

/// As containerd pulls through a mirror: `?ns=`, HEAD for the digest, then everything by digest, in ranges where a
/// download broke off.
async fn containerd_sequence(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (tag, manifest) in set.tagged() {
        let head = p.head(stock.at(format!("manifests/{tag}?ns=docker.io"))).header("accept", ACCEPT).await?;
        let digest = head.is(200)?.header("docker-content-digest").to_owned();
        ensure!(digest == manifest.reference(), "{tag} leads to {digest}");
        ensure!(head.header("content-type") == manifest.media_type, "{}", head.told());
        let got = p.get(stock.at(format!("manifests/{digest}?ns=docker.io"))).header("accept", ACCEPT).await?;
        got.is(200)?.holds(&manifest.content.bytes)?;
    }
    for blob in set.blobs.iter().filter(|blob| blob.bytes.len() > 1) {
        let target = stock.at(format!("blobs/{}?ns=docker.io", blob.digest));
        let half = blob.bytes.len() / 2;
        p.get(&target).header("accept", "*/*").await?.is(200)?.holds(&blob.bytes)?;
        let rest = p.get(&target).header("range", format!("bytes={half}-")).await?;
        rest.is(206)?.holds(&blob.bytes[half..])?;
    }
    Ok(())
}

/// As skopeo copies between repositories: HEAD, mount, and PATCHes without a range where that fails.
async fn skopeo_sequence(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for blob in &set.blobs {
        let target = p.at(format!("blobs/{}", blob.digest));
        if p.head(&target).await?.is_one_of(&[200, 404])?.status() == 200 {
            continue;
        }
        let query = format!("?mount={}&from={}", blob.digest, stock.repository);
        p.post(p.at(format!("blobs/uploads/{query}"))).await?.is(201)?;
        p.head(&target).await?.is(200)?.says("content-length", blob.bytes.len())?;
    }
    for manifest in &set.manifests {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    let top = p.get(p.at(format!("manifests/{}", set.top().content.digest))).header("accept", ACCEPT).await?;
    top.is(200)?.holds(&set.top().content.bytes).map(drop)
}

async fn namespace(p: Probe, ns: &'static str) -> Result<()> {
    let set = small().remove(0);
    let stock = p.stock(&set).await?;
    let (tag, manifest) = (&set.tags[0].0, set.top());
    let answer = p.get(stock.at(format!("manifests/{tag}?ns={ns}"))).header("accept", media::MANIFEST).await?;
    answer.is(200)?.holds(&manifest.content.bytes)?;
    // A registry that heeds it says so, and says the same.
    let told = answer.header("oci-namespace");
    ensure!(told.is_empty() || told == ns, "OCI-Namespace: {told}");
    Ok(())
}

async fn many_pulls(p: Probe) -> Result<()> {
    let blob = p.noise("blob", 200_000);
    push::blob(&p, p.repository(), &blob).await?;
    let pulls = (0..64).map(|_| async {
        let answer = p.get(p.at(format!("blobs/{}", blob.digest))).await?;
        if answer.is_one_of(&[200, 429])?.status() == 200 {
            return answer.holds(&blob.bytes).map(drop);
        }
        ensure!(!answer.header("retry-after").is_empty(), "429 says when to come again: {}", answer.told());
        Ok(())
    });
    futures::future::try_join_all(pulls).await.map(drop)
}
