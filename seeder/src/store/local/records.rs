//! Blobs, manifests, referrers and tags as records.

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use shoal_proto::{
    Digest,
    name::{Repository, Tag},
    tree::BlobHasher,
};

use super::{
    Inner,
    quotas::NewTags,
    tables::{
        Batch, BlobRecord, META_TAG_COUNTER, ManifestRecord, Place, Table, TagRow, decode, digest_key, holder_key,
        key_digest, odd_key, repository_key, repository_prefix,
    },
    uploads::{facts, put_facts},
};
use crate::store::{
    Blob, BlobContent, BlobInfo, Expected, Manifest, MoveTagError, NewManifest, Page, PutManifestError, Sign,
    StoreError, TagEntry,
};

/// Bytes of descriptors on one page of referrers, unless one alone has more: clients take 4 MiB of a manifest.
const REFERRERS_PAGE_LEN: usize = 2 << 20;

impl Inner {
    /// What is known of content, whoever it belongs to: for the store's own use.
    pub(super) fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        Ok(self.blob_record(digest)?.map(|record| info_of(*digest, record)))
    }

    pub(super) fn blob_record(&self, digest: &Digest) -> Result<Option<BlobRecord>, StoreError> {
        self.tables.record(Table::Blob, &digest_key(digest))
    }

    fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.tables.has(Table::Link, &repository_key(repository, &digest_key(digest)))
    }

    /// Linked, and the content is not in quarantine.
    fn is_readable(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.has_blob(repository, digest)? && self.tables.has(Table::Blob, &digest_key(digest))?)
    }

    fn has_manifest(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.tables.has(Table::Manifest, &repository_key(repository, &digest_key(digest)))
    }

    fn has_either(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.has_blob(repository, digest)? || self.has_manifest(repository, digest)?)
    }

    pub(super) fn linked_info(&self, repository: &Repository, digest: &Digest) -> Result<Option<BlobInfo>, StoreError> {
        let _collector_waits = self.rely(digest);
        self.touch(repository, digest);
        if self.has_blob(repository, digest)? { self.info(digest) } else { Ok(None) }
    }

    pub(super) fn read_blob(&self, repository: &Repository, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let _collector_waits = self.rely(digest);
        self.touch(repository, digest);
        if !self.has_blob(repository, digest)? {
            return Ok(None);
        }
        let Some(record) = self.blob_record(digest)? else { return Ok(None) };
        let content = match record.place {
            Place::Table => BlobContent::Memory(self.content(digest)?),
            Place::File => {
                let file = File::open(self.blob_path(digest)).map_err(StoreError::io("open a blob"))?;
                BlobContent::File(Arc::new(file))
            }
        };
        Ok(Some(Blob { info: info_of(*digest, record), content }))
    }

    fn content(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        let content = self.tables.get(Table::Content, &digest_key(digest))?;
        Ok(content.ok_or_else(|| StoreError::failed("find the content of a record")(digest.to_string()))?.into())
    }

    pub(super) fn link(&self, from: &Repository, to: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let _collector_waits = self.rely(digest);
        self.touch(from, digest);
        self.touch(to, digest);
        let Some(record) = self.blob_record(digest)? else { return Ok(false) };
        if !self.has_blob(from, digest)? {
            return Ok(false);
        }
        let _charged = self.charge(to, digest, record.size)?;
        let mut batch = self.tables.batch();
        batch.put(Table::Holder, &holder_key(digest, Table::Link, to.as_str()), b"");
        batch.put(Table::Link, &repository_key(to, &digest_key(digest)), b"");
        batch.put(Table::Repository, to.as_str().as_bytes(), b"");
        batch.commit()?;
        Ok(true)
    }

    pub(super) fn unlink(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let _nobody_else = self.change_alone(repository);
        let there = self.has_blob(repository, digest)?;
        if there {
            let _counted = self.discharge(repository, digest)?;
            let mut batch = self.tables.batch();
            batch.delete(Table::Link, &repository_key(repository, &digest_key(digest)));
            batch.delete(Table::Holder, &holder_key(digest, Table::Link, repository.as_str()));
            batch.commit()?;
        }
        Ok(there)
    }

    pub(super) fn hashes(&self, repository: &Repository, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if !self.has_either(repository, digest)? {
            return Ok(None);
        }
        if let Some(hashes) = self.tables.get(Table::Hashes, &digest_key(digest))? {
            return Ok(Some(hashes.into()));
        }
        let only = self.info(digest)?.map(|info| if info.size == 0 { Bytes::new() } else { info.root.to_vec().into() });
        Ok(only)
    }

    pub(super) fn infos_of(&self, repository: &Repository, digests: &[Digest]) -> Result<Vec<BlobInfo>, StoreError> {
        let mut infos = Vec::with_capacity(digests.len());
        for digest in digests {
            if self.has_either(repository, digest)? {
                infos.extend(self.info(digest)?);
            }
        }
        Ok(infos)
    }

    pub(super) fn store_manifest(
        &self,
        repository: &Repository,
        new: &NewManifest,
        sign: &Sign,
    ) -> Result<(), PutManifestError> {
        self.check_room()?;
        let _no_deletion = self.change(repository);
        let _one_at_a_time = self.hold_tags(repository, &new.tags);
        let _collector_waits = self.rely_all(new.blobs.iter().chain([&new.manifest.digest]));
        let mut missing = Vec::new();
        for digest in &new.blobs {
            self.touch(repository, digest);
            if !self.is_readable(repository, digest)? {
                missing.push(*digest);
            }
        }
        for digest in &new.manifests {
            if !self.has_manifest(repository, digest)? {
                missing.push(*digest);
            }
        }
        if !missing.is_empty() {
            return Err(PutManifestError::Missing(missing));
        }
        let Manifest { digest, media_type, bytes } = &new.manifest;
        let key = digest_key(digest);
        let _charged = self.charge(repository, digest, bytes.len() as u64)?;
        let mut batch = self.tables.batch();
        if self.info(digest)?.is_none() {
            let mut tree = BlobHasher::new();
            tree.update(bytes);
            let (info, hashes) = facts(*digest, tree, sign).map_err(StoreError::failed("store a manifest so large"))?;
            put_facts(&mut batch, &info, &hashes, Place::Table);
        }
        // Also where the same bytes are a blob in a file of its own: a manifest is read from here.
        batch.put(Table::Content, &key, bytes);
        let subject = new.referrer.as_ref().map(|(subject, _)| *subject);
        let record = ManifestRecord { media_type: media_type.clone(), subject };
        batch.put_record(Table::Manifest, &repository_key(repository, &key), &record);
        batch.put(Table::Repository, repository.as_str().as_bytes(), b"");
        batch.put(Table::Holder, &holder_key(digest, Table::Manifest, repository.as_str()), b"");
        for blob in new.blobs.iter().chain(&new.foreign) {
            batch.put(Table::Reference, &repository_key(repository, &[digest_key(blob), key.clone()].concat()), b"");
        }
        if let Some((subject, descriptor)) = &new.referrer {
            batch.put(Table::Referrer, &referrer_key(repository, subject, digest), descriptor);
        }
        let counted = self.put_tags(&mut batch, repository, &new.tags, *digest)?;
        batch.commit()?;
        counted.keep();
        Ok(())
    }

    pub(super) fn read_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, StoreError> {
        let key = repository_key(repository, &digest_key(digest));
        let _collector_waits = self.rely(digest);
        let Some(record) = self.tables.record::<ManifestRecord>(Table::Manifest, &key)? else { return Ok(None) };
        // Without content it is in quarantine.
        let content = self.tables.get(Table::Content, &digest_key(digest))?;
        Ok(content.map(|bytes| Manifest { digest: *digest, media_type: record.media_type, bytes: bytes.into() }))
    }

    pub(super) fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Vec<Tag>>, StoreError> {
        let _nobody_else = self.change_alone(repository);
        let key = repository_key(repository, &digest_key(digest));
        let Some(record) = self.tables.record::<ManifestRecord>(Table::Manifest, &key)? else { return Ok(None) };
        let _counted = self.discharge(repository, digest)?;
        let mut batch = self.tables.batch();
        batch.delete(Table::Manifest, &key);
        batch.delete(Table::Holder, &holder_key(digest, Table::Manifest, repository.as_str()));
        if let Some(subject) = &record.subject {
            batch.delete(Table::Referrer, &referrer_key(repository, subject, digest));
        }
        let prefix = repository_prefix(repository);
        let mut tags = Vec::new();
        for item in self.tables.scan(Table::Tag, &prefix, &prefix) {
            let (key, value) = item?;
            let row: TagRow = decode(&value).map_err(StoreError::failed("understand a record"))?;
            if row.digest == *digest {
                batch.delete(Table::Tag, &key);
                tags.extend(text(&key[prefix.len()..]).parse());
            }
        }
        batch.commit()?;
        self.quotas.remove_tags(self.quotas.of(repository), tags.len() as u64);
        Ok(Some(tags))
    }

    pub(super) fn referrers_of(
        &self,
        repository: &Repository,
        subject: &Digest,
        n: usize,
        last: Option<Digest>,
    ) -> Result<Page<(Digest, Bytes)>, StoreError> {
        let prefix = repository_key(repository, &digest_key(subject));
        let from = last.map_or_else(|| prefix.clone(), |last| [&*prefix, &digest_key(&last)].concat());
        let (mut items, mut len) = (Vec::new(), 0);
        for item in self.tables.scan(Table::Referrer, &prefix, &from) {
            let (key, descriptor) = item?;
            let digest = key_digest(&key[prefix.len()..]).ok_or_else(|| odd_key(&key))?;
            if Some(digest) == last {
                continue;
            }
            len += descriptor.len();
            if items.len() >= n || (!items.is_empty() && len > REFERRERS_PAGE_LEN) {
                return Ok(Page { items, more: true });
            }
            items.push((digest, Bytes::from(descriptor.into_vec())));
        }
        Ok(Page { items, more: false })
    }

    pub(super) fn read_tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagEntry>, StoreError> {
        let row: Option<TagRow> =
            self.tables.record(Table::Tag, &repository_key(repository, tag.as_str().as_bytes()))?;
        Ok(row.map(|TagRow { digest, counter }| TagEntry { digest, counter }))
    }

    pub(super) fn swap_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        expected: Expected,
        to: Option<Digest>,
    ) -> Result<Option<TagEntry>, MoveTagError> {
        let _no_deletion = self.change(repository);
        let _one_at_a_time = self.hold_tags(repository, std::slice::from_ref(tag));
        let found = self.read_tag(repository, tag)?;
        let fits = match expected {
            Expected::Any => true,
            Expected::Absent => found.is_none(),
            Expected::At(digest) => found.is_some_and(|entry| entry.digest == digest),
        };
        if !fits {
            return Err(MoveTagError::Conflict(found));
        }
        let mut batch = self.tables.batch();
        match to {
            Some(digest) if !self.has_manifest(repository, &digest)? => Err(MoveTagError::Missing),
            Some(digest) => {
                let counted = self.put_tags(&mut batch, repository, std::slice::from_ref(tag), digest)?;
                batch.commit()?;
                counted.keep();
                Ok(self.read_tag(repository, tag)?)
            }
            None => {
                batch.delete(Table::Tag, &repository_key(repository, tag.as_str().as_bytes()));
                batch.commit()?;
                self.quotas.remove_tags(self.quotas.of(repository), u64::from(found.is_some()));
                Ok(None)
            }
        }
    }

    /// Has tags point to a manifest. The caller holds them ([`Self::hold_tags`]).
    fn put_tags(
        &self,
        batch: &mut Batch<'_>,
        repository: &Repository,
        tags: &[Tag],
        digest: Digest,
    ) -> Result<NewTags<'_>, StoreError> {
        let mut new = 0;
        for tag in tags {
            let key = repository_key(repository, tag.as_str().as_bytes());
            new += u64::from(!self.tables.has(Table::Tag, &key)?);
            let counter = self.tag_counter.fetch_add(1, Ordering::Relaxed) + 1;
            batch.put_record(Table::Tag, &key, &TagRow { digest, counter });
        }
        if !tags.is_empty() {
            batch.put(Table::Meta, META_TAG_COUNTER, &self.tag_counter.load(Ordering::Relaxed).to_le_bytes());
        }
        self.quotas.add_tags(repository, new)
    }

    pub(super) fn list_tags(
        &self,
        repository: &Repository,
        n: usize,
        last: Option<&str>,
    ) -> Result<Option<Page<String>>, StoreError> {
        if !self.tables.has(Table::Repository, repository.as_str().as_bytes())? {
            return Ok(None);
        }
        self.page(Table::Tag, &repository_prefix(repository), n, last).map(Some)
    }

    pub(super) fn list_repositories(&self, n: usize, last: Option<&str>) -> Result<Page<String>, StoreError> {
        self.page(Table::Repository, b"", n, last)
    }

    /// Up to `n` of the names that follow `prefix` in the keys of `table`, after `last`.
    fn page(&self, table: Table, prefix: &[u8], n: usize, last: Option<&str>) -> Result<Page<String>, StoreError> {
        let last = last.unwrap_or_default().as_bytes();
        let from = [prefix, last].concat();
        let mut items = Vec::new();
        for item in self.tables.scan(table, prefix, &from) {
            let (key, _) = item?;
            let name = &key[prefix.len()..];
            if name == last {
                continue;
            }
            if items.len() == n {
                return Ok(Page { items, more: true });
            }
            items.push(text(name));
        }
        Ok(Page { items, more: false })
    }
}

fn info_of(digest: Digest, record: BlobRecord) -> BlobInfo {
    BlobInfo { digest, size: record.size, root: record.root, statement: record.statement }
}

fn referrer_key(repository: &Repository, subject: &Digest, digest: &Digest) -> Vec<u8> {
    repository_key(repository, &[digest_key(subject), digest_key(digest)].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
