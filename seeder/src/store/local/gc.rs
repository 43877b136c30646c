//! Collection while serving: what no manifest names and nobody relies on goes, and nothing else.
//!
//! Three kinds of record are looked through, page by page, so that a pass holds nothing up:
//!
//! 1. `reference.1`: rows whose manifest is gone are dropped. What is left says exactly which blobs manifests name.
//! 2. `link.1`: a blob of a repository that no manifest of it names is condemned, and on a later pass expired
//!    ([`super::ledger`]).
//! 3. `blob.1`, and the files below `blobs`: content that belongs to no repository any more is deleted.
//!
//! **Why nothing is lost.** Whoever makes content reachable, or tells a client that it is there, holds the digest's lock
//! for sharing from before it looks until its records are durable; the collector holds it alone from before its last look
//! until the records and the file are gone. A look comes either wholly before (the touch takes the condemnation back) or
//! wholly after (the blob is not there). A list that cannot be read to its end stops the pass.

use std::{
    fs,
    hash::BuildHasher as _,
    sync::{RwLockReadGuard, RwLockWriteGuard},
};

use shoal_proto::{Digest, name::Repository};

use super::{
    Inner,
    tables::{Place, Table, digest_key, holder_key, key_digest, odd_key, repository_key, split_repository},
};
use crate::{
    manifest::Parsed,
    store::{Collected, StoreError},
    time::monotonic_ms,
};

/// Locks over digests. Content that shares one waits for the deletion of the other: milliseconds.
pub(super) const GUARDS: usize = 256;
/// Records that are looked at between two breaths: what stopping waits for.
const PAGE_LEN: usize = 1000;

impl Inner {
    fn guard_index(digest: &Digest) -> usize {
        usize::from(digest.as_bytes()[0]) % GUARDS
    }

