//! A store that the first format's seeder wrote is read by this one.
//!
//! `tests/it/data/store-format-1` is that store. Nobody writes it again: it is what lies on the disks of those who upgrade. Its
//! keys are known to everybody and protect nothing.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    clone,
    cluster::{Binaries, Daemon, scratch},
    image::{Blob, Image},
    pull, push,
};

const REPOSITORY: &str = "team/app";
const STORE: &str = "tests/it/data/store-format-1";
/// Seeds of the images in it, which are its tags as well.
const IMAGES: [u64; 3] = [1, 2, 3];

/// A layer in the database, and one in a file.
fn image(seed: u64) -> Image {
    Image::synthetic(seed, &[2000, 70_000])
}

/// A blob that no manifest names.
fn loose() -> Blob {
    Blob::seeded(4, 500)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_the_first_format_is_read_and_written_on() -> Result<()> {
    let directory = scratch()?;
    copy(&clone::root()?.join(STORE), &directory.path().join("seeder/data"))?;
    let mut seeder = Daemon::seeder(&Binaries::find()?, directory.path(), &[]).await?;
    let client = seeder.client();
    for seed in IMAGES {
        let report = pull::image(&client, REPOSITORY, &format!("v{seed}"), &pull::Options::default()).await?;
        ensure!(report.manifest == image(seed).manifest.digest, "v{seed} is another image: {report:?}");
    }
    let body = client.get(&format!("/v2/{REPOSITORY}/blobs/{}", loose().digest)).await?.body;
    ensure!(body == loose().bytes()?, "the blob has other bytes");
    let tags = client.get(&format!("/v2/{REPOSITORY}/tags/list")).await?.text();
    ensure!(IMAGES.iter().all(|seed| tags.contains(&format!("\"v{seed}\""))), "{tags}");
    push::image(&client, REPOSITORY, "v9", &image(9)).await?;
    seeder.stop().await?;
    seeder.launch().await?;
    pull::image(&seeder.client(), REPOSITORY, "v9", &pull::Options::default()).await?;
    seeder.stop().await.map(drop)
}
