//! Pushing blobs.

use bytes::Bytes;
use http::{Method, StatusCode};
use shoal_proto::{Digest, digest::Algorithm};

use super::client::{TestSeeder, noise};

const SIZES: [usize; 7] = [0, 1, 64 << 10, (64 << 10) + 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 17];

#[tokio::test]
async fn every_way_of_pushing_gives_the_same_blob() {
    let seeder = TestSeeder::start().await;
    for size in SIZES {
        for way in 0..4 {
            let content = noise(size, u8::try_from(way).unwrap());
            let digest = Digest::of(&content);
            let repository = format!("r{way}/x");
            let got = match way {
                0 => {
                    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
                    seeder.ask(Method::POST, &path).body(content.clone()).send().await
                }
                1 => {
                    let session = seeder.session(&repository).await;
                    seeder.ask(Method::PUT, &format!("{session}?digest={digest}")).body(content.clone()).send().await
                }
                2 => {
                    let session = seeder.session(&repository).await;
                    let parts = content.chunks(100_000).map(Bytes::copy_from_slice).collect();
                    let got = seeder.ask(Method::PATCH, &session).streamed(parts).send().await;
                    assert_eq!(got.status, StatusCode::ACCEPTED);
                    assert_eq!(got.header("range"), format!("0-{}", size.saturating_sub(1)));
                    seeder.ask(Method::PUT, &format!("{}?digest={digest}", got.header("location"))).send().await
                }
                _ => {
                    let mut session = seeder.session(&repository).await;
                    let half = size / 2;
                    for (at, part) in [(0, content.slice(..half)), (half, content.slice(half..))] {
                        if part.is_empty() {
                            continue;
                        }
                        let range = format!("{at}-{}", at + part.len() - 1);
                        let got =
                            seeder.ask(Method::PATCH, &session).header("content-range", &range).body(part).send().await;
                        assert_eq!(got.status, StatusCode::ACCEPTED, "{range} {:?}", got.body);
                        got.header("location").clone_into(&mut session);
                    }
                    seeder.ask(Method::PUT, &format!("{session}?digest={digest}")).send().await
                }
            };
            assert_eq!(got.status, StatusCode::CREATED, "size {size} way {way}: {:?}", got.body);
            assert_eq!(got.header("docker-content-digest"), digest.to_string());
            let read = seeder.get(got.header("location")).await;
            assert_eq!(read.status, StatusCode::OK);
            assert!(read.body == content, "size {size} way {way}");
        }
    }
}

#[tokio::test]
async fn a_sha512_digest_is_taken_with_and_without_a_hint() {
    let seeder = TestSeeder::start().await;
    for (hint, size) in [("", 10), ("", 200_000), ("?digest-algorithm=sha512", 200_001)] {
        let content = noise(size, 1);
        let digest = Digest::of_with(Algorithm::Sha512, &content);
        let begun = seeder.ask(Method::POST, &format!("/v2/a/blobs/uploads/{hint}")).send().await;
        let path = format!("{}?digest={digest}", begun.header("location"));
        let got = seeder.ask(Method::PUT, &path).body(content.clone()).send().await;
        assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
        assert!(seeder.get(&format!("/v2/a/blobs/{digest}")).await.body == content);
    }
}

