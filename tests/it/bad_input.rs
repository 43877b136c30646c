//! What is wrong is refused with one clear answer, and nothing else happens.

use std::{ffi::OsString, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use hyper::{Method, StatusCode};
use shoal_tests::{
    cluster::{self, Binaries, Cluster},
    http::{self, Client},
    image::{Blob, Image, media},
    process, pull, push, raw,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/bad-input";
/// How long a process that cannot start may take to say so.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(30);
/// Largest manifest that is taken, in bytes.
const MANIFEST_LEN_MAX: usize = 4 << 20;

/// Method, path, status, code.
type Case<'a> = (Method, &'a str, u16, &'a [&'a str]);

#[tokio::test]
async fn unknown_and_malformed_names_get_the_error_of_the_specification() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    push::image(&cluster.seeder.client(), REPOSITORY, "1", &Image::synthetic(71, &[1000])).await?;
    let absent = format!("/v2/{REPOSITORY}/blobs/sha256:{}", "0".repeat(64));
    let absent_manifest = format!("/v2/{REPOSITORY}/manifests/sha256:{}", "0".repeat(64));
    let cases: [Case<'_>; 8] = [
        (Method::GET, "/v2/it/nothing/manifests/1", 404, &["NAME_UNKNOWN", "MANIFEST_UNKNOWN"]),
        (Method::GET, "/v2/it/bad-input/manifests/2", 404, &["MANIFEST_UNKNOWN"]),
        (Method::GET, &absent_manifest, 404, &["MANIFEST_UNKNOWN"]),
        (Method::GET, &absent, 404, &["BLOB_UNKNOWN"]),
        (Method::GET, "/v2/UPPER/manifests/1", 400, &["NAME_INVALID"]),
        (Method::GET, "/v2/it/bad-input/blobs/sha256:abc", 400, &["DIGEST_INVALID"]),
        (Method::GET, "/v2/it/bad-input/manifests/:::", 400, &["MANIFEST_INVALID", "TAG_INVALID", "DIGEST_INVALID"]),
        (Method::GET, "/v2/../../etc/passwd", 404, &["UNSUPPORTED", "NAME_INVALID", ""]),
    ];
    for (what, client) in [("seeder", cluster.seeder.client()), ("agent", cluster.agents[0].client())] {
        for (method, path, status, codes) in &cases {
            let reply = client.fetch(method.clone(), path, &[]).await?;
            let said = format!("{what}: {method} {path}: {} {}", reply.status, reply.text());
            ensure!(reply.status.as_u16() == *status, "{said}");
            ensure!(codes.contains(&reply.error_code().as_str()), "{said}");
            // A HEAD has the same status and no body.
            let head = client.fetch(Method::HEAD, path, &[]).await?;
            ensure!(head.status == reply.status && head.body.is_empty(), "{said}, but HEAD: {}", head.status);
        }
    }
    let reply =
        cluster.agents[0].client().fetch(Method::POST, &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[]).await?;
    ensure!(reply.status == StatusCode::METHOD_NOT_ALLOWED, "an agent takes no pushes: {}", reply.status);
    cluster.finish().await
}

#[tokio::test]
async fn a_wrong_digest_on_upload_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let client = cluster.seeder.client();
    let (sent, claimed) = (Blob::seeded(72, 300_000), Blob::seeded(73, 300_000));
    let session = push::begin(&client, REPOSITORY).await?;
    let reply = push::finish(&client, &session, &claimed, push::body_of(&sent)?, Some(sent.size)).await?;
    ensure!(reply.status == StatusCode::BAD_REQUEST, "{} {}", reply.status, reply.text());
    ensure!(reply.error_code() == "DIGEST_INVALID", "{}", reply.text());
    for blob in [&sent, &claimed] {
        let reply = client.fetch(Method::HEAD, &format!("/v2/{REPOSITORY}/blobs/{}", blob.digest), &[]).await?;
        ensure!(reply.status == StatusCode::NOT_FOUND, "{} was kept: {}", blob.digest, reply.status);
    }
    cluster.finish().await
}

