//! What an operator does: backup and restore, limits.

use bytes::Bytes;
use http::Method;
use shoal_proto::Digest;
use tokio::task::JoinSet;

use super::client::{OCI, TestSeeder, noise};
use crate::{Seeder, admin};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_while_clients_push_holds_all_that_was_acknowledged_before() {
    let seeder = TestSeeder::start().await;
    let mut kept = Vec::new();
    for number in 0..20 {
        kept.push(seeder.push("a", noise(if number % 2 == 0 { 300 } else { 200_000 }, number)).await);
    }
    let image = seeder.push_image("b", "kept", &[noise(70_000, 99)]).await;
    let copy = tempfile::tempdir().unwrap();
    let (data, to) = (seeder.config.data_dir.clone(), copy.path().join("backup"));
    let mut backing_up = JoinSet::new();
    let target = to.clone();
    backing_up.spawn(async move { admin::backup(&data, &target).await });
    let mut number = 0;
    let done = loop {
        seeder.push("a", noise(100_000 + number, u8::try_from(number % 250).unwrap())).await;
        number += 1;
        if let Some(done) = backing_up.try_join_next() {
            break done.unwrap().unwrap();
        }
    };
    assert!(done.files >= 10, "{done:?}");
    assert!(admin::backup(&seeder.config.data_dir, &to).await.is_err(), "a backup is not written over another");
    let mut config = seeder.config.clone();
    config.data_dir = copy.path().join("restored");
    Seeder::restore(&config, &to).await.unwrap();
    assert!(Seeder::restore(&config, &to).await.is_err(), "a store that is there stays");
    let (root, version) = (*seeder.running.fleet.root(), seeder.running.fleet.version(1));
    let restored = TestSeeder::start_with(|fresh| fresh.data_dir.clone_from(&config.data_dir)).await;
    assert_eq!(*restored.running.fleet.root(), root);
    assert!(restored.running.fleet.version(1).epoch > version.epoch, "what it signs is newer");
    assert!(restored.running.fleet.key_set().version.epoch > version.epoch, "and so is its key set");
    for digest in kept {
        let got = restored.ask(Method::GET, &format!("/v2/a/blobs/{digest}")).send().await;
        assert_eq!(Digest::of(&got.body), digest);
    }
    let got = restored.ask(Method::GET, "/v2/b/manifests/kept").header("accept", OCI).send().await;
    assert_eq!(got.body, image);
    let scrubbed = admin::scrub_running(&config.data_dir).await.unwrap();
    assert!(scrubbed.damaged.is_empty() && scrubbed.checked >= 23, "{scrubbed:?}");
    std::fs::remove_file(to.join("backup.json")).unwrap();
    config.data_dir = copy.path().join("again");
    assert!(Seeder::restore(&config, &to).await.is_err(), "without its last file it is no backup");
}

#[tokio::test]
async fn no_seeder_starts_on_a_restore_that_was_not_finished() {
    let seeder = TestSeeder::start().await;
    let digest = seeder.push("a", noise(70_000, 1)).await;
    let config = seeder.config.clone();
    assert!(admin::backup(&config.data_dir, &config.data_dir.join("blobs/backup")).await.is_err());
    seeder.running.shutdown().await;
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("backup");
    Seeder::backup(&config, &to).await.unwrap();
    std::fs::remove_file(to.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex())).unwrap();
    let mut other = config.clone();
    other.data_dir = copy.path().join("restored");
    assert!(Seeder::restore(&other, &to).await.is_err(), "a file of the backup is missing");
    let error = Seeder::start(other.clone()).await.unwrap_err().to_string();
    assert!(error.contains("not finished") && error.contains("restored"), "{error}");
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let seeder = TestSeeder::start_with(|config| config.limits.requests_per_s = 5).await;
    let mut refused = None;
    for _ in 0..40 {
        let got = seeder.ask(Method::POST, "/v2/a/blobs/uploads/").body(Bytes::from_static(b"x")).send().await;
        if got.status == 429 {
            refused = Some(got);
            break;
        }
    }
    let refused = refused.expect("ten at once are too many");
    assert_eq!((refused.code().as_str(), refused.header("retry-after")), ("TOOMANYREQUESTS", "1"));
    assert_eq!(seeder.status_page("/healthz").await.status, 200, "the status port is not limited");
}
