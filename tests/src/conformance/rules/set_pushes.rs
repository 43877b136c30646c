//! Every data set, pushed into a repository of the rule's own.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    conformance::{
        Probe, Table,
        data::{self, Content, DataSet, Manifest},
        push, skip,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("push");
    let sets = data::all();
    table.each("set", sets.clone(), whole);
    table.each("manifest/by-digest", sets.clone(), by_digest);
    table.each("manifest/location-leads-to-it", sets.clone(), location);
    table.each("manifest/by-tag", sets.clone(), by_tag);
    table.each("manifest/oci-subject", data::with_subject(), subject);
    table.each("manifest/no-oci-subject", without_subject(), no_subject);
    table.each("manifest/again", sets.clone(), again);
    table.each("manifest/400-wrong-digest", sets.clone(), wrong_digest);
    table.each("manifest/400-other-media-type", typed(), other_media_type);
    table.each("manifest/refused-without-its-content", with_content(), without_content);
    table.each("manifest/tag-param", sets.clone(), tag_param);
    table.each("manifest/tag-moves-here", sets, tag_moves);
    table
}

type Set = Arc<DataSet>;

fn without_subject() -> Vec<Set> {
    data::oci().into_iter().filter(|set| set.subjects().is_empty()).take(6).collect()
}

/// Those whose manifests say what they are.
fn typed() -> Vec<Set> {
    data::all().into_iter().filter(|set| set.name != "image-no-media-type").collect()
}

/// Those whose last manifest names something that must be there.
fn with_content() -> Vec<Set> {
    data::all().into_iter().filter(|set| !named(set.top()).is_empty()).collect()
}

/// What a manifest names that the repository must hold.
fn named(manifest: &Manifest) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&manifest.content.bytes).expect("our manifests are JSON");
    let list = |key: &str| json[key].as_array().cloned().unwrap_or_default();
    let own = |layer: &Value| layer["mediaType"] != media::LAYER_FOREIGN;
    json.get("config")
        .cloned()
        .into_iter()
        .chain(list("layers").into_iter().filter(own))
        .chain(list("manifests"))
        .collect()
}

/// The content of a set in the rule's own repository, the last manifest left out.
async fn all_but_top(p: &Probe, set: &Set) -> Result<()> {
    p.stock(set).await?;
    push::blobs(p, p.repository(), set).await?;
    for manifest in &set.manifests[..set.manifests.len() - 1] {
        push::manifest_by_digest(p, p.repository(), manifest).await?;
    }
    Ok(())
}

async fn whole(p: Probe, set: Set) -> Result<()> {
    p.push_stock(&set).await.map(drop)
}

async fn by_digest(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let answer = push::manifest(&p, p.repository(), &top.reference(), top).await?;
    answer.is(201)?.says("docker-content-digest", top.content.digest)?.holds(b"").map(drop)
}

async fn location(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let location = push::manifest_by_digest(&p, p.repository(), top).await?.location()?;
    let answer = p.get(location).header("accept", ACCEPT).await?;
    answer.is(200)?.says("content-type", &top.media_type)?.holds(&top.content.bytes).map(drop)
}

/// Under a tag the digest is the registry's choice, and it says which.
async fn by_tag(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let answer = push::manifest(&p, p.repository(), "pushed", top).await?;
    let told = answer.is(201)?.header("docker-content-digest").parse::<shoal_proto::Digest>()?;
    let right = Content::new(told.algorithm(), top.content.bytes.clone()).digest;
    ensure!(told == right, "the bytes have the digest {right}, it says {told}");
    for reference in ["pushed".to_owned(), told.to_string()] {
        let got = p.get(p.at(format!("manifests/{reference}"))).header("accept", ACCEPT).await?;
        got.is(200)?.holds(&top.content.bytes)?;
    }
    p.get(answer.location()?).header("accept", ACCEPT).await?.is(200)?.holds(&top.content.bytes).map(drop)
}

