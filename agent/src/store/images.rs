//! Images and tags: what is known of a manifest besides its bytes, which are a blob like any other.

use std::collections::BTreeSet;

use bincode::{Decode, Encode};
use shoal_proto::{
    Digest,
    api::Discovery,
    envelope::Envelope,
    name::{Repository, Tag},
    signed::{DiscoveryKey, UnixSeconds, Version},
};

use super::{Index, Store, StoreError};

/// A manifest as pulled from one repository.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ImageRecord {
    /// The manifest.
    pub image: Digest,
    /// The repository, as the seeder knows it.
    pub repository: Repository,
    /// The manifest's media type.
    pub media_type: String,
    /// Its config and layers, each once; none for an index.
    pub blobs: Vec<Digest>,
    /// Signed statements of the manifest and those blobs.
    pub statements: Vec<Envelope>,
    /// The capability that covers them.
    pub capability: Envelope,
    /// Where their holders are found.
    pub discovery: Vec<Discovery>,
    /// The key of its bundle, where it is public.
    pub bundle: Option<DiscoveryKey>,
    /// Kept whatever the quota says.
    pub pinned: bool,
    /// When it was last pulled.
    pub pulled_at: UnixSeconds,
}

/// Where a tag points, as last heard from the seeder.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TagRow {
    /// The repository, as the seeder knows it.
    pub repository: Repository,
    /// The tag.
    pub tag: Tag,
    /// The manifest.
    pub image: Digest,
    /// Its media type.
    pub media_type: String,
    /// The signed tag record.
    pub record: Envelope,
    /// Its version: no older record is ever taken.
    pub version: Version,
    /// When the seeder last confirmed it.
    pub checked_at: UnixSeconds,
    /// The key of its bundle, where it is public.
    pub bundle: Option<DiscoveryKey>,
}

/// Why a tag record is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// A newer one is known: somebody replays an old tag, or the seeder was set back without raising its epoch.
    #[error("the record of tag {tag} in {repository} is older ({found:?}) than the one known here ({known:?})")]
    Older {
        /// The repository.
        repository: Repository,
        /// The tag.
        tag: Tag,
        /// What is known.
        known: Version,
        /// What came.
        found: Version,
    },
    /// RocksDB fails.
    #[error(transparent)]
    Meta(#[from] StoreError),
}

/// An image as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// What is known of it.
    pub record: ImageRecord,
    /// The tags that point to it in its repository.
    pub tags: Vec<Tag>,
    /// Bytes of its blobs and the manifest, as far as they are known here.
    pub size: u64,
    /// Whether all of them are stored whole.
    pub complete: bool,
}

/// What the removal of an image did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Records removed: one for each repository.
    pub images: usize,
    /// Blobs removed.
    pub blobs: Vec<Digest>,
    /// Blobs that nothing else needs and that are in use now: they go by eviction.
    pub busy: usize,
}

impl Index {
    pub(super) fn pin(&mut self, image: &ImageRecord) {
        for digest in image.all() {
            *self.pins.entry(digest).or_default() += 1;
        }
    }

    fn unpin(&mut self, image: &ImageRecord) {
        for digest in image.all() {
            if let Some(count) = self.pins.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    self.pins.remove(&digest);
                }
            }
        }
    }
}

impl ImageRecord {
    /// The manifest, its config and its layers.
    pub fn all(&self) -> BTreeSet<Digest> {
        self.blobs.iter().copied().chain([self.image]).collect()
    }
}

