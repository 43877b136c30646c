//! Every table in RocksDB, typed; the only file that knows RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `note` | name | bytes; `format` is the version of this list (u32 LE) |
//! | `blob-1` | digest | `BlobRow` |
//! | `hashes-1` | digest | piece hashes, 32 bytes each |
//! | `have-1` | digest | `HaveRow` |
//! | `access-1` | digest | last access, Unix seconds (u64 LE) |
//! | `image-1` | digest, repository | `ImageRecord` |
//! | `tag-1` | repository, 0, tag | `TagRow` |
//!
//! A digest as key is its wire form (the algorithm's byte, then the value). A change of a value's form makes a table
//! with the next number in its name; `FORMAT` grows when an older program would misread the whole.

use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use rocksdb::{BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, IteratorMode, LogLevel, Options};
use shoal_proto::{
    Digest, codec,
    envelope::Envelope,
    name::{Repository, Tag},
    signed::{Blake3, Statement, UnixSeconds},
};

use super::{ImageRecord, TagRow};

/// The version of the data folder.
pub(super) const FORMAT: u32 = 1;

/// Largest row in bytes; a have-set pair is 1 KiB, piece hashes 128 KiB, an image record of many layers some hundred KiB.
const ROW_LEN_MAX: usize = 4 << 20;

/// RocksDB's own memory: metadata is read when the agent starts and when a blob is opened, hardly ever twice, and an idle
/// agent's budget is 40 MiB in all, more than half of which is the program itself.
const BLOCK_CACHE_BYTES: usize = 1 << 20;
/// Unflushed rows per table.
const WRITE_BUFFER_BYTES: usize = 512 << 10;
/// Unflushed rows in all: they stay in memory for as long as nothing else is written.
const WRITE_BUFFERS_BYTES: usize = 1 << 20;
/// Unflushed rows are given memory in blocks of this size, an eighth of the whole unless said: most tables hold a few rows.
const WRITE_BLOCK_BYTES: usize = 16 << 10;
/// The write-ahead log is cut at this length, so that opening replays little.
const WAL_BYTES_MAX: u64 = 16 << 20;
/// Table files held open.
const OPEN_FILES_MAX: i32 = 64;

const NOTE: &str = "note";
const BLOB: &str = "blob-1";
const HASHES: &str = "hashes-1";
const HAVE: &str = "have-1";
const ACCESS: &str = "access-1";
const IMAGE: &str = "image-1";
const TAG: &str = "tag-1";
const TABLES: [&str; 7] = [NOTE, BLOB, HASHES, HAVE, ACCESS, IMAGE, TAG];

/// RocksDB failed, or holds what this program cannot read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB's own error.
    #[error("the metadata in {} fails: {error}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Its error.
        error: rocksdb::Error,
    },
    /// A row that does not decode.
    #[error("a row of table {table} in {} is damaged", path.display())]
    Row {
        /// The database.
        path: PathBuf,
        /// The table.
        table: &'static str,
    },
    /// A blob's file cannot be synced.
    #[error("the file of {digest} cannot be synced: {error}")]
    Sync {
        /// The blob.
        digest: Digest,
        /// Why.
        error: std::io::Error,
    },
}

/// The small named values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The pinned root key, 32 bytes.
    Root,
    /// The newest key set: an encoded [`Envelope`].
    KeySet,
    /// This node's membership: an encoded [`Envelope`].
    Membership,
    /// The newest revocation list: an encoded [`Envelope`].
    Revocations,
}

impl Note {
    const fn key(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::KeySet => "key-set",
            Self::Membership => "membership",
            Self::Revocations => "revocations",
        }
    }
}

/// What a blob is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct BlobRow {
    pub(super) envelope: Envelope,
    pub(super) statement: Statement,
}

/// Which pieces are there, and since which boot that is known. Sets are
/// [`HaveSet::to_bytes`](shoal_proto::have::HaveSet::to_bytes).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct HaveRow {
    /// The boot under which `recorded` was written: true without further ado while it lasts.
    pub(super) boot_id: String,
    /// Verified pieces.
    pub(super) recorded: Vec<u8>,
    /// Those whose bytes an fdatasync has covered: true under any boot.
    pub(super) durable: Vec<u8>,
    /// Recorded under an earlier boot and not yet hashed again.
    pub(super) doubtful: Vec<u8>,
}

