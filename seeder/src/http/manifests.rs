//! Manifests and referrers.

use http::{HeaderName, HeaderValue, StatusCode, header};
use shoal_http::{ApiError, RequestBody, body::collect, reply::Content};
use shoal_proto::{
    Digest,
    digest::Algorithm,
    name::{Reference, Repository, Tag},
    oci::ErrorCode,
};

use super::{
    Answer, Asked, DIGEST, Registry, bare, blobs::not_modified, etag, query::encode, store_failed, tags, value,
};
use crate::{
    events::Event,
    hash::Sha,
    manifest::{MANIFEST_LEN_MAX, Parsed, REFERRERS_TYPE, Referrer},
    metrics::Payload,
    store::{Expected, Manifest, MoveTagError, NewManifest, PutManifestError},
};

/// Manifests that are read from clients at once: with [`MANIFEST_LEN_MAX`], what they may cost in memory.
pub(super) const BODIES_MAX: usize = 8;
/// Tags that one push may set (`?tag=`).
const TAGS_MAX: usize = 32;
/// Pages of referrers that one request goes through to find one of the type that it asks for.
const FILTERED_PAGES_MAX: usize = 16;
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

impl Registry {
    /// The manifest that a reference leads to.
    pub(super) async fn resolve(&self, name: &Repository, reference: &Reference) -> Result<Digest, ApiError> {
        match reference {
            Reference::Digest(digest) => Ok(*digest),
            Reference::Tag(tag) => {
                let entry = self.store.tag(name, tag).await.map_err(|e| store_failed(&e))?;
                Ok(entry.ok_or_else(|| unknown(reference))?.digest)
            }
        }
    }

    pub(super) async fn find_manifest(&self, name: &Repository, reference: &Reference) -> Result<Manifest, ApiError> {
        let digest = self.resolve(name, reference).await?;
        let manifest = self.store.manifest(name, digest).await.map_err(|e| store_failed(&e))?;
        manifest.ok_or_else(|| unknown(reference))
    }

    pub(super) async fn get_manifest(&self, name: &Repository, reference: &Reference, asked: &Asked) -> Answer {
        let manifest = self.find_manifest(name, reference).await?;
        let etag = etag(&manifest.digest);
        if asked.has(&etag) {
            return Ok(not_modified(&manifest.digest));
        }
        let media_type = HeaderValue::from_str(&manifest.media_type);
        let media_type = media_type.map_err(|_| ApiError::internal("the manifest's media type is no header"))?;
        let mut content = Content::new(&asked.headers, manifest.bytes.len() as u64, &media_type, Some(&etag));
        content.headers_mut().insert(DIGEST, value(&manifest.digest.to_string()));
        if asked.is_head() {
            return Ok(content.into_head().into());
        }
        Ok(self.send_memory(Payload::Manifest, content, &manifest.bytes))
    }

