//! A manifest request starts the image's blobs, before the client asks for them.

use std::sync::{Arc, PoisonError};

use futures::{StreamExt, stream};
use shoal_proto::name::Reference;

use super::{
    images::{Images, ResolveError, Resolved, read},
    manifest::{Children, Descriptor},
};
use crate::upstream::Credentials;

/// Blobs of one image that are started at the same time. Starting one is a request or two to the seeder at most; the
/// fetching itself is the loop's.
const STARTS_MAX: usize = 8;

impl Images {
    /// Starts what the manifest names and is not stored, in the background. Once at a time for an image. `low`: it yields
    /// to all else.
    pub(super) fn prefetch(self: &Arc<Self>, resolved: &Resolved, low: bool, credentials: &Credentials) {
        let image = *resolved.manifest.digest();
        if !self.prefetching.lock().unwrap_or_else(PoisonError::into_inner).insert(image) {
            return;
        }
        let (images, resolved, credentials) = (self.clone(), resolved.clone(), credentials.clone());
        self.tasks.spawn(async move {
            let shutdown = images.parts.shutdown.clone();
            tokio::select! {
                result = images.start_blobs(&resolved, low, &credentials) => if let Err(error) = result {
                    tracing::warn!(%image, %error, "an image's layers could not be started ahead");
                },
                () = shutdown.cancelled() => {}
            }
            images.prefetching.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        });
    }

    async fn start_blobs(
        self: &Arc<Self>,
        resolved: &Resolved,
        low: bool,
        credentials: &Credentials,
    ) -> Result<(), ResolveError> {
        let children = Children::of(&read(&resolved.manifest).await?);
        if let Some(platform) = &self.parts.config.platform
            && let Some(manifest) = children.manifest_for(platform)
        {
            let reference = Reference::Digest(manifest.digest);
            let resolved = self.pull(&resolved.repository, &reference, credentials).await?;
            let children = Children::of(&read(&resolved.manifest).await?);
            return self.start_all(&resolved, &children.blobs, low, credentials).await;
        }
        self.start_all(resolved, &children.blobs, low, credentials).await
    }

    async fn start_all(
        self: &Arc<Self>,
        resolved: &Resolved,
        blobs: &[Descriptor],
        low: bool,
        credentials: &Credentials,
    ) -> Result<(), ResolveError> {
        let mut starts = Vec::new();
        for blob in blobs {
            if !self.parts.store.info(&blob.digest).is_some_and(|info| info.complete) {
                starts.push(self.start(resolved, blob, low, credentials));
            }
        }
        let mut starts = stream::iter(starts).buffer_unordered(STARTS_MAX);
        let mut result = Ok(());
        while let Some(started) = starts.next().await {
            // The others may well be there.
            result = result.and(started);
        }
        result
    }

    async fn start(
        &self,
        resolved: &Resolved,
        blob: &Descriptor,
        low: bool,
        credentials: &Credentials,
    ) -> Result<(), ResolveError> {
        let known = resolved.statements.iter().find(|signed| signed.statement.digest == blob.digest);
        let signed = match known {
            Some(signed) => {
                let fits = signed.statement.check(&blob.digest, Some(blob.size));
                fits.map_err(|error| ResolveError::Manifest(error.to_string()))?;
                signed.clone()
            }
            None => {
                let size = Some(blob.size);
                self.upstream().statement(&resolved.repository, &blob.digest, size, credentials).await?
            }
        };
        let (image, repository) = (*resolved.manifest.digest(), resolved.repository.clone());
        self.parts.handle.want(image, repository, signed, low, credentials.clone()).await?;
        Ok(())
    }
}
