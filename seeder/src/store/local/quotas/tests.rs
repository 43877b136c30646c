//! Quotas on a real store.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use shoal_proto::{
    Digest,
    digest::Algorithm,
    name::{Repository, Tag},
    oci::UploadId,
};
use tokio::task::JoinSet;

use super::super::{
    Local, Options, Times,
    tests::{name, push, sign, somebody},
};
use crate::{
    quota::{Measure, Quota},
    store::{
        CommitError, Expected, Manifest, MoveTagError, NewManifest, PutManifestError, Store, StoreError, Uploader,
    },
};

fn quota(repositories: &str, bytes: Option<u64>, tags: Option<u64>) -> Quota {
    Quota { repositories: repositories.parse().unwrap(), bytes, tags }
}

fn open(dir: &Path, quotas: &[Quota]) -> Local {
    let times = Times { grace_ms: 0, deadline_ms: 0 };
    Local::open_with(dir, Options { free_bytes_min: 0, times, quotas: quotas.to_vec() }).unwrap()
}

fn used(store: &Local) -> Vec<(u64, u64)> {
    store.usage().iter().map(|usage| (usage.used_bytes, usage.used_tags)).collect()
}

fn content(of: u8, len: usize) -> Bytes {
    vec![of; len].into()
}

fn manifest(text: &str, tags: &[&str]) -> NewManifest {
    let bytes = Bytes::from(text.to_owned());
    let manifest = Manifest { digest: Digest::of(&bytes), media_type: "x/y".into(), bytes };
    let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
    NewManifest { manifest, blobs: vec![], foreign: vec![], manifests: vec![], tags, referrer: None }
}

/// Pushes what may not fit. What does not is cancelled, as the registry does: its session would only take up more room.
async fn try_push(store: &Local, repository: &Repository, content: &Bytes) -> Result<Digest, StoreError> {
    let by = Uploader::from(repository.clone());
    let upload = store.begin_upload(&by, somebody(), Algorithm::Sha256).await.unwrap();
    let pushed = fill(store, &by, &upload, content).await;
    if pushed.is_err() {
        store.cancel_upload(&by, &upload).await.unwrap();
    }
    pushed
}

async fn fill(store: &Local, by: &Uploader, upload: &UploadId, content: &Bytes) -> Result<Digest, StoreError> {
    let digest = Digest::of(content);
    let mut append = store.append(by, upload, None).await.unwrap();
    append.write(content.clone()).await?;
    append.finish().await?;
    match store.commit_upload(by, upload, digest, sign()).await {
        Ok(_) => Ok(digest),
        Err(CommitError::Store(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

fn is_over(error: &StoreError, measure: Measure, used: u64) -> bool {
    matches!(error, StoreError::Quota(over) if over.measure == measure && over.used == used)
}

#[tokio::test]
async fn what_several_repositories_hold_counts_once_and_what_is_too_much_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let quotas =
        [quota("team/**", Some(200_000), None), quota("team/a", Some(150_000), None), quota("**", None, Some(9))];
    let store = open(dir.path(), &quotas);
    let (a, b, other) = (name("team/a"), name("team/b"), name("other"));
    let (small, large) = (content(1, 60_000), content(2, 100_000));
    let digest = push(&store, &a, &small).await;
    push(&store, &b, &small).await;
    assert!(store.link_blob(&a, &name("team/c"), digest).await.unwrap());
    push(&store, &a, &small).await;
    push(&store, &other, &content(3, 500_000)).await;
    assert_eq!(used(&store), [(60_000, 0), (60_000, 0), (560_000, 0)]);
    let refused = try_push(&store, &a, &large).await.unwrap_err();
    assert!(is_over(&refused, Measure::Bytes, 60_000) && refused.to_string().contains("team/a"), "{refused}");
    assert!(store.blob_info(&a, Digest::of(&large)).await.unwrap().is_none(), "what was refused is not there");
    assert_eq!(used(&store)[..2], [(60_000, 0), (60_000, 0)], "what was refused does not count");
    push(&store, &b, &large).await;
    // Held by the team already, and still too much for this one of its repositories.
    let refused = store.link_blob(&b, &a, Digest::of(&large)).await.unwrap_err();
    assert!(is_over(&refused, Measure::Bytes, 60_000), "{refused}");
    assert_eq!(used(&store)[..2], [(160_000, 0), (60_000, 0)]);
    for repository in [&a, &name("team/c")] {
        assert!(store.unlink_blob(repository, digest).await.unwrap());
    }
    assert_eq!(used(&store)[..2], [(160_000, 0), (0, 0)], "one of the team holds it still");
    assert!(store.unlink_blob(&b, digest).await.unwrap());
    assert_eq!(used(&store)[..2], [(100_000, 0), (0, 0)]);
    let long = try_push(&store, &a, &content(4, 150_001)).await.unwrap_err();
    assert!(is_over(&long, Measure::Bytes, 0), "longer than the quota, it is stopped as it comes: {long}");
}

#[tokio::test]
async fn manifests_count_and_tags_have_a_quota_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &[quota("team/a", Some(100), Some(2)), quota("team/**", None, Some(3))]);
    let (a, b) = (name("team/a"), name("team/b"));
    store.put_manifest(&a, manifest("0123456789", &["x", "y"]), sign()).await.unwrap();
    store.put_manifest(&a, manifest("0123456789", &["x"]), sign()).await.unwrap();
    assert_eq!(used(&store), [(10, 2), (10, 2)]);
    let refused = store.put_manifest(&a, manifest("another", &["x", "z"]), sign()).await.unwrap_err();
    assert!(matches!(refused, PutManifestError::Store(error) if is_over(&error, Measure::Tags, 2)));
    assert!(
        store.manifest(&a, Digest::of(b"another")).await.unwrap().is_none(),
        "with its tags the manifest is refused"
    );
    let tag: Tag = "z".parse().unwrap();
    let refused = store.move_tag(&a, &tag, Expected::Any, Some(Digest::of(b"0123456789"))).await.unwrap_err();
    assert!(matches!(refused, MoveTagError::Store(error) if is_over(&error, Measure::Tags, 2)));
    let long = "x".repeat(91);
    let refused = store.put_manifest(&a, manifest(&long, &[]), sign()).await.unwrap_err();
    assert!(matches!(refused, PutManifestError::Store(error) if is_over(&error, Measure::Bytes, 10)));
    store.put_manifest(&b, manifest("0123456789", &["x"]), sign()).await.unwrap();
    assert_eq!(used(&store), [(10, 2), (10, 3)]);
    store.move_tag(&a, &"y".parse().unwrap(), Expected::Any, None).await.unwrap();
    store.move_tag(&a, &"never".parse().unwrap(), Expected::Any, None).await.unwrap();
    assert_eq!(used(&store), [(10, 1), (10, 2)]);
    store.delete_manifest(&a, Digest::of(b"0123456789")).await.unwrap();
    assert_eq!(used(&store), [(0, 0), (10, 1)]);
}

#[tokio::test]
async fn a_restart_counts_again_and_other_quotas_hold_for_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let quotas = [quota("team/**", Some(1_000_000), Some(10))];
    let (a, b) = (name("team/a"), name("team/b"));
    let store = open(dir.path(), &quotas);
    push(&store, &a, &content(1, 1000)).await;
    push(&store, &b, &content(1, 1000)).await;
    push(&store, &b, &content(2, 100_000)).await;
    store.put_manifest(&b, manifest("12345", &["x", "y"]), sign()).await.unwrap();
    // The same bytes as a blob as well.
    push(&store, &a, &Bytes::from_static(b"12345")).await;
    let before = used(&store);
    assert_eq!(before, [(101_005, 2)]);
    drop(store);
    let store = open(dir.path(), &quotas);
    assert_eq!(used(&store), before);
    drop(store);
    let store = open(dir.path(), &[quota("team/a", Some(10), None), quota("**", Some(101_005), None)]);
    assert_eq!(used(&store), [(1005, 0), (101_005, 2)]);
    assert!(try_push(&store, &name("c"), &content(1, 1000)).await.is_ok(), "it is held already");
    assert!(try_push(&store, &name("c"), &content(3, 1)).await.is_err());
}

