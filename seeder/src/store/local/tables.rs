//! Every table of the database: its name, keys and values, and nothing else.
//!
//! A table's name ends in the version of its format. A new format is a new table, filled from the old one when the store
//! opens; a program that finds a table it does not know refuses to open the store.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta.1` | a word | what the word says |
//! | `blob.1` | digest | [`BlobRecord`] |
//! | `content.1` | digest | the bytes of a small blob or a manifest |
//! | `hashes.1` | digest | piece hashes, 32 bytes each; absent where the root is the only one |
//! | `link.1` | repository, digest | nothing: the blob belongs to the repository |
//! | `manifest.1` | repository, digest | [`ManifestRecord`] |
//! | `referrer.1` | repository, subject, digest | the manifest's descriptor as JSON |
//! | `tag.1` | repository, tag | [`TagRow`] |
//! | `repository.1` | repository | nothing |
//! | `upload.2` | session | [`UploadRecord`] |
//! | `upload.1` | session | [`OldUploadRecord`]: of the first format, moved to `upload.2` when the store opens |
//! | `reference.1` | repository, blob, manifest | nothing: the manifest names the blob, unless the manifest is gone |
//! | `holder.1` | digest, `b` or `m`, repository | nothing: the digest is a blob or a manifest of the repository |
//! | `fleet.1` | what the fleet's records choose | tokens, members, revocations, users |

use std::path::Path;

use bincode::{Decode, Encode};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, Direction, IteratorMode, Options, ReadOptions,
    WriteBatch, WriteOptions,
};
use shoal_proto::{
    Digest,
    codec::{self, CodecError},
    envelope::{ENVELOPE_LEN_MAX, Envelope},
    name::Repository,
    signed::Blake3,
};

use crate::store::StoreError;

/// Memory for blocks read from the database, in bytes. Records are small, and the operating system caches the files.
const BLOCK_CACHE_LEN: usize = 16 << 20;
/// Memory for records not yet in sorted files, all tables together, in bytes.
const WRITE_BUFFER_LEN: usize = 16 << 20;
/// Open files of the database.
const OPEN_FILES_MAX: i32 = 128;
/// Bytes of log before tables are flushed: it bounds what a start after a crash reads again.
const LOG_LEN_MAX: u64 = 64 << 20;
/// Largest record in bytes.
const RECORD_LEN_MAX: usize = ENVELOPE_LEN_MAX + 4096;

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Meta,
    Blob,
    Content,
    Hashes,
    Link,
    Manifest,
    Referrer,
    Tag,
    Repository,
    Upload,
    OldUpload,
    Reference,
    Holder,
    Fleet,
}

impl Table {
    const ALL: [Self; 14] = [
        Self::Meta,
        Self::Blob,
        Self::Content,
        Self::Hashes,
        Self::Link,
        Self::Manifest,
        Self::Referrer,
        Self::Tag,
        Self::Repository,
        Self::Upload,
        Self::OldUpload,
        Self::Reference,
        Self::Holder,
        Self::Fleet,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta.1",
            Self::Blob => "blob.1",
            Self::Content => "content.1",
            Self::Hashes => "hashes.1",
            Self::Link => "link.1",
            Self::Manifest => "manifest.1",
            Self::Referrer => "referrer.1",
            Self::Tag => "tag.1",
            Self::Repository => "repository.1",
            Self::Upload => "upload.2",
            Self::OldUpload => "upload.1",
            Self::Reference => "reference.1",
            Self::Holder => "holder.1",
            Self::Fleet => "fleet.1",
        }
    }
}

/// `meta.1`: the fleet's secrets.
pub(crate) const META_SECRETS: &[u8] = b"secrets";
/// `meta.1`: the highest tag counter in use, a `u64` in little-endian order.
pub(crate) const META_TAG_COUNTER: &[u8] = b"tag counter";

/// `meta.1`: `reference.1` and `holder.1` are complete. Stores of the first version lack them.
pub(crate) const META_INDEXED: &[u8] = b"indexed";

