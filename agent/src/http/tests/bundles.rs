//! What peers know stands in for a seeder that is down, as far as the seeder has signed it.

use std::sync::{Arc, atomic::Ordering};

use http::StatusCode;
use shoal_proto::Digest;

use super::{Bench, PLENTY};
use crate::{
    config,
    http::context,
    testing::{Stage, content, lock},
};

#[tokio::test]
async fn a_public_tag_that_was_never_here_comes_from_peers_when_the_seeder_is_down() {
    let first = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    let image = first.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    assert_eq!(first.get("/v2/app/manifests/v1").await.0, StatusCode::OK);
    first.heard_until("image").await;

    let second = Bench::over(Stage::over(first.stage.seeder.clone()).await, PLENTY, config::Registry::default()).await;
    let third = Bench::over(Stage::over(first.stage.seeder.clone()).await, PLENTY, config::Registry::default()).await;
    first.stage.seeder.down.store(true, Ordering::Relaxed);
    let (status, headers, manifest) = second.get("/v2/app/manifests/v1").await;
    assert_eq!((status, Digest::of(&manifest)), (StatusCode::OK, image));
    assert!(headers["warning"].to_str().unwrap().starts_with("110"));
    let (status, _, body) = second.get(&format!("/v2/app/blobs/{}", Digest::of(&layer))).await;
    assert!(status == StatusCode::OK && body == layer);
    assert_eq!(third.get(&format!("/v2/app/manifests/{image}")).await.0, StatusCode::OK, "by digest as well");
}

#[tokio::test]
async fn a_bundle_of_another_tag_or_another_fleet_is_not_believed() {
    let first = Bench::start(PLENTY).await;
    for (name, seed) in [("app", 1), ("other", 2)] {
        first.stage.seeder.push(name, "v1", &[content(seed, 10)]);
        assert_eq!(first.get(&format!("/v2/{name}/manifests/v1")).await.0, StatusCode::OK);
    }
    let root = first.stage.upstream.trust().root().to_bytes();
    let key = |name: &str| context::public_bundle_key(&root, &name.parse().unwrap(), &"v1".parse().unwrap());
    let second = Bench::over(Stage::over(first.stage.seeder.clone()).await, PLENTY, config::Registry::default()).await;
    let honest = lock(&first.stage.seeder.bundles)[&key("app")].clone();
    let other = lock(&first.stage.seeder.bundles)[&key("other")].clone();
    first.stage.seeder.down.store(true, Ordering::Relaxed);
    let mut swapped = (*honest).clone();
    swapped.digest = other.digest;
    let mut unsigned = (*honest).clone();
    unsigned.capability = shoal_proto::envelope::Envelope::sign(
        &first.stage.upstream.open::<shoal_proto::signed::Capability>(&honest.capability).await.unwrap(),
        &ed25519_dalek::SigningKey::from_bytes(&[99; 32]),
    );
    for lie in [other, Arc::new(swapped), Arc::new(unsigned)] {
        lock(&first.stage.seeder.bundles).insert(key("app"), lie);
        assert_eq!(second.get("/v2/app/manifests/v1").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    lock(&first.stage.seeder.bundles).insert(key("app"), honest);
    assert_eq!(second.get("/v2/app/manifests/v1").await.0, StatusCode::OK);
}
