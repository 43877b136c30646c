//! Pushing manifests that are no data set: malformed ones, tags, limits of one push.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::{
    conformance::{
        Answer, Case, Probe, Table,
        data::{ARTIFACT, Content, EMPTY_JSON, Manifest},
        push,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("push/manifest");
    table.each("400-malformed", MALFORMED, malformed);
    table.each("400-wrong-shape", SHAPES, wrong_shape);
    table.each("400-media-type", MEDIA_TYPES, media_type);
    table.rule("content-type-from-the-manifest", no_content_type);
    table.rule("config-in-another-repository-is-missing", config_elsewhere);
    table.rule("child-in-another-repository-is-missing", child_elsewhere);
    table.each("tag-param/ten-tags", ALGORITHMS, ten_tags);
    table.each("tag-param/none", ALGORITHMS, no_tags);
    table.rule("tag-param/moves-tags", moves_tags);
    table.rule("tag-param/400-bad-tag", bad_tag);
    table.rule("tag-param/thousand-tags", thousand_tags);
    table.rule("tag-param/encoded", encoded_tag);
    table.rule("tags-of-one-manifest", many_tags);
    table.rule("under-both-algorithms", both_algorithms);
    table.rule("eight-at-once-to-one-tag", at_once);
    table.rule("digest-of-no-manifest-404", blob_is_no_manifest);
    table
}

/// A body that is no manifest.
#[derive(Debug, Clone, Copy)]
struct Malformed(&'static str, &'static [u8]);

impl Case for Malformed {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

const MALFORMED: [Malformed; 9] = [
    Malformed("empty", b""),
    Malformed("text", b"no JSON at all"),
    Malformed("unclosed", b"{\"schemaVersion\":2"),
    Malformed("array", b"[]"),
    Malformed("null", b"null"),
    Malformed("string", b"\"manifest\""),
    Malformed("nothing-in-it", b"{}"),
    Malformed("not-utf8", b"{\"schemaVersion\":2,\"config\":\"\xff\xfe\"}"),
    Malformed("trailing", b"{} {}"),
];

/// How a good manifest (`config` and one layer) is spoilt.
#[derive(Debug, Clone, Copy)]
struct Shape(&'static str, fn(&mut Value));

impl Case for Shape {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

const SHAPES: [Shape; 9] = [
    Shape("schema-1", |json| json["schemaVersion"] = json!(1)),
    Shape("no-schema", |json| drop(json.as_object_mut().and_then(|json| json.remove("schemaVersion")))),
    Shape("no-config", |json| drop(json.as_object_mut().and_then(|json| json.remove("config")))),
    Shape("config-digest-malformed", |json| json["config"]["digest"] = json!("sha256:abc")),
    Shape("layer-digest-is-a-path", |json| json["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd")),
    Shape("layer-without-digest", |json| json["layers"][0] = json!({ "mediaType": media::LAYER, "size": 3 })),
    Shape("layers-is-text", |json| json["layers"] = json!("layers")),
    Shape("size-is-text", |json| json["config"]["size"] = json!("3")),
    Shape("size-is-negative", |json| json["layers"][0]["size"] = json!(-3)),
];
const MEDIA_TYPES: [&str; 5] = [
    "text/plain",
    "application/json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.oci.image.config.v1+json",
];

/// A good manifest of this rule alone, whose blobs are pushed.
async fn good(p: &Probe, algorithm: Algorithm, note: &str) -> Result<(Value, Manifest)> {
    let config = Content::new(algorithm, format!("{{\"for\":\"{} {note}\"}}", p.repository()));
    let layer = p.noise_by(algorithm, note, 100);
    for content in [&config, &layer] {
        push::blob(p, p.repository(), content).await?;
    }
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "artifactType": ARTIFACT,
        "config": config.descriptor(EMPTY_JSON), "layers": [layer.descriptor(media::LAYER)],
    });
    let manifest = Manifest::new(algorithm, &json);
    Ok((json, manifest))
}

async fn digest_of(p: &Probe, reference: &str) -> Result<String> {
    let answer = p.head(p.at(format!("manifests/{reference}"))).header("accept", ACCEPT).await?;
    Ok(answer.is(200)?.header("docker-content-digest").to_owned())
}

fn is_refused(answer: &Answer) -> Result<()> {
    let codes = ["MANIFEST_INVALID", "DIGEST_INVALID", "SIZE_INVALID", "UNSUPPORTED", "MANIFEST_BLOB_UNKNOWN"];
    answer.fails_with(&[400, 415, 422], &codes)
}

async fn malformed(p: Probe, Malformed(_, body): Malformed) -> Result<()> {
    let answer = p.put(p.at("manifests/bad")).of_type(media::MANIFEST).body(body).await?;
    is_refused(&answer)?;
    p.get(p.at("manifests/bad")).header("accept", ACCEPT).await?.is(404).map(drop)
}

async fn wrong_shape(p: Probe, Shape(_, spoil): Shape) -> Result<()> {
    let (mut json, _) = good(&p, Algorithm::Sha256, "spoilt").await?;
    spoil(&mut json);
    is_refused(&push::manifest(&p, p.repository(), "bad", &Manifest::new(Algorithm::Sha256, &json)).await?)?;
    p.get(p.at("manifests/bad")).header("accept", ACCEPT).await?.is(404).map(drop)
}

async fn media_type(p: Probe, media_type: &'static str) -> Result<()> {
    let (mut json, _) = good(&p, Algorithm::Sha256, "typed").await?;
    json["mediaType"] = json!(media_type);
    is_refused(&push::manifest(&p, p.repository(), "bad", &Manifest::new(Algorithm::Sha256, &json)).await?)
}

/// A push without a media type may be refused; one that is taken is of the type that it says itself.
async fn no_content_type(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "untyped").await?;
    let answer = p.put(p.at("manifests/untyped")).body(manifest.content.bytes).await?;
    if answer.is_one_of(&[201, 400, 415])?.status() == 201 {
        let got = p.get(p.at("manifests/untyped")).header("accept", ACCEPT).await?;
        got.is(200)?.says("content-type", media::MANIFEST)?;
    }
    Ok(())
}

