//! What a registry keeps, as operations: uploads, blobs, manifests, tags, piece hashes, secrets.
//!
//! The trait stands at the level of registry operations rather than of files and keys, because its backends have nothing
//! else in common: [`local`] renames files and syncs a database, an object store finishes multipart uploads and swaps
//! records on conditions.
//!
//! **What every backend keeps.** An operation that has returned success survives a crash of the machine. Content is
//! reachable under its digest only after the digest was computed over every byte of it. A blob belongs to the
//! repositories that it is linked into; asking under any other finds nothing, whether or not the bytes are held.

use std::{fs::File, net::IpAddr, path::Path, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shoal_proto::{
    Digest,
    digest::Algorithm,
    envelope::Envelope,
    name::{Repository, Tag},
    oci::UploadId,
    signed::{Blake3, Statement},
};

use crate::quota::{Exceeded, Usage};

pub mod local;

/// The answer of a store's operation.
pub type Op<'a, T, E = StoreError> = BoxFuture<'a, Result<T, E>>;

/// Signs the statement of content that has just been verified.
pub type Sign = Arc<dyn Fn(&Statement) -> Envelope + Send + Sync>;

/// The store itself failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room for more bytes. What is stored stays readable.
    #[error("the disk is full: make room under the data directory, then push again")]
    Full,
    /// It would be more than a quota leaves. Nothing was stored.
    #[error(transparent)]
    Quota(#[from] Exceeded),
    /// The disk or the database failed, or holds what this program does not understand.
    #[error("the store failed to {what}: {error}")]
    Failed {
        /// What it was doing.
        what: &'static str,
        /// What came back.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// A failure while doing `what`. A full disk is told apart.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| {
            let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
            if full { Self::Full } else { Self::Failed { what, error: error.into() } }
        }
    }

    /// Any other failure while doing `what`.
    pub fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed { what, error: error.into() }
    }
}

/// Who works on an upload. A session is found in its repository only, and only by whoever began it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploader {
    /// Where the upload is to become a blob.
    pub repository: Repository,
    /// The user by name; none where nobody is asked who it is.
    pub user: Option<String>,
}

impl From<Repository> for Uploader {
    /// Whoever it is, in that repository.
    fn from(repository: Repository) -> Self {
        Self { repository, user: None }
    }
}

/// Whose open sessions are counted together: no single one may have them all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A user, wherever from.
    User(String),
    /// Whoever comes from an address without saying who it is.
    Address(IpAddr),
}

/// Why an upload cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Too many sessions are open.
    #[error("too many uploads are open; finish or cancel some, or come again later")]
    TooMany,
    /// This client has its share of them.
    #[error("this client has {0} uploads open, as many as one may have; finish or cancel some, or come again later")]
    TooManyOfOne(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why bytes cannot be added to an upload.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// No such session of this client in this repository.
    #[error(
        "there is no such upload session of this client in this repository; it may have been finished, cancelled or too old"
    )]
    Unknown,
    /// Another request is adding bytes to it.
    #[error("another request is adding bytes to this upload")]
    Busy,
    /// The bytes do not follow what is there.
    #[error("the upload holds {len} bytes, so the next chunk starts there")]
    Offset {
        /// Bytes that the session holds.
        len: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an upload does not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No such session of this client in this repository.
    #[error(
        "there is no such upload session of this client in this repository; it may have been finished, cancelled or too old"
    )]
    Unknown,
    /// Another request is adding bytes to it.
    #[error("another request is adding bytes to this upload")]
    Busy,
    /// The bytes are not those of the digest. Nothing of them is kept.
    #[error("the uploaded bytes have the digest {found}")]
    Digest {
        /// The digest of what was uploaded.
        found: Box<Digest>,
    },
    /// The store failed; the session stays as it is.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a manifest is not stored.