/// The database.
#[derive(Debug)]
pub(super) struct Tables {
    db: DB,
    path: PathBuf,
}

/// The rows of a blob, but for its hashes.
pub(super) struct StoredBlob {
    pub(super) digest: Digest,
    pub(super) row: BlobRow,
    pub(super) have: Option<HaveRow>,
    pub(super) last_access: UnixSeconds,
}

/// All rows of a blob, to be written as one.
pub(super) struct NewBlob<'a> {
    pub(super) digest: &'a Digest,
    pub(super) row: BlobRow,
    pub(super) hashes: &'a [Blake3],
    pub(super) have: HaveRow,
    pub(super) access: UnixSeconds,
}

impl Tables {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        let tables = TABLES.map(|name| {
            let mut blocks = BlockBasedOptions::default();
            blocks.set_block_cache(&cache);
            let mut options = Options::default();
            options.set_write_buffer_size(WRITE_BUFFER_BYTES);
            options.set_arena_block_size(WRITE_BLOCK_BYTES);
            options.set_max_write_buffer_number(2);
            options.set_block_based_table_factory(&blocks);
            ColumnFamilyDescriptor::new(name, options)
        });
        let db = DB::open_cf_descriptors(&options, path, tables)
            .map_err(|error| StoreError::Database { path: path.to_owned(), error })?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// The folder's format; a new folder gets ours.
    pub(super) fn format(&self) -> Result<u32, StoreError> {
        match self.get(NOTE, b"format")? {
            Some(bytes) => match <[u8; 4]>::try_from(bytes.as_slice()) {
                Ok(bytes) => Ok(u32::from_le_bytes(bytes)),
                Err(_) => Err(self.damaged(NOTE)),
            },
            None => {
                self.put(NOTE, b"format", &FORMAT.to_le_bytes())?;
                Ok(FORMAT)
            }
        }
    }