    /// Keeps the collector away from content while it is looked up or made reachable.
    pub(super) fn rely(&self, digest: &Digest) -> RwLockReadGuard<'_, ()> {
        self.guards[Self::guard_index(digest)].read().expect("nobody panics while holding a digest")
    }

    /// The same for many, each lock once and in order.
    pub(super) fn rely_all<'a>(&'a self, digests: impl Iterator<Item = &'a Digest>) -> Vec<RwLockReadGuard<'a, ()>> {
        let indexes: std::collections::BTreeSet<usize> = digests.map(Self::guard_index).collect();
        let lock = |at: usize| self.guards[at].read().expect("nobody panics while holding a digest");
        indexes.into_iter().map(lock).collect()
    }

    pub(super) fn alone(&self, digest: &Digest) -> RwLockWriteGuard<'_, ()> {
        self.guards[Self::guard_index(digest)].write().expect("nobody panics while holding a digest")
    }

    fn ledger_key(&self, repository: &Repository, digest: &Digest) -> u64 {
        self.hashing.hash_one((repository, digest))
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, super::ledger::Ledger> {
        self.ledger.lock().expect("nobody panics while holding the ledger")
    }

    /// Somebody relies on a blob of a repository. The caller holds [`Self::rely`].
    pub(super) fn touch(&self, repository: &Repository, digest: &Digest) {
        self.ledger().touch(self.ledger_key(repository, digest), monotonic_ms());
    }

    /// One pass. What it condemns a later pass deletes.
    pub(super) fn collect(&self) -> Result<Collected, StoreError> {
        let _one_at_a_time = self.collecting.lock().expect("nobody panics while collecting");
        let taken_back = self.ledger().taken_back();
        let mut done = Collected::default();
        self.pages(Table::Reference, |_, key, _| self.drop_stale_reference(key))?;
        self.pages(Table::Link, |inner, key, _| inner.judge_link(key, &mut done))?;
        self.pages(Table::Blob, |inner, key, _| inner.drop_unheld(key, &mut done))?;
        self.drop_stray_files(&mut done)?;
        let ledger = self.ledger();
        done.waiting = ledger.condemned();
        done.taken_back = ledger.taken_back() - taken_back;
        Ok(done)
    }

    /// Goes through a table in pages: no iterator, and so no snapshot of the database, is held for long.
    pub(super) fn pages(
        &self,
        table: Table,
        mut each: impl FnMut(&Self, &[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            if self.jobs.is_closed() {
                return Ok(());
            }
            let page: Vec<_> = self.tables.scan(table, b"", &from).take(PAGE_LEN).collect::<Result<_, _>>()?;
            for (key, value) in &page {
                each(self, key, value)?;
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE_LEN => from = [last, [0].as_slice()].concat(),
                _ => return Ok(()),
            }
        }
    }

    /// Removes a row of a manifest that is gone.
    fn drop_stale_reference(&self, key: &[u8]) -> Result<(), StoreError> {
        let (repository, rest) = split_repository(key).ok_or_else(|| odd_key(key))?;
        let manifest = second_digest(rest).ok_or_else(|| odd_key(key))?;
        let there = || self.tables.has(Table::Manifest, &repository_key(&repository, &digest_key(&manifest)));
        if there()? {
            return Ok(());
        }
        // Under the lock of who pushes it again.
        let _nobody_else = self.change_alone(&repository);
        if !there()? {
            let mut batch = self.tables.batch();
            batch.delete(Table::Reference, key);
            batch.commit_later()?;
        }
        Ok(())
    }

    fn is_named(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let prefix = repository_key(repository, &digest_key(digest));
        for item in self.tables.scan(Table::Reference, &prefix, &prefix) {
            let (key, _) = item?;
            let manifest = key_digest(&key[prefix.len()..]).ok_or_else(|| odd_key(&key))?;
            if self.tables.has(Table::Manifest, &repository_key(repository, &digest_key(&manifest)))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn judge_link(&self, key: &[u8], done: &mut Collected) -> Result<(), StoreError> {
        let (repository, rest) = split_repository(key).ok_or_else(|| odd_key(key))?;
        let digest = key_digest(rest).ok_or_else(|| odd_key(key))?;
        let mark = self.ledger_key(&repository, &digest);
        if self.is_named(&repository, &digest)? {
            self.ledger().pardon(mark);
            return Ok(());
        }
        if self.ledger().condemn(mark, monotonic_ms()) {
            done.condemned += 1;
            return Ok(());
        }
        if !self.ledger().is_due(mark, monotonic_ms()) {
            return Ok(());
        }
        let _nobody_relies = self.alone(&digest);
        if !self.ledger().expire(mark, monotonic_ms()) || self.is_named(&repository, &digest)? {
            return Ok(());
        }
        let _counted = self.discharge(&repository, &digest)?;
        let mut batch = self.tables.batch();
        batch.delete(Table::Link, key);
        batch.delete(Table::Holder, &holder_key(&digest, Table::Link, repository.as_str()));
        batch.commit()?;
        done.links += 1;
        Ok(())
    }

    fn is_held(&self, digest: &Digest) -> Result<bool, StoreError> {
        let prefix = digest_key(digest);
        let mut holders = self.tables.scan(Table::Holder, &prefix, &prefix);
        Ok(holders.next().transpose()?.is_some())
    }

    fn drop_unheld(&self, key: &[u8], done: &mut Collected) -> Result<(), StoreError> {
        let digest = key_digest(key).ok_or_else(|| odd_key(key))?;
        if self.is_held(&digest)? {
            return Ok(());
        }
        let _nobody_relies = self.alone(&digest);
        let Some(record) = self.blob_record(&digest)? else { return Ok(()) };
        if self.is_held(&digest)? {
            return Ok(());
        }
        self.forget_content(&digest)?;
        if record.place == Place::File {
            remove_file(&self.blob_path(&digest))?;
        }
        done.blobs += 1;
        done.bytes += record.size;
        Ok(())
    }

    /// Removes the records of content, durably. The caller holds [`Self::alone`].
    pub(super) fn forget_content(&self, digest: &Digest) -> Result<(), StoreError> {
        let key = digest_key(digest);
        let _counted = self.discharge_all(digest)?;
        let mut batch = self.tables.batch();
        for table in [Table::Blob, Table::Content, Table::Hashes] {
            batch.delete(table, &key);
        }
        batch.commit()
    }

    /// Files that a crash left between their naming and their records.
    fn drop_stray_files(&self, done: &mut Collected) -> Result<(), StoreError> {
        let listed = StoreError::io("list blobs");
        let algorithms = [self.dir.join("blobs/sha256"), self.dir.join("blobs/sha512")];
        let parts: Vec<_> = algorithms.iter().map(fs::read_dir).collect::<Result<_, _>>().map_err(listed)?;
        for part in parts.into_iter().flatten() {
            let part = part.map_err(StoreError::io("list blobs"))?.path();
            for file in fs::read_dir(&part).map_err(StoreError::io("list blobs"))? {
                let file = file.map_err(StoreError::io("list blobs"))?;
                let algorithm = part.parent().and_then(|dir| dir.file_name()).unwrap_or_default().to_string_lossy();
                let name = format!("{algorithm}:{}", file.file_name().to_string_lossy());
                let Ok(digest) = name.parse::<Digest>() else { continue };
                if self.blob_record(&digest)?.is_none_or(|record| record.place != Place::File) {
                    self.drop_stray(&digest, done)?;
                }
            }
        }
        Ok(())
    }

    fn drop_stray(&self, digest: &Digest, done: &mut Collected) -> Result<(), StoreError> {
        let _nobody_relies = self.alone(digest);
        if self.blob_record(digest)?.is_none_or(|record| record.place != Place::File) {
            remove_file(&self.blob_path(digest))?;
            done.strays += 1;
        }
        Ok(())
    }

    /// Fills the tables that say who names and who holds what, for a store of a program that did not have them.
    pub(super) fn index(&self) -> Result<(), StoreError> {
        if self.tables.get(Table::Meta, super::tables::META_INDEXED)?.is_some() {
            return Ok(());
        }
        self.pages(Table::Link, |inner, key, _| {
            let (repository, rest) = split_repository(key).ok_or_else(|| odd_key(key))?;
            let digest = key_digest(rest).ok_or_else(|| odd_key(key))?;
            let mut batch = inner.tables.batch();
            batch.put(Table::Holder, &holder_key(&digest, Table::Link, repository.as_str()), b"");
            batch.commit_later()
        })?;
        self.pages(Table::Manifest, |inner, key, _| {
            let (repository, rest) = split_repository(key).ok_or_else(|| odd_key(key))?;
            let digest = key_digest(rest).ok_or_else(|| odd_key(key))?;
            let Some(manifest) = inner.read_manifest(&repository, &digest)? else { return Ok(()) };
            let parsed = Parsed::read(Some(&manifest.media_type), &manifest.bytes);
            let parsed = parsed.map_err(StoreError::failed("understand a manifest that is stored"))?;
            let mut batch = inner.tables.batch();
            batch.put(Table::Holder, &holder_key(&digest, Table::Manifest, repository.as_str()), b"");
            for blob in &parsed.blobs {
                let row = [digest_key(&blob.digest), digest_key(&digest)].concat();
                batch.put(Table::Reference, &repository_key(&repository, &row), b"");
            }
            batch.commit_later()
        })?;
        let mut batch = self.tables.batch();
        batch.put(Table::Meta, super::tables::META_INDEXED, b"");
        batch.commit()
    }
}

/// The digest behind another one.
fn second_digest(key: &[u8]) -> Option<Digest> {
    let first = match key.first()? {
        0 => 33,
        1 => 65,
        _ => return None,
    };
    key_digest(key.get(first..)?)
}

/// Removes a blob's file, and sees to it that it stays removed only as far as it matters: a file that comes back after a
/// crash is a stray.
fn remove_file(path: &std::path::Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove a blob")(error)),
        _ => Ok(()),
    }
}
