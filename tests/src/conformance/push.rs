//! Pushing, in each of the ways that the specification knows.

use anyhow::{Result, ensure};
use shoal_proto::digest::Algorithm;

use super::{
    Answer, Case, Probe,
    data::{Content, DataSet, Manifest},
};

/// How a blob is brought into a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One POST with the whole body. A registry may answer 202 and want a PUT.
    Post,
    /// POST, then PUT with the whole body.
    Put,
    /// [`Way::Put`], the length of the body untold.
    PutStreamed,
    /// [`Way::Put`], the algorithm named at the start.
    PutHinted,
    /// POST, one PATCH with a `Content-Range`, empty PUT.
    OneChunk,
    /// POST, three PATCHes with their `Content-Range`, empty PUT.
    Chunks,
    /// [`Way::Chunks`], the last chunk in the PUT.
    ChunksAndPut,
    /// POST, one PATCH that says neither range nor length, empty PUT: as Docker pushes.
    Stream,
    /// POST, one PATCH without a range but with its length, empty PUT.
    PlainPatch,
}

/// All of them.
pub(super) const WAYS: [Way; 9] = [
    Way::Post,
    Way::Put,
    Way::PutStreamed,
    Way::PutHinted,
    Way::OneChunk,
    Way::Chunks,
    Way::ChunksAndPut,
    Way::Stream,
    Way::PlainPatch,
];

impl Case for Way {
    fn label(&self) -> String {
        let label = match self {
            Self::Post => "post",
            Self::Put => "post-put",
            Self::PutStreamed => "post-put-streamed",
            Self::PutHinted => "post-put-hinted",
            Self::OneChunk => "one-chunk",
            Self::Chunks => "three-chunks",
            Self::ChunksAndPut => "three-chunks-last-in-put",
            Self::Stream => "streamed-patch",
            Self::PlainPatch => "plain-patch",
        };
        label.to_owned()
    }
}

impl Case for Algorithm {
    fn label(&self) -> String {
        self.as_str().to_owned()
    }
}

/// `target` with one more query parameter.
pub(super) fn with(target: &str, query: &str) -> String {
    let joint = if target.contains('?') { '&' } else { '?' };
    format!("{target}{joint}{query}")
}

/// Opens a session in `repository`; gives its location.
pub(super) async fn begin(p: &Probe, repository: &str, query: &str) -> Result<String> {
    let opened = p.post(format!("/v2/{repository}/blobs/uploads/{query}")).await?;
    opened.is(202)?.location()
}

/// Sends the bytes from `first` on as a chunk; gives the answer.
pub(super) async fn chunk(p: &Probe, session: &str, first: usize, bytes: bytes::Bytes) -> Result<Answer> {
    p.patch(session).header("content-range", range_of(first, bytes.len())).octets(bytes).await
}

/// A chunk's `Content-Range`.
pub(super) fn range_of(first: usize, len: usize) -> String {
    format!("{first}-{}", (first + len).saturating_sub(1))
}

/// Ends a session without further bytes.
pub(super) async fn finish(p: &Probe, session: &str, content: &Content) -> Result<Answer> {
    p.put(with(session, &format!("digest={}", content.digest))).octets("").await
}