#[tokio::test]
async fn manifests_are_bounded_and_checked() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let client = cluster.seeder.client();
    let cases = [
        ("too long", vec![b' '; MANIFEST_LEN_MAX + 1], 413, ""),
        ("no JSON", b"{".to_vec(), 400, "MANIFEST_INVALID"),
        ("names a blob that is not there", Image::synthetic(74, &[10]).manifest.bytes()?, 404, "MANIFEST_BLOB_UNKNOWN"),
    ];
    for (what, body, status, code) in cases {
        let headers = [("content-type", media::MANIFEST)];
        let target = format!("/v2/{REPOSITORY}/manifests/bad");
        let reply = http::collect(client.send(Method::PUT, &target, &headers, http::full(body)).await?).await?;
        ensure!(reply.status.as_u16() == status, "{what}: {} {}", reply.status, reply.text());
        ensure!(code.is_empty() || reply.error_code() == code, "{what}: {}", reply.text());
    }
    let reply = client.fetch(Method::GET, &format!("/v2/{REPOSITORY}/manifests/bad"), &[]).await?;
    ensure!(reply.status == StatusCode::NOT_FOUND, "something was kept: {}", reply.status);
    cluster.finish().await
}

#[tokio::test]
async fn ranges_are_answered_as_rfc_9110_says() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let image = Image::synthetic(75, &[2 * MIB]);
    push::image(&cluster.seeder.client(), REPOSITORY, "range", &image).await?;
    pull::image(&cluster.agents[0].client(), REPOSITORY, "range", &pull::Options::default()).await?;
    let blob = &image.layers[0].blob;
    let bytes = blob.bytes()?;
    let target = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
    let end = bytes.len();
    // A Range that cannot be read is ignored (14.2); one that no byte fits is 416 (15.5.17). One that ends before it starts
    // might be ignored as well; the OCI suite expects 416.
    let cases: [(&str, u16, std::ops::Range<usize>); 8] = [
        ("bytes=0-0", 206, 0..1),
        ("bytes=5-1048577", 206, 5..1_048_578),
        ("bytes=2097150-", 206, end - 2..end),
        ("bytes=-7", 206, end - 7..end),
        ("bytes=10-99999999", 206, 10..end),
        ("bytes=9-2", 416, 0..0),
        ("pieces=1-2", 200, 0..end),
        ("bytes=2097152-", 416, 0..0),
    ];
    for (what, client) in [("seeder", cluster.seeder.client()), ("agent", cluster.agents[0].client())] {
        for (range, status, part) in &cases {
            let reply = client.fetch(Method::GET, &target, &[("range", range)]).await?;
            ensure!(reply.status.as_u16() == *status, "{what}: {range}: {}", reply.status);
            match status {
                206 => {
                    let expected = format!("bytes {}-{}/{end}", part.start, part.end - 1);
                    ensure!(reply.header("content-range") == expected, "{what}: {range}: {:?}", reply.headers);
                    ensure!(reply.body[..] == bytes[part.clone()], "{what}: {range}: other bytes");
                }
                416 => {
                    ensure!(reply.header("content-range") == format!("bytes */{end}"), "{what}: {:?}", reply.headers)
                }
                _ => ensure!(reply.body[..] == bytes[..], "{what}: {range}: other bytes"),
            }
        }
    }
    cluster.finish().await
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let agent = &cluster.agents[0];
    let garbage = Blob::seeded(76, 64 << 10).bytes()?;
    let ports = [agent.addresses().libp2p, agent.addresses().peer, Some(agent.addresses().registry)];
    for port in ports.into_iter().map(|port| port.context("an agent has three ports")) {
        raw::exchange(port?, &garbage).await?;
    }
    raw::exchange(cluster.seeder.addresses().registry, &garbage).await?;
    // A frame that claims to be huge, and a request line without end.
    raw::exchange(agent.addresses().peer.context("peer port")?, &[0xff; 5]).await?;
    let endless = vec![b'A'; 1 << 20];
    raw::exchange(agent.addresses().registry, &endless).await?;
    for client in [agent.client(), cluster.seeder.client()] {
        client.get("/v2/").await?;
    }
    cluster.finish().await
}

