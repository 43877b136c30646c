//! Listing what refers to a manifest.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shoal_proto::{Digest, digest::Algorithm};

use super::ALGORITHMS;
use crate::{
    conformance::{
        Answer, Probe, Table,
        data::{self, ARTIFACT, ARTIFACT_OTHER, Content, DataSet, EMPTY_JSON, Manifest},
        push,
    },
    image::media,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("discovery/referrers");
    let sets = data::with_subject();
    table.each("empty-index-not-404", ALGORITHMS, empty);
    table.each("empty-in-a-used-repository", ALGORITHMS, empty_used);
    table.each("content-type", sets.clone(), content_type);
    table.each("all-are-listed", sets.clone(), listed);
    table.each("once-each", sets.clone(), once);
    table.each("descriptors-are-exact", sets.clone(), exact);
    table.each("filter/only-that-type", sets.clone(), filtered);
    table.each("filter/header", sets.clone(), filter_header);
    table.each("filter/no-header-without", sets.clone(), no_filter_header);
    table.each("filter/type-that-none-has", sets.clone(), filter_none);
    table.each("filter/encoded", sets.clone(), filter_encoded);
    table.each("not-in-another-repository", sets.clone(), elsewhere);
    table.each("head", sets, head);
    table.each("deleted-is-gone", ALGORITHMS, deleted);
    table.each("subject-deleted-list-stays", ALGORITHMS, subject_deleted);
    table.each("subject-pushed-later", ALGORITHMS, subject_later);
    table.each("pushed-by-tag", ALGORITHMS, pushed_by_tag);
    table.each("fallback-tag/entries-are-listed-once", ALGORITHMS, fallback);
    table.each("fallback-tag/stays-a-tag", ALGORITHMS, fallback_tag);
    table.each("forty", ALGORITHMS, forty);
    table.rule("pages-below-4-mib", large);
    table
}

type Set = Arc<DataSet>;

/// Referrers with large annotations, and the length of one: together more than a client takes in one manifest.
const LARGE: (usize, usize) = (12, 500_000);
/// The most that clients take of a manifest, in bytes.
const MANIFEST_LEN_MAX: usize = 4 << 20;

fn encoded(text: &str) -> String {
    text.replace('/', "%2F").replace('+', "%2B")
}

/// The index that lists them, which has no next page.
fn list_of(answer: &Answer) -> Result<Vec<Value>> {
    let index = answer.is(200)?.json()?;
    ensure!(index["schemaVersion"] == 2 && index["mediaType"] == media::INDEX, "no index: {}", answer.told());
    ensure!(index["manifests"].is_array(), "an index has manifests: {}", answer.told());
    Ok(index["manifests"].as_array().cloned().unwrap_or_default())
}

async fn walk(p: &Probe, target: String) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut next = Some(target);
    while let Some(target) = next {
        let answer = p.get(target).await?;
        ensure!(answer.body().len() <= MANIFEST_LEN_MAX, "a page of {} bytes", answer.body().len());
        let page = list_of(&answer)?;
        next = answer.next_page()?;
        ensure!(next.is_none() || !page.is_empty(), "an empty page links on");
        found.extend(page);
    }
    Ok(found)
}

fn digests(list: &[Value]) -> BTreeSet<String> {
    list.iter().filter_map(|descriptor| descriptor["digest"].as_str()).map(str::to_owned).collect()
}

fn expected(set: &DataSet, subject: Digest) -> BTreeSet<String> {
    set.referrers(subject).map(Manifest::reference).collect()
}

async fn empty(p: Probe, algorithm: Algorithm) -> Result<()> {
    let none = p.noise_by(algorithm, "none", 10);
    let list = list_of(&p.get(p.at(format!("referrers/{}", none.digest))).await?)?;
    ensure!(list.is_empty(), "{list:?}");
    Ok(())
}

async fn empty_used(p: Probe, algorithm: Algorithm) -> Result<()> {
    let manifest = subject(&p, algorithm).await?;
    push::manifest_by_digest(&p, p.repository(), &manifest).await?;
    let list = list_of(&p.get(p.at(format!("referrers/{}", manifest.content.digest))).await?)?;
    ensure!(list.is_empty(), "{list:?}");
    Ok(())
}

async fn content_type(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        let answer = p.get(stock.at(format!("referrers/{subject}"))).await?;
        answer.is(200)?.says("content-type", media::INDEX)?;
    }
    Ok(())
}

async fn listed(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        let list = walk(&p, stock.at(format!("referrers/{subject}"))).await?;
        ensure!(digests(&list) == expected(&set, subject), "{list:?}");
    }
    Ok(())
}