async fn config_elsewhere(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "here").await?;
    let other = p.another();
    push::blob(&p, &other, &p.noise("other", 10)).await?;
    let answer = push::manifest(&p, &other, "here", &manifest).await?;
    answer.fails_with(&[400, 404], &["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"])
}

async fn child_elsewhere(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "here").await?;
    push::manifest_by_digest(&p, p.repository(), &manifest).await?;
    let index = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [manifest.descriptor()] });
    let index = Manifest::new(Algorithm::Sha256, &index);
    let other = p.another();
    push::blob(&p, &other, &p.noise("other", 10)).await?;
    let answer = push::manifest(&p, &other, "here", &index).await?;
    answer.fails_with(&[400, 404], &["MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"])
}

async fn ten_tags(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (_, manifest) = good(&p, algorithm, "ten").await?;
    let tags: Vec<_> = (0..10).map(|n| format!("t{n}")).collect();
    let query: Vec<_> = tags.iter().map(|tag| format!("tag={tag}")).collect();
    let reference = format!("{}?{}", manifest.content.digest, query.join("&"));
    push::manifest(&p, p.repository(), &reference, &manifest).await?.is(201)?;
    for tag in &tags {
        ensure!(digest_of(&p, tag).await? == manifest.reference(), "{tag} leads elsewhere");
    }
    let listed = p.get(p.at("tags/list")).await?.is(200)?.json()?;
    ensure!(listed["tags"] == json!(tags), "{listed}");
    Ok(())
}

async fn no_tags(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (_, manifest) = good(&p, algorithm, "none").await?;
    push::manifest_by_digest(&p, p.repository(), &manifest).await?.lacks("oci-tag")?;
    let listed = p.get(p.at("tags/list")).await?;
    if listed.is_one_of(&[200, 404])?.status() == 200 {
        ensure!(listed.json()?["tags"].as_array().is_none_or(Vec::is_empty), "{}", listed.told());
    }
    Ok(())
}

