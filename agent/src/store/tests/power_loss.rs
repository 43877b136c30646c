//! An agent whose machine lost power in the middle of a pull.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Agent, Config, testing::FakeSeeder};

/// Pieces of the layer.
const PIECES: u32 = 12;
/// Pieces that were on the disk when the power went.
const DURABLE: u32 = 5;
/// Pieces that were stored and recorded, and whose bytes never reached the disk.
const LOST: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_loss_took_is_detected_and_fetched_again() {
    let (seeder, mut tasks, stop) = (FakeSeeder::new(), JoinSet::new(), CancellationToken::new());
    let address = seeder.serve(&mut tasks, &stop).await;
    let layer = crate::testing::content(1, PIECES as usize * PIECE);
    let digest = Digest::of(&layer);
    seeder.push("app", "v1", std::slice::from_ref(&layer));
    let (signed, hashes, _) = seeder.describe(&digest).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let seeder_uri = format!("http://{address}").parse().unwrap();
    let config = Config::loopback(seeder_uri, dir.path().to_owned(), "after");
    {
        let store = open(&config.data_dir, "before");
        let blob = store.begin(&signed, hashes).unwrap();
        for index in 0..DURABLE {
            put(&blob, piece(&blob, index), &layer);
        }
        store.flush().unwrap();
        for index in DURABLE..DURABLE + LOST {
            put(&blob, piece(&blob, index), &layer);
        }
        store.shared.record_now(&blob);
        for index in DURABLE..DURABLE + LOST {
            assert!(blob.has(piece(&blob, index)) && !blob.bits().durable.contains(piece(&blob, index)), "{index}");
            blob.file().write_all_at(&vec![0; PIECE], u64::from(index) * PIECE_LEN_MIN).unwrap();
        }
    }
    let running = Agent::start(config).await.unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let addresses = running.addresses().clone();
    let get = async |path: &str| {
        let uri = format!("http://{}/{path}", if path == "metrics" { addresses.status } else { addresses.registry });
        client.get(uri.parse().unwrap()).await.unwrap().into_body().collect().await.unwrap().to_bytes()
    };
    get("v2/app/manifests/v1").await;
    assert!(get(&format!("v2/app/blobs/{digest}")).await == layer, "the bytes are another's");
    // The last piece is counted after it is stored, and its reader may be done before that.
    let (mut fetched, start) = (0, Instant::now());
    while fetched / PIECE < (PIECES - DURABLE) as usize && start.elapsed() < Duration::from_secs(5) {
        let metrics = String::from_utf8(get("metrics").await.into()).unwrap();
        let count =
            metrics.lines().find_map(|line| line.strip_prefix("shoal_agent_received_bytes_total{from=\"seeder\"} "));
        fetched = count.unwrap().parse::<usize>().unwrap();
    }
    running.shutdown().await.unwrap();
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    // The manifest and the config come to less than a piece.
    assert_eq!(
        fetched / PIECE,
        (PIECES - DURABLE) as usize,
        "what was on the disk is not fetched again, what was lost is"
    );
}
