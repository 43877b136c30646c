//! What every store must keep, written against the trait; and what this one must survive.

use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use shoal_proto::{
    Digest,
    digest::Algorithm,
    envelope::Envelope,
    name::{Repository, Tag},
    oci::UploadId,
    signed::Statement,
};

use super::{
    Local,
    tables::{OldUploadRecord, Table},
    uploads::{UPLOADS_MAX, UPLOADS_OF_ONE_MAX},
};
use crate::store::{
    AppendError, BeginError, CommitError, Expected, Holder, Manifest, MoveTagError, NewManifest, PutManifestError,
    Sign, Store, Uploader,
};
use crate::time::unix_seconds;

pub(super) fn sign() -> Sign {
    let key = SigningKey::from_bytes(&[1; 32]);
    Arc::new(move |statement: &Statement| Envelope::sign(statement, &key))
}

pub(super) fn name(text: &str) -> Repository {
    text.parse().unwrap()
}

pub(super) fn somebody() -> Holder {
    Holder::Address(std::net::Ipv4Addr::LOCALHOST.into())
}

pub(super) async fn push(store: &dyn Store, repository: &Repository, content: &Bytes) -> Digest {
    let digest = Digest::of(content);
    let by = Uploader::from(repository.clone());
    let upload = store.begin_upload(&by, somebody(), Algorithm::Sha256).await.unwrap();
    let mut append = store.append(&by, &upload, None).await.unwrap();
    for part in content.chunks(70_000) {
        append.write(Bytes::copy_from_slice(part)).await.unwrap();
    }
    assert_eq!(append.finish().await.unwrap(), content.len() as u64);
    store.commit_upload(&by, &upload, digest, sign()).await.unwrap();
    digest
}

fn manifest(bytes: &'static [u8], blobs: Vec<Digest>) -> NewManifest {
    let manifest = Manifest { digest: Digest::of(bytes), media_type: "x/y".into(), bytes: bytes.into() };
    NewManifest { manifest, blobs, foreign: Vec::new(), manifests: Vec::new(), tags: Vec::new(), referrer: None }
}

/// The contract, for any store.
async fn contract(store: &dyn Store) {
    let (a, b) = (name("a"), name("b"));
    let at_a = Uploader::from(a.clone());
    let content = Bytes::from(vec![7; 200_000]);
    let digest = push(store, &a, &content).await;
    assert!(store.blob(&b, digest).await.unwrap().is_none(), "a blob belongs to its repository");
    assert!(!store.link_blob(&b, &a, digest).await.unwrap());
    assert!(store.link_blob(&a, &b, digest).await.unwrap());
    assert!(store.unlink_blob(&a, digest).await.unwrap() && !store.unlink_blob(&a, digest).await.unwrap());
    assert!(store.blob_info(&a, digest).await.unwrap().is_none());
    let info = store.blob_info(&b, digest).await.unwrap().unwrap();
    assert_eq!((info.size, info.root), (200_000, *blake3::hash(&content).as_bytes()));

    let upload = store.begin_upload(&at_a, somebody(), Algorithm::Sha256).await.unwrap();
    let other = Uploader { user: Some("other".into()), ..at_a.clone() };
    assert!(matches!(store.upload_len(&other, &upload).await, Err(AppendError::Unknown)));
    let append = store.append(&at_a, &upload, Some(0)).await.unwrap();
    assert!(matches!(store.append(&at_a, &upload, None).await, Err(AppendError::Busy)));
    assert!(matches!(store.commit_upload(&at_a, &upload, digest, sign()).await, Err(CommitError::Busy)));
    drop(append);
    assert!(matches!(store.append(&name("b").into(), &upload, None).await, Err(AppendError::Unknown)));
    assert!(matches!(store.append(&at_a, &upload, Some(1)).await, Err(AppendError::Offset { len: 0 })));
    assert!(matches!(store.commit_upload(&at_a, &upload, digest, sign()).await, Err(CommitError::Digest { .. })));
    assert!(matches!(store.upload_len(&at_a, &upload).await, Err(AppendError::Unknown)), "a failed upload is gone");

    let tag: Tag = "v1".parse().unwrap();
    let missing = store.put_manifest(&a, manifest(b"m1", vec![digest]), sign()).await.unwrap_err();
    assert!(matches!(missing, PutManifestError::Missing(list) if list == [digest]));
    store.put_manifest(&b, manifest(b"m1", vec![digest]), sign()).await.unwrap();
    store.put_manifest(&b, manifest(b"m2", vec![]), sign()).await.unwrap();
    let (m1, m2) = (Digest::of(b"m1"), Digest::of(b"m2"));
    let wrong = store.move_tag(&b, &tag, Expected::At(m1), Some(m1)).await.unwrap_err();
    assert!(matches!(wrong, MoveTagError::Conflict(None)));
    assert!(matches!(store.move_tag(&a, &tag, Expected::Any, Some(m1)).await, Err(MoveTagError::Missing)));
    let first = store.move_tag(&b, &tag, Expected::Absent, Some(m1)).await.unwrap().unwrap();
    assert!(
        matches!(store.move_tag(&b, &tag, Expected::Absent, Some(m2)).await, Err(MoveTagError::Conflict(Some(at))) if at == first)
    );
    let second = store.move_tag(&b, &tag, Expected::At(m1), Some(m2)).await.unwrap().unwrap();
    assert!(second.counter > first.counter);
    assert_eq!(store.delete_manifest(&b, m2).await.unwrap(), Some(vec![tag.clone()]));
    assert_eq!(store.tag(&b, &tag).await.unwrap(), None);
    assert!(store.manifest(&b, m2).await.unwrap().is_none() && store.manifest(&b, m1).await.unwrap().is_some());
    let repositories = store.repositories(10, None).await.unwrap();
    assert_eq!((repositories.items, repositories.more), (vec!["a".to_owned(), "b".to_owned()], false));
    assert!(store.secrets().await.unwrap().is_none());
    store.put_secrets(vec![1, 2]).await.unwrap();
    assert_eq!(store.secrets().await.unwrap(), Some(vec![1, 2]));
}