#[tokio::test]
async fn of_a_wrong_digest_nothing_is_kept() {
    let seeder = TestSeeder::start().await;
    for size in [10, 300_000] {
        let content = noise(size, 2);
        let wrong = Digest::of(b"something else");
        let session = seeder.session("a").await;
        let got = seeder.ask(Method::PUT, &format!("{session}?digest={wrong}")).body(content.clone()).send().await;
        assert_eq!((got.status, got.code().as_str()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
        assert_eq!(seeder.get(&session).await.code(), "BLOB_UPLOAD_UNKNOWN");
        for digest in [wrong, Digest::of(&content)] {
            assert_eq!(seeder.get(&format!("/v2/a/blobs/{digest}")).await.code(), "BLOB_UNKNOWN");
        }
        let path = format!("/v2/a/blobs/uploads/?digest={wrong}");
        assert_eq!(seeder.ask(Method::POST, &path).body(content).send().await.code(), "DIGEST_INVALID");
    }
    let left = std::fs::read_dir(seeder.config.data_dir.join("uploads")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_chunk_at_a_stale_offset_gets_416_and_the_upload_goes_on() {
    let seeder = TestSeeder::start().await;
    let content = noise(300_000, 3);
    let session = seeder.session("a").await;
    let first = content.slice(..200_000);
    let patch =
        |range: &str, part: Bytes| seeder.ask(Method::PATCH, &session).header("content-range", range).body(part);
    assert_eq!(patch("0-199999", first.clone()).send().await.status, StatusCode::ACCEPTED);
    for (range, part) in [("0-199999", first.clone()), ("200001-299999", content.slice(200_001..))] {
        let got = patch(range, part).send().await;
        assert_eq!(got.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!((got.header("range"), got.header("location")), ("0-199999", session.as_str()));
    }
    let got = seeder.get(&session).await;
    assert_eq!((got.status, got.header("range")), (StatusCode::NO_CONTENT, "0-199999"));
    for (range, code) in [("bytes 200000-299999/300000", "BLOB_UPLOAD_INVALID"), ("200000-200001", "SIZE_INVALID")] {
        let got = patch(range, content.slice(200_000..)).send().await;
        assert_eq!((got.status, got.code().as_str()), (StatusCode::BAD_REQUEST, code));
    }
    let path = format!("{session}?digest={}", Digest::of(&content));
    let last = seeder.ask(Method::PUT, &path).header("content-range", "200000-299999").body(content.slice(200_000..));
    assert_eq!(last.send().await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn bad_uploads_are_refused_in_oci_words() {
    let seeder = TestSeeder::start().await;
    let session = seeder.session("a").await;
    let other = session.replace("/v2/a/", "/v2/b/");
    let cases = [
        (Method::PUT, session.clone(), "DIGEST_INVALID"),
        (Method::PUT, format!("{session}?digest=md5:abc"), "DIGEST_INVALID"),
        (Method::PATCH, "/v2/a/blobs/uploads/none".to_owned(), "BLOB_UPLOAD_UNKNOWN"),
        (Method::PATCH, "/v2/a/blobs/uploads/../../x".to_owned(), "UNSUPPORTED"),
        (Method::PATCH, other.clone(), "BLOB_UPLOAD_UNKNOWN"),
        (Method::PUT, format!("{other}?digest={}", Digest::of(b"")), "BLOB_UPLOAD_UNKNOWN"),
        (Method::GET, other.clone(), "BLOB_UPLOAD_UNKNOWN"),
        (Method::DELETE, other, "BLOB_UPLOAD_UNKNOWN"),
        (Method::POST, "/v2/a/blobs/uploads/?digest=x".to_owned(), "DIGEST_INVALID"),
        (Method::POST, "/v2/a/blobs/uploads/?digest-algorithm=md5".to_owned(), "DIGEST_INVALID"),
        (Method::POST, "/v2/A/blobs/uploads/".to_owned(), "NAME_INVALID"),
        (Method::GET, "/v2/a/blobs/uploads/".to_owned(), "UNSUPPORTED"),
    ];
    for (method, path, code) in cases {
        let got = seeder.ask(method.clone(), &path).send().await;
        assert_eq!(got.code(), code, "{method} {path}: {:?}", got.body);
        assert!(got.status.is_client_error());
    }
    assert_eq!(seeder.ask(Method::DELETE, &session).send().await.status, StatusCode::NO_CONTENT);
    assert_eq!(seeder.get(&session).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_mount_needs_a_source_that_has_the_blob() {
    let seeder = TestSeeder::start().await;
    let digest = seeder.push("from", noise(100_000, 4)).await;
    let blob = format!("/v2/to/blobs/{digest}");
    for query in [format!("mount={digest}"), format!("mount={digest}&from=other"), format!("mount={digest}&from=..")] {
        let got = seeder.ask(Method::POST, &format!("/v2/to/blobs/uploads/?{query}")).send().await;
        assert_eq!(got.status, StatusCode::ACCEPTED, "falls back to an upload");
        assert!(got.header("location").starts_with("/v2/to/blobs/uploads/"));
        assert_eq!(seeder.get(&blob).await.status, StatusCode::NOT_FOUND, "a blob of another repository is not found");
    }
    let got = seeder.ask(Method::POST, &format!("/v2/to/blobs/uploads/?mount={digest}&from=from")).send().await;
    assert_eq!((got.status, got.header("location")), (StatusCode::CREATED, blob.as_str()));
    assert_eq!(seeder.get(&blob).await.body.len(), 100_000);
    assert_eq!(seeder.ask(Method::DELETE, &blob).send().await.status, StatusCode::ACCEPTED);
    assert_eq!(seeder.get(&blob).await.status, StatusCode::NOT_FOUND);
    assert_eq!(seeder.get(&format!("/v2/from/blobs/{digest}")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart() {
    let mut seeder = TestSeeder::start().await;
    let content = noise(500_000, 5);
    let session = seeder.session("a").await;
    let got = seeder.ask(Method::PATCH, &session).body(content.slice(..400_000)).send().await;
    assert_eq!(got.status, StatusCode::ACCEPTED);
    seeder = seeder.restart().await;
    assert_eq!(seeder.get(&session).await.header("range"), "0-399999");
    let path = format!("{session}?digest={}", Digest::of(&content));
    let got = seeder.ask(Method::PUT, &path).body(content.slice(400_000..)).send().await;
    assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
    seeder = seeder.restart().await;
    assert!(seeder.get(got.header("location")).await.body == content, "the blob survives as well");
}

#[tokio::test]
async fn what_a_crash_leaves_is_removed_at_the_next_start() {
    let mut seeder = TestSeeder::start_with(|config| config.limits.upload_idle_s = 0).await;
    let session = seeder.session("a").await;
    seeder.ask(Method::PATCH, &session).body(noise(100_000, 6)).send().await;
    let uploads = seeder.config.data_dir.join("uploads");
    std::fs::write(uploads.join("stray"), b"left").unwrap();
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 2);
    seeder = seeder.restart().await;
    assert_eq!(std::fs::read_dir(&uploads).unwrap().count(), 0, "the stray file, and the session that is too old");
    assert_eq!(seeder.get(&session).await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_full_disk_refuses_pushes_and_serves_what_is_there() {
    let mut seeder = TestSeeder::start().await;
    let digest = seeder.push("a", noise(100_000, 7)).await;
    seeder.running.shutdown().await;
    seeder.config.limits.free_bytes = u64::MAX;
    seeder.running = crate::Seeder::start(seeder.config.clone()).await.unwrap();
    let got = seeder.ask(Method::POST, "/v2/a/blobs/uploads/").send().await;
    assert_eq!((got.status, got.code().as_str()), (StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN"));
    assert_eq!(seeder.get(&format!("/v2/a/blobs/{digest}")).await.body.len(), 100_000);
}

#[tokio::test]
async fn many_pushes_of_the_same_blob_at_once_all_succeed() {
    let seeder = TestSeeder::start().await;
    let content = noise(2_000_000, 8);
    let repositories: Vec<_> = (0..8).map(|n| format!("r{}", n % 4)).collect();
    let digests = futures::future::join_all(repositories.iter().map(|name| seeder.push(name, content.clone()))).await;
    for (name, digest) in repositories.iter().zip(digests) {
        assert!(seeder.get(&format!("/v2/{name}/blobs/{digest}")).await.body == content);
    }
    assert_eq!(std::fs::read_dir(seeder.config.data_dir.join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn of_two_requests_that_add_to_one_upload_one_is_refused() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let seeder = TestSeeder::start().await;
    let session = seeder.session("a").await;
    let mut slow = tokio::net::TcpStream::connect(seeder.running.registry_addr).await.unwrap();
    let head = format!("PATCH {session} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    slow.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100"), "the first request has its claim");
    let got = seeder.ask(Method::PATCH, &session).body("more").send().await;
    assert_eq!((got.status, got.code().as_str()), (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"));
    slow.write_all(b"0123456789").await.unwrap();
    let mut answer = vec![0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 202");
    assert_eq!(seeder.get(&session).await.header("range"), "0-9");
}
