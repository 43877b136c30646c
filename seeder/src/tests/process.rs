//! Starting, stopping, and what stands in the way.

use std::os::unix::fs::PermissionsExt as _;

use http::StatusCode;

use super::client::{TestSeeder, noise};
use crate::{
    Seeder, StartError,
    admin::{AskError, ask, socket_path},
    store::local::OpenError,
};

#[tokio::test]
async fn a_second_process_on_one_directory_is_refused() {
    let seeder = TestSeeder::start().await;
    let error = Seeder::start(seeder.config.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::Open(OpenError::Locked(_))), "{error}");
    assert!(!error.to_string().contains('\n'));
}

#[tokio::test]
async fn a_taken_port_and_a_useless_directory_are_named() {
    let seeder = TestSeeder::start().await;
    let other = tempfile::tempdir().unwrap();
    let mut config = seeder.config.clone();
    config.data_dir = other.path().join("data");
    config.listen = vec![seeder.running.registry_addr];
    let error = Seeder::start(config.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&seeder.running.registry_addr.to_string()), "{error}");
    std::fs::write(other.path().join("file"), b"").unwrap();
    config.data_dir = other.path().join("file");
    let error = Seeder::start(config).await.unwrap_err().to_string();
    assert!(error.contains("file") && error.contains("data directory"), "{error}");
}

#[tokio::test]
async fn the_administrator_asks_over_a_private_socket() {
    let seeder = TestSeeder::start().await;
    seeder.push("a", noise(10, 1)).await;
    let dir = seeder.config.data_dir.clone();
    let mode = std::fs::metadata(socket_path(&dir)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let report = ask(&dir).await.unwrap();
    assert!(report.running && report.listen == seeder.running.listen);
    let addresses: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("addresses.json")).unwrap()).unwrap();
    assert_eq!(addresses["registry"], seeder.running.registry_addr.to_string());
    assert_eq!((report.repositories, report.root), (1, hex::encode(seeder.running.fleet.root())));
    let config = seeder.config.clone();
    seeder.running.shutdown().await;
    assert!(matches!(ask(&dir).await, Err(AskError::NotRunning)));
    let report = Seeder::inspect(&config).await.unwrap();
    assert!(!report.running && report.repositories == 1);
}

#[tokio::test]
async fn a_stopped_seeder_leaves_its_directory_and_port_free() {
    let mut seeder = TestSeeder::start().await;
    let digest = seeder.push("a", noise(1 << 20, 1)).await;
    seeder.config.listen = vec![seeder.running.registry_addr];
    for _ in 0..3 {
        seeder = seeder.restart().await;
        assert_eq!(seeder.get(&format!("/v2/a/blobs/{digest}")).await.status, StatusCode::OK);
    }
}