impl Store {
    /// Keeps what is known of an image. A pin that was set stays.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn put_image(&self, mut record: ImageRecord) -> Result<(), StoreError> {
        let _making = self.shared.making();
        let known = self.image(&record.image, &record.repository)?;
        let pinned = known.as_ref().is_some_and(|known| known.pinned);
        record.pinned |= pinned;
        self.shared.tables.put_image(&record)?;
        let mut index = self.shared.index();
        if let Some(known) = known.filter(|known| known.pinned) {
            index.unpin(&known);
        }
        if record.pinned {
            index.pin(&record);
        }
        Ok(())
    }

    /// What is known of a manifest in a repository.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn image(&self, image: &Digest, repository: &Repository) -> Result<Option<ImageRecord>, StoreError> {
        let records = self.images_of(image)?;
        Ok(records.into_iter().find(|record| record.repository == *repository))
    }

    /// What is known of a manifest, in all repositories.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn images_of(&self, image: &Digest) -> Result<Vec<ImageRecord>, StoreError> {
        self.shared.tables.images_of(image)
    }

    /// All images, by repository and digest.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn images(&self) -> Result<Vec<ImageInfo>, StoreError> {
        let (mut records, tags) = (self.shared.tables.images()?, self.shared.tables.tags()?);
        records.sort_by(|a, b| (&a.repository, a.image).cmp(&(&b.repository, b.image)));
        Ok(records
            .into_iter()
            .map(|record| {
                let blobs: Vec<_> = record.all().iter().map(|digest| self.info(digest)).collect();
                let here = |row: &&TagRow| row.image == record.image && row.repository == record.repository;
                ImageInfo {
                    tags: tags.iter().filter(here).map(|row| row.tag.clone()).collect(),
                    size: blobs.iter().flatten().map(|info| info.size).sum(),
                    complete: blobs.iter().all(|info| info.is_some_and(|info| info.complete)),
                    record,
                }
            })
            .collect())
    }

    /// Pins or unpins a manifest in all repositories; false where it is not known.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn pin(&self, image: &Digest, pinned: bool) -> Result<bool, StoreError> {
        let _making = self.shared.making();
        let records = self.images_of(image)?;
        for mut record in records.iter().filter(|record| record.pinned != pinned).cloned() {
            record.pinned = pinned;
            self.shared.tables.put_image(&record)?;
            let mut index = self.shared.index();
            if pinned { index.pin(&record) } else { index.unpin(&record) }
        }
        self.shared.tables.sync()?;
        Ok(!records.is_empty())
    }

    /// Removes a manifest in all repositories, its tags, and the blobs that no other image needs. A pin does not
    /// protect from this.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn remove_image(&self, image: &Digest) -> Result<Removed, StoreError> {
        let making = self.shared.making();
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.shared.tables.images()?.into_iter().partition(|record| record.image == *image);
        for row in self.shared.tables.tags()?.iter().filter(|row| row.image == *image) {
            self.shared.tables.delete_tag(row)?;
        }
        for record in &gone {
            self.shared.tables.delete_image(record)?;
            if record.pinned {
                self.shared.index().unpin(record);
            }
        }
        let needed: BTreeSet<Digest> = kept.iter().flat_map(ImageRecord::all).collect();
        let candidates: BTreeSet<Digest> = gone.iter().flat_map(ImageRecord::all).collect();
        let list: Vec<Digest> = candidates.difference(&needed).copied().collect();
        let forgotten = self.shared.forget(&list)?;
        let busy = list.iter().filter(|digest| self.info(digest).is_some()).count();
        let removed = Removed { images: gone.len(), blobs: forgotten.digests.clone(), busy };
        drop(making);
        forgotten.unlink();
        self.shared.tables.sync()?;
        Ok(removed)
    }

    /// Keeps where a tag points.
    ///
    /// # Errors
    /// The record is older than the one known, or RocksDB fails.
    pub fn put_tag(&self, row: &TagRow) -> Result<(), TagError> {
        let _making = self.shared.making();
        if let Some(known) = self.tag(&row.repository, &row.tag)?
            && row.version < known.version
        {
            let (repository, tag) = (row.repository.clone(), row.tag.clone());
            return Err(TagError::Older { repository, tag, known: known.version, found: row.version });
        }
        Ok(self.shared.tables.put_tag(row)?)
    }

    /// Where a tag points, as last heard.
    ///
    /// # Errors
    /// RocksDB fails.
    pub fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRow>, StoreError> {
        self.shared.tables.tag(repository, tag)
    }
}
