//! What advisories about registries teach, as far as it shows over HTTP; each rule is named after its first.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shoal_proto::digest::Algorithm;
use tokio::net::TcpListener;

use crate::{
    conformance::{
        Answer, Case, Probe, Table,
        data::{Content, EMPTY_JSON, Manifest},
        push,
    },
    image::{ACCEPT, media},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("advisory");
    table.each("cve-2021-41190/refuses-what-reads-in-two-ways", AMBIGUOUS, ambiguous);
    table.each("cve-2023-2253/page-size-is-clamped", PAGES, page_size);
    table.each("cve-2026-35172/deleted-here-is-not-revived-from-there", ["blob", "manifest"], revived);
    table.each("cve-2024-39897/only-what-is-linked-here", UNLINKED, unlinked);
    table.rule("cve-2026-31801/latest-is-a-tag-like-any", latest);
    table.each("cve-2026-32589/session-of-another-repository", ["read", "write", "finish", "cancel"], session);
    table.rule("cve-2020-15157/foreign-urls-are-not-followed", foreign_urls);
    table.each("cve-2026-2376/addresses-in-requests-are-not-contacted", SSRF, contacted);
    table.each("cve-2017-14992/encoded-bodies-are-not-inflated", ["blob", "manifest"], inflated);
    table.each("cve-2025-30204/endless-token", [20usize, 200], endless_token);
    table.each("zot-3980/no-credentials-for-every-origin", ["/v2/", "/v2/_catalog"], cors);
    table.each("path-traversal", TRAVERSALS, traversal);
    table
}

/// How a manifest is made to be two things.
#[derive(Debug, Clone, Copy)]
struct Ambiguous(&'static str, &'static str, fn(&Value, &mut Value));

impl Case for Ambiguous {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

/// Name, Content-Type, and what is added to a good image manifest (`config`, `layers`).
const AMBIGUOUS: [Ambiguous; 6] = [
    Ambiguous("image-with-manifests", media::MANIFEST, |child, json| json["manifests"] = json!([child])),
    Ambiguous("index-with-layers", media::INDEX, |child, json| {
        *json =
            json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [child], "layers": json["layers"] });
    }),
    Ambiguous("index-with-config", media::INDEX, |child, json| {
        *json =
            json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [child], "config": json["config"] });
    }),
    Ambiguous("media-type-of-an-index", media::MANIFEST, |_, json| json["mediaType"] = json!(media::INDEX)),
    Ambiguous("content-type-of-an-index", media::INDEX, |_, json| json["mediaType"] = json!(media::MANIFEST)),
    Ambiguous("docker-list-with-layers", media::DOCKER_LIST, |child, json| {
        json["mediaType"] = json!(media::DOCKER_LIST);
        json["manifests"] = json!([child]);
    }),
];

/// A list, and a number of entries that no page has.
const PAGES: [&str; 4] = [
    "_catalog?n=1000000000",
    "_catalog?n=9223372036854775807",
    "tags/list?n=1000000000",
    "tags/list?n=99999999999999999999999999",
];
const UNLINKED: [&str; 7] = ["get", "head", "range", "if-none-match", "delete", "mount", "manifest"];
const SSRF: [&str; 4] = ["ns", "from", "forwarded", "absolute-from"];
const TRAVERSALS: [&str; 9] = [
    "../../_catalog/tags/list",
    "..%2F..%2Fetc/tags/list",
    "%2e%2e/%2e%2e/manifests/latest",
    "manifests/..%2F..%2Fpasswd",
    "manifests/%2e%2e",
    "blobs/sha256:..%2F..%2F..%2Fetc%2Fpasswd",
    "blobs/uploads/..%2F..%2F..%2Fetc",
    "blobs/uploads/%2e%2e",
    "manifests/a%00b",
];

/// `{}`, packed by gzip.
const GZIP: [u8; 22] = [
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0xab, 0xae, 0x05, 0x00, 0x43, 0xbf, 0xa6, 0xa3, 0x02,
    0x00, 0x00, 0x00,
];

/// How long a registry has to contact somebody whom it should not: on loopback it takes no time.
const CONTACT_TIME: Duration = Duration::from_millis(300);

/// An image that the repository holds, and its JSON.
async fn image(p: &Probe, repository: &str) -> Result<(Value, Manifest)> {
    let (config, layer) = (Content::text("{}"), p.noise("layer", 50));
    for content in [&config, &layer] {
        push::blob(p, repository, content).await?;
    }
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON),
        "layers": [layer.descriptor(media::LAYER)], "annotations": { "for": p.repository() },
    });
    let manifest = Manifest::new(Algorithm::Sha256, &json);
    push::manifest_by_digest(p, repository, &manifest).await?;
    Ok((json, manifest))
}

