//! The store over real files: crashes, quota, pins, damage.

mod power_loss;

use std::{fs, os::unix::fs::FileExt, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use shoal_proto::{
    Digest,
    envelope::Envelope,
    layout::{PIECE_LEN_MIN, PieceIndex},
    signed::{Capability, Covered, Statement, Subject, TagRecord, Version},
    tree::{BlobHasher, PieceHashes},
};

use super::*;

const PIECE: usize = 256 << 10;
const _: () = assert!(PIECE as u64 == PIECE_LEN_MIN);
const QUOTA: u64 = 64 * PIECE_LEN_MIN;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Bytes that differ between blobs and between their pieces.
fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 7 + i / PIECE * 3 + usize::from(seed) * 17) % 251).unwrap()).collect()
}

fn describe(data: &[u8]) -> (OpenedStatement, PieceHashes) {
    let mut hasher = BlobHasher::new();
    hasher.update(data);
    let (root, hashes) = hasher.finish().unwrap();
    let statement = Statement { digest: Digest::of(data), size: data.len() as u64, root };
    (OpenedStatement { envelope: Envelope::sign(&statement, &key()), statement }, hashes)
}

fn config(dir: &Path, boot_id: &str) -> StoreConfig {
    StoreConfig { dir: dir.to_owned(), quota_bytes: QUOTA, boot_id: boot_id.to_owned() }
}

fn open(dir: &Path, boot_id: &str) -> Store {
    Store::open(config(dir, boot_id)).unwrap()
}

fn begin(store: &Store, data: &[u8]) -> Arc<Blob> {
    let (signed, hashes) = describe(data);
    store.begin(&signed, hashes).unwrap()
}

fn slice<'a>(blob: &Blob, piece: PieceIndex, data: &'a [u8]) -> &'a [u8] {
    let range = blob.layout().range(piece);
    &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn put(blob: &Arc<Blob>, piece: PieceIndex, data: &[u8]) -> Verified {
    let mut writer = blob.writer(piece).unwrap();
    for part in slice(blob, piece, data).chunks(200_001) {
        writer.write(part).unwrap();
    }
    writer.finish().unwrap()
}

fn fill(store: &Store, data: &[u8]) -> Arc<Blob> {
    let blob = begin(store, data);
    for piece in blob.layout().iter() {
        put(&blob, piece, data);
    }
    blob
}

fn piece(blob: &Blob, index: u32) -> PieceIndex {
    blob.layout().piece(index).unwrap()
}

#[test]
fn a_blob_of_any_size_comes_back_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    for len in [0, 1, 1024, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 5 * PIECE + 17] {
        let data = content(1, len);
        let blob = fill(&store, &data);
        assert!(blob.is_complete(), "{len}");
        let mut back = vec![0; len];
        blob.file().read_exact_at(&mut back, 0).unwrap();
        assert_eq!(Digest::of(&back), *blob.digest(), "{len}");
        assert_eq!(blob.verified_until(0), len as u64);
        assert_eq!(store.info(blob.digest()).map(|info| (info.size, info.complete)), Some((len as u64, true)));
    }
    assert_eq!(store.blobs().len(), 8);
}

#[test]
fn only_the_right_bytes_set_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let data = content(2, 2 * PIECE + 5);
    let blob = begin(&store, &data);
    let last = piece(&blob, 2);

    let mut writer = blob.writer(last).unwrap();
    writer.write(b"four").unwrap();
    assert!(matches!(writer.write(b"four"), Err(WriteError::TooLong)));
    assert_eq!(writer.finish(), Err(FinishError::Short));
    let mut writer = blob.writer(last).unwrap();
    writer.write(b"wrong").unwrap();
    assert_eq!(writer.finish(), Err(FinishError::Corrupt));
    assert!(!blob.has(last));

    let first = blob.writer(last).unwrap();
    assert!(blob.writer(last).is_none(), "one writer a piece");
    drop(first);
    assert!(!put(&blob, last, &data).complete);
    assert!(blob.writer(last).is_none(), "stored already");
    assert_eq!(blob.verified_until(0), 0);
    put(&blob, piece(&blob, 0), &data);
    assert_eq!(blob.verified_until(5), PIECE_LEN_MIN);
}