#[tokio::test]
async fn the_local_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract(&Local::open(dir.path(), 0).unwrap()).await;
}

#[tokio::test]
async fn racing_tag_swaps_have_one_winner_each() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path(), 0).unwrap();
    let (a, tag): (_, Tag) = (name("a"), "v1".parse().unwrap());
    let digests = [Digest::of(b"m1"), Digest::of(b"m2")];
    for bytes in [b"m1", b"m2"] {
        store.put_manifest(&a, manifest(bytes, vec![]), sign()).await.unwrap();
    }
    let mut at = store.move_tag(&a, &tag, Expected::Any, Some(digests[0])).await.unwrap().unwrap();
    for round in 0..10 {
        let target = digests[(round + 1) % 2];
        let swaps = (0..8).map(|_| store.move_tag(&a, &tag, Expected::At(at.digest), Some(target)));
        let won: Vec<_> = futures::future::join_all(swaps).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1);
        at = won[0].unwrap();
    }
}

#[tokio::test]
async fn a_file_that_a_crash_left_without_records_is_replaced_by_the_next_push() {
    let dir = tempfile::tempdir().unwrap();
    let (a, content) = (name("a"), Bytes::from(vec![3; 100_000]));
    let digest = Digest::of(&content);
    let store = Local::open(dir.path(), 0).unwrap();
    let path = store.0.blob_path(&digest);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"left behind").unwrap();
    assert!(store.blob(&a, digest).await.unwrap().is_none(), "without records there is no blob");
    push(&store, &a, &content).await;
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[tokio::test]
async fn bytes_past_the_hashed_length_never_become_part_of_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (at_a, content) = (Uploader::from(name("a")), Bytes::from(vec![3; 100_000]));
    let store = Local::open(dir.path(), 0).unwrap();
    let upload = store.begin_upload(&at_a, somebody(), Algorithm::Sha256).await.unwrap();
    let mut append = store.append(&at_a, &upload, None).await.unwrap();
    append.write(content.clone()).await.unwrap();
    append.finish().await.unwrap();
    // As a write does that failed half-way.
    let path = dir.path().join("uploads").join(upload.as_str());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(150_000).unwrap();
    let digest = Digest::of(&content);
    let info = store.commit_upload(&at_a, &upload, digest, sign()).await.unwrap();
    assert_eq!(info.size, 100_000);
    assert_eq!(std::fs::read(store.0.blob_path(&digest)).unwrap(), content);
}

