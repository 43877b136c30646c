//! What the loop is told of an image, and how an image is found while the seeder is down.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use shoal_proto::{
    message::Bundle,
    name::{Reference, Repository, Tag},
    signed::{Capability, DiscoveryKey, Statement, Subject, TagRecord},
};

use super::images::{Images, ResolveError, Resolved, now};
use crate::{
    handle::ImageContext,
    store::{ImageRecord, OpenedStatement, TagRow},
    upstream::{Credentials, PulledImage},
};

/// A key that every member can work out, for the bundle of a *public* reference: who has never pulled it has not been
/// given the seeder's own key, and could not go on without the seeder otherwise. That a member can thereby ask whether
/// others hold a public image whose name it knows is the price.
#[must_use]
pub(super) fn public_bundle_key(root: &[u8; 32], repository: &Repository, reference: &Reference) -> DiscoveryKey {
    let mut hasher = blake3::Hasher::new_keyed(root);
    hasher.update(b"shoal public bundle\0");
    hasher.update(repository.as_str().as_bytes());
    hasher.update(b"\0");
    hasher.update(reference.to_string().as_bytes());
    *hasher.finalize().as_bytes()
}

impl Images {
    /// Tells the loop of an image.
    pub(super) async fn tell(&self, repository: &Repository, pulled: &PulledImage, credentials: &Credentials) {
        let public = pulled.covers.subject == Subject::AnyMember;
        let tag = pulled.tag_record.as_ref().map(|(_, record)| Reference::Tag(record.tag.clone()));
        let root = self.upstream().trust().root().to_bytes();
        let by_digest = Reference::Digest(pulled.digest);
        let references: Vec<_> = tag.into_iter().chain([by_digest]).filter(|_| public).collect();
        let keys: BTreeSet<DiscoveryKey> = references
            .iter()
            .map(|reference| public_bundle_key(&root, repository, reference))
            .chain(pulled.bundle)
            .collect();
        let bundle = Bundle {
            digest: pulled.digest,
            media_type: pulled.media_type.clone(),
            tag_record: pulled.tag_record.as_ref().map(|(envelope, _)| envelope.clone()),
            capability: pulled.capability.clone(),
            statements: pulled.statements.iter().map(|signed| signed.envelope.clone()).collect(),
        };
        let context = ImageContext {
            image: pulled.digest,
            repository: repository.clone(),
            capability: pulled.capability.clone(),
            covers: pulled.covers.clone(),
            digests: pulled.digests(),
            discovery: pulled.discovery.clone(),
            bundle_keys: if public { keys.into_iter().collect() } else { Vec::new() },
            bundle: public.then(|| Arc::new(bundle)),
            candidates: pulled.candidates.clone(),
            introductions: pulled.introductions.clone(),
            credentials: credentials.clone(),
        };
        self.parts.handle.image(context).await;
        self.set_told(pulled.digest, repository.clone(), pulled.covers.not_after);
    }

    /// Whether anybody may read the image.
    pub(super) async fn is_public(&self, record: &ImageRecord) -> bool {
        let opened = self.upstream().open::<Capability>(&record.capability).await;
        opened.is_ok_and(|capability| capability.subject == Subject::AnyMember)
    }

    /// What the store remembers of a pull: no introductions, no candidates.
    pub(super) async fn remembered(
        &self,
        record: &ImageRecord,
        tag: Option<&TagRow>,
    ) -> Result<PulledImage, ResolveError> {
        let wrong = |error: &dyn std::fmt::Display| {
            ResolveError::Manifest(format!("what is stored of {} is not to be believed: {error}", record.image))
        };
        let covers: Capability = self.upstream().open(&record.capability).await.map_err(|error| wrong(&error))?;
        let mut statements = Vec::with_capacity(record.statements.len());
        for envelope in &record.statements {
            let statement: Statement = self.upstream().open(envelope).await.map_err(|error| wrong(&error))?;
            statements.push(OpenedStatement { envelope: envelope.clone(), statement });
        }
        let tag_record = match tag {
            None => None,
            Some(row) => {
                let opened: TagRecord = self.upstream().open(&row.record).await.map_err(|error| wrong(&error))?;
                Some((row.record.clone(), opened))
            }
        };
        Ok(PulledImage {
            digest: record.image,
            media_type: record.media_type.clone(),
            tag_record,
            statements,
            capability: record.capability.clone(),
            covers,
            discovery: record.discovery.clone(),
            bundle: record.bundle,
            candidates: Vec::new(),
            introductions: Vec::new(),
        })
    }

    /// A tag while the seeder is down: as it was last heard, if that is not too long ago, else from peers.
    pub(super) async fn without_seeder(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Tag,
        known: Option<TagRow>,
        credentials: &Credentials,
        error: ResolveError,
    ) -> Result<Resolved, ResolveError> {
        let stored = match &known {
            Some(row) if self.is_recent(row.checked_at) => self.parts.store.image(&row.image, repository)?,
            Some(_) | None => None,
        };
        let resolved = match (stored, known) {
            (Some(record), _) => self.recorded(record, credentials, error).await?,
            (None, Some(row)) if !self.is_recent(row.checked_at) => return Err(error),
            (None, _) => self.of_peers(repository, &Reference::Tag(tag.clone()), credentials, error).await?,
        };
        self.metrics().stale_answer();
        Ok(Resolved { stale: true, ..resolved })
    }