#[test]
fn statement_and_hashes_must_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let (one, other) = (describe(&content(1, 3 * PIECE)), describe(&content(2, 3 * PIECE)));
    assert!(matches!(store.begin(&one.0, other.1), Err(BeginError::Hashes(_))));
    store.begin(&one.0, one.1.clone()).unwrap();
    let mut lie = other.0;
    lie.statement.digest = one.0.statement.digest;
    let hashes = describe(&content(2, 3 * PIECE)).1;
    assert!(matches!(store.begin(&lie, hashes), Err(BeginError::Conflict(_))));
}

#[test]
fn a_second_process_is_told_that_the_folder_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), "a");
    assert!(matches!(Store::open(config(dir.path(), "a")), Err(OpenError::Locked(_))));
    drop(first);
    open(dir.path(), "a");
}

#[test]
fn a_killed_process_loses_no_recorded_piece() {
    let dir = tempfile::tempdir().unwrap();
    let data = content(3, 40 * PIECE + 1);
    let digest = {
        let store = open(dir.path(), "a");
        let blob = begin(&store, &data);
        for index in 0..30 {
            put(&blob, piece(&blob, index), &data);
            assert!(blob.bits().unrecorded < UNRECORDED_PIECES_MAX);
        }
        // A piece half written, and no close: the threads stop where they are.
        let mut half = blob.writer(piece(&blob, 30)).unwrap();
        half.write(&data[30 * PIECE..30 * PIECE + 1000]).unwrap();
        *blob.digest()
    };
    let store = open(dir.path(), "a");
    let blob = store.blob(&digest).unwrap();
    let kept = blob.have().len();
    assert!(kept > 30 - UNRECORDED_PIECES_MAX && kept <= 30, "{kept} of 30");
    assert!(!blob.has(piece(&blob, 30)));
    assert_eq!(store.verify(&digest).unwrap().unwrap(), Checked { checked: kept, bad: vec![] });
}

#[test]
fn close_loses_nothing_whatever_happens_next() {
    let dir = tempfile::tempdir().unwrap();
    let data = content(4, 12 * PIECE);
    let digest = {
        let store = open(dir.path(), "a");
        let blob = fill(&store, &data);
        let digest = *blob.digest();
        drop(blob);
        store.close().unwrap();
        digest
    };
    let store = open(dir.path(), "another boot");
    let blob = store.blob(&digest).unwrap();
    assert!(blob.is_complete());
    assert!(blob.bits().doubtful.is_empty(), "all was durable");
}

#[test]
fn after_a_power_loss_only_what_reached_the_disk_counts() {
    let dir = tempfile::tempdir().unwrap();
    let data = content(5, 9 * PIECE);
    let (signed, hashes) = describe(&data);
    let digest = signed.statement.digest;
    {
        let store = open(dir.path(), "a");
        let blob = begin(&store, &data);
        for index in 0..4 {
            put(&blob, piece(&blob, index), &data);
        }
        store.flush().unwrap();
        for index in 4..8 {
            put(&blob, piece(&blob, index), &data);
        }
        store.shared.record_now(&blob);
        assert!(blob.bits().durable.len() >= 4);
        // The page cache never reached the disk: pieces that are not durable read as zeros, all but one.
        let lost: Vec<_> = (5..8).filter(|&index| !blob.bits().durable.contains(piece(&blob, index))).collect();
        for index in lost {
            blob.file().write_all_at(&vec![0; PIECE], u64::from(index) * PIECE_LEN_MIN).unwrap();
        }
    }
    let store = open(dir.path(), "b");
    let blob = store.begin(&signed, hashes).unwrap();
    for index in 0..5 {
        assert!(blob.has(piece(&blob, index)), "{index} is on the disk");
    }
    assert!(!blob.has(piece(&blob, 8)));
    for index in 5..9 {
        if !blob.has(piece(&blob, index)) {
            put(&blob, piece(&blob, index), &data);
        }
    }
    let mut back = vec![0; data.len()];
    blob.file().read_exact_at(&mut back, 0).unwrap();
    assert_eq!(Digest::of(&back), digest);
}

#[test]
fn what_is_in_doubt_is_not_served_before_it_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let data = content(6, 2 * PIECE);
    let digest = Digest::of(&data);
    {
        let store = open(dir.path(), "a");
        let blob = begin(&store, &data);
        put(&blob, piece(&blob, 0), &data);
        store.shared.record_now(&blob);
        blob.file().write_all_at(&[0; 16], 0).unwrap();
    }
    let row = open_tables(dir.path()).have(&digest).unwrap().unwrap();
    let layout = shoal_proto::layout::Layout::new(2 * PIECE as u64).unwrap();
    let bits = load::bits(&config(dir.path(), "b"), &layout, Some(&row)).unwrap();
    let first = layout.piece(0).unwrap();
    assert!(bits.doubtful.contains(first) != bits.durable.contains(first));
    assert_eq!(bits.have, bits.durable);
}