async fn subject(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    push::blobs(&p, p.repository(), &set).await?;
    for manifest in &set.manifests {
        let answer = push::manifest_by_digest(&p, p.repository(), manifest).await?;
        match manifest.subject {
            Some(subject) => answer.says("oci-subject", subject)?,
            None => answer.lacks("oci-subject")?,
        };
    }
    Ok(())
}

async fn no_subject(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    push::manifest_by_digest(&p, p.repository(), set.top()).await?.lacks("oci-subject").map(drop)
}

async fn again(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    for _ in 0..3 {
        push::manifest_by_digest(&p, p.repository(), set.top()).await?;
        push::tag(&p, p.repository(), "again", set.top()).await?;
    }
    let tags = p.get(p.at("tags/list")).await?.is(200)?.json()?;
    ensure!(tags["tags"] == serde_json::json!(["again"]), "{tags}");
    Ok(())
}

async fn wrong_digest(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let mut wrong = top.clone();
    wrong.content.bytes = [top.content.bytes.as_ref(), b"  "].concat().into();
    let answer = push::manifest(&p, p.repository(), &top.reference(), &wrong).await?;
    answer.fails(400, &["DIGEST_INVALID"])?;
    p.get(p.at(format!("manifests/{}", top.content.digest))).header("accept", ACCEPT).await?.is(404).map(drop)
}

async fn other_media_type(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let mut wrong = set.top().clone();
    let other = if wrong.media_type == media::MANIFEST { media::INDEX } else { media::MANIFEST };
    other.clone_into(&mut wrong.media_type);
    let answer = push::manifest(&p, p.repository(), "wrong", &wrong).await?;
    answer.fails(400, &["MANIFEST_INVALID"])?;
    p.get(p.at("manifests/wrong")).header("accept", ACCEPT).await?.is(404).map(drop)
}

/// A registry may take manifests whose content it lacks. One that does not says so with the right code, and takes the
/// manifest once the content is there.
async fn without_content(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    let top = set.top();
    let early = push::manifest(&p, p.repository(), &top.reference(), top).await?;
    if early.status() == 201 {
        return Err(skip("it takes manifests whose content it lacks"));
    }
    early.fails_with(&[400, 404], &["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"])?;
    p.get(p.at(format!("manifests/{}", top.content.digest))).header("accept", ACCEPT).await?.is(404)?;
    all_but_top(&p, &set).await?;
    push::manifest_by_digest(&p, p.repository(), top).await.map(drop)
}

async fn tag_param(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let reference = format!("{}?tag=one&tag=two", top.content.digest);
    let answer = push::manifest(&p, p.repository(), &reference, top).await?;
    answer.is(201)?;
    let lines = answer.reply.headers.get_all("oci-tag");
    let told: Vec<_> =
        lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim).collect();
    ensure!(told.contains(&"one") && told.contains(&"two") && told.len() == 2, "OCI-Tag: {told:?}");
    for tag in ["one", "two"] {
        let got = p.get(p.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?;
        got.is(200)?.says("docker-content-digest", top.content.digest)?.holds(&top.content.bytes)?;
    }
    Ok(())
}

/// A tag that pointed elsewhere points here after the push, and what it pointed to is still there.
async fn tag_moves(p: Probe, set: Set) -> Result<()> {
    all_but_top(&p, &set).await?;
    let top = set.top();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [], "annotations": { "first": p.repository() }
    });
    let before = Manifest::new(set.algorithm, &index);
    push::manifest_by_digest(&p, p.repository(), &before).await?;
    push::tag(&p, p.repository(), "moving", &before).await?;
    push::tag(&p, p.repository(), "moving", top).await?;
    let got = p.get(p.at("manifests/moving")).header("accept", ACCEPT).await?;
    got.is(200)?.says("content-type", &top.media_type)?.holds(&top.content.bytes)?;
    let got = p.get(p.at(format!("manifests/{}", before.content.digest))).header("accept", ACCEPT).await?;
    got.is(200)?.holds(&before.content.bytes).map(drop)
}