#[tokio::test]
async fn a_hundred_thousand_sessions_are_asked_for_and_a_thousand_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let (at_a, store) = (Uploader::from(name("a")), Local::open(dir.path(), 0).unwrap());
    let (mut open, mut refused) = (Vec::new(), [0; 2]);
    for number in 0..100_000 {
        // Five clients: the first asks most of the time, and does not get the others' share.
        let holder = Holder::User(if number < 99_000 { 0 } else { number % 5 }.to_string());
        match store.0.try_begin(&at_a, &holder, Algorithm::Sha256) {
            Ok(upload) => open.push(upload),
            Err(BeginError::TooManyOfOne(UPLOADS_OF_ONE_MAX)) => refused[0] += 1,
            Err(BeginError::TooMany) => refused[1] += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((open.len(), refused), (UPLOADS_MAX, [99_000 + 200 - UPLOADS_OF_ONE_MAX, 800 - 3 * UPLOADS_OF_ONE_MAX]));
    store.cancel_upload(&at_a, &open[0]).await.unwrap();
    assert!(store.begin_upload(&at_a, somebody(), Algorithm::Sha256).await.is_ok(), "one that ends makes room");
}

#[tokio::test]
async fn an_upload_of_the_first_format_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (by, content) = (Uploader::from(name("a")), Bytes::from(vec![5; 100_000]));
    let upload: UploadId = "00112233445566778899aabbccddeeff".parse().unwrap();
    let store = Local::open(dir.path(), 0).unwrap();
    let mut batch = store.0.tables.batch();
    let record = OldUploadRecord { repository: by.repository.clone(), sha512: false, began: unix_seconds() };
    batch.put_record(Table::OldUpload, upload.as_str().as_bytes(), &record);
    batch.commit().unwrap();
    drop(store);
    std::fs::write(dir.path().join("uploads").join(upload.as_str()), &content[..70_000]).unwrap();
    std::fs::write(dir.path().join("format"), "1\n").unwrap();
    let store = Local::open(dir.path(), 0).unwrap();
    assert_eq!(store.upload_len(&by, &upload).await.unwrap(), 70_000);
    let mut append = store.append(&by, &upload, Some(70_000)).await.unwrap();
    append.write(content.slice(70_000..)).await.unwrap();
    append.finish().await.unwrap();
    store.commit_upload(&by, &upload, Digest::of(&content), sign()).await.unwrap();
    assert!(!store.0.tables.has(Table::OldUpload, upload.as_str().as_bytes()).unwrap());
    assert_eq!(std::fs::read_to_string(dir.path().join("format")).unwrap(), "2\n");
}

#[tokio::test]
async fn a_large_upload_is_synced_as_it_comes_and_one_that_cannot_be_becomes_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (by, store) = (Uploader::from(name("a")), Local::open(dir.path(), 0).unwrap());
    let content = Bytes::from(vec![6; 40 << 20]);
    let digest = Digest::of(&content);
    for broken in [false, true] {
        let upload = store.begin_upload(&by, somebody(), Algorithm::Sha256).await.unwrap();
        let mut append = store.append(&by, &upload, None).await.unwrap();
        for part in 0..40 {
            append.write(content.slice(part << 20..(part + 1) << 20)).await.unwrap();
        }
        append.finish().await.unwrap();
        if broken {
            let (session, _claim) = store.0.claim(&by, &upload).unwrap();
            let file = dir.path().join("uploads").join(upload.as_str());
            std::fs::rename(&file, dir.path().join("away")).unwrap();
            assert!(session.sync_early().is_err(), "there is nothing to be synced");
            std::fs::rename(dir.path().join("away"), file).unwrap();
        }
        let committed = store.commit_upload(&by, &upload, digest, sign()).await;
        assert!(matches!((broken, committed), (false, Ok(_)) | (true, Err(CommitError::Store(_)))));
    }
    assert_eq!(store.blob_info(&by.repository, digest).await.unwrap().unwrap().size, 40 << 20);
}