/// Runs a binary that must refuse to start, and gives its standard error.
async fn refused(program: &Path, arguments: &[String], code: i32) -> Result<String> {
    let none: [(&str, OsString); 0] = [];
    let program_text = program.display().to_string();
    let output = process::run(&program_text, arguments, &none, REFUSAL_TIME_MAX).await?;
    let what = format!("{} {}", program.display(), arguments.join(" "));
    ensure!(output.code == Some(code), "{what}: ended with {:?}: {}", output.code, output.stderr);
    ensure!(!output.stderr.contains("panicked"), "{what}: {}", output.stderr);
    Ok(output.stderr)
}

#[tokio::test]
async fn a_wrong_command_line_or_config_ends_with_status_64_and_says_what_is_wrong() -> Result<()> {
    let binaries = Binaries::find()?;
    let directory = cluster::scratch()?;
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "insecure_open = true\nno_such_key = 1\n")?;
    let config = config.display().to_string();
    let data = directory.path().join("data").display().to_string();
    let cases: [(&Path, &[&str], &str); 7] = [
        (&binaries.seeder, &["serve", "--config", &config], "no_such_key"),
        (&binaries.agent, &["agent", "--config", &config], "no_such_key"),
        (&binaries.seeder, &["serve", "--insecure-open", "--data-dir", &data, "--listen", "nonsense"], "nonsense"),
        (&binaries.agent, &["agent", "--insecure-open", "--data-dir", &data, "--seeder", "nonsense"], "nonsense"),
        (&binaries.agent, &["agent", "--insecure-open", "--data-dir", &data], "--seeder"),
        (&binaries.seeder, &["serve", "--no-such-flag"], "--no-such-flag"),
        (&binaries.agent, &["no-such-command"], "no-such-command"),
    ];
    for (program, arguments, names) in cases {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let said = refused(program, &arguments, 64).await?;
        ensure!(said.contains(names), "{arguments:?}: {said:?} does not say {names:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_taken_port_or_data_directory_ends_with_status_1() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let binaries = Binaries::find()?;
    let elsewhere = cluster.path().join("elsewhere").display().to_string();
    let blocked = cluster.path().join("blocked");
    std::fs::write(&blocked, "a file, not a directory")?;
    for (program, daemon) in [(&binaries.seeder, &cluster.seeder), (&binaries.agent, &cluster.agents[0])] {
        let arguments = daemon.arguments();
        let with = |flag: &str, value: &str| {
            let mut arguments = arguments.clone();
            let at = arguments.iter().position(|argument| argument == flag).expect("the flag is there");
            value.clone_into(&mut arguments[at + 1]);
            arguments
        };
        // Same ports, other data.
        let said = refused(program, &with("--data-dir", &elsewhere), 1).await?;
        let port = daemon.addresses().registry.to_string();
        ensure!(said.contains(&port), "{said:?} does not name {port}");
        // Same data, other ports.
        let mut arguments = with("--listen", "127.0.0.1:0");
        for flag in ["--status", "--libp2p-listen", "--peer-listen"] {
            if let Some(at) = arguments.iter().position(|argument| argument == flag) {
                "127.0.0.1:0".clone_into(&mut arguments[at + 1]);
            }
        }
        let said = refused(program, &arguments, 1).await?;
        let data = daemon.data_dir().display().to_string();
        ensure!(said.contains(&data), "{said:?} does not name {data}");
        // Data where no directory can be.
        let at = arguments.iter().position(|argument| argument == "--data-dir").context("--data-dir")?;
        arguments[at + 1] = blocked.display().to_string();
        let said = refused(program, &arguments, 1).await?;
        ensure!(said.contains("blocked"), "{said:?} does not name the directory");
    }
    // The two that were there first are unharmed.
    Client::new(cluster.seeder.addresses().status.to_string()).get("/readyz").await?;
    Client::new(cluster.agents[0].addresses().status.to_string()).get("/readyz").await?;
    cluster.finish().await
}