async fn moves_tags(p: Probe) -> Result<()> {
    let (_, first) = good(&p, Algorithm::Sha256, "first").await?;
    let (_, second) = good(&p, Algorithm::Sha256, "second").await?;
    for tag in ["moves", "stays"] {
        push::manifest(&p, p.repository(), tag, &first).await?.is(201)?;
    }
    let reference = format!("{}?tag=moves", second.content.digest);
    push::manifest(&p, p.repository(), &reference, &second).await?.is(201)?;
    ensure!(digest_of(&p, "moves").await? == second.reference(), "the tag did not move");
    ensure!(digest_of(&p, "stays").await? == first.reference(), "the other tag moved");
    Ok(())
}

async fn bad_tag(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "bad tag").await?;
    let reference = format!("{}?tag=good&tag=-bad", manifest.content.digest);
    push::manifest(&p, p.repository(), &reference, &manifest).await?.is(400)?;
    p.get(p.at("manifests/good")).header("accept", ACCEPT).await?.is(404).map(drop)
}

/// There is a limit, and whoever meets it is told so.
async fn thousand_tags(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "thousand").await?;
    let query: Vec<_> = (0..1000).map(|n| format!("tag=t{n}")).collect();
    let reference = format!("{}?{}", manifest.content.digest, query.join("&"));
    push::manifest(&p, p.repository(), &reference, &manifest).await?.is_one_of(&[201, 400, 413, 414, 431]).map(drop)
}

async fn encoded_tag(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "encoded").await?;
    let reference = format!("{}?tag=v1%2E0", manifest.content.digest);
    push::manifest(&p, p.repository(), &reference, &manifest).await?.is(201)?.says("oci-tag", "v1.0")?;
    ensure!(digest_of(&p, "v1.0").await? == manifest.reference(), "the tag leads elsewhere");
    Ok(())
}

async fn many_tags(p: Probe) -> Result<()> {
    let (_, manifest) = good(&p, Algorithm::Sha256, "many").await?;
    for tag in ["a", "B", "1"] {
        push::manifest(&p, p.repository(), tag, &manifest).await?.is(201)?;
    }
    for tag in ["a", "B", "1"] {
        ensure!(digest_of(&p, tag).await? == manifest.reference(), "{tag} leads elsewhere");
    }
    Ok(())
}

async fn both_algorithms(p: Probe) -> Result<()> {
    let (json, first) = good(&p, Algorithm::Sha256, "both").await?;
    let second = Manifest::new(Algorithm::Sha512, &json);
    for manifest in [&first, &second] {
        push::manifest_by_digest(&p, p.repository(), manifest).await?;
    }
    for manifest in [&first, &second] {
        ensure!(digest_of(&p, &manifest.reference()).await? == manifest.reference(), "another digest");
    }
    p.delete(p.at(format!("manifests/{}", first.content.digest))).await?.is(202)?;
    digest_of(&p, &second.reference()).await.map(drop)
}

/// Whoever wins, the tag leads to one of them.
async fn at_once(p: Probe) -> Result<()> {
    let mut manifests = Vec::new();
    for n in 0..8 {
        manifests.push(good(&p, Algorithm::Sha256, &n.to_string()).await?.1);
    }
    let pushes = manifests
        .iter()
        .map(|manifest| async { push::manifest(&p, p.repository(), "contended", manifest).await?.is(201).map(drop) });
    futures::future::try_join_all(pushes).await?;
    let winner = digest_of(&p, "contended").await?;
    ensure!(manifests.iter().any(|manifest| manifest.reference() == winner), "{winner} is none of them");
    for manifest in &manifests {
        digest_of(&p, &manifest.reference()).await?;
    }
    Ok(())
}

async fn blob_is_no_manifest(p: Probe) -> Result<()> {
    let blob = p.noise("blob", 100);
    push::blob(&p, p.repository(), &blob).await?;
    let answer = p.get(p.at(format!("manifests/{}", blob.digest))).header("accept", ACCEPT).await?;
    answer.fails(404, &["MANIFEST_UNKNOWN"])
}