async fn once(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    push::set(&p, p.repository(), &set).await?;
    for manifest in &set.manifests {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    for subject in set.subjects() {
        let list = walk(&p, p.at(format!("referrers/{subject}"))).await?;
        ensure!(list.len() == expected(&set, subject).len(), "{list:?}");
    }
    Ok(())
}

async fn exact(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        let list = walk(&p, stock.at(format!("referrers/{subject}"))).await?;
        for referrer in set.referrers(subject) {
            let found = list.iter().find(|found| found["digest"] == referrer.referrer["digest"]);
            ensure!(found == Some(&referrer.referrer), "{found:?}, not {}", referrer.referrer);
        }
    }
    Ok(())
}

/// For each subject of a set, the types of what refers to it.
fn types(set: &DataSet) -> Vec<(Digest, String)> {
    let each = set.subjects().into_iter().flat_map(|subject| {
        let types: BTreeSet<_> = set.referrers(subject).filter_map(|m| m.referrer["artifactType"].as_str()).collect();
        types.into_iter().map(move |name| (subject, name.to_owned())).collect::<Vec<_>>()
    });
    each.collect()
}

async fn filtered(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (subject, wanted) in types(&set) {
        let answer = p.get(stock.at(format!("referrers/{subject}?artifactType={wanted}"))).await?;
        let of_type = set.referrers(subject).filter(|m| m.referrer["artifactType"] == *wanted);
        let right: BTreeSet<_> = of_type.map(Manifest::reference).collect();
        ensure!(digests(&list_of(&answer)?) == right, "{}", answer.told());
    }
    Ok(())
}

async fn filter_header(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (subject, wanted) in types(&set) {
        let answer = p.get(stock.at(format!("referrers/{subject}?artifactType={}", encoded(&wanted)))).await?;
        answer.is(200)?.says("oci-filters-applied", "artifactType")?;
    }
    Ok(())
}

async fn no_filter_header(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        p.get(stock.at(format!("referrers/{subject}"))).await?.is(200)?.lacks("oci-filters-applied")?;
    }
    Ok(())
}

async fn filter_none(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        let answer = p.get(stock.at(format!("referrers/{subject}?artifactType=application%2Fnone"))).await?;
        ensure!(list_of(&answer)?.is_empty(), "{}", answer.told());
        answer.says("oci-filters-applied", "artifactType")?;
    }
    Ok(())
}

/// Types hold `/` and `+`, which clients encode.
async fn filter_encoded(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for (subject, wanted) in types(&set) {
        let answer = p.get(stock.at(format!("referrers/{subject}?artifactType={}", encoded(&wanted)))).await?;
        ensure!(!list_of(&answer)?.is_empty(), "none of type {wanted}: {}", answer.told());
    }
    Ok(())
}

async fn elsewhere(p: Probe, set: Set) -> Result<()> {
    p.stock(&set).await?;
    for subject in set.subjects() {
        let list = list_of(&p.get(p.at(format!("referrers/{subject}"))).await?)?;
        ensure!(list.is_empty(), "{list:?}");
    }
    Ok(())
}

async fn head(p: Probe, set: Set) -> Result<()> {
    let stock = p.stock(&set).await?;
    for subject in set.subjects() {
        p.head(stock.at(format!("referrers/{subject}"))).await?.is_one_of(&[200, 405])?.holds(b"")?;
    }
    Ok(())
}

async fn subject(p: &Probe, algorithm: Algorithm) -> Result<Manifest> {
    let config = Content::new(algorithm, "{}");
    push::blob(p, p.repository(), &config).await?;
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": [],
        "annotations": { "repository": p.repository() },
    });
    Ok(Manifest::new(algorithm, &json))
}

fn artifact(subject: &Manifest, name: &str) -> Manifest {
    let algorithm = subject.content.digest.algorithm();
    let config = Content::new(algorithm, "{}").descriptor(EMPTY_JSON);
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "artifactType": ARTIFACT, "config": config,
        "layers": [config], "subject": subject.descriptor(), "annotations": { "name": name },
    });
    Manifest::new(algorithm, &json)
}

async fn found(p: &Probe, subject: &Manifest) -> Result<BTreeSet<String>> {
    Ok(digests(&walk(p, p.at(format!("referrers/{}", subject.content.digest))).await?))
}

