//! Caps on what clients are sent, and clients that yield to others.

use std::time::{Duration, Instant};

use http::StatusCode;
use shoal_proto::Digest;

use super::{Bench, PLENTY};
use crate::{
    config,
    testing::{Stage, content, lock},
};

#[tokio::test]
async fn what_a_client_wants_at_low_priority_is_fetched_so_and_read_without_haste() {
    let bench = Bench::start(PLENTY).await;
    let layer = content(1, 2 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    let low = [("shoal-priority", "low")];
    bench.get_with("/v2/app/manifests/v1", &low).await;
    let want = format!("want {} low", Digest::of(&layer));
    bench.heard_until(&want).await;
    let (status, _, body) = bench.get_with(&format!("/v2/app/blobs/{}", Digest::of(&layer)), &low).await;
    assert!(status == StatusCode::OK && body == layer);
    let heard = lock(&bench.heard).clone();
    let hasty = |said: &String| said.starts_with("opened") || said.starts_with("moved");
    assert!(!heard.iter().any(hasty), "no reader waits for it: {heard:?}");
    assert!(heard.iter().filter(|said| said.starts_with("want")).all(|said| said.ends_with("low")), "{heard:?}");
}

#[tokio::test]
async fn clients_together_keep_to_their_cap_while_a_blob_arrives_and_after() {
    let bytes_per_s = 4 << 20;
    let bench = Bench::capped(Stage::set().await, PLENTY, config::Registry::default(), Some(bytes_per_s)).await;
    let layer = content(1, 1 << 20);
    bench.stage.seeder.push("app", "v1", std::slice::from_ref(&layer));
    bench.get("/v2/app/manifests/v1").await;
    let path = format!("/v2/app/blobs/{}", Digest::of(&layer));
    for _ in 0..2 {
        let start = Instant::now();
        let (one, other) = tokio::join!(bench.get(&path), bench.get(&path));
        assert!(one.2 == layer && other.2 == layer);
        // Two MiB at four a second; what goes first waits for nothing.
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    }
}
