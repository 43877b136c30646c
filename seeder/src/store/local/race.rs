//! Clients against the collector, on a real store: what was acknowledged stays.

use std::{
    collections::{HashMap, VecDeque},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use shoal_proto::{Digest, name::Repository};
use tokio::task::JoinSet;

use super::{
    Local, OpenError, Options, Times,
    tests::{name, push, sign},
};
use crate::store::{BlobContent, Collected, Manifest, NewManifest, PutManifestError, Store};

const CLIENTS: u64 = 6;
const TIMES: Times = Times { grace_ms: 1000, deadline_ms: 500 };
/// Enough that a race would show.
const ENOUGH: Happened = Happened { deleted: 1000, taken_back: 50, named: 20, pulled: 20, unmounted: 20 };
const LONGEST: Duration = Duration::from_secs(120);
/// Clients come back to blobs up to this old: around the moments of their condemnation and of their end.
const REACH: Duration = Duration::from_millis(2 * (TIMES.grace_ms + TIMES.deadline_ms));

#[derive(Debug, Default)]
struct Happened {
    /// Links that the collector took away.
    deleted: u64,
    /// Condemnations that somebody took back in time.
    taken_back: u64,
    named: u64,
    pulled: u64,
    /// Mounted, and deleted there.
    unmounted: u64,
}

impl Happened {
    fn is_enough(&self) -> bool {
        self.deleted >= ENOUGH.deleted
            && self.taken_back >= ENOUGH.taken_back
            && self.named >= ENOUGH.named
            && self.pulled >= ENOUGH.pulled
            && self.unmounted >= ENOUGH.unmounted
    }
}

struct World {
    store: Local,
    next: AtomicU64,
    /// Which blob was the next at which moment, for as long as [`REACH`].
    pushed: Mutex<VecDeque<(Instant, u64)>>,
    happened: Mutex<Happened>,
}

fn open(dir: &std::path::Path, times: Times) -> Result<Local, OpenError> {
    Local::open_with(dir, Options { free_bytes_min: 0, times, quotas: Vec::new() })
}

fn content(number: u64) -> Bytes {
    // Every eighth is a file.
    let len = if number.is_multiple_of(8) { 70_000 } else { 100 };
    number.to_le_bytes().into_iter().cycle().take(len).collect()
}

fn home(number: u64) -> Repository {
    name(&format!("r{}", number % 4))
}

impl World {
    fn happened(&self) -> MutexGuard<'_, Happened> {
        self.happened.lock().unwrap()
    }

    fn count(&self, done: &Collected) {
        let mut happened = self.happened();
        happened.deleted += done.links;
        happened.taken_back += done.taken_back;
    }

    fn goes_on(&self, until: Instant) -> bool {
        !self.happened().is_enough() && Instant::now() < until
    }

    /// A blob that was pushed within [`REACH`].
    fn recent(&self, random: u64) -> u64 {
        let newest = self.next.load(Ordering::Relaxed);
        let oldest = self.pushed.lock().unwrap().front().map_or(0, |(_, number)| *number);
        oldest + random % (newest - oldest + 1)
    }

    fn note_the_time(&self) {
        let mut pushed = self.pushed.lock().unwrap();
        while pushed.front().is_some_and(|(at, _)| at.elapsed() > REACH) {
            pushed.pop_front();
        }
        pushed.push_back((Instant::now(), self.next.load(Ordering::Relaxed)));
    }

    /// Pushes, mounts, names and deletes until it is enough; returns the manifests that must be there, with their blobs.
    async fn client(&self, me: u64, until: Instant) -> HashMap<(String, Digest), Digest> {
        let mut live = HashMap::new();
        let mut random = me + 1;
        while self.goes_on(until) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let old = self.recent(random >> 33);
            match (random >> 20) % 16 {
                0..9 => {
                    let new = self.next.fetch_add(1, Ordering::Relaxed);
                    push(&self.store, &home(new), &content(new)).await;
                }
                9..13 => {
                    let (repository, digest) = (home(old), Digest::of(&content(old)));
                    let asked = Instant::now();
                    if self.store.blob_info(&repository, digest).await.unwrap().is_some() {
                        // It was there a moment ago, so it can be mounted and named now.
                        let to = if random & 1 == 0 { repository.clone() } else { name("mounted") };
                        let mounted = self.store.link_blob(&repository, &to, digest).await.unwrap();
                        assert!(mounted, "{old} is not mounted {:?} after it was there", asked.elapsed());
                        live.extend(self.put(me, old, &to, digest).await);
                    }
                }
                13 => self.pull(old).await,
                14 => self.mount_and_delete(me, old).await,
                _ => {
                    if let Some(key) = live.keys().next().cloned() {
                        live.remove(&key);
                        let gone = self.store.delete_manifest(&name(&key.0), key.1).await.unwrap();
                        assert!(gone.is_some(), "a manifest was lost");
                    }
                }
            }
        }
        live
    }

    /// Reads a blob, if it is there: whole, while it may be condemned.
    async fn pull(&self, number: u64) {
        let bytes = content(number);
        if let Some(blob) = self.store.blob(&home(number), Digest::of(&bytes)).await.unwrap() {
            let read = match blob.content {
                BlobContent::Memory(read) => read,
                BlobContent::File(file) => {
                    let mut read = vec![0; bytes.len()];
                    file.read_exact_at(&mut read, 0).unwrap();
                    read.into()
                }
            };
            assert!(read == bytes, "{number} came back with other bytes");
            self.happened().pulled += 1;
        }
    }

    /// Mounts a blob in a repository of one's own and deletes it there: it stays where it came from.
    async fn mount_and_delete(&self, me: u64, number: u64) {
        let (from, own, digest) = (home(number), name(&format!("own{me}")), Digest::of(&content(number)));
        let asked = Instant::now();
        if self.store.link_blob(&from, &own, digest).await.unwrap() {
            assert!(self.store.unlink_blob(&own, digest).await.unwrap(), "{number} is gone {:?} on", asked.elapsed());
            assert!(self.store.blob(&own, digest).await.unwrap().is_none(), "{number} was deleted and is there");
            let stays = self.store.blob(&from, digest).await.unwrap().is_some();
            assert!(stays, "{number} was lost where it was mounted from, {:?} on", asked.elapsed());
            self.happened().unmounted += 1;
        }
    }

    async fn put(&self, me: u64, number: u64, to: &Repository, blob: Digest) -> Option<((String, Digest), Digest)> {
        let mounted = Instant::now();
        let bytes = Bytes::from(format!("{me} names {number} in {to}"));
        let digest = Digest::of(&bytes);
        let manifest = Manifest { digest, media_type: "x/y".into(), bytes };
        let new = NewManifest {
            manifest,
            blobs: vec![blob],
            foreign: vec![],
            manifests: vec![],
            tags: vec![],
            referrer: None,
        };
        match self.store.put_manifest(to, new, sign()).await {
            Ok(()) => {
                self.happened().named += 1;
                Some(((to.to_string(), digest), blob))
            }
            Err(PutManifestError::Missing(_)) => {
                panic!("blob {number} was there {:?} ago, and its manifest is refused", mounted.elapsed())
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn collector(&self, until: Instant) -> Collected {
        let mut sum = Collected::default();
        while self.goes_on(until) {
            self.note_the_time();
            let done = self.store.collect().await.unwrap();
            self.count(&done);
            sum.blobs += done.blobs;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sum
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_mounts_and_deletes_race_the_collector_and_nothing_acknowledged_is_lost() {
    let dir =
        tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let world = Arc::new(World {
        store: open(dir.path(), TIMES).unwrap(),
        next: AtomicU64::new(0),
        pushed: Mutex::default(),
        happened: Mutex::default(),
    });
    let until = Instant::now() + LONGEST;
    let mut clients = JoinSet::new();
    for me in 0..CLIENTS {
        let world = Arc::clone(&world);
        clients.spawn(async move { world.client(me, until).await });
    }
    let collected = world.collector(until).await;
    let mut kept = 0;
    while let Some(live) = clients.join_next().await {
        for ((repository, manifest), blob) in live.unwrap() {
            let repository = name(&repository);
            assert!(world.store.manifest(&repository, manifest).await.unwrap().is_some(), "a manifest was lost");
            assert!(world.store.blob(&repository, blob).await.unwrap().is_some(), "a blob was lost");
            kept += 1;
        }
    }
    {
        let happened = world.happened();
        assert!(
            happened.is_enough() && kept > 0 && collected.blobs > 100,
            "too little happened: {happened:?}, {kept} kept, {collected:?}"
        );
    }
    let scrubbed = world.store.scrub(None).await.unwrap();
    assert!(scrubbed.damaged.is_empty() && scrubbed.checked > 0, "{scrubbed:?}");
}

#[tokio::test]
async fn what_a_crash_left_is_collected_and_what_is_damaged_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Times { grace_ms: 0, deadline_ms: 0 }).unwrap();
    let a = name("a");
    let (kept, damaged) = (Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 100_000]));
    let (kept_digest, damaged_digest) = (push(&store, &a, &kept).await, push(&store, &a, &damaged).await);
    let bytes = Bytes::from_static(b"m");
    let new = NewManifest {
        manifest: Manifest { digest: Digest::of(&bytes), media_type: "x/y".into(), bytes },
        blobs: vec![kept_digest, damaged_digest],
        foreign: vec![],
        manifests: vec![],
        tags: vec![],
        referrer: None,
    };
    store.put_manifest(&a, new, sign()).await.unwrap();
    let stray = Digest::of(b"named, but its records were not written");
    let path = store.0.blob_path(&stray);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"x").unwrap();
    std::fs::write(store.0.blob_path(&damaged_digest), vec![3; 100_000]).unwrap();
    for _ in 0..3 {
        store.collect().await.unwrap();
    }
    assert!(!path.exists(), "a stray file stays");
    let scrubbed = store.scrub(None).await.unwrap();
    assert_eq!(scrubbed.damaged, [damaged_digest]);
    assert!(store.blob(&a, kept_digest).await.unwrap().is_some());
    assert!(store.blob(&a, damaged_digest).await.unwrap().is_none(), "damaged bytes are not served");
    assert_eq!(std::fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
    push(&store, &a, &damaged).await;
    assert!(store.blob(&a, damaged_digest).await.unwrap().is_some(), "a push brings it back");
    assert!(store.scrub(None).await.unwrap().damaged.is_empty());
}

#[tokio::test]
async fn a_store_of_the_first_version_is_indexed_when_it_opens() {
    let dir = tempfile::tempdir().unwrap();
    let a = name("a");
    let times = Times { grace_ms: 0, deadline_ms: 0 };
    let store = open(dir.path(), times).unwrap();
    let (named, loose) = (push(&store, &a, &Bytes::from_static(b"{}")).await, push(&store, &a, &content(1)).await);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let bytes: Bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{{"mediaType":"c","digest":"{named}","size":2}},"layers":[]}}"#
    )
    .into();
    let digest = Digest::of(&bytes);
    let manifest = Manifest { digest, media_type: media_type.into(), bytes };
    let new =
        NewManifest { manifest, blobs: vec![named], foreign: vec![], manifests: vec![], tags: vec![], referrer: None };
    store.put_manifest(&a, new, sign()).await.unwrap();
    // As the first version left it: without the rows that say who names and who holds what.
    for table in [super::tables::Table::Reference, super::tables::Table::Holder, super::tables::Table::Meta] {
        let keys: Vec<_> = store.0.tables.scan(table, b"", b"").map(|row| row.unwrap().0).collect();
        let mut batch = store.0.tables.batch();
        keys.iter().for_each(|key| batch.delete(table, key));
        batch.commit().unwrap();
    }
    store.close().await;
    drop(store);
    let store = open(dir.path(), times).unwrap();
    let mut blobs = 0;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(3)).await;
        blobs += store.collect().await.unwrap().blobs;
    }
    assert_eq!(blobs, 1);
    assert!(store.blob(&a, named).await.unwrap().is_some() && store.manifest(&a, digest).await.unwrap().is_some());
    assert!(store.blob(&a, loose).await.unwrap().is_none());
}

#[tokio::test]
async fn a_pass_whose_list_cannot_be_read_to_its_end_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Times { grace_ms: 0, deadline_ms: 0 }).unwrap();
    let a = name("a");
    let loose = push(&store, &a, &content(1)).await;
    let odd = b"no key that this program writes";
    let mut batch = store.0.tables.batch();
    batch.put(super::tables::Table::Reference, odd, b"");
    batch.commit().unwrap();
    for _ in 0..20 {
        store.collect().await.unwrap_err();
    }
    assert!(store.blob(&a, loose).await.unwrap().is_some());
    let mut batch = store.0.tables.batch();
    batch.delete(super::tables::Table::Reference, odd);
    batch.commit().unwrap();
    let mut passes = 0;
    while store.collect().await.unwrap().blobs == 0 {
        passes += 1;
        assert!(passes < 1000, "what nobody names goes once the list can be read");
    }
    assert!(store.blob(&a, loose).await.unwrap().is_none());
}