    pub(super) fn note(&self, note: Note) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(NOTE, note.key().as_bytes())
    }

    pub(super) fn put_note(&self, note: Note, value: &[u8]) -> Result<(), StoreError> {
        self.put(NOTE, note.key().as_bytes(), value)?;
        self.sync()
    }

    /// All blobs. Damaged rows are left out, with a warning.
    pub(super) fn blobs(&self) -> Result<Vec<StoredBlob>, StoreError> {
        let mut list = Vec::new();
        for item in self.db.iterator_cf(self.table(BLOB), IteratorMode::Start) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            let Ok(digest) = codec::decode::<Digest, ROW_LEN_MAX>(&key) else { continue };
            let Ok(row) = codec::decode::<BlobRow, ROW_LEN_MAX>(&value) else {
                tracing::warn!(%digest, "the row of a blob is damaged; the blob is dropped");
                continue;
            };
            let access = self.get(ACCESS, &key)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            list.push(StoredBlob { digest, row, have: self.have(&digest)?, last_access: access });
        }
        Ok(list)
    }

    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>, StoreError> {
        self.read(BLOB, &codec::encode(digest))
    }

    pub(super) fn have(&self, digest: &Digest) -> Result<Option<HaveRow>, StoreError> {
        self.read(HAVE, &codec::encode(digest))
    }

    pub(super) fn hashes(&self, digest: &Digest) -> Result<Option<Vec<Blake3>>, StoreError> {
        let Some(bytes) = self.get(HASHES, &codec::encode(digest))? else { return Ok(None) };
        let (hashes, rest) = bytes.as_chunks::<32>();
        if rest.is_empty() { Ok(Some(hashes.to_vec())) } else { Err(self.damaged(HASHES)) }
    }

    /// Writes a new blob's rows as one, without a sync.
    pub(super) fn put_blob(&self, blob: &NewBlob<'_>) -> Result<(), StoreError> {
        let key = codec::encode(blob.digest);
        let mut batch = rocksdb::WriteBatch::default();
        batch.put_cf(self.table(BLOB), &key, codec::encode(&blob.row));
        batch.put_cf(self.table(HASHES), &key, blob.hashes.as_flattened());
        batch.put_cf(self.table(HAVE), &key, codec::encode(&blob.have));
        batch.put_cf(self.table(ACCESS), &key, blob.access.to_le_bytes());
        self.db.write(batch).map_err(|error| self.failed(error))
    }

    pub(super) fn put_have(&self, digest: &Digest, row: &HaveRow) -> Result<(), StoreError> {
        self.put(HAVE, &codec::encode(digest), &codec::encode(row))
    }

    pub(super) fn put_access(&self, list: &[(Digest, UnixSeconds)]) -> Result<(), StoreError> {
        let mut batch = rocksdb::WriteBatch::default();
        for (digest, access) in list {
            batch.put_cf(self.table(ACCESS), codec::encode(digest), access.to_le_bytes());
        }
        self.db.write(batch).map_err(|error| self.failed(error))
    }

    /// Deletes all rows of these blobs, synced: their files may go afterwards.
    pub(super) fn delete_blobs(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let mut batch = rocksdb::WriteBatch::default();
        for digest in digests {
            let key = codec::encode(digest);
            for table in [BLOB, HASHES, HAVE, ACCESS] {
                batch.delete_cf(self.table(table), &key);
            }
        }
        self.db.write(batch).map_err(|error| self.failed(error))?;
        self.sync()
    }

    pub(super) fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.rows(IMAGE, b"")
    }

    pub(super) fn images_of(&self, digest: &Digest) -> Result<Vec<ImageRecord>, StoreError> {
        self.rows(IMAGE, &codec::encode(digest))
    }

    pub(super) fn put_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let key = image_key(&record.image, &record.repository);
        self.put(IMAGE, &key, &codec::encode(record))
    }

    pub(super) fn delete_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        self.delete(IMAGE, &image_key(&record.image, &record.repository))
    }

    pub(super) fn tags(&self) -> Result<Vec<TagRow>, StoreError> {
        self.rows(TAG, b"")
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TagRow>, StoreError> {
        self.read(TAG, &tag_key(repository, tag))
    }

    pub(super) fn put_tag(&self, row: &TagRow) -> Result<(), StoreError> {
        self.put(TAG, &tag_key(&row.repository, &row.tag), &codec::encode(row))
    }

    pub(super) fn delete_tag(&self, row: &TagRow) -> Result<(), StoreError> {
        self.delete(TAG, &tag_key(&row.repository, &row.tag))
    }

    /// Makes all that was written survive a power loss.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.db.flush_wal(true).map_err(|error| self.failed(error))
    }

    /// All rows whose key starts with `prefix`. Damaged ones are left out, with a warning: they cost a new pull.
    fn rows<T: Decode<()>>(&self, table: &'static str, prefix: &[u8]) -> Result<Vec<T>, StoreError> {
        let mut list = Vec::new();
        let from = IteratorMode::From(prefix, rocksdb::Direction::Forward);
        for item in self.db.iterator_cf(self.table(table), from) {
            let (key, value) = item.map_err(|error| self.failed(error))?;
            if !key.starts_with(prefix) {
                break;
            }
            match codec::decode::<T, ROW_LEN_MAX>(&value) {
                Ok(row) => list.push(row),
                Err(error) => tracing::warn!(table, %error, "a damaged row is left out"),
            }
        }
        Ok(list)
    }

    fn read<T: Decode<()>>(&self, table: &'static str, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(table, key)? else { return Ok(None) };
        codec::decode::<T, ROW_LEN_MAX>(&bytes).map(Some).map_err(|_| self.damaged(table))
    }

    fn get(&self, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.table(table), key).map_err(|error| self.failed(error))
    }

    fn put(&self, table: &'static str, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.db.put_cf(self.table(table), key, value).map_err(|error| self.failed(error))
    }

    fn delete(&self, table: &'static str, key: &[u8]) -> Result<(), StoreError> {
        self.db.delete_cf(self.table(table), key).map_err(|error| self.failed(error))
    }

    fn table(&self, name: &'static str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("all tables are opened with the database")
    }

    fn failed(&self, error: rocksdb::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), error }
    }

    fn damaged(&self, table: &'static str) -> StoreError {
        StoreError::Row { path: self.path.clone(), table }
    }
}

fn image_key(image: &Digest, repository: &Repository) -> Vec<u8> {
    let mut key = codec::encode(image);
    key.extend_from_slice(repository.as_str().as_bytes());
    key
}

fn tag_key(repository: &Repository, tag: &Tag) -> Vec<u8> {
    [repository.as_str().as_bytes(), b"\0", tag.as_str().as_bytes()].concat()
}
