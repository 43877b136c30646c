//! Deleting tags, manifests and blobs.

use std::sync::Arc;

use anyhow::{Result, ensure};
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::{
    conformance::{
        Probe, Table,
        data::{self, DataSet},
        push,
    },
    image::ACCEPT,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("management");
    let sets = data::all();
    table.each("tag/delete-leaves-the-manifest", sets.clone(), delete_tag);
    table.each("manifest/delete-takes-its-tags", sets.clone(), delete_manifest);
    table.each("manifest/pushed-again-after-delete", sets.clone(), push_again);
    table.each("manifest/all-from-top-to-bottom", sets.clone(), delete_all);
    table.each("blob/delete", sets, delete_blobs);
    table.each("tag/404-unknown", ["never", "latest"], unknown_tag);
    table.each("manifest/404-unknown", ALGORITHMS, unknown_manifest);
    table.each("blob/404-unknown", ALGORITHMS, unknown_blob);
    table.each("blob/404-twice", ALGORITHMS, blob_twice);
    table.rule("manifest/404-twice", manifest_twice);
    table.rule("tag/other-tags-stay", other_tags);
    table.rule("manifest/other-repository-keeps-it", manifest_elsewhere);
    table.each("blob/other-repository-keeps-it", ALGORITHMS, blob_elsewhere);
    table.each("blob/404-of-another-repository", ALGORITHMS, blob_of_another);
    table.rule("manifest/404-of-another-repository", manifest_of_another);
    table.rule("manifest/index-keeps-its-children", children);
    table
}

type Set = Arc<DataSet>;

/// The set in the rule's own repository.
async fn own(p: &Probe, set: &Set) -> Result<()> {
    p.stock(set).await?;
    push::set(p, p.repository(), set).await
}

/// A small set for rules that need just any.
async fn any(p: &Probe) -> Result<Set> {
    let set = data::oci().into_iter().find(|set| set.name == "image");
    let set = set.ok_or_else(|| anyhow::anyhow!("there is an image among the sets"))?;
    own(p, &set).await?;
    Ok(set)
}

async fn is_there(p: &Probe, repository: &str, reference: &str, there: bool) -> Result<()> {
    let target = format!("/v2/{repository}/manifests/{reference}");
    p.head(&target).header("accept", ACCEPT).await?.is(if there { 200 } else { 404 })?;
    let got = p.get(&target).header("accept", ACCEPT).await?;
    if there { got.is(200).map(drop) } else { got.fails(404, &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]) }
}

async fn delete_tag(p: Probe, set: Set) -> Result<()> {
    own(&p, &set).await?;
    for (tag, manifest) in set.tagged() {
        p.delete(p.at(format!("manifests/{tag}"))).await?.is(202)?.holds(b"")?;
        is_there(&p, p.repository(), tag, false).await?;
        is_there(&p, p.repository(), &manifest.reference(), true).await?;
    }
    let listed = p.get(p.at("tags/list")).await?;
    if listed.is_one_of(&[200, 404])?.status() == 200 {
        ensure!(listed.json()?["tags"].as_array().is_none_or(Vec::is_empty), "{}", listed.told());
    }
    Ok(())
}

async fn delete_manifest(p: Probe, set: Set) -> Result<()> {
    own(&p, &set).await?;
    let top = set.top();
    p.delete(p.at(format!("manifests/{}", top.content.digest))).await?.is(202)?.holds(b"")?;
    is_there(&p, p.repository(), &top.reference(), false).await?;
    for (tag, manifest) in set.tagged() {
        is_there(&p, p.repository(), tag, manifest.content.digest != top.content.digest).await?;
    }
    Ok(())
}