#[derive(Debug, thiserror::Error)]
pub enum PutManifestError {
    /// It names content that the repository does not hold.
    #[error("the manifest names {} blobs or manifests that this repository does not hold; push them first", .0.len())]
    Missing(Vec<Digest>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a tag does not move.
#[derive(Debug, thiserror::Error)]
pub enum MoveTagError {
    /// The tag is not where the caller expected it.
    #[error("the tag points elsewhere by now")]
    Conflict(Option<TagEntry>),
    /// The new target is not a manifest of the repository.
    #[error("the repository does not hold that manifest")]
    Missing,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of stored content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its BLAKE3 root.
    pub root: Blake3,
    /// The signed binding of the three.
    pub statement: Envelope,
}

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub enum BlobContent {
    /// Here: it is small.
    Memory(Bytes),
    /// In a file that holds exactly the blob.
    File(Arc<File>),
}

/// A blob as it is read.
#[derive(Debug, Clone)]
pub struct Blob {
    /// What is known of it.
    pub info: BlobInfo,
    /// Its bytes.
    pub content: BlobContent,
}

/// A manifest as it is read: the bytes that were pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// The media type that it was pushed with.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A manifest to be stored.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// Blobs that the repository must hold.
    pub blobs: Vec<Digest>,
    /// Blobs that it names and that the repository need not hold.
    pub foreign: Vec<Digest>,
    /// Manifests that the repository must hold.
    pub manifests: Vec<Digest>,
    /// Tags that shall point to it, wherever they point now.
    pub tags: Vec<Tag>,
    /// The manifest that this one refers to, which need not exist, and this one's descriptor as the referrers list of
    /// that one shows it.
    pub referrer: Option<(Digest, Bytes)>,
}

/// Where a tag points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagEntry {
    /// The manifest.
    pub digest: Digest,
    /// Grows with every change of any tag; never used twice.
    pub counter: u64,
}

/// What a tag must be for it to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is.
    Any,
    /// Absent.
    Absent,
    /// At this manifest.
    At(Digest),
}

/// One page of a list, in byte order of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The names.
    pub items: Vec<T>,
    /// Whether more follow.
    pub more: bool,
}

/// How much is stored. Estimates: no walk over all records is made for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Repositories.
    pub repositories: u64,
    /// Blobs and manifests.
    pub blobs: u64,
    /// Open upload sessions.
    pub uploads: u64,
}

/// What a pass of the collector did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Blobs of repositories that were condemned.
    pub condemned: u64,
    /// Condemnations that somebody took back since the pass before.
    pub taken_back: u64,
    /// Blobs that were taken out of a repository.
    pub links: u64,
    /// Blobs and manifests whose bytes were deleted.
    pub blobs: u64,
    /// How many bytes that were.
    pub bytes: u64,
    /// Files without records that were deleted.
    pub strays: u64,
    /// Condemned blobs whose time has not come.
    pub waiting: usize,
}

/// A record of the fleet: its key and its value.
pub type FleetRecord = (Vec<u8>, Vec<u8>);

/// A change of a record of the fleet, if it still is as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Which.
    pub key: Vec<u8>,
    /// What it must be; none: absent.
    pub old: Option<Vec<u8>>,
    /// What it becomes; none: it is deleted.
    pub new: Option<Vec<u8>>,
}

/// What was found when stored content was hashed again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// Where to go on; none at the end.
    pub last: Option<Digest>,
    /// Blobs and manifests that were looked at.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that were damaged or lost. They are in quarantine: not there for clients, and back with the next push.
    pub damaged: Vec<Digest>,
}

/// Takes the bytes of one request into an upload. Dropped early, the session keeps what was written.
pub trait Append: Send {
    /// Adds `data`. Waits while too much is unwritten.
    fn write(&mut self, data: Bytes) -> Op<'_, ()>;
    /// Waits until everything is written; returns the session's length in bytes.
    fn finish(self: Box<Self>) -> Op<'static, u64>;
}

