//! Making blobs and making room for them.

use std::{
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
};

use shoal_proto::{Digest, have::HaveSet, tree::PieceHashes};

use super::{
    BeginError, Blob, Entry, OpenedStatement, Shared, StoreError,
    blob::Bits,
    files, now,
    tables::{BlobRow, NewBlob},
};

impl Shared {
    pub(super) fn making(&self) -> MutexGuard<'_, ()> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the blob's file and rows. Whoever comes second gets the first one's blob.
    pub(super) fn create(
        self: &Arc<Self>,
        signed: &OpenedStatement,
        hashes: PieceHashes,
    ) -> Result<Arc<Blob>, BeginError> {
        let making = self.making();
        let digest = signed.statement.digest;
        if let Some(blob) = self.index().entries.get(&digest).and_then(|entry| entry.live.upgrade()) {
            return Ok(blob);
        }
        let size = signed.statement.size;
        // A row that is there and could not be opened is replaced.
        let mut gone = self.forget(&[digest])?;
        gone.extend(self.make_room(&digest, size)?);
        let promised = self.index().entries.values().map(Entry::missing).sum();
        let file = match files::create(&self.config.dir, &digest, size, promised) {
            Err(error) if files::is_full(&error) => {
                // Others share the disk: what the quota would let stay goes after all.
                gone.extend(self.evict(size)?);
                std::mem::take(&mut gone).unlink();
                files::create(&self.config.dir, &digest, size, promised)
            }
            result => result,
        };
        let file = file.map_err(|error| {
            let full = files::is_full(&error);
            if full { BeginError::DiskFull { digest, needed: size } } else { BeginError::File { digest, error } }
        })?;
        let none = HaveSet::empty(hashes.layout());
        let bits = Bits::of(none.clone(), none.clone(), none);
        let access = now();
        let row = BlobRow { envelope: signed.envelope.clone(), statement: signed.statement };
        let have = bits.row(&self.config.boot_id);
        self.tables.put_blob(&NewBlob { digest: &digest, row, hashes: hashes.as_slice(), have, access })?;
        let pieces = hashes.layout().pieces();
        let blob = Blob::new(self.clone(), signed.clone(), hashes, file, bits);
        let mut index = self.index();
        index.bytes += size;
        index.order += 1;
        let (order, live) = (index.order, Arc::downgrade(&blob));
        index.entries.insert(digest, Entry { size, pieces, stored: 0, last_access: access, order, live });
        drop(index);
        drop(making);
        gone.unlink();
        Ok(blob)
    }

    /// Evicts until `size` more bytes fit under the quota. Nothing goes if they would not fit even then.
    fn make_room(&self, digest: &Digest, size: u64) -> Result<Gone, BeginError> {
        let quota = self.config.quota_bytes;
        let used = self.index().bytes;
        let over = (used + size).saturating_sub(quota);
        if over == 0 {
            return Ok(Gone::default());
        }
        let free: u64 = self.evictable().iter().map(|(_, size)| size).sum();
        if free < over {
            let room = (quota + free).saturating_sub(used);
            return Err(BeginError::OverQuota { digest: *digest, needed: size, room });
        }
        Ok(self.evict(over)?)
    }

    /// Blobs that may go, least recently used first, with their sizes.
    fn evictable(&self) -> Vec<(Digest, u64)> {
        let index = self.index();
        let mut list: Vec<_> = index
            .entries
            .iter()
            .filter(|(digest, entry)| {
                !index.pins.contains_key(digest) && !entry.live.upgrade().is_some_and(|blob| blob.is_busy())
            })
            .map(|(digest, entry)| (entry.order, *digest, entry.size))
            .collect();
        drop(index);
        list.sort_unstable();
        list.into_iter().map(|(_, digest, size)| (digest, size)).collect()
    }

    /// Takes at least `bytes` out of the index and the tables, if so much may go. The files remain to be unlinked.
    fn evict(&self, bytes: u64) -> Result<Gone, StoreError> {
        let mut freed = 0;
        let mut list = self.evictable();
        list.retain(|(_, size)| {
            let wanted = freed < bytes;
            freed += if wanted { *size } else { 0 };
            wanted
        });
        let list: Vec<_> = list.into_iter().map(|(digest, _)| digest).collect();
        let gone = self.forget(&list)?;
        for digest in &gone.digests {
            tracing::info!(%digest, "evicted, least recently used");
        }
        self.index().evicted += gone.digests.len() as u64;
        Ok(gone)
    }

    /// Takes blobs that are not in use out of the index and, synced, out of the tables; then takes their files' names
    /// away, so that the same blob can be made anew at once. The caller holds `making`.
    pub(super) fn forget(&self, digests: &[Digest]) -> Result<Gone, StoreError> {
        let mut gone = Gone::default();
        for digest in digests {
            let live = {
                let index = self.index();
                let Some(entry) = index.entries.get(digest) else { continue };
                entry.live.upgrade()
            };
            if let Some(blob) = &live {
                // The recorder must not write the rows again after they were deleted.
                let _recording = blob.recording.lock().unwrap_or_else(PoisonError::into_inner);
                if !blob.retire() {
                    continue;
                }
            }
            let mut index = self.index();
            if let Some(entry) = index.entries.remove(digest) {
                index.bytes -= entry.size;
                index.gone.push(*digest);
                gone.digests.push(*digest);
            }
            drop(index);
            if let Some(blob) = live {
                blob.publish();
            }
        }
        if !gone.digests.is_empty() {
            self.tables.delete_blobs(&gone.digests)?;
            let moved = gone.digests.iter().filter_map(|digest| files::discard(&self.config.dir, digest));
            gone.files = moved.collect();
            self.evicted.notify_one();
        }
        Ok(gone)
    }
}

/// Blobs taken out of service. Unlinking a large file takes a while, so it comes after the locks.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Gone {
    pub(super) digests: Vec<Digest>,
    files: Vec<PathBuf>,
}

impl Gone {
    fn extend(&mut self, other: Self) {
        self.digests.extend(other.digests);
        self.files.extend(other.files);
    }

    pub(super) fn unlink(self) {
        for file in self.files {
            files::remove(&file);
        }
    }
}