    pub(super) async fn put_manifest(
        &self,
        name: &Repository,
        reference: Reference,
        asked: &Asked,
        body: RequestBody,
    ) -> Answer {
        let _turn = self.manifest_bodies.acquire().await.map_err(|_| ApiError::internal("the seeder is stopping"))?;
        let bytes = collect(body, MANIFEST_LEN_MAX).await?;
        let (digest, tags) = self.names_of(&reference, asked, &bytes)?;
        let parsed = Parsed::read(content_type(asked), &bytes);
        let parsed = parsed.map_err(|error| ApiError::new(ErrorCode::ManifestInvalid, error.to_string()))?;
        let referrer = parsed.subject.map(|subject| (subject, parsed.referrer(digest, bytes.len() as u64).into()));
        let (foreign, needed): (Vec<_>, Vec<_>) = parsed.blobs.iter().partition(|blob| blob.is_foreign());
        let new = NewManifest {
            manifest: Manifest { digest, media_type: parsed.media_type.clone(), bytes },
            blobs: needed.into_iter().map(|blob| blob.digest).collect(),
            foreign: foreign.into_iter().map(|blob| blob.digest).collect(),
            manifests: parsed.manifests.iter().map(|manifest| manifest.digest).collect(),
            tags: tags.clone(),
            referrer,
        };
        self.store.put_manifest(name, new, self.sign()).await.map_err(|error| match &error {
            PutManifestError::Missing(missing) => ApiError::new(ErrorCode::ManifestBlobUnknown, error.to_string())
                .detail(serde_json::json!({ "missing": missing.iter().take(100).collect::<Vec<_>>() })),
            PutManifestError::Store(error) => store_failed(error),
        })?;
        self.events.tell(&Event::ManifestPushed { repository: name, digest });
        for tag in &tags {
            self.events.tell(&Event::TagMoved { repository: name, tag, digest: Some(digest) });
        }
        let mut response = bare(StatusCode::CREATED);
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, value(&format!("/v2/{name}/manifests/{reference}")));
        headers.insert(DIGEST, value(&digest.to_string()));
        if let Some(subject) = parsed.subject {
            headers.insert(OCI_SUBJECT, value(&subject.to_string()));
        }
        if matches!(reference, Reference::Digest(_)) {
            headers.extend(tags.iter().map(|tag| (OCI_TAG, value(tag.as_str()))));
        }
        Ok(response.into())
    }

    /// The digest of a pushed manifest, and the tags that it shall have.
    fn names_of(&self, reference: &Reference, asked: &Asked, bytes: &[u8]) -> Result<(Digest, Vec<Tag>), ApiError> {
        match reference {
            Reference::Tag(tag) => Ok((Sha::of(Algorithm::Sha256, bytes), vec![tag.clone()])),
            Reference::Digest(expected) => {
                let found = Sha::of(expected.algorithm(), bytes);
                if found != *expected {
                    let message = format!("the manifest's bytes have the digest {found}");
                    return Err(ApiError::new(ErrorCode::DigestInvalid, message));
                }
                let tags: Result<Vec<Tag>, _> = asked.query.all("tag").take(TAGS_MAX + 1).map(str::parse).collect();
                let tags = tags.map_err(|error| ApiError::new(ErrorCode::ManifestInvalid, error.to_string()))?;
                if tags.len() > TAGS_MAX {
                    let message = format!("one push sets at most {TAGS_MAX} tags");
                    return Err(ApiError::new(ErrorCode::ManifestInvalid, message).status(StatusCode::URI_TOO_LONG));
                }
                Ok((found, tags))
            }
        }
    }

    pub(super) async fn delete_manifest(&self, name: &Repository, reference: &Reference) -> Answer {
        match reference {
            Reference::Tag(tag) => {
                let found = self.store.tag(name, tag).await.map_err(|e| store_failed(&e))?;
                found.ok_or_else(|| unknown(reference))?;
                self.store.move_tag(name, tag, Expected::Any, None).await.map_err(tag_failed)?;
                self.events.tell(&Event::TagMoved { repository: name, tag, digest: None });
            }
            Reference::Digest(digest) => {
                let tags = self.store.delete_manifest(name, *digest).await.map_err(|e| store_failed(&e))?;
                for tag in tags.ok_or_else(|| unknown(reference))? {
                    self.events.tell(&Event::TagMoved { repository: name, tag: &tag, digest: None });
                }
                self.events.tell(&Event::ManifestDeleted { repository: name, digest: *digest });
            }
        }
        Ok(bare(StatusCode::ACCEPTED).into())
    }

    pub(super) async fn list_referrers(&self, name: &Repository, subject: Digest, asked: &Asked) -> Answer {
        let n = tags::page_len(asked)?;
        let mut last = asked.query.first("last").map(str::parse::<Digest>).transpose().map_err(|error| {
            ApiError::new(ErrorCode::DigestInvalid, format!("last is the digest before the page: {error}"))
        })?;
        let filter = asked.query.first("artifactType");
        let mut manifests: Vec<Referrer> = Vec::new();
        let mut more = true;
        // Pages of which the filter leaves nothing are gone through here rather than by the client.
        for _ in 0..FILTERED_PAGES_MAX {
            let page = self.store.referrers(name, subject, n, last).await.map_err(|e| store_failed(&e))?;
            more = page.more;
            last = page.items.last().map(|(digest, _)| *digest).or(last);
            let listed = page.items.iter().filter_map(|(_, json)| serde_json::from_slice::<Referrer>(json).ok());
            manifests.extend(
                listed.filter(|one| {
                    filter.is_none_or(|wanted| one.artifact_type.as_deref().unwrap_or_default() == wanted)
                }),
            );
            if !more || !manifests.is_empty() {
                break;
            }
        }
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": REFERRERS_TYPE, "manifests": manifests });
        let mut reply = super::json(&index);
        reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(REFERRERS_TYPE));
        if filter.is_some() {
            reply.headers_mut().insert(OCI_FILTERS, HeaderValue::from_static("artifactType"));
        }
        if let (true, Some(last)) = (more, last) {
            let kind = filter.map(|wanted| format!("artifactType={}&", encode(wanted))).unwrap_or_default();
            let link = format!("</v2/{name}/referrers/{subject}?{kind}n={n}&last={last}>; rel=\"next\"");
            reply.headers_mut().insert(header::LINK, value(&link));
        }
        Ok(reply)
    }
}

fn unknown(reference: &Reference) -> ApiError {
    ApiError::new(ErrorCode::ManifestUnknown, "this repository does not hold that manifest")
        .detail(serde_json::json!({ "reference": reference.to_string() }))
}

fn tag_failed(error: MoveTagError) -> ApiError {
    match &error {
        MoveTagError::Conflict(_) => {
            ApiError::new(ErrorCode::ManifestInvalid, error.to_string()).status(StatusCode::CONFLICT)
        }
        MoveTagError::Missing => ApiError::new(ErrorCode::ManifestUnknown, error.to_string()),
        MoveTagError::Store(error) => store_failed(error),
    }
}

/// The media type that a client gives, without parameters.
fn content_type(asked: &Asked) -> Option<&str> {
    let text = asked.header(header::CONTENT_TYPE)?;
    Some(text.split(';').next().unwrap_or(text).trim())
}