/// A registry's storage.
pub trait Store: Send + Sync + 'static {
    /// Opens an upload session. `algorithm` is the one that its digest will likely have: another costs a second pass.
    fn begin_upload<'a>(
        &'a self,
        by: &'a Uploader,
        holder: Holder,
        algorithm: Algorithm,
    ) -> Op<'a, UploadId, BeginError>;
    /// Starts to add bytes to an upload, at byte `at` if the client says where. One request at a time may.
    fn append<'a>(
        &'a self,
        by: &'a Uploader,
        upload: &'a UploadId,
        at: Option<u64>,
    ) -> Op<'a, Box<dyn Append>, AppendError>;
    /// Bytes that an upload holds.
    fn upload_len<'a>(&'a self, by: &'a Uploader, upload: &'a UploadId) -> Op<'a, u64, AppendError>;
    /// Ends an upload and forgets its bytes.
    fn cancel_upload<'a>(&'a self, by: &'a Uploader, upload: &'a UploadId) -> Op<'a, (), AppendError>;
    /// Makes an upload a blob of the repository, durably, if its bytes have that digest.
    fn commit_upload<'a>(
        &'a self,
        by: &'a Uploader,
        upload: &'a UploadId,
        digest: Digest,
        sign: Sign,
    ) -> Op<'a, BlobInfo, CommitError>;
    /// Cancels the uploads that were not touched for `age_s` seconds; returns how many.
    fn expire_uploads(&self, age_s: u64) -> Op<'_, usize>;

    /// What is known of a blob of the repository.
    fn blob_info<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<BlobInfo>>;
    /// A blob of the repository, to be read.
    fn blob<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Blob>>;
    /// Makes a blob of `from` a blob of `to` as well; false if `from` does not have it.
    fn link_blob<'a>(&'a self, from: &'a Repository, to: &'a Repository, digest: Digest) -> Op<'a, bool>;
    /// Takes a blob out of the repository; false if it was not there.
    fn unlink_blob<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, bool>;
    /// The hashes of all pieces of a blob or manifest of the repository, 32 bytes each.
    fn piece_hashes<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Bytes>>;
    /// What is known of those of `digests` that are blobs or manifests of the repository, in the order asked.
    fn infos<'a>(&'a self, repository: &'a Repository, digests: Vec<Digest>) -> Op<'a, Vec<BlobInfo>>;

    /// Stores a manifest and points its tags to it, durably and at once, if the repository holds what it names.
    fn put_manifest<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: NewManifest,
        sign: Sign,
    ) -> Op<'a, (), PutManifestError>;
    /// A manifest of the repository.
    fn manifest<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Manifest>>;
    /// Takes a manifest out of the repository, and every tag that points to it; the tags, or none if it was not there.
    fn delete_manifest<'a>(&'a self, repository: &'a Repository, digest: Digest) -> Op<'a, Option<Vec<Tag>>>;
    /// Up to `n` manifests whose subject is `digest`, after `last`: their digests and descriptors. A page ends early where
    /// its descriptors take more than a client reads at once.
    fn referrers<'a>(
        &'a self,
        repository: &'a Repository,
        digest: Digest,
        n: usize,
        last: Option<Digest>,
    ) -> Op<'a, Page<(Digest, Bytes)>>;

    /// Where a tag points.
    fn tag<'a>(&'a self, repository: &'a Repository, tag: &'a Tag) -> Op<'a, Option<TagEntry>>;
    /// Points a tag to a manifest of the repository, or (none) deletes it, if it is as `expected`.
    fn move_tag<'a>(
        &'a self,
        repository: &'a Repository,
        tag: &'a Tag,
        expected: Expected,
        to: Option<Digest>,
    ) -> Op<'a, Option<TagEntry>, MoveTagError>;
    /// Up to `n` tags after `last`; none if there is no such repository.
    fn tags<'a>(&'a self, repository: &'a Repository, n: usize, last: Option<&'a str>) -> Op<'a, Option<Page<String>>>;
    /// Up to `n` repositories after `last`.
    fn repositories<'a>(&'a self, n: usize, last: Option<&'a str>) -> Op<'a, Page<String>>;

    /// The fleet's secrets as they were kept, if there are any.
    fn secrets(&self) -> Op<'_, Option<Vec<u8>>>;
    /// Keeps the fleet's secrets.
    fn put_secrets(&self, secrets: Vec<u8>) -> Op<'_, ()>;
    /// A record of the fleet: a join token, a member, the revocations.
    fn fleet_record(&self, key: Vec<u8>) -> Op<'_, Option<Vec<u8>>>;
    /// Makes all changes durably if every record is as its change expects; false, and no change, otherwise.
    fn swap_fleet_records(&self, swaps: Vec<Swap>) -> Op<'_, bool>;
    /// Up to `n` records of the fleet whose keys begin with `prefix`, in order, after the key `after`.
    fn fleet_records(&self, prefix: Vec<u8>, after: Option<Vec<u8>>, n: usize) -> Op<'_, Page<FleetRecord>>;
    /// Copies all that is stored into the directory `to`, which must not be there, while serving.
    fn backup<'a>(&'a self, to: &'a Path) -> Op<'a, local::backup::Backup>;
    /// Deletes what nobody can reach any more and what nobody has relied on for long, while serving: one pass.
    fn collect(&self) -> Op<'_, Collected>;
    /// Hashes some of the stored content again, after `after` in an order of the store's own.
    fn scrub(&self, after: Option<Digest>) -> Op<'_, Scrubbed>;
    /// What the repositories of each quota hold.
    fn usage(&self) -> Vec<Usage>;
    /// How much is stored.
    fn counts(&self) -> Op<'_, Counts>;
    /// Waits for the work that outlived its requests. To be called once, when no request is left.
    fn close(&self) -> BoxFuture<'_, ()>;
}