async fn ambiguous(p: Probe, Ambiguous(_, content_type, spoil): Ambiguous) -> Result<()> {
    let (mut json, child) = image(&p, p.repository()).await?;
    spoil(&child.descriptor(), &mut json);
    let bytes = json.to_string();
    let answer = p.put(p.at("manifests/two-ways")).of_type(content_type).body(bytes).await?;
    answer.fails(400, &["MANIFEST_INVALID"])?;
    p.get(p.at("manifests/two-ways")).header("accept", ACCEPT).await?.is(404).map(drop)
}

async fn page_size(p: Probe, list: &'static str) -> Result<()> {
    let (_, manifest) = image(&p, p.repository()).await?;
    push::manifest(&p, p.repository(), "one", &manifest).await?.is(201)?;
    let target = if list.starts_with("_catalog") { format!("/v2/{list}") } else { p.at(list) };
    let answer = tokio::time::timeout(Duration::from_secs(10), p.get(target)).await??;
    answer.is_one_of(&[200, 400]).map(drop)
}

/// What is cached by digest alone comes back to the repository that deleted it.
async fn revived(p: Probe, kind: &'static str) -> Result<()> {
    let other = p.another();
    let target = if kind == "blob" {
        let blob = p.noise("blob", 100);
        for repository in [p.repository(), &other] {
            push::blob(&p, repository, &blob).await?;
        }
        format!("blobs/{}", blob.digest)
    } else {
        let (_, manifest) = image(&p, p.repository()).await?;
        image(&p, &other).await?;
        format!("manifests/{}", manifest.content.digest)
    };
    let (here, there) = (p.at(&target), format!("/v2/{other}/{target}"));
    p.get(&here).header("accept", ACCEPT).await?.is(200)?;
    p.delete(&here).await?.is(202)?;
    for _ in 0..2 {
        p.get(&there).header("accept", ACCEPT).await?.is(200)?;
        p.head(&there).header("accept", ACCEPT).await?.is(200)?;
        p.head(&here).header("accept", ACCEPT).await?.is(404)?;
        p.get(&here).header("accept", ACCEPT).await?.is(404)?;
    }
    Ok(())
}

/// The registry holds the bytes, but not for this repository.
async fn unlinked(p: Probe, how: &'static str) -> Result<()> {
    let (blob, other) = (p.noise("blob", 100), p.another());
    push::blob(&p, &other, &blob).await?;
    let target = p.at(format!("blobs/{}", blob.digest));
    let answer = match how {
        "head" => p.head(&target).await?,
        "range" => p.get(&target).header("range", "bytes=0-9").await?,
        "if-none-match" => p.get(&target).header("if-none-match", format!("\"{}\"", blob.digest)).await?,
        "delete" => p.delete(&target).await?,
        "mount" => return mounts_nothing(&p, &blob).await,
        "manifest" => return names_nothing(&p, &blob).await,
        _ => p.get(&target).await?,
    };
    answer.is(404)?;
    ensure!(!answer.told().contains(&other), "the answer names the repository that holds it: {}", answer.told());
    Ok(())
}

async fn mounts_nothing(p: &Probe, blob: &Content) -> Result<()> {
    for query in [format!("mount={}", blob.digest), format!("mount={}&from={}", blob.digest, p.repository())] {
        p.post(p.at(format!("blobs/uploads/?{query}"))).await?.is(202)?;
        p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(404)?;
    }
    Ok(())
}

async fn names_nothing(p: &Probe, blob: &Content) -> Result<()> {
    let config = Content::text("{}");
    push::blob(p, p.repository(), &config).await?;
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON),
        "layers": [blob.descriptor(media::LAYER)],
    });
    let answer = push::manifest(p, p.repository(), "named", &Manifest::new(Algorithm::Sha256, &json)).await?;
    answer.is_one_of(&[201, 400, 404])?;
    p.get(p.at(format!("blobs/{}", blob.digest))).await?.is(404).map(drop)
}

