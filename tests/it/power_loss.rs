//! The power fails: what was not synced is gone, what was acknowledged is there.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use shoal_proto::Digest;
use shoal_tests::{
    cluster::{Binaries, Daemon, scratch},
    daemons,
    http::Client,
    image::{Blob, Image},
    power_loss::{self, Disk, Step, Survivors, Traces},
    pull, push, report,
};

const REPOSITORY: &str = "it/power";
/// Starts of the seeder, each of which finds what the one before left, and pushes to each.
const STARTS: u64 = 3;
const PUSHES: u64 = 50;
const CLIENTS: usize = 8;
/// Moments at which the power fails: half of them right after an acknowledgement.
const MOMENTS: u64 = 24;

/// The push of a blob so large that the seeder has the disk take its bytes while they arrive.
const LARGE: u64 = 49;
const LARGE_LEN: u64 = 20 << 20;

/// Small ones lie in the database, large ones in files.
fn blob(number: u64) -> Blob {
    let len = [100, 70_000, 10, 200_000][usize::try_from(number % 4).unwrap_or(0)];
    Blob::seeded(number, if number == LARGE { LARGE_LEN } else { len })
}

fn image(number: u64) -> Image {
    Image::synthetic(number, &[1000])
}

/// Every fifth push is an image with a tag.
fn is_image(number: u64) -> bool {
    number.is_multiple_of(5)
}

async fn push_one(client: &Client, number: u64) -> Result<()> {
    if is_image(number) {
        push::image(client, REPOSITORY, &format!("t{number}"), &image(number)).await.map(drop)
    } else {
        push::upload(client, REPOSITORY, &blob(number)).await
    }
}

/// Pushes all to a seeder under the tracer that is started several times.
async fn push_all(binaries: &Binaries, directory: &Path) -> Result<std::path::PathBuf> {
    let mut seeder = Daemon::seeder(binaries, directory, &[]).await?;
    for start in 0..STARTS {
        if start > 0 {
            seeder.launch().await?;
        }
        let client = seeder.client();
        stream::iter(start * PUSHES..(start + 1) * PUSHES)
            .map(|number| push_one(&client, number))
            .buffer_unordered(CLIENTS)
            .try_collect::<()>()
            .await?;
        seeder.stop().await?;
    }
    Ok(seeder.data_dir())
}

/// The number of the push that this answer acknowledges.
fn acknowledged(numbers: &HashMap<String, u64>, step: &Step) -> Option<u64> {
    let text = String::from_utf8_lossy(step.said()?);
    let mut headers = text.strip_prefix("HTTP/1.1 201")?.lines();
    headers.find_map(|line| numbers.get(line.rsplit(['/', ' ']).next()?.trim()).copied())
}

/// Starts a seeder on what the power loss left; the pushes that are not whole, each with what is wrong.
async fn lost(
    binaries: &Binaries,
    directory: &Path,
    disk: &Disk,
    survivors: Survivors,
    pushed: &[u64],
) -> Result<Vec<String>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let directory = directory.join(format!("after{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(directory.join("seeder"))?;
    disk.write(&directory.join("seeder/data"), survivors)?;
    let mut seeder = Daemon::seeder(binaries, &directory, &[]).await?;
    let client = seeder.client();
    let mut lost = Vec::new();
    for &number in pushed {
        if let Err(error) = check(&client, number).await {
            lost.push(format!("{number}: {error:#}"));
        }
    }
    seeder.stop().await?;
    std::fs::remove_dir_all(&directory)?;
    Ok(lost)
}

async fn check(client: &Client, number: u64) -> Result<()> {
    if is_image(number) {
        pull::image(client, REPOSITORY, &format!("t{number}"), &pull::Options::default()).await.map(drop)
    } else {
        let digest = blob(number).digest;
        let body = client.get(&format!("/v2/{REPOSITORY}/blobs/{digest}")).await?.body;
        ensure!(Digest::of(&body) == digest, "push {number} came back with other bytes");
        Ok(())
    }
}

/// The steps after which the power fails: half of them right after an acknowledgement, half anywhere after the first.
fn moments(steps: &[Step], acknowledged: &[usize]) -> Vec<usize> {
    let first = acknowledged[0];
    let mut moments: Vec<usize> = (0..MOMENTS / 2)
        .flat_map(|n| {
            let part = |of: usize| of * usize::try_from(n + 1).unwrap_or(1) / usize::try_from(MOMENTS / 2).unwrap_or(1);
            [acknowledged[part(acknowledged.len()) - 1], first + part(steps.len() - first) - 1]
        })
        .collect();
    moments.sort_unstable();
    moments
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeder_whose_power_fails_keeps_what_it_acknowledged() -> Result<()> {
    if !daemons::available(&[power_loss::PROGRAM])? {
        return Ok(());
    }
    let directory = scratch()?;
    let plain = Binaries::find()?;
    let traces = Traces::new(directory.path());
    let traced = Binaries { seeder: traces.wrap(&plain.seeder)?, ..plain.clone() };
    let data = push_all(&traced, directory.path()).await?;
    let steps = traces.steps(&data).await?;

    let numbers: HashMap<String, u64> = (0..STARTS * PUSHES)
        .map(|number| (if is_image(number) { image(number).manifest.digest } else { blob(number).digest }, number))
        .map(|(digest, number)| (digest.to_string(), number))
        .collect();
    let answers: Vec<(usize, u64)> =
        (0..).zip(&steps).filter_map(|(at, step)| acknowledged(&numbers, step).map(|number| (at, number))).collect();
    ensure!(answers.len() == numbers.len(), "{} of {} pushes are in the trace", answers.len(), numbers.len());

    ensure!(
        steps.iter().filter_map(Step::syncs).any(|path| path.parent() == Some(Path::new("uploads"))),
        "no upload was synced while its bytes arrived"
    );

    let at: Vec<usize> = answers.iter().map(|(at, _)| *at).collect();
    let mut moments = moments(&steps, &at).into_iter().peekable();
    let (mut disk, mut forgetful) = (Disk::new(), Disk::forgetful());
    let mut tried = 0_u64;
    for (now, step) in steps.iter().enumerate() {
        for disk in [&mut disk, &mut forgetful] {
            disk.apply(step).with_context(|| format!("line {}", step.line))?;
        }
        while moments.next_if_eq(&now).is_some() {
            let pushed: Vec<u64> = answers.iter().filter(|(at, _)| *at <= now).map(|(_, number)| *number).collect();
            let survivors = if tried.is_multiple_of(2) { Survivors::None } else { Survivors::Some { seed: tried } };
            let lost = lost(&plain, directory.path(), &disk, survivors, &pushed).await?;
            ensure!(lost.is_empty(), "{survivors:?} after line {}: {lost:?} of {} are lost", step.line, pushed.len());
            tried += 1;
        }
    }
    ensure!(tried == MOMENTS, "the power failed {tried} times");
    disk.check(&data).context("the replay is wrong")?;
    let all: Vec<u64> = answers.iter().map(|(_, number)| *number).collect();
    let lost = lost(&plain, directory.path(), &forgetful, Survivors::None, &all).await?;
    ensure!(lost.len() == all.len(), "a disk that syncs nothing has lost {} of {} only", lost.len(), all.len());
    report::note(&format!("power failed {MOMENTS} times during {} pushes", all.len()));
    Ok(())
}