    fn is_recent(&self, at: u64) -> bool {
        Duration::from_secs(now().saturating_sub(at)) <= self.parts.config.stale_max
    }

    /// Whether a client may go on with a private repository while the seeder cannot be asked.
    pub(super) fn goes_on(&self, repository: &Repository, credentials: &Credentials) -> bool {
        self.grants.without_seeder(repository, credentials, self.parts.config.private_offline, Instant::now())
    }

    /// An image that was pulled before, without the seeder: public, or under a capability that still lasts and by a client
    /// that the seeder let in lately, where that is configured.
    pub(super) async fn recorded(
        self: &Arc<Self>,
        record: ImageRecord,
        credentials: &Credentials,
        error: ResolveError,
    ) -> Result<Resolved, ResolveError> {
        let pulled = self.remembered(&record, None).await?;
        let private = pulled.covers.subject != Subject::AnyMember;
        if private && (pulled.covers.not_after <= now() || !self.goes_on(&record.repository, credentials)) {
            return Err(error);
        }
        let whole = self.parts.store.blob(&record.image).filter(|blob| blob.is_complete());
        let manifest = match whole {
            Some(manifest) => manifest,
            None => {
                self.tell(&record.repository, &pulled, credentials).await;
                let signed = pulled.statement(&record.image).cloned().ok_or(error)?;
                self.wait_for(record.image, &record.repository, signed, credentials).await?
            }
        };
        let statements = pulled.statements.clone().into();
        if !self.is_told(&record.image, &record.repository) {
            self.tell(&record.repository, &pulled, credentials).await;
        }
        Ok(Resolved { statements, ..Resolved::stored(record, manifest, false) })
    }

    /// A public reference that was never pulled here, from peers' bundles.
    pub(super) async fn of_peers(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        credentials: &Credentials,
        error: ResolveError,
    ) -> Result<Resolved, ResolveError> {
        let root = self.upstream().trust().root().to_bytes();
        let key = public_bundle_key(&root, repository, reference);
        let Some(bundle) = self.parts.handle.bundle(key).await else { return Err(error) };
        let pulled = match self.open_bundle(repository, reference, *bundle).await {
            Ok(pulled) => pulled,
            Err(reason) => {
                tracing::warn!(%repository, %reference, reason, "a peer's bundle is not to be believed");
                return Err(error);
            }
        };
        self.tell(repository, &pulled, credentials).await;
        let signed = pulled.statement(&pulled.digest).cloned().ok_or(error)?;
        let manifest = self.wait_for(pulled.digest, repository, signed, credentials).await?;
        self.keep(repository, pulled, manifest, credentials, true).await
    }

    /// Opens all of a bundle: it comes from a peer, and everything in it must be the seeder's word.
    async fn open_bundle(
        &self,
        repository: &Repository,
        reference: &Reference,
        bundle: Bundle,
    ) -> Result<PulledImage, String> {
        let tag_record = match (reference, bundle.tag_record) {
            (Reference::Digest(digest), _) if *digest != bundle.digest => return Err("it is of another image".into()),
            (Reference::Digest(_), _) => None,
            (Reference::Tag(_), None) => return Err("it has no tag record".into()),
            (Reference::Tag(tag), Some(envelope)) => {
                let record: TagRecord = self.upstream().open(&envelope).await.map_err(|error| error.to_string())?;
                let same =
                    record.repository == *repository && record.tag == *tag && record.digest == Some(bundle.digest);
                if !same || !record.public {
                    return Err("its tag record is of another tag, or not public".into());
                }
                if !self.is_recent(record.signed_at) {
                    return Err("its tag record is too old".into());
                }
                Some((envelope, record))
            }
        };
        let covers: Capability = self.upstream().open(&bundle.capability).await.map_err(|error| error.to_string())?;
        let mut statements = Vec::new();
        for envelope in bundle.statements {
            let statement: Statement = self.upstream().open(&envelope).await.map_err(|error| error.to_string())?;
            statement.check(&statement.digest, None).map_err(|error| error.to_string())?;
            statements.push(OpenedStatement { envelope, statement });
        }
        let pulled = PulledImage {
            digest: bundle.digest,
            media_type: bundle.media_type,
            tag_record,
            statements,
            capability: bundle.capability,
            covers,
            discovery: Vec::new(),
            bundle: None,
            candidates: Vec::new(),
            introductions: Vec::new(),
        };
        let node = self.upstream().member().borrow().as_ref().map(|member| member.membership.node);
        if !node.is_some_and(|node| pulled.is_covered(&node, now())) {
            return Err("its capability does not cover the image now".into());
        }
        Ok(pulled)
    }
}
