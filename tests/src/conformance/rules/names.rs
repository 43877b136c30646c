//! Repository names, tags and digests: which are good, which are not.

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::json;

use crate::{
    conformance::{
        Probe, Table,
        data::{Content, EMPTY_JSON, Manifest},
        pairs, push,
    },
    image::media,
};

pub(super) fn table() -> Table {
    let mut table = Table::new("names");
    table.each("repository/good", REPOSITORIES, good_repository);
    table.rule("repository/255-bytes", long_repository);
    table.each("repository/bad", pairs(BAD_REPOSITORIES, &["pull", "push"]), bad_repository);
    table.each("tag/good", TAGS, good_tag);
    table.rule("tag/128-bytes", long_tag);
    table.each("tag/bad", BAD_TAGS, bad_tag);
    table.rule("tag/129-bytes", too_long_tag);
    table.each("digest/bad-blob", pairs(BAD_DIGESTS, &["get", "head", "delete"]), bad_blob_digest);
    table.each("digest/bad-manifest", pairs(BAD_DIGESTS, &["get", "delete", "put"]), bad_manifest_digest);
    table.each("digest/bad-referrers", BAD_DIGESTS, bad_referrers_digest);
    table
}

/// Appended to the rule's repository: grammar, depth, and words that routes use.
const REPOSITORIES: [&str; 10] = [
    "a",
    "0",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a---b",
    "a/b/c/d/e/f/g/h/i/j/k/l",
    "tags/list/manifests/blobs/uploads",
    "sha256/referrers/latest",
];
const BAD_REPOSITORIES: [&str; 8] = ["A", "a..b", "a___b", "-a", "a-", "a._b", "a+b", "%61%20"];
const TAGS: [&str; 6] = ["latest", "1", "_x", "A.B-c_D", "v1.0.0-rc.1", "list"];
const BAD_TAGS: [&str; 5] = [".a", "-a", "a+b", "a%20b", "%C3%A9"];
const BAD_DIGESTS: [&str; 8] = [
    "sha256:",
    "sha256:abc",
    "sha256:baddigeststring",
    "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85g",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8550",
    "md5:d41d8cd98f00b204e9800998ecf8427e",
];

/// A small image of this rule alone; its blobs are pushed.
async fn image(p: &Probe, repository: &str) -> Result<Manifest> {
    let config = Content::text(format!("{{\"repository\":\"{repository}\"}}"));
    push::blob(p, repository, &config).await?;
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": []
    });
    Ok(Manifest::new(config.digest.algorithm(), &json))
}

async fn round_trip(p: &Probe, repository: &str) -> Result<()> {
    let image = image(p, repository).await?;
    push::manifest(p, repository, "good", &image).await?.is(201)?;
    let got = p.get(format!("/v2/{repository}/manifests/good")).header("accept", media::MANIFEST).await?;
    got.is(200)?.holds(&image.content.bytes)?;
    let tags = p.get(format!("/v2/{repository}/tags/list")).await?.is(200)?.json()?;
    ensure!(tags["name"] == repository && tags["tags"] == json!(["good"]), "{tags}");
    Ok(())
}

async fn good_repository(p: Probe, name: &'static str) -> Result<()> {
    round_trip(&p, &format!("{}/{name}", p.repository())).await
}

async fn long_repository(p: Probe) -> Result<()> {
    let name = format!("{}/", p.repository());
    let rest = "a".repeat(255 - name.len());
    round_trip(&p, &(name + &rest)).await
}

async fn bad_repository(p: Probe, (name, how): (&'static str, &'static str)) -> Result<()> {
    let repository = format!("{}/{name}", p.repository());
    let answer = if how == "pull" {
        p.get(format!("/v2/{repository}/tags/list")).await?
    } else {
        p.post(format!("/v2/{repository}/blobs/uploads/")).await?
    };
    answer.is_one_of(&[400, 404]).map(drop)
}

async fn good_tag(p: Probe, tag: &'static str) -> Result<()> {
    tagged(&p, tag).await
}

async fn tagged(p: &Probe, tag: &str) -> Result<()> {
    let image = image(p, p.repository()).await?;
    push::manifest(p, p.repository(), tag, &image).await?.is(201)?;
    let got = p.get(p.at(format!("manifests/{tag}"))).header("accept", media::MANIFEST).await?;
    got.is(200)?.holds(&image.content.bytes).map(drop)
}

async fn long_tag(p: Probe) -> Result<()> {
    tagged(&p, &"x".repeat(128)).await
}

async fn bad_tag(p: Probe, tag: &'static str) -> Result<()> {
    refused_tag(&p, tag).await
}

async fn refused_tag(p: &Probe, tag: &str) -> Result<()> {
    let image = image(p, p.repository()).await?;
    push::manifest(p, p.repository(), tag, &image).await?.is_one_of(&[400, 404])?;
    p.get(p.at(format!("manifests/{tag}"))).await?.is_one_of(&[400, 404]).map(drop)
}

async fn too_long_tag(p: Probe) -> Result<()> {
    refused_tag(&p, &"x".repeat(129)).await
}

async fn bad_blob_digest(p: Probe, (digest, method): (&'static str, &'static str)) -> Result<()> {
    push::blob(&p, p.repository(), &p.noise("some", 10)).await?;
    let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
    let answer = p.ask(method.clone(), p.at(format!("blobs/{digest}"))).await?;
    answer.is_one_of(&[400, 404])?;
    if method != Method::HEAD && answer.status() == 400 {
        answer.fails(400, &["DIGEST_INVALID"])?;
    }
    Ok(())
}

async fn bad_manifest_digest(p: Probe, (digest, method): (&'static str, &'static str)) -> Result<()> {
    let image = image(&p, p.repository()).await?;
    if method == "put" {
        return push::manifest(&p, p.repository(), digest, &image)
            .await?
            .fails(400, &["DIGEST_INVALID", "MANIFEST_INVALID"]);
    }
    push::manifest(&p, p.repository(), "good", &image).await?.is(201)?;
    let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
    p.ask(method, p.at(format!("manifests/{digest}"))).await?.is_one_of(&[400, 404]).map(drop)
}

async fn bad_referrers_digest(p: Probe, digest: &'static str) -> Result<()> {
    p.get(p.at(format!("referrers/{digest}"))).await?.fails(400, &["DIGEST_INVALID"])
}
