//! A client that pushes, as the distribution specification says.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hyper::{Method, StatusCode};
use shoal_proto::Digest;

use crate::{
    http::{self, Client, Reply},
    image::{Blob, Image},
};

/// Blobs in flight at once, as Docker does.
const AT_ONCE: usize = 3;

/// Pushes all blobs that the registry lacks, then the manifest under `tag`. Gives the manifest's digest as the
/// registry tells it.
///
/// # Errors
/// The registry refuses, or cannot be reached.
pub async fn image(client: &Client, repository: &str, tag: &str, image: &Image) -> Result<Digest> {
    let blobs: Vec<Blob> = image.blobs().cloned().collect();
    stream::iter(blobs)
        .map(async |blob| upload(client, repository, &blob).await)
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let reply = manifest(client, repository, tag, image.media_type, &image.manifest).await?;
    reply.header("docker-content-digest").parse().context("the reply names no Docker-Content-Digest")
}

/// Pushes a manifest.
///
/// # Errors
/// It is not taken with 201.
pub async fn manifest(
    client: &Client,
    repository: &str,
    reference: &str,
    media_type: &str,
    manifest: &Blob,
) -> Result<Reply> {
    let target = format!("/v2/{repository}/manifests/{reference}");
    let body = body_of(manifest)?;
    let response = client.send(Method::PUT, &target, &[("content-type", media_type)], body).await?;
    let reply = http::collect(response).await?;
    ensure!(reply.status == StatusCode::CREATED, "PUT {target}: {} {}", reply.status, reply.text());
    Ok(reply)
}

/// Pushes a blob with POST and one PUT, unless the registry has it.
///
/// # Errors
/// It is not taken.
pub async fn upload(client: &Client, repository: &str, blob: &Blob) -> Result<()> {
    let head = client.fetch(Method::HEAD, &format!("/v2/{repository}/blobs/{}", blob.digest), &[]).await?;
    if head.status == StatusCode::OK {
        return Ok(());
    }
    let session = begin(client, repository).await?;
    let reply = finish(client, &session, blob, body_of(blob)?, Some(blob.size)).await?;
    ensure!(reply.status == StatusCode::CREATED, "upload of {}: {} {}", blob.digest, reply.status, reply.text());
    Ok(())
}

/// Pushes a blob in PATCHes of `part_len` bytes and an empty PUT.
///
/// # Errors
/// A part is not taken.
pub async fn upload_in_parts(client: &Client, repository: &str, bytes: &Bytes, part_len: usize) -> Result<Digest> {
    let blob = Blob::of(bytes.clone());
    let mut session = begin(client, repository).await?;
    let mut start = 0;
    for part in bytes.chunks(part_len) {
        let range = format!("{start}-{}", start + part.len() - 1);
        let headers = [("content-type", "application/octet-stream"), ("content-range", range.as_str())];
        let body = http::full(Bytes::copy_from_slice(part));
        let reply = http::collect(client.send(Method::PATCH, &session, &headers, body).await?).await?;
        ensure!(reply.status == StatusCode::ACCEPTED, "PATCH {range}: {} {}", reply.status, reply.text());
        start += part.len();
        ensure!(reply.header("range") == format!("0-{}", start - 1), "Range after {start}: {}", reply.header("range"));
        session = http::location(&reply.headers)?;
    }
    let reply = finish(client, &session, &blob, http::full(Bytes::new()), Some(0)).await?;
    ensure!(reply.status == StatusCode::CREATED, "closing PUT: {} {}", reply.status, reply.text());
    Ok(blob.digest)
}

/// Pushes a blob in one PATCH of unknown length (chunked, as Docker does) and an empty PUT.
///
/// # Errors
/// It is not taken.
pub async fn upload_streamed(client: &Client, repository: &str, blob: &Blob) -> Result<()> {
    let session = begin(client, repository).await?;
    let headers = [("content-type", "application/octet-stream")];
    let response = client.send(Method::PATCH, &session, &headers, body_of(blob)?).await?;
    let reply = http::collect(response).await?;
    ensure!(reply.status == StatusCode::ACCEPTED, "PATCH: {} {}", reply.status, reply.text());
    let session = http::location(&reply.headers)?;
    let reply = finish(client, &session, blob, http::full(Bytes::new()), Some(0)).await?;
    ensure!(reply.status == StatusCode::CREATED, "closing PUT: {} {}", reply.status, reply.text());
    Ok(())
}

/// Opens an upload session and gives its location.
///
/// # Errors
/// None is opened.
pub async fn begin(client: &Client, repository: &str) -> Result<String> {
    let reply = client.fetch(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), &[]).await?;
    ensure!(reply.status == StatusCode::ACCEPTED, "POST uploads: {} {}", reply.status, reply.text());
    http::location(&reply.headers)
}

/// Ends a session: PUT with the digest and what is left of the bytes.
///
/// # Errors
/// No reply comes.
pub async fn finish(
    client: &Client,
    session: &str,
    blob: &Blob,
    body: http::Body,
    length: Option<u64>,
) -> Result<Reply> {
    let joint = if session.contains('?') { '&' } else { '?' };
    let target = format!("{session}{joint}digest={}", blob.digest);
    let length = length.map(|length| length.to_string());
    let mut headers = vec![("content-type", "application/octet-stream")];
    if let Some(length) = &length {
        headers.push(("content-length", length));
    }
    http::collect(client.send(Method::PUT, &target, &headers, body).await?).await
}

/// A blob's bytes as a body, made while they are sent.
///
/// # Errors
/// A file cannot be opened.
pub fn body_of(blob: &Blob) -> Result<http::Body> {
    Ok(http::streamed(stream::iter(blob.source.chunks()?)))
}
