//! The command line against an agent in this process.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use clap::Parser;
use expect_test::expect;
use shoal_proto::Digest;

use super::{
    image::find,
    out::Out,
    pull::{PullArgs, run as run_pull},
    reference::ImageName,
    tar::Archive,
};
use crate::{
    admin::Image,
    handle::LoopStatus,
    http::tests::Bench,
    status::{Addresses, Status, StoreStatus},
    testing::{content, lock},
};

/// Collects what is written.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(lock(&self.0).clone()).unwrap()
    }
}

fn out() -> (Out, Sink, Sink) {
    let (data, errors) = (Sink::default(), Sink::default());
    (Out::to(Box::new(data.clone()), Box::new(errors.clone())), data, errors)
}

#[derive(Debug, Parser)]
struct Pull {
    #[command(flatten)]
    args: PullArgs,
}

async fn pull(bench: &Bench, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let address = bench.address.to_string();
    let all = ["pull", "--quiet", "--agent", &address].into_iter().chain(arguments.iter().copied());
    let (mut out, data, errors) = out();
    run_pull(&Pull::try_parse_from(all)?.args, &mut out).await?;
    Ok((data.text(), errors.text()))
}

#[test]
fn image_names_are_read_as_people_write_them() {
    let digest = Digest::of(b"x");
    for (text, expected) in [
        ("app", "app:latest"),
        ("org/app:v1", "org/app:v1"),
        ("ghcr.io/org/app", "ghcr.io/org/app:latest"),
        ("127.0.0.1:5050/org/app:v1", "org/app:v1"),
        ("localhost:5050/app", "app:latest"),
        (&format!("app@{digest}"), &format!("app@{digest}")),
        (&format!("app:v1@{digest}"), &format!("app@{digest}")),
    ] {
        assert_eq!(text.parse::<ImageName>().unwrap().to_string(), expected, "{text}");
    }
    for bad in ["", "App", "app:", "app@sha256:1", "registry:5000/app", "app:v1:v2"] {
        assert!(bad.parse::<ImageName>().is_err(), "{bad}");
    }
}

#[test]
fn an_archive_is_read_by_tar() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let mut archive = Archive::new(std::fs::File::create(&path).unwrap());
    for (name, len) in [("empty", 0), ("short", 5), ("block", 512), ("long", 100_000)] {
        archive.file(name, len as u64).unwrap();
        for part in content(1, len).chunks(777) {
            archive.data(part).unwrap();
        }
    }
    drop(archive.finish().unwrap());
    let listed = std::process::Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(dir.path()).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    for (name, len) in [("empty", 0), ("short", 5), ("block", 512), ("long", 100_000)] {
        assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), content(1, len), "{name}");
    }
}

#[test]
fn a_file_in_an_archive_has_the_bytes_that_were_promised() {
    let mut archive = Archive::new(Vec::new());
    archive.file("a", 3).unwrap();
    assert!(archive.data(b"four").is_err());
}

#[tokio::test]
async fn a_pull_says_what_came() {
    let bench = Bench::start(10_000).await;
    let layers = [content(1, 3 << 20), content(2, 100), content(2, 100), Bytes::new()];
    let image = bench.stage.seeder.push("org/app", "v1", &layers);
    let (text, _) = pull(&bench, &["org/app:v1"]).await.unwrap();
    assert!(text.starts_with(&format!("org/app:v1  {image}  3.00 MiB")), "{text}");
    let (json, _) = pull(&bench, &["--json", "org/app:v1"]).await.unwrap();
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["bytes"], (3 << 20) + 100 + 2);
    assert_eq!((&report["blobs"], &report["digest"]), (&4.into(), &image.to_string().into()));
}

#[tokio::test]
async fn an_exported_layout_holds_every_blob_under_its_digest() {
    let bench = Bench::start(10_000).await;
    let layers = [content(1, 2 << 20), content(2, 100), Bytes::new()];
    let image = bench.stage.seeder.push("app", "v1", &layers);
    let dir = tempfile::tempdir().unwrap();
    pull(&bench, &["app:v1", "-o", &format!("oci:{}", dir.path().display())]).await.unwrap();
    let mut found = 0;
    for file in std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap() {
        let file = file.unwrap();
        let data = std::fs::read(file.path()).unwrap();
        assert_eq!(Digest::of(&data).hex(), file.file_name().to_str().unwrap());
        found += 1;
    }
    assert_eq!(found, layers.len() + 2);
    let index = std::fs::read_to_string(dir.path().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["manifests"][0]["digest"], image.to_string());
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "v1");
}

