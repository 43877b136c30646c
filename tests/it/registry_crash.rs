//! The seeder is killed at random moments of many pushes; what it has acknowledged is there when it is back.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use shoal_proto::Digest;
use shoal_tests::{
    cluster::Cluster,
    http::Client,
    image::{Blob, Image},
    process, pull, push, wait,
};
use tokio::task::JoinSet;

const REPOSITORY: &str = "it/crash";
/// Pushes in all, and between two kills.
const PUSHES: (u64, u64) = (1000, 60);
const CLIENTS: usize = 8;
/// How long anything here may take on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// What was acknowledged: numbers of blobs and of images.
type Acknowledged = Arc<Mutex<Vec<u64>>>;

/// Small ones lie in the database, large ones in files, and every fifth is an image with a tag.
fn blob(number: u64) -> Blob {
    Blob::seeded(number, [100, 70_000, 10, 400_000][usize::try_from(number % 4).unwrap_or(0)])
}

fn is_image(number: u64) -> bool {
    number.is_multiple_of(5)
}

async fn push_until_it_dies(client: Client, next: Arc<AtomicU64>, done: Acknowledged) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let pushed = if is_image(number) {
            push::image(&client, REPOSITORY, &format!("t{number}"), &Image::synthetic(number, &[1000])).await.map(drop)
        } else {
            push::upload(&client, REPOSITORY, &blob(number)).await
        };
        match pushed {
            Ok(()) => done.lock().expect("nobody panics here").push(number),
            Err(_) => return,
        }
    }
}

async fn check(client: &Client, number: u64) -> Result<()> {
    if is_image(number) {
        pull::image(client, REPOSITORY, &format!("t{number}"), &pull::Options::default()).await?;
    } else {
        let digest = blob(number).digest;
        let body = client.get(&format!("/v2/{REPOSITORY}/blobs/{digest}")).await?.body;
        ensure!(Digest::of(&body) == digest, "push {number} came back with other bytes");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_that_is_killed_at_any_moment_keeps_what_it_acknowledged() -> Result<()> {
    let mut cluster = Cluster::start(0).await?;
    let (next, done) = (Arc::new(AtomicU64::new(0)), Acknowledged::default());
    let count = || done.lock().expect("nobody panics here").len() as u64;
    let (mut kills, mut checked) = (0, 0);
    while count() < PUSHES.0 {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(push_until_it_dies(cluster.seeder.client(), Arc::clone(&next), Arc::clone(&done)));
        }
        let target = count() + PUSHES.1;
        wait::until("pushes", LONG, || async { Ok((count() >= target).then_some(())) }).await?;
        cluster.seeder.kill().await?;
        clients.join_all().await;
        cluster.seeder.launch().await?;
        kills += 1;
        let fresh = done.lock().expect("nobody panics here")[checked..].to_vec();
        checked += fresh.len();
        for number in fresh {
            check(&cluster.seeder.client(), number).await?;
        }
    }
    ensure!(kills >= 10, "killed {kills} times only");
    let all = done.lock().expect("nobody panics here").clone();
    for number in all {
        check(&cluster.seeder.client(), number).await?;
    }
    let seeder = shoal_tests::cluster::Binaries::find()?.seeder.display().to_string();
    let data = cluster.seeder.data_dir().display().to_string();
    let none: [(&str, std::ffi::OsString); 0] = [];
    let scrubbed = process::run(&seeder, ["scrub", "--data-dir", &data], &none, LONG).await?.success("scrub")?;
    ensure!(scrubbed.contains("\"damaged\":[]"), "{scrubbed}");
    cluster.finish().await
}