/// Content that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BlobRecord {
    pub(crate) size: u64,
    pub(crate) root: Blake3,
    pub(crate) place: Place,
    pub(crate) statement: Envelope,
}

/// Where content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Place {
    /// In `content.1`.
    Table,
    /// In a file of its own.
    File,
}

/// A manifest in a repository. Its bytes are in `content.1`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ManifestRecord {
    pub(crate) media_type: String,
    pub(crate) subject: Option<Digest>,
}

/// A tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TagRow {
    pub(crate) digest: Digest,
    pub(crate) counter: u64,
}

/// An upload session, so that it outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct UploadRecord {
    pub(crate) repository: Repository,
    /// Who began it; none where nobody was asked who it is.
    pub(crate) user: Option<String>,
    /// Whether its digest will likely be a SHA-512.
    pub(crate) sha512: bool,
    /// When it began, in seconds since 1970.
    pub(crate) began: u64,
}

/// An upload session of the first format: of anybody.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct OldUploadRecord {
    pub(crate) repository: Repository,
    pub(crate) sha512: bool,
    pub(crate) began: u64,
}

/// A digest as a key: one byte for the algorithm, then the value. Fixed length for each algorithm.
pub(crate) fn digest_key(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        shoal_proto::digest::Algorithm::Sha256 => 0,
        shoal_proto::digest::Algorithm::Sha512 => 1,
    };
    [&[algorithm], digest.as_bytes()].concat()
}

/// The digest of a key that is one.
pub(crate) fn key_digest(key: &[u8]) -> Option<Digest> {
    let (algorithm, value) = key.split_first()?;
    match algorithm {
        0 => Some(Digest::sha256(value.try_into().ok()?)),
        1 => Some(Digest::sha512(value.try_into().ok()?)),
        _ => None,
    }
}

/// A key that this program cannot have written.
pub(crate) fn odd_key(key: &[u8]) -> StoreError {
    StoreError::failed("understand a key")(hex::encode(key))
}

/// What all keys of a repository start with: its name and a zero byte, which no name holds.
pub(crate) fn repository_prefix(repository: &Repository) -> Vec<u8> {
    [repository.as_str().as_bytes(), &[0]].concat()
}

/// A key of something in a repository.
pub(crate) fn repository_key(repository: &Repository, rest: &[u8]) -> Vec<u8> {
    [repository.as_str().as_bytes(), &[0], rest].concat()
}

/// A key that says who holds content, or what all keys of repositories begin with that begin so: `of` is [`Table::Link`] or [`Table::Manifest`].
pub(crate) fn holder_key(digest: &Digest, of: Table, repository: &str) -> Vec<u8> {
    let kind = if of == Table::Link { b"b" } else { b"m" };
    [&digest_key(digest), kind.as_slice(), repository.as_bytes()].concat()
}

/// The repository that a key begins with, and what follows.
pub(crate) fn split_repository(key: &[u8]) -> Option<(Repository, &[u8])> {
    let at = key.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&key[..at]).ok()?;
    Some((name.parse().ok()?, &key[at + 1..]))
}

/// A key and its value.
type Record = (Box<[u8]>, Box<[u8]>);

/// The database.
pub(crate) struct Tables {
    db: DB,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("path", &self.db.path()).finish()
    }
}

/// Changes that happen together or not at all.
pub(crate) struct Batch<'a> {
    tables: &'a Tables,
    batch: WriteBatch,
}