async fn push_again(p: Probe, set: Set) -> Result<()> {
    own(&p, &set).await?;
    for manifest in set.manifests.iter().rev() {
        p.delete(p.at(format!("manifests/{}", manifest.content.digest))).await?.is(202)?;
    }
    push::set(&p, p.repository(), &set).await?;
    for (tag, manifest) in set.tagged() {
        let got = p.get(p.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?;
        got.is(200)?.holds(&manifest.content.bytes)?;
    }
    Ok(())
}

async fn delete_all(p: Probe, set: Set) -> Result<()> {
    own(&p, &set).await?;
    for manifest in set.manifests.iter().rev() {
        p.delete(p.at(format!("manifests/{}", manifest.content.digest))).await?.is(202)?;
    }
    for manifest in &set.manifests {
        is_there(&p, p.repository(), &manifest.reference(), false).await?;
    }
    for (tag, _) in set.tagged() {
        is_there(&p, p.repository(), tag, false).await?;
    }
    Ok(())
}

async fn delete_blobs(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    push::blobs(&p, p.repository(), &set).await?;
    let mut digests: Vec<_> = set.blobs.iter().map(|blob| blob.digest).collect();
    digests.sort();
    digests.dedup();
    for digest in digests {
        let target = p.at(format!("blobs/{digest}"));
        p.delete(&target).await?.is(202)?.holds(b"")?;
        p.head(&target).await?.is(404)?;
        p.get(&target).await?.fails(404, &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
    }
    Ok(())
}

async fn unknown_tag(p: Probe, tag: &'static str) -> Result<()> {
    any(&p).await?;
    p.delete(p.at(format!("manifests/{tag}"))).await?.fails(404, &["MANIFEST_UNKNOWN"])
}

async fn unknown_manifest(p: Probe, algorithm: Algorithm) -> Result<()> {
    any(&p).await?;
    let none = p.noise_by(algorithm, "none", 10);
    p.delete(p.at(format!("manifests/{}", none.digest))).await?.fails(404, &["MANIFEST_UNKNOWN"])
}

async fn unknown_blob(p: Probe, algorithm: Algorithm) -> Result<()> {
    any(&p).await?;
    let none = p.noise_by(algorithm, "none", 10);
    p.delete(p.at(format!("blobs/{}", none.digest))).await?.fails(404, &["BLOB_UNKNOWN"])
}

async fn blob_twice(p: Probe, algorithm: Algorithm) -> Result<()> {
    let blob = p.noise_by(algorithm, "blob", 100);
    push::blob(&p, p.repository(), &blob).await?;
    let target = p.at(format!("blobs/{}", blob.digest));
    p.delete(&target).await?.is(202)?;
    p.delete(&target).await?.fails(404, &["BLOB_UNKNOWN"])?;
    push::blob(&p, p.repository(), &blob).await?;
    p.get(&target).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn manifest_twice(p: Probe) -> Result<()> {
    let set = any(&p).await?;
    let target = p.at(format!("manifests/{}", set.top().content.digest));
    p.delete(&target).await?.is(202)?;
    p.delete(&target).await?.fails(404, &["MANIFEST_UNKNOWN"])
}

async fn other_tags(p: Probe) -> Result<()> {
    let set = any(&p).await?;
    for tag in ["a", "b"] {
        push::manifest(&p, p.repository(), tag, set.top()).await?.is(201)?;
    }
    p.delete(p.at("manifests/a")).await?.is(202)?;
    is_there(&p, p.repository(), "a", false).await?;
    is_there(&p, p.repository(), "b", true).await
}

async fn manifest_elsewhere(p: Probe) -> Result<()> {
    let set = any(&p).await?;
    let other = p.another();
    push::set(&p, &other, &set).await?;
    p.delete(p.at(format!("manifests/{}", set.top().content.digest))).await?.is(202)?;
    is_there(&p, p.repository(), &set.top().reference(), false).await?;
    is_there(&p, &other, &set.top().reference(), true).await?;
    is_there(&p, &other, &set.tags[0].0, true).await
}

async fn blob_elsewhere(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (blob, other) = (p.noise_by(algorithm, "blob", 100), p.another());
    for repository in [p.repository(), &other] {
        push::blob(&p, repository, &blob).await?;
    }
    p.delete(p.at(format!("blobs/{}", blob.digest))).await?.is(202)?;
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(404)?;
    p.get(format!("/v2/{other}/blobs/{}", blob.digest)).await?.is(200)?.holds(&blob.bytes).map(drop)
}

async fn blob_of_another(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (blob, other) = (p.noise_by(algorithm, "blob", 100), p.another());
    push::blob(&p, &other, &blob).await?;
    p.delete(p.at(format!("blobs/{}", blob.digest))).await?.fails(404, &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
    p.get(format!("/v2/{other}/blobs/{}", blob.digest)).await?.is(200).map(drop)
}

async fn manifest_of_another(p: Probe) -> Result<()> {
    let set = any(&p).await?;
    let digest = set.top().content.digest;
    let answer = p.delete(format!("/v2/{}/manifests/{digest}", p.another())).await?;
    answer.fails(404, &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])?;
    is_there(&p, p.repository(), &digest.to_string(), true).await
}

async fn children(p: Probe) -> Result<()> {
    let set = data::oci().into_iter().find(|set| set.name == "index");
    let set = set.ok_or_else(|| anyhow::anyhow!("there is an index among the sets"))?;
    own(&p, &set).await?;
    p.delete(p.at(format!("manifests/{}", set.top().content.digest))).await?.is(202)?;
    for child in &set.manifests[..2] {
        is_there(&p, p.repository(), &child.reference(), true).await?;
    }
    Ok(())
}
