//! What a start finds: rows whose file is whole become entries, everything else goes.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    sync::{Arc, Weak},
};

use shoal_proto::{Digest, have::HaveSet, layout::Layout, tree::PieceHashes};

use super::{
    Blob, Entry, Index, OpenError, OpenedStatement, Shared, StoreConfig,
    blob::Bits,
    files,
    tables::{BlobRow, HaveRow, StoreError, StoredBlob, Tables},
};

/// The index of what is held, and the blobs with pieces to be hashed again.
pub(super) fn load(config: &StoreConfig, tables: &Tables) -> Result<(Index, Vec<Digest>), OpenError> {
    let (mut index, mut doubtful, mut lost) = (Index::default(), Vec::new(), Vec::new());
    for StoredBlob { digest, row, have, last_access } in tables.blobs()? {
        let Some(bits) = bits_of(config, &digest, &row, have.as_ref()) else {
            lost.push(digest);
            continue;
        };
        if !bits.doubtful.is_empty() {
            doubtful.push(digest);
        }
        let size = row.statement.size;
        let (pieces, stored) = (bits.have.pieces(), bits.have.len());
        index.bytes += size;
        index.entries.insert(digest, Entry { size, pieces, stored, last_access, order: 0, live: Weak::new() });
    }
    if !lost.is_empty() {
        tracing::warn!(blobs = lost.len(), "blobs without a whole file are dropped");
        tables.delete_blobs(&lost)?;
    }
    let mut by_age: Vec<_> =
        index.entries.iter_mut().map(|(digest, entry)| (entry.last_access, *digest, entry)).collect();
    by_age.sort_by_key(|(access, digest, _)| (*access, *digest));
    for (order, (_, _, entry)) in by_age.into_iter().enumerate() {
        entry.order = order as u64;
    }
    index.order = index.entries.len() as u64;
    files::empty_trash(&config.dir).map_err(|error| OpenError::Dir { path: config.dir.join(files::TRASH), error })?;
    remove_orphans(config, &index.entries).map_err(|error| OpenError::Dir { path: config.dir.clone(), error })?;
    for image in tables.images()?.iter().filter(|image| image.pinned) {
        index.pin(image);
    }
    Ok((index, doubtful))
}

/// Files that no row knows: left by a crash between a file's creation and its rows.
fn remove_orphans(config: &StoreConfig, entries: &HashMap<Digest, Entry>) -> io::Result<()> {
    for folder in fs::read_dir(config.dir.join(files::BLOBS))? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder.path())? {
            let file = file?;
            let known = file.file_name().to_str().and_then(files::digest_of).is_some_and(|d| entries.contains_key(&d));
            if !known {
                files::remove(&file.path());
            }
        }
    }
    Ok(())
}

/// The bits that a row stands for under this boot; `None` if statement, row and file do not agree.
fn bits_of(config: &StoreConfig, digest: &Digest, row: &BlobRow, have: Option<&HaveRow>) -> Option<Bits> {
    row.statement.check(digest, None).ok()?;
    let layout = Layout::new(row.statement.size).ok()?;
    let file = fs::metadata(files::path(&config.dir, digest)).ok()?;
    if file.len() != row.statement.size {
        return None;
    }
    bits(config, &layout, have)
}

pub(super) fn bits(config: &StoreConfig, layout: &Layout, have: Option<&HaveRow>) -> Option<Bits> {
    let none = HaveSet::empty(layout);
    let Some(row) = have else { return Some(Bits::of(none.clone(), none.clone(), none)) };
    let set = |bytes: &[u8]| HaveSet::from_bytes(layout, bytes).ok();
    let (recorded, durable, mut doubtful) = (set(&row.recorded)?, set(&row.durable)?, set(&row.doubtful)?);
    if row.boot_id == config.boot_id {
        return Some(Bits::of(recorded, durable, doubtful));
    }
    for piece in recorded.iter().filter(|&piece| !durable.contains(piece)) {
        doubtful.insert(piece);
    }
    Some(Bits::of(durable.clone(), durable, doubtful))
}

impl Bits {
    pub(super) fn of(have: HaveSet, durable: HaveSet, doubtful: HaveSet) -> Self {
        Self { have, writing: BTreeSet::new(), doubtful, durable, unrecorded: 0, uses: 0, gone: false }
    }

    pub(super) fn row(&self, boot_id: &str) -> HaveRow {
        HaveRow {
            boot_id: boot_id.to_owned(),
            recorded: self.have.to_bytes(),
            durable: self.durable.to_bytes(),
            doubtful: self.doubtful.to_bytes(),
        }
    }
}

impl Shared {
    /// The blob if it is held: as it is open already, or opened from its rows. A file or row that fails is logged, and
    /// the blob counts as not held.
    pub(super) fn open_blob(self: &Arc<Self>, digest: &Digest) -> Option<Arc<Blob>> {
        if let Some(blob) = self.live(digest)? {
            return Some(blob);
        }
        let _making = self.making();
        if let Some(blob) = self.live(digest)? {
            return Some(blob);
        }
        match self.read_blob(digest) {
            Ok(blob) => {
                let blob = blob?;
                if let Some(entry) = self.index().entries.get_mut(digest) {
                    entry.live = Arc::downgrade(&blob);
                }
                Some(blob)
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a stored blob cannot be opened");
                None
            }
        }
    }

    /// `None`: not held. `Some(None)`: held, not open.
    #[expect(clippy::option_option, reason = "three cases, read at one place")]
    fn live(&self, digest: &Digest) -> Option<Option<Arc<Blob>>> {
        self.index().entries.get(digest).map(|entry| entry.live.upgrade())
    }

    fn read_blob(self: &Arc<Self>, digest: &Digest) -> Result<Option<Arc<Blob>>, StoreError> {
        let (Some(row), Some(hashes)) = (self.tables.blob(digest)?, self.tables.hashes(digest)?) else {
            return Ok(None);
        };
        let have = self.tables.have(digest)?;
        let BlobRow { envelope, statement } = row;
        let opened = || {
            statement.check(digest, None).ok()?;
            let layout = Layout::new(statement.size).ok()?;
            let bits = bits(&self.config, &layout, have.as_ref())?;
            Some((PieceHashes::check(layout, hashes, &statement.root).ok()?, bits))
        };
        let Some((hashes, bits)) = opened() else {
            tracing::error!(%digest, "the stored statement, hashes and have-set do not fit; the blob is not served");
            return Ok(None);
        };
        let file = files::open(&self.config.dir, digest, statement.size)
            .map_err(|error| StoreError::Sync { digest: *digest, error })?;
        Ok(Some(Blob::new(self.clone(), OpenedStatement { envelope, statement }, hashes, file, bits)))
    }
}