/// Pushes `bytes` as `content.digest`, whether or not they match; gives the last answer.
pub(super) async fn by(p: &Probe, repository: &str, content: &Content, way: Way) -> Result<Answer> {
    let Content { bytes, digest } = content;
    let query = match way {
        Way::Post => format!("?digest={digest}"),
        Way::PutHinted => format!("?digest-algorithm={}", digest.algorithm().as_str()),
        Way::Put
        | Way::PutStreamed
        | Way::OneChunk
        | Way::Chunks
        | Way::ChunksAndPut
        | Way::Stream
        | Way::PlainPatch => String::new(),
    };
    let target = format!("/v2/{repository}/blobs/uploads/{query}");
    let opened = if way == Way::Post { p.post(target).octets(bytes.clone()).await? } else { p.post(target).await? };
    if way == Way::Post && opened.status() != 202 {
        return Ok(opened);
    }
    let session = opened.is(202)?.location()?;
    let last = |session: &str| p.put(with(session, &format!("digest={digest}")));
    match way {
        Way::Post | Way::Put | Way::PutHinted => last(&session).octets(bytes.clone()).await,
        Way::PutStreamed => last(&session).octets(bytes.clone()).streamed().await,
        Way::Stream | Way::PlainPatch => {
            let patch = p.patch(&session).octets(bytes.clone());
            let patch = if way == Way::Stream { patch.streamed() } else { patch };
            let session = patch.await?.is(202)?.location()?;
            finish(p, &session, content).await
        }
        Way::OneChunk => in_chunks(p, session, content, 1, false).await,
        Way::Chunks => in_chunks(p, session, content, 3, false).await,
        Way::ChunksAndPut => in_chunks(p, session, content, 3, true).await,
    }
}

async fn in_chunks(p: &Probe, mut session: String, content: &Content, count: usize, put: bool) -> Result<Answer> {
    let len = content.bytes.len().div_ceil(count).max(1);
    for first in (0..content.bytes.len()).step_by(len) {
        let end = (first + len).min(content.bytes.len());
        let bytes = content.bytes.slice(first..end);
        if put && end == content.bytes.len() {
            let target = with(&session, &format!("digest={}", content.digest));
            return p.put(target).header("content-range", range_of(first, bytes.len())).octets(bytes).await;
        }
        let taken = chunk(p, &session, first, bytes).await?;
        session = taken.is(202)?.says("range", format!("0-{}", end - 1))?.location()?;
    }
    finish(p, &session, content).await
}

/// Pushes a blob in the plainest way.
pub(super) async fn blob(p: &Probe, repository: &str, content: &Content) -> Result<()> {
    by(p, repository, content, Way::Put).await?.is(201).map(drop)
}

/// Pushes a manifest under a tag or its digest.
pub(super) async fn manifest(p: &Probe, repository: &str, reference: &str, manifest: &Manifest) -> Result<Answer> {
    let target = format!("/v2/{repository}/manifests/{reference}");
    p.put(target).of_type(&manifest.media_type).body(manifest.content.bytes.clone()).await
}

/// Pushes a manifest that must be taken, by its digest.
pub(super) async fn manifest_by_digest(p: &Probe, repository: &str, pushed: &Manifest) -> Result<Answer> {
    let answer = manifest(p, repository, &pushed.content.digest.to_string(), pushed).await?;
    answer.is(201)?;
    Ok(answer)
}

/// Points a tag to a manifest, in the way that keeps its digest: by a push under the tag where that is by SHA-256, else
/// by a push under the digest with `?tag=`.
pub(super) async fn tag(p: &Probe, repository: &str, tag: &str, pushed: &Manifest) -> Result<Answer> {
    let reference = match pushed.content.digest.algorithm() {
        Algorithm::Sha256 => tag.to_owned(),
        Algorithm::Sha512 => format!("{}?tag={tag}", pushed.content.digest),
    };
    let answer = manifest(p, repository, &reference, pushed).await?;
    answer.is(201)?;
    Ok(answer)
}

/// Pushes the blobs of a set.
pub(super) async fn blobs(p: &Probe, repository: &str, set: &DataSet) -> Result<()> {
    for content in &set.blobs {
        blob(p, repository, content).await?;
    }
    Ok(())
}

/// Pushes a whole set: blobs, manifests, tags. Every answer must be a success.
pub(super) async fn set(p: &Probe, repository: &str, set: &DataSet) -> Result<()> {
    blobs(p, repository, set).await?;
    for pushed in &set.manifests {
        manifest_by_digest(p, repository, pushed).await?;
    }
    for (name, pushed) in set.tagged() {
        let answer = tag(p, repository, name, pushed).await?;
        let told = answer.header("docker-content-digest");
        ensure!(told.is_empty() || told == pushed.content.digest.to_string(), "{name} points to {told}");
    }
    Ok(())
}
