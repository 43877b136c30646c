//! Blobs: read and delete.

use http::{HeaderValue, StatusCode, header};
use shoal_http::{Reply, reply::Content};
use shoal_proto::{Digest, name::Repository};

use super::{Answer, Asked, DIGEST, OCTETS, Registry, bare, etag, store_failed, unknown_blob, value};
use crate::{events::Event, metrics::Payload, store::BlobContent};

/// Content under its digest never changes.
const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000");

impl Registry {
    pub(super) async fn get_blob(&self, name: &Repository, digest: Digest, asked: &Asked) -> Answer {
        let etag = etag(&digest);
        if asked.is_head() || asked.has(&etag) {
            let info = self.store.blob_info(name, digest).await.map_err(|e| store_failed(&e))?;
            let info = info.ok_or_else(|| unknown_blob(&digest))?;
            if asked.has(&etag) {
                return Ok(not_modified(&digest));
            }
            let mut content = Content::new(&asked.headers, info.size, &OCTETS, Some(&etag));
            describe(content.headers_mut(), &digest);
            return Ok(content.into_head().into());
        }
        let blob = self.store.blob(name, digest).await.map_err(|e| store_failed(&e))?;
        let blob = blob.ok_or_else(|| unknown_blob(&digest))?;
        let mut content = Content::new(&asked.headers, blob.info.size, &OCTETS, Some(&etag));
        describe(content.headers_mut(), &digest);
        match blob.content {
            BlobContent::Memory(bytes) => Ok(self.send_memory(Payload::Blob, content, &bytes)),
            BlobContent::File(file) => {
                let permit = self.transfer()?;
                Ok(content.from_file(file).metered(self.metrics.meter(Payload::Blob, Some(permit))).into())
            }
        }
    }

    pub(super) async fn delete_blob(&self, name: &Repository, digest: Digest) -> Answer {
        if !self.store.unlink_blob(name, digest).await.map_err(|e| store_failed(&e))? {
            return Err(unknown_blob(&digest));
        }
        self.events.tell(&Event::BlobDeleted { repository: name, digest });
        Ok(bare(StatusCode::ACCEPTED).into())
    }
}

fn describe(headers: &mut http::HeaderMap, digest: &Digest) {
    headers.insert(DIGEST, value(&digest.to_string()));
    headers.insert(header::CACHE_CONTROL, FOREVER);
}

/// The client has it.
pub(super) fn not_modified(digest: &Digest) -> Reply {
    let mut response = bare(StatusCode::NOT_MODIFIED);
    response.headers_mut().insert(header::ETAG, etag(digest));
    response.headers_mut().insert(DIGEST, value(&digest.to_string()));
    response.into()
}
