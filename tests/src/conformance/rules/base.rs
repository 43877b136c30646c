//! The root of the API, and the shape of errors.

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::Value;

use crate::conformance::{Case, Probe, Table};

pub(super) fn table() -> Table {
    let mut table = Table::new("base");
    table.rule("root/get-200", root_get);
    table.rule("root/head-200-without-body", root_head);
    table.rule("root/without-slash", root_without_slash);
    table.rule("root/query-is-ignored", root_query);
    table.rule("root/api-version-header", api_version);
    table.each("unknown-path-404", PATHS, unknown_path);
    table.each("other-method-405-with-allow", METHODS, other_method);
    table.each("errors/are-json", ERRORS, errors_are_json);
    table.each("errors/head-has-status-and-no-body", ERRORS, head_of_errors);
    table
}

const PATHS: [&str; 6] = ["/v2/x", "/v2/x/y", "/v2/x/nothing/y", "/v2/x/tags", "/v2/x/tags/list/more", "/v3/"];

/// A method that does not go with a path below a repository.
#[derive(Debug, Clone, Copy)]
struct Wrong(&'static str, &'static str);

impl Case for Wrong {
    fn label(&self) -> String {
        format!("{}-{}", self.0.to_lowercase(), self.1.replace('/', "-"))
    }
}

const METHODS: [Wrong; 6] = [
    Wrong("PUT", "tags/list"),
    Wrong("DELETE", "tags/list"),
    Wrong("POST", "manifests/latest"),
    Wrong("PATCH", "manifests/latest"),
    Wrong("PUT", "blobs/DIGEST"),
    Wrong("DELETE", "referrers/DIGEST"),
];

/// What is asked for, and the codes that the answer may have.
#[derive(Debug, Clone, Copy)]
struct Absent(&'static str, &'static [u16], &'static [&'static str]);

impl Case for Absent {
    fn label(&self) -> String {
        self.0.replace(['/', ':'], "-")
    }
}

const ERRORS: [Absent; 6] = [
    Absent("manifests/none", &[404], &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]),
    Absent("manifests/DIGEST", &[404], &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]),
    Absent("manifests/sha256:abc", &[400, 404], &["DIGEST_INVALID", "MANIFEST_UNKNOWN", "MANIFEST_INVALID"]),
    Absent("blobs/DIGEST", &[404], &["BLOB_UNKNOWN", "NAME_UNKNOWN"]),
    Absent("blobs/sha256:abc", &[400, 404], &["DIGEST_INVALID", "BLOB_UNKNOWN"]),
    Absent("blobs/uploads/no-such-session", &[404, 400], &["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"]),
];

fn path(p: &Probe, rest: &str) -> String {
    p.at(rest.replace("DIGEST", &p.noise("none", 5).digest.to_string()))
}

async fn root_get(p: Probe) -> Result<()> {
    p.get("/v2/").await?.is(200).map(drop)
}

async fn root_head(p: Probe) -> Result<()> {
    p.head("/v2/").await?.is(200)?.holds(b"").map(drop)
}

async fn root_without_slash(p: Probe) -> Result<()> {
    p.get("/v2").await?.is_one_of(&[200, 301, 307, 308]).map(drop)
}

async fn root_query(p: Probe) -> Result<()> {
    p.get("/v2/?ns=docker.io&x=%zz&&=").await?.is(200).map(drop)
}

async fn api_version(p: Probe) -> Result<()> {
    p.get("/v2/").await?.says("docker-distribution-api-version", "registry/2.0").map(drop)
}

async fn unknown_path(p: Probe, path: &'static str) -> Result<()> {
    p.get(path).await?.is(404).map(drop)
}

async fn other_method(p: Probe, Wrong(method, rest): Wrong) -> Result<()> {
    let method = Method::from_bytes(method.as_bytes())?;
    let answer = p.ask(method, path(&p, rest)).await?;
    ensure!(!answer.is(405)?.header("allow").is_empty(), "405 says which methods are allowed: {}", answer.told());
    Ok(())
}

async fn errors_are_json(p: Probe, Absent(rest, statuses, codes): Absent) -> Result<()> {
    let answer = p.get(path(&p, rest)).await?;
    answer.fails_with(statuses, codes)?;
    let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
    ensure!(media_type == "application/json", "an error of type {media_type:?}: {}", answer.told());
    let body = answer.json()?;
    let errors = body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    for error in errors {
        let message = error.get("message").is_none_or(Value::is_string);
        ensure!(error["code"].is_string() && message, "an error has a code and a message: {}", answer.told());
    }
    Ok(())
}

async fn head_of_errors(p: Probe, Absent(rest, statuses, _): Absent) -> Result<()> {
    p.head(path(&p, rest)).await?.is_one_of(statuses)?.holds(b"").map(drop)
}