fn open_tables(dir: &Path) -> Tables {
    Tables::open(&dir.join("meta")).unwrap()
}

#[test]
fn rows_without_a_file_and_files_without_a_row_go() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, lost) = {
        let store = open(dir.path(), "a");
        let (kept, lost) = (fill(&store, &content(1, 10)), fill(&store, &content(2, 10)));
        let digests = (*kept.digest(), *lost.digest());
        drop((kept, lost));
        store.close().unwrap();
        digests
    };
    fs::remove_file(files::path(dir.path(), &lost)).unwrap();
    let orphan = files::path(dir.path(), &Digest::of(b"orphan"));
    fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    fs::write(&orphan, b"orphan").unwrap();
    let store = open(dir.path(), "a");
    assert_eq!(store.blobs().iter().map(|info| info.digest).collect::<Vec<_>>(), [kept]);
    assert!(store.blob(&lost).is_none());
    assert!(!orphan.exists());
}

#[test]
fn the_least_recently_used_blob_goes_first_and_no_more_than_needed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let blobs: Vec<_> = (0..4u8).map(|seed| *fill(&store, &content(seed, 16 * PIECE)).digest()).collect();
    let _ = store.blob(&blobs[0]);
    fill(&store, &content(9, 16 * PIECE));
    let held: Vec<_> = blobs.iter().map(|digest| store.info(digest).is_some()).collect();
    assert_eq!(held, [true, false, true, true]);
    assert_eq!(store.take_evicted(), [blobs[1]]);
    assert!(!files::path(dir.path(), &blobs[1]).exists());
    assert_eq!(store.usage().evicted, 1);
    assert_eq!(fs::read_dir(dir.path().join(files::TRASH)).unwrap().count(), 0);
}

#[test]
fn what_is_pinned_used_or_under_way_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let (pinned, used) = (fill(&store, &content(0, 16 * PIECE)), fill(&store, &content(1, 16 * PIECE)));
    let under_way = begin(&store, &content(2, 16 * PIECE));
    store.put_image(image(*pinned.digest(), &[])).unwrap();
    assert!(store.pin(pinned.digest(), true).unwrap());
    let guard = used.guard();

    let (signed, hashes) = describe(&content(3, 32 * PIECE));
    let error = store.begin(&signed, hashes.clone()).unwrap_err();
    assert!(
        matches!(error, BeginError::OverQuota { needed, room, .. } if needed == 32 * PIECE as u64 && room == 16 * PIECE as u64)
    );
    assert!(error.is_full());
    assert_eq!(store.take_evicted(), [], "nothing goes in vain");

    drop(guard);
    store.begin(&signed, hashes).unwrap();
    assert_eq!(store.take_evicted(), [*used.digest()]);
    assert!(used.is_gone() && used.have().is_empty() && used.writer(piece(&used, 0)).is_none());
    assert!(!pinned.is_gone() && !under_way.is_gone());
}

#[test]
fn an_evicted_blob_made_anew_starts_empty() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let data = content(1, 3 * PIECE);
    let old = fill(&store, &data);
    store.flush().unwrap();
    let making = store.shared.making();
    store.shared.forget(&[*old.digest()]).unwrap().unlink();
    drop(making);
    let new = begin(&store, &data);
    assert!(new.have().is_empty() && old.is_gone());
    put(&new, piece(&new, 1), &data);
    drop((old, new));
    drop(store);
    let store = open(dir.path(), "a");
    assert!(store.info(&Digest::of(&data)).unwrap().stored <= 1);
}

#[test]
fn a_spot_check_takes_damaged_pieces_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let data = content(1, 4 * PIECE);
    let blob = fill(&store, &data);
    store.flush().unwrap();
    blob.file().write_all_at(b"x", PIECE_LEN_MIN + 3).unwrap();
    let found = store.verify(blob.digest()).unwrap().unwrap();
    assert_eq!(found, Checked { checked: 4, bad: vec![piece(&blob, 1)] });
    assert!(!blob.is_complete());
    put(&blob, piece(&blob, 1), &data);
    assert_eq!(store.verify(blob.digest()).unwrap().unwrap().bad, []);
    assert!(store.verify(&Digest::of(b"not here")).unwrap().is_none());
}