#[tokio::test]
async fn what_the_collector_takes_and_what_is_put_aside_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &[quota("team/**", Some(200_000), None)]);
    let (a, damaged) = (name("team/a"), content(2, 100_000));
    push(&store, &a, &content(1, 1000)).await;
    let digest = push(&store, &a, &damaged).await;
    std::fs::write(store.0.blob_path(&digest), content(3, 100_000)).unwrap();
    assert_eq!(store.scrub(None).await.unwrap().damaged, [digest]);
    assert_eq!(used(&store), [(1000, 0)]);
    push(&store, &a, &damaged).await;
    assert_eq!(used(&store), [(101_000, 0)]);
    let mut links = 0;
    while links < 2 {
        links += store.collect().await.unwrap().links;
    }
    assert_eq!(used(&store), [(0, 0)]);
}

/// Pushes, mounts, names and deletes a few contents in a few repositories, again and again.
async fn stir(store: Arc<Local>, seed: u64) -> u64 {
    let (mut random, mut refused) = (seed, 0);
    for _ in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = |shift: u32, of: u64| (random >> shift) % of;
        let repository = name(["team/a", "team/b", "team/c", "other"][usize::try_from(pick(33, 4)).unwrap()]);
        let content = content(u8::try_from(pick(40, 5)).unwrap(), 1000);
        let digest = Digest::of(&content);
        let done = match pick(50, 6) {
            0 | 1 => try_push(&store, &repository, &content).await.map(drop),
            2 => store.link_blob(&name("team/a"), &repository, digest).await.map(drop),
            3 => store.unlink_blob(&repository, digest).await.map(drop),
            4 => {
                let tag = format!("t{}", pick(20, 6));
                match store.put_manifest(&repository, manifest(&format!("{}", pick(45, 3)), &[&tag]), sign()).await {
                    Err(PutManifestError::Store(error)) => Err(error),
                    done => done.map_err(|error| panic!("{error}")),
                }
            }
            _ => store.delete_manifest(&repository, Digest::of(pick(45, 3).to_string().as_bytes())).await.map(drop),
        };
        match done {
            Ok(()) => {}
            Err(StoreError::Quota(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn after_any_race_the_count_is_what_a_restart_counts() {
    let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).unwrap();
    let quotas = [
        quota("team/**", Some(3005), Some(8)),
        quota("team/a", Some(2005), None),
        quota("**", Some(1 << 20), Some(12)),
    ];
    let store = Arc::new(open(dir.path(), &quotas));
    let mut clients = JoinSet::new();
    for seed in 0..8 {
        clients.spawn(stir(Arc::clone(&store), seed));
    }
    let refused: u64 = clients.join_all().await.into_iter().sum();
    let counted = used(&store);
    assert!(refused > 100, "only {refused} were refused");
    for (quota, (bytes, tags)) in quotas.iter().zip(&counted) {
        assert!(quota.bytes.is_none_or(|limit| *bytes <= limit) && quota.tags.is_none_or(|limit| *tags <= limit));
    }
    store.close().await;
    drop(store);
    assert_eq!(used(&open(dir.path(), &quotas)), counted);
}