#[tokio::test]
async fn an_exported_archive_names_config_layers_and_tag() {
    let bench = Bench::start(10_000).await;
    let layers = [content(1, 2 << 20), content(2, 100)];
    bench.stage.seeder.push("app", "v1", &layers);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    pull(&bench, &["app:v1", "-o", &format!("docker-archive:{}", path.display())]).await.unwrap();
    let tar = std::process::Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(dir.path()).status().unwrap();
    assert!(tar.success());
    let manifest = std::fs::read_to_string(dir.path().join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest[0]["RepoTags"][0], "app:v1");
    for (layer, name) in layers.iter().zip(manifest[0]["Layers"].as_array().unwrap()) {
        assert_eq!(std::fs::read(dir.path().join(name.as_str().unwrap())).unwrap(), *layer);
    }
    assert!(!dir.path().join("image.tar.part").exists());
}

#[tokio::test]
async fn a_pull_that_cannot_be_says_why() {
    let bench = Bench::start(0).await;
    let error = pull(&bench, &["none:v1"]).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("cannot pull none:v1") && text.contains("MANIFEST_UNKNOWN"), "{text}");
    let nobody = ["pull", "--agent", "127.0.0.1:1", "app"];
    let (mut out, ..) = out();
    let error = run_pull(&Pull::try_parse_from(nobody).unwrap().args, &mut out).await.unwrap_err();
    assert!(format!("{error:#}").contains("no agent at 127.0.0.1:1; start one"), "{error:#}");
}

#[test]
fn images_are_listed_and_found() {
    let image = |repository: &str, tags: &[&str], seed: u8| Image {
        repository: repository.into(),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        digest: Digest::of(&[seed]),
        media_type: "m".into(),
        size: 5 << 20,
        complete: seed != 2,
        pinned: seed == 1,
        pulled_at: 0,
    };
    let images = [image("app", &["latest", "v1"], 1), image("org/other", &[], 2)];
    let (mut out, data, _) = out();
    super::image::show(&images, &mut out);
    expect![[r#"
        REPOSITORY  TAGS       DIGEST               SIZE      STATE    PINNED
        app         latest,v1  sha256:4bf5122f3445  5.00 MiB  whole    pinned
        org/other   -          sha256:dbc1b4c900ff  5.00 MiB  partial
    "#]]
    .assert_eq(&data.text());
    assert_eq!(find(&images, "app").unwrap(), images[0].digest);
    assert_eq!(find(&images, &images[1].digest.to_string()).unwrap(), images[1].digest);
    assert_eq!(find(&images, &format!("org/other@{}", images[1].digest)).unwrap(), images[1].digest);
    for missing in ["app:v2", "none", &Digest::of(b"9").to_string()] {
        assert!(find(&images, missing).is_err(), "{missing}");
    }
}

#[test]
fn the_status_is_readable() {
    let any = "127.0.0.1:1".parse().unwrap();
    let status = Status {
        version: "0.1.0".into(),
        seeder: "http://seeder:5000".into(),
        addresses: Addresses { registry: any, status: any, libp2p: any, peer: any },
        store: StoreStatus { bytes: 1 << 30, quota_bytes: 50 << 30, blobs: 3, complete: 2, evicted: 0 },
        swarm: LoopStatus { node: "ab".repeat(32), bytes_from_peers: 5 << 20, ..LoopStatus::default() },
    };
    let (mut out, data, _) = out();
    super::status::show(&status, &mut out);
    expect![[r#"
        node      abababababababababababababababababababababababababababababababab
        version   0.1.0
        seeder    http://seeder:5000
        registry  127.0.0.1:1
        libp2p    127.0.0.1:1   peers 127.0.0.1:1   status 127.0.0.1:1
        store     1.00 GiB of 50.00 GiB, 2 of 3 blobs whole, 0 evicted
        moved     5.00 MiB from peers, 0 B from the seeder, 0 B to peers, 0 bad pieces
        swarm     0 peers, 0 nodes in the DHT, 0 readers
    "#]]
    .assert_eq(&data.text());
}