async fn latest(p: Probe) -> Result<()> {
    let (_, manifest) = image(&p, p.repository()).await?;
    for tag in ["latest", "other"] {
        p.get(p.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?.is(404)?;
        p.delete(p.at(format!("manifests/{tag}"))).await?.is(404)?;
        push::manifest(&p, p.repository(), tag, &manifest).await?.is(201)?;
        p.delete(p.at(format!("manifests/{tag}"))).await?.is(202)?;
        p.get(p.at(format!("manifests/{tag}"))).header("accept", ACCEPT).await?.is(404)?;
    }
    Ok(())
}

async fn session(p: Probe, how: &'static str) -> Result<()> {
    let (content, other) = (p.noise("blob", 100), p.another());
    let session = push::begin(&p, &other, "").await?;
    let session = push::chunk(&p, &session, 0, content.bytes.slice(..50)).await?.is(202)?.location()?;
    let here = session.replace(&format!("/v2/{other}/"), &format!("/v2/{}/", p.repository()));
    let answer = match how {
        "write" => push::chunk(&p, &here, 50, content.bytes.slice(50..)).await?,
        "finish" => push::finish(&p, &here, &content).await?,
        "cancel" => p.delete(&here).await?,
        _ => p.get(&here).await?,
    };
    answer.is_refused()?;
    p.get(&session).await?.is(204)?.says("range", "0-49").map(drop)
}

/// Listens for whoever should not come.
async fn trap() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn nobody_came(listener: TcpListener) -> Result<()> {
    let came = tokio::time::timeout(CONTACT_TIME, listener.accept()).await;
    ensure!(came.is_err(), "the registry contacted an address that a client named");
    Ok(())
}

async fn foreign_urls(p: Probe) -> Result<()> {
    let (listener, address) = trap().await?;
    let config = Content::text("{}");
    push::blob(&p, p.repository(), &config).await?;
    let absent = p.noise("absent", 100);
    let mut layer = absent.descriptor(media::LAYER_FOREIGN);
    layer["urls"] = json!([format!("http://{address}/layer")]);
    let json = json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": config.descriptor(EMPTY_JSON), "layers": [layer],
    });
    push::manifest(&p, p.repository(), "foreign", &Manifest::new(Algorithm::Sha256, &json)).await?.is(201)?;
    let target = p.at(format!("blobs/{}", absent.digest));
    p.get(&target).await?.fails(404, &["BLOB_UNKNOWN"])?;
    p.head(&target).await?.is(404)?;
    nobody_came(listener).await
}

async fn contacted(p: Probe, how: &'static str) -> Result<()> {
    let (listener, address) = trap().await?;
    let none = p.noise("none", 10);
    let answer = match how {
        "ns" => p.get(p.at(format!("manifests/none?ns={address}"))).header("accept", ACCEPT).await?,
        "forwarded" => {
            let ask = p.post(p.at("blobs/uploads/")).header("x-forwarded-host", address);
            let answer = ask.header("forwarded", format!("host={address}")).await?;
            return cancel(&p, &answer, listener).await;
        }
        _ => {
            let from = if how == "from" { address.to_string() } else { format!("http%3A%2F%2F{address}%2Fx") };
            let answer = p.post(p.at(format!("blobs/uploads/?mount={}&from={from}", none.digest))).await?;
            answer.is_one_of(&[202, 400, 404])?;
            return nobody_came(listener).await;
        }
    };
    answer.is(404)?;
    nobody_came(listener).await
}

async fn cancel(p: &Probe, answer: &Answer, listener: TcpListener) -> Result<()> {
    let location = answer.is(202)?.location()?;
    // Behind a proxy the location may well follow the headers; a path leads back here in any case.
    let path = location.find("/v2/").map_or(location.as_str(), |at| &location[at..]);
    p.delete(path).await?.is(204)?;
    nobody_came(listener).await
}

/// The bytes are what is named, whatever a header says that they are: nothing is unpacked on the way in.
async fn inflated(p: Probe, kind: &'static str) -> Result<()> {
    if kind == "manifest" {
        let ask = p.put(p.at("manifests/packed")).of_type(media::MANIFEST).header("content-encoding", "gzip");
        return ask.body(&GZIP[..]).await?.is_refused().map(drop);
    }
    let content = Content::new(Algorithm::Sha256, [&GZIP[..], p.repository().as_bytes()].concat());
    let session = push::begin(&p, p.repository(), "").await?;
    let target = push::with(&session, &format!("digest={}", content.digest));
    p.put(target).header("content-encoding", "gzip").octets(content.bytes.clone()).await?.is(201)?;
    let got = p.get(p.at(format!("blobs/{}", content.digest))).await?;
    got.is(200)?.lacks("content-encoding")?.holds(&content.bytes).map(drop)
}

/// Kilobytes of dots, each of which a naive parser of tokens makes a part of.
async fn endless_token(p: Probe, kib: usize) -> Result<()> {
    let token = format!("Bearer {}", ".".repeat(kib << 10));
    match p.get("/v2/").header("authorization", token).await {
        Ok(answer) => drop(answer.is_one_of(&[200, 400, 401, 413, 431])?),
        // Cut off: as good.
        Err(error) => drop(error),
    }
    p.get("/v2/").await?.is(200).map(drop)
}

async fn cors(p: Probe, target: &'static str) -> Result<()> {
    let answer = p.get(target).header("origin", "https://evil.example.com").await?;
    let (origin, credentials) =
        (answer.header("access-control-allow-origin"), answer.header("access-control-allow-credentials"));
    let everybody = origin == "*" || origin.contains("evil");
    ensure!(!(everybody && credentials == "true"), "{}", answer.told());
    Ok(())
}

async fn traversal(p: Probe, rest: &'static str) -> Result<()> {
    let answer = p.get(p.at(rest)).await?;
    // Some servers send the client to the cleaned path first.
    answer.is_one_of(&[301, 307, 308, 400, 404]).map(drop)
}