async fn deleted(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let [first, second] = ["first", "second"].map(|name| artifact(&subject, name));
    for manifest in [&subject, &first, &second] {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    p.delete(p.at(format!("manifests/{}", first.content.digest))).await?.is(202)?;
    let found = found(&p, &subject).await?;
    ensure!(found == BTreeSet::from([second.reference()]), "{found:?}");
    Ok(())
}

async fn subject_deleted(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let first = artifact(&subject, "first");
    for manifest in [&subject, &first] {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    p.delete(p.at(format!("manifests/{}", subject.content.digest))).await?.is(202)?;
    // It may be that what refers to nothing is removed in time, but the list is one.
    let found = found(&p, &subject).await?;
    ensure!(found.is_subset(&BTreeSet::from([first.reference()])), "{found:?}");
    Ok(())
}

async fn subject_later(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let first = artifact(&subject, "first");
    for manifest in [&first, &subject] {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
        let found = found(&p, &subject).await?;
        ensure!(found == BTreeSet::from([first.reference()]), "{found:?}");
    }
    Ok(())
}

async fn pushed_by_tag(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let first = artifact(&subject, "first");
    let answer = push::tag(&p, p.repository(), "artifact", &first).await?;
    answer.says("oci-subject", subject.content.digest)?;
    let found = found(&p, &subject).await?;
    ensure!(found == BTreeSet::from([first.reference()]), "{found:?}");
    Ok(())
}

/// The index that clients keep where there is no referrers API, under the tag `<algorithm>-<hex>`.
async fn push_fallback(p: &Probe, subject: &Manifest, entries: &[&Manifest]) -> Result<String> {
    let digest = subject.content.digest;
    let entries: Vec<_> = entries.iter().map(|entry| entry.referrer.clone()).collect();
    let json = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": entries });
    let mut tag = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
    tag.truncate(128);
    push::tag(p, p.repository(), &tag, &Manifest::new(digest.algorithm(), &json)).await?;
    Ok(tag)
}

/// Pushed by a client that kept such an index, and by one that did not: each is listed, none twice.
async fn fallback(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    push::manifest_by_digest(&p, p.repository(), &subject).await?;
    let [old, new] = ["old", "new"].map(|name| artifact(&subject, name));
    push::manifest_by_digest(&p, p.repository(), &old).await?;
    push_fallback(&p, &subject, &[&old]).await?;
    push::manifest_by_digest(&p, p.repository(), &new).await?;
    let list = walk(&p, p.at(format!("referrers/{}", subject.content.digest))).await?;
    ensure!(digests(&list) == BTreeSet::from([old.reference(), new.reference()]), "{list:?}");
    ensure!(list.len() == 2, "one is listed twice: {list:?}");
    Ok(())
}

async fn fallback_tag(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let old = artifact(&subject, "old");
    push::manifest_by_digest(&p, p.repository(), &old).await?;
    let tag = push_fallback(&p, &subject, &[&old]).await?;
    let tags = p.get(p.at("tags/list")).await?.is(200)?.json()?;
    ensure!(tags["tags"] == json!([tag]), "{tags}");
    p.delete(p.at(format!("manifests/{tag}"))).await?.is(202)?;
    let found = found(&p, &subject).await?;
    ensure!(found == BTreeSet::from([old.reference()]), "{found:?}");
    Ok(())
}

async fn forty(p: Probe, algorithm: Algorithm) -> Result<()> {
    let subject = subject(&p, algorithm).await?;
    let mut right = BTreeSet::new();
    for n in 0..40 {
        let artifact = artifact(&subject, &n.to_string());
        push::manifest_by_digest(&p, p.repository(), &artifact).await?;
        right.insert(artifact.reference());
    }
    let list = walk(&p, p.at(format!("referrers/{}", subject.content.digest))).await?;
    ensure!(digests(&list) == right && list.len() == 40, "{} of 40", list.len());
    let target = p.at(format!("referrers/{}?artifactType={}", subject.content.digest, encoded(ARTIFACT_OTHER)));
    ensure!(walk(&p, target).await?.is_empty(), "the filter lets others through");
    Ok(())
}

/// A list that is longer than clients take is paged, or leaves out what it may: never more than a manifest's length.
async fn large(p: Probe) -> Result<()> {
    let subject = subject(&p, Algorithm::Sha256).await?;
    let (count, len) = LARGE;
    let mut right = BTreeSet::new();
    for n in 0..count {
        let artifact = artifact(&subject, &format!("{n}{}", "x".repeat(len)));
        push::manifest_by_digest(&p, p.repository(), &artifact).await?;
        right.insert(artifact.reference());
    }
    let list = walk(&p, p.at(format!("referrers/{}", subject.content.digest))).await?;
    ensure!(digests(&list) == right && list.len() == count, "{} of {count}", list.len());
    Ok(())
}