impl Tables {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_db_write_buffer_size(WRITE_BUFFER_LEN);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_total_wal_size(LOG_LEN_MAX);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        options.set_stats_dump_period_sec(0);
        let cache = Cache::new_lru_cache(BLOCK_CACHE_LEN);
        let families =
            Table::ALL.iter().map(|table| ColumnFamilyDescriptor::new(table.name(), Self::table_options(&cache)));
        let db = DB::open_cf_descriptors(&options, path, families).map_err(failed("open the database"))?;
        Ok(Self { db })
    }

    fn table_options(cache: &Cache) -> Options {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(cache);
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(WRITE_BUFFER_LEN / 4);
        options.set_max_write_buffer_number(2);
        options
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(table.name()).expect("every table is opened with the database")
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.family(table), key).map_err(failed("read a record"))
    }

    pub(crate) fn has(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        let value = self.db.get_pinned_cf(self.family(table), key).map_err(failed("read a record"))?;
        Ok(value.is_some())
    }

    pub(crate) fn record<T: Decode<()>>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.get(table, key)?.map(|bytes| decode(&bytes).map_err(StoreError::failed("understand a record"))).transpose()
    }

    /// Keys and values from `from` on, in order, while they start with `prefix`.
    pub(crate) fn scan<'a>(
        &'a self,
        table: Table,
        prefix: &'a [u8],
        from: &[u8],
    ) -> impl Iterator<Item = Result<Record, StoreError>> + 'a {
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        let start = if from < prefix { prefix } else { from };
        self.db
            .iterator_cf_opt(self.family(table), options, IteratorMode::From(start, Direction::Forward))
            .map(|item| item.map_err(failed("list records")))
            .take_while(move |item| item.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)))
    }

    /// About how many records a table holds.
    pub(crate) fn estimate(&self, table: Table) -> Result<u64, StoreError> {
        let count = self.db.property_int_value_cf(self.family(table), rocksdb::properties::ESTIMATE_NUM_KEYS);
        Ok(count.map_err(failed("count records"))?.unwrap_or(0))
    }

    /// Copies the database as it is now into `to`.
    pub(crate) fn checkpoint(&self, to: &Path) -> Result<(), StoreError> {
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(failed("copy the database"))?;
        checkpoint.create_checkpoint(to).map_err(failed("copy the database"))
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { tables: self, batch: WriteBatch::default() }
    }
}

impl Batch<'_> {
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.tables.family(table), key, value);
    }

    pub(crate) fn put_record<T: Encode>(&mut self, table: Table, key: &[u8], record: &T) {
        self.put(table, key, &codec::encode(record));
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) {
        self.batch.delete_cf(self.tables.family(table), key);
    }

    /// Writes and syncs. Batches of concurrent callers share one sync: the database lets the first of them write for
    /// all that wait (its write groups).
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.tables.db.write_opt(self.batch, &options).map_err(failed("write records"))
    }

    /// Writes without waiting for the disk: for what may be lost in a crash of the machine.
    pub(crate) fn commit_later(self) -> Result<(), StoreError> {
        self.tables.db.write(self.batch).map_err(failed("write records"))
    }
}

pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    codec::decode::<T, RECORD_LEN_MAX>(bytes)
}

fn failed(what: &'static str) -> impl FnOnce(rocksdb::Error) -> StoreError {
    move |error| {
        // The library gives the cause as text alone.
        if error.as_ref().contains("No space left") { StoreError::Full } else { StoreError::failed(what)(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_repository_stay_apart_from_those_of_its_neighbours() {
        let (a, ab, deeper): (Repository, Repository, Repository) =
            ("a".parse().unwrap(), "ab".parse().unwrap(), "a/b".parse().unwrap());
        for other in [&ab, &deeper] {
            assert!(!repository_key(other, b"x").starts_with(&repository_prefix(&a)));
        }
    }

    #[test]
    fn a_scan_ends_with_its_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let tables = Tables::open(dir.path()).unwrap();
        let mut batch = tables.batch();
        for key in ["a\0x", "a\0y", "ab\0x", "b"] {
            batch.put(Table::Tag, key.as_bytes(), b"");
        }
        batch.commit().unwrap();
        let keys: Vec<_> = tables.scan(Table::Tag, b"a\0", b"").map(|item| item.unwrap().0).collect();
        assert_eq!(keys, [b"a\0x".as_slice().into(), b"a\0y".as_slice().into()]);
    }
}