#[tokio::test]
async fn readers_wake_for_pieces_failures_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let data = content(1, 2 * PIECE);
    let blob = begin(&store, &data);
    let mut changed = blob.changed();
    put(&blob, piece(&blob, 1), &data);
    changed.changed().await.unwrap();
    assert_eq!(changed.borrow_and_update().stored, 1);
    blob.fail("nobody has it");
    changed.changed().await.unwrap();
    let failure = changed.borrow_and_update().failure.clone().unwrap();
    assert_eq!((failure.number, &*failure.reason), (1, "nobody has it"));
    put(&blob, piece(&blob, 0), &data);
    changed.changed().await.unwrap();
    assert!(changed.borrow_and_update().complete);
    assert_eq!(store.remove_image(blob.digest()).unwrap(), Removed::default());
}

fn image(manifest: Digest, blobs: &[Digest]) -> ImageRecord {
    let capability = Capability {
        subject: Subject::AnyMember,
        covered: Covered::List(blobs.to_vec()),
        discovery: [1; 32],
        not_before: 0,
        not_after: 1,
    };
    ImageRecord {
        image: manifest,
        repository: "app".parse().unwrap(),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        blobs: blobs.to_vec(),
        statements: vec![],
        capability: Envelope::sign(&capability, &key()),
        discovery: vec![],
        bundle: None,
        pinned: false,
        pulled_at: 5,
    }
}

#[test]
fn removing_an_image_keeps_what_others_need() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), "a");
    let digests: Vec<_> = (0..4u8).map(|seed| *fill(&store, &content(seed, 100)).digest()).collect();
    let [one, two, base, own] = digests[..] else { panic!("four blobs") };
    store.put_image(image(one, &[base, own])).unwrap();
    store.put_image(image(two, &[base])).unwrap();
    let tag = |image, counter| TagRow {
        repository: "app".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        image,
        media_type: String::new(),
        record: Envelope::sign(
            &TagRecord {
                repository: "app".parse().unwrap(),
                tag: "latest".parse().unwrap(),
                digest: Some(image),
                media_type: String::new(),
                version: Version { epoch: 0, counter },
                signed_at: 0,
                public: true,
            },
            &key(),
        ),
        version: Version { epoch: 0, counter },
        checked_at: 0,
        bundle: None,
    };
    store.put_tag(&tag(one, 5)).unwrap();
    assert!(matches!(store.put_tag(&tag(two, 4)), Err(TagError::Older { .. })));
    let listed = store.images().unwrap();
    let mut tags: Vec<_> = listed.iter().map(|info| (info.record.image, info.tags.len(), info.complete)).collect();
    tags.sort();
    let mut expected = [(one, 1, true), (two, 0, true)];
    expected.sort();
    assert_eq!(tags, expected);

    let mut removed = store.remove_image(&one).unwrap();
    removed.blobs.sort();
    let mut expected = vec![one, own];
    expected.sort();
    assert_eq!(removed, Removed { images: 1, blobs: expected, busy: 0 });
    assert!(store.info(&base).is_some());
    let app = "app".parse().unwrap();
    assert!(store.tag(&app, &"latest".parse().unwrap()).unwrap().is_none());
    assert!(store.image(&one, &app).unwrap().is_none());
}

#[test]
fn pins_survive_a_restart_and_a_new_pull() {
    let dir = tempfile::tempdir().unwrap();
    let digest = {
        let store = open(dir.path(), "a");
        let digest = *fill(&store, &content(1, 100)).digest();
        store.put_image(image(digest, &[])).unwrap();
        store.pin(&digest, true).unwrap();
        store.put_image(image(digest, &[])).unwrap();
        store.close().unwrap();
        digest
    };
    let store = open(dir.path(), "a");
    assert!(store.info(&digest).unwrap().pinned);
    store.pin(&digest, false).unwrap();
    assert!(!store.info(&digest).unwrap().pinned);
}

#[test]
fn a_full_disk_is_told_apart_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=12m", "none"])
        .arg(dir.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: a small file system cannot be mounted here (needs root)");
        return;
    }
    let full = {
        let store = open(dir.path(), "a");
        let kept = fill(&store, &content(1, PIECE));
        let (signed, hashes) = describe(&content(2, 14 << 20));
        let full = store.begin(&signed, hashes);
        let left = store.info(&signed.statement.digest);
        let full = matches!(full, Err(BeginError::DiskFull { .. })) && left.is_none();
        drop(kept);
        full
    };
    std::process::Command::new("umount").arg("-l").arg(dir.path()).status().unwrap();
    assert!(full);
}
