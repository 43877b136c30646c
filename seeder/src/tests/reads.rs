//! Reading blobs, manifests and lists; pushing manifests.

use http::{Method, StatusCode};
use shoal_proto::{Digest, digest::Algorithm};

use super::client::{INDEX, OCI, TestSeeder, image, noise};
use crate::metrics::Payload;

#[tokio::test]
async fn the_root_says_what_this_is() {
    let seeder = TestSeeder::start().await;
    for path in ["/v2/", "/v2"] {
        let got = seeder.get(path).await;
        assert_eq!((got.status, got.header("docker-distribution-api-version")), (StatusCode::OK, "registry/2.0"));
    }
    assert_eq!(seeder.get("/v2/_oci/ext/discover").await.json()["extensions"][0]["name"], "_shoal");
    for (path, status) in [("/", 404), ("/v1/x", 404), ("/v2/a", 404), ("/v2/_catalog/x/y", 404)] {
        assert_eq!(seeder.get(path).await.status.as_u16(), status, "{path}");
    }
    let got = seeder.ask(Method::POST, "/v2/").send().await;
    assert_eq!((got.status, got.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
}

#[tokio::test]
async fn blobs_are_read_whole_and_in_ranges() {
    let seeder = TestSeeder::start().await;
    for size in [1000usize, 3 << 20] {
        let content = noise(size, 1);
        let digest = seeder.push("a", content.clone()).await;
        let path = format!("/v2/a/blobs/{digest}");
        let head = seeder.ask(Method::HEAD, &path).send().await;
        assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, size.to_string().as_str()));
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
        assert_eq!((head.header("accept-ranges"), head.body.len()), ("bytes", 0));
        let range = |range: &str| seeder.ask(Method::GET, &path).header("range", range);
        let got = range("bytes=100-899").send().await;
        assert_eq!(
            (got.status, got.header("content-range")),
            (StatusCode::PARTIAL_CONTENT, &*format!("bytes 100-899/{size}"))
        );
        assert!(got.body == content[100..900]);
        assert!(range("bytes=-10").send().await.body == content[size - 10..]);
        let got = range("bytes=500-").send().await;
        assert!(got.body == content[500..]);
        let got = range("bytes=0-9,20-29").send().await;
        assert!(got.header("content-type").starts_with("multipart/byteranges"));
        let got = range(&format!("bytes={size}-")).send().await;
        assert_eq!(
            (got.status, got.header("content-range")),
            (StatusCode::RANGE_NOT_SATISFIABLE, &*format!("bytes */{size}"))
        );
        let got = range("bytes=junk").send().await;
        assert_eq!((got.status, got.body.len()), (StatusCode::OK, size));
        let got = range("bytes=0-9").header("if-range", "\"other\"").send().await;
        assert_eq!((got.status, got.body.len()), (StatusCode::OK, size));
        let got = seeder.ask(Method::GET, &path).header("if-none-match", &format!("\"x\", \"{digest}\"")).send().await;
        assert_eq!((got.status, got.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
}

#[tokio::test]
async fn unknown_and_malformed_things_get_their_oci_codes() {
    let seeder = TestSeeder::start().await;
    seeder.push_image("a", "v1", &[noise(10, 1)]).await;
    let none = Digest::of(b"none");
    let cases = [
        (format!("/v2/a/blobs/{none}"), 404, "BLOB_UNKNOWN"),
        (format!("/v2/b/blobs/{}", Digest::of(&noise(10, 1))), 404, "BLOB_UNKNOWN"),
        ("/v2/a/blobs/sha256:xyz".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/v2".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("/v2/b/manifests/v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/a/manifests/{none}"), 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/..".to_owned(), 400, "MANIFEST_INVALID"),
        ("/v2/b/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/A/tags/list".to_owned(), 400, "NAME_INVALID"),
        ("/v2/a/tags/list?n=x".to_owned(), 400, "UNSUPPORTED"),
        ("/v2/a/referrers/sha256:1".to_owned(), 400, "DIGEST_INVALID"),
    ];
    for (path, status, code) in cases {
        let got = seeder.get(&path).await;
        assert_eq!((got.status.as_u16(), got.code().as_str()), (status, code), "{path}");
        assert_eq!(seeder.ask(Method::HEAD, &path).send().await.status.as_u16(), status, "HEAD {path}");
    }
}

#[tokio::test]
async fn a_manifest_comes_back_as_it_was_pushed() {
    let seeder = TestSeeder::start().await;
    let manifest = seeder.push_image("a", "v1", &[noise(10, 1), noise(10, 1), noise(0, 1)]).await;
    let digest = Digest::of(manifest.as_bytes());
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/a/manifests/{reference}");
        let got = seeder.ask(Method::GET, &path).header("accept", INDEX).send().await;
        assert_eq!((got.status, got.header("content-type")), (StatusCode::OK, OCI));
        assert_eq!(got.body, manifest);
        assert_eq!(got.header("docker-content-digest"), digest.to_string());
        let head = seeder.ask(Method::HEAD, &path).send().await;
        assert_eq!((head.header("content-length"), head.body.len()), (&*manifest.len().to_string(), 0));
        let got = seeder.ask(Method::HEAD, &path).header("if-none-match", &format!("\"{digest}\"")).send().await;
        assert_eq!(got.status, StatusCode::NOT_MODIFIED);
    }
    assert_eq!(seeder.running.metrics.payload_bytes(Payload::Manifest), 2 * manifest.len() as u64);
    let sha512 = Digest::of_with(Algorithm::Sha512, manifest.as_bytes());
    let got = seeder.put_manifest(&format!("/v2/a/manifests/{sha512}?tag=x&tag=y"), OCI, &manifest).await;
    assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
    assert_eq!(got.headers.get_all("oci-tag").iter().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(seeder.get("/v2/a/manifests/y").await.header("docker-content-digest"), sha512.to_string());
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{OCI}","digest":"{digest}","size":{}}}]}}"#,
        manifest.len()
    );
    assert_eq!(seeder.put_manifest("/v2/a/manifests/all", INDEX, &index).await.status, StatusCode::CREATED);
    assert_eq!(seeder.get("/v2/a/manifests/all").await.body, index);
}

#[tokio::test]
async fn bad_manifests_are_refused() {
    let seeder = TestSeeder::start().await;
    let config = noise(5, 1);
    seeder.push("a", config.clone()).await;
    let good = image(&config, &[], "");
    let huge = format!(r#"{{"x":"{}"}}"#, "a".repeat(4 << 20));
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":1}}]}}"#, Digest::of(b"none"));
    let wrong_digest = Digest::of(b"none").to_string();
    let cases = [
        ("v1", OCI, "no json".to_owned(), 400, "MANIFEST_INVALID"),
        ("v1", "text/plain", good.clone(), 400, "MANIFEST_INVALID"),
        ("v1", OCI, image(&config, &[], r#""manifests":[],"#), 400, "MANIFEST_INVALID"),
        ("v1", OCI, image(&config, &[], &format!(r#""mediaType":"{INDEX}","#)), 400, "MANIFEST_INVALID"),
        ("v1", OCI, image(&noise(6, 1), &[], ""), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("v1", OCI, image(&config, &[noise(7, 1)], ""), 404, "MANIFEST_BLOB_UNKNOWN"),
        ("v1", INDEX, index, 404, "MANIFEST_BLOB_UNKNOWN"),
        (&wrong_digest, OCI, good.clone(), 400, "DIGEST_INVALID"),
        ("v1", OCI, huge, 413, "SIZE_INVALID"),
    ];
    for (reference, content_type, manifest, status, code) in cases {
        let got = seeder.put_manifest(&format!("/v2/a/manifests/{reference}"), content_type, &manifest).await;
        let start: String = manifest.chars().take(100).collect();
        assert_eq!((got.status.as_u16(), got.code().as_str()), (status, code), "{start}");
    }
    assert_eq!(seeder.get("/v2/a/tags/list").await.json()["tags"], serde_json::json!([]));
    let big = image(&config, &[], &format!(r#""annotations":{{"x":"{}"}},"#, "a".repeat((4 << 20) - 1000)));
    assert_eq!(seeder.put_manifest("/v2/a/manifests/v1", OCI, &big).await.status, StatusCode::CREATED);
    assert!(seeder.get("/v2/a/manifests/v1").await.body == big);
}

#[tokio::test]
async fn foreign_layers_need_not_be_pushed() {
    let seeder = TestSeeder::start().await;
    let config = noise(5, 1);
    seeder.push("a", config.clone()).await;
    let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = image(&config, &[noise(9, 9)], "").replace("application/vnd.oci.image.layer.v1.tar+zstd", kind);
    let manifest = manifest.replace(r#""size":9"#, r#""size":9,"urls":["http://127.0.0.1:1/never"]"#);
    let got = seeder.put_manifest("/v2/a/manifests/v1", docker, &manifest).await;
    assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
    assert_eq!(seeder.get("/v2/a/manifests/v1").await.header("content-type"), docker);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let seeder = TestSeeder::start().await;
    let manifest = seeder.push_image("a", "t0", &[]).await;
    for n in 1..5 {
        seeder.put_manifest(&format!("/v2/a/manifests/t{n}"), OCI, &manifest).await;
    }
    seeder.push("b/c", noise(1, 1)).await;
    seeder.push("a-a", noise(1, 1)).await;
    let list = |got: super::client::Got, key: &str| {
        let names: Vec<String> = serde_json::from_value(got.json()[key].clone()).unwrap();
        (names.join(" "), got.header("link").to_owned())
    };
    let cases = [
        ("", "t0 t1 t2 t3 t4", ""),
        ("?n=2", "t0 t1", "</v2/a/tags/list?n=2&last=t1>; rel=\"next\""),
        ("?n=2&last=t1", "t2 t3", "</v2/a/tags/list?n=2&last=t3>; rel=\"next\""),
        ("?n=2&last=t3", "t4", ""),
        ("?last=t1", "t2 t3 t4", ""),
        ("?last=t11", "t2 t3 t4", ""),
        ("?n=0", "", ""),
        ("?n=99999999999999999999999", "t0 t1 t2 t3 t4", ""),
    ];
    for (query, names, link) in cases {
        let got = seeder.get(&format!("/v2/a/tags/list{query}")).await;
        assert_eq!(list(got, "tags"), (names.to_owned(), link.to_owned()), "{query}");
    }
    assert_eq!(list(seeder.get("/v2/_catalog").await, "repositories").0, "a a-a b/c");
    let page = list(seeder.get("/v2/_catalog?n=2&last=a").await, "repositories");
    assert_eq!(page, ("a-a b/c".to_owned(), String::new()));
    let page = list(seeder.get("/v2/_catalog?n=1&last=a-a").await, "repositories");
    assert_eq!(page, ("b/c".to_owned(), String::new()));
}

#[tokio::test]
async fn deleted_things_are_gone_from_their_repository_alone() {
    let seeder = TestSeeder::start().await;
    let manifest = seeder.push_image("a", "v1", &[noise(9, 9)]).await;
    seeder.put_manifest("/v2/a/manifests/v2", OCI, &manifest).await;
    seeder.push_image("b", "v1", &[noise(9, 9)]).await;
    let digest = Digest::of(manifest.as_bytes());
    let delete = |path: String| seeder.ask(Method::DELETE, &path).send();
    assert_eq!(delete("/v2/a/manifests/v1".to_owned()).await.status, StatusCode::ACCEPTED);
    assert_eq!(delete("/v2/a/manifests/v1".to_owned()).await.code(), "MANIFEST_UNKNOWN");
    assert_eq!(seeder.get("/v2/a/manifests/v2").await.status, StatusCode::OK);
    assert_eq!(delete(format!("/v2/a/manifests/{digest}")).await.status, StatusCode::ACCEPTED);
    assert_eq!(delete(format!("/v2/a/manifests/{digest}")).await.status, StatusCode::NOT_FOUND);
    assert_eq!(seeder.get("/v2/a/manifests/v2").await.code(), "MANIFEST_UNKNOWN");
    assert_eq!(seeder.get("/v2/a/tags/list").await.json()["tags"], serde_json::json!([]));
    assert_eq!(seeder.get(&format!("/v2/b/manifests/{digest}")).await.status, StatusCode::OK);
    assert_eq!(delete(format!("/v2/a/blobs/{digest}")).await.code(), "BLOB_UNKNOWN");
}

#[tokio::test]
async fn referrers_are_listed_with_their_kind() {
    let seeder = TestSeeder::start().await;
    let config = noise(5, 1);
    seeder.push("a", config.clone()).await;
    let subject = Digest::of(b"not pushed");
    let descriptor = format!(r#""subject":{{"mediaType":"{OCI}","digest":"{subject}","size":10}},"#);
    let path = format!("/v2/a/referrers/{subject}");
    let empty = seeder.get(&path).await;
    assert_eq!((empty.status, empty.header("content-type")), (StatusCode::OK, INDEX));
    assert_eq!(empty.json()["manifests"], serde_json::json!([]));
    let signature =
        image(&config, &[], &format!(r#""artifactType":"x/signature","annotations":{{"k":"v"}},{descriptor}"#));
    let plain = image(&config, &[], &descriptor);
    for manifest in [&signature, &plain] {
        let path = format!("/v2/a/manifests/{}", Digest::of(manifest.as_bytes()));
        let got = seeder.put_manifest(&path, OCI, manifest).await;
        assert_eq!((got.status, got.header("oci-subject")), (StatusCode::CREATED, &*subject.to_string()));
    }
    let all = seeder.get(&path).await.json();
    let mut kinds: Vec<_> =
        all["manifests"].as_array().unwrap().iter().map(|m| m["artifactType"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["application/vnd.oci.image.config.v1+json", "x/signature"]);
    let got = seeder.get(&format!("{path}?artifactType=x%2Fsignature")).await;
    assert_eq!(got.header("oci-filters-applied"), "artifactType");
    let expected = serde_json::json!([{
        "mediaType": OCI, "digest": Digest::of(signature.as_bytes()), "size": signature.len(),
        "artifactType": "x/signature", "annotations": {"k": "v"},
    }]);
    assert_eq!(got.json()["manifests"], expected);
    seeder.ask(Method::DELETE, &format!("/v2/a/manifests/{}", Digest::of(plain.as_bytes()))).send().await;
    assert_eq!(seeder.get(&path).await.json()["manifests"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn more_downloads_than_allowed_are_told_to_come_again() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let seeder = TestSeeder::start_with(|config| config.limits.transfers = 1).await;
    let digest = seeder.push("a", noise(16 << 20, 1)).await;
    let path = format!("/v2/a/blobs/{digest}");
    let mut slow = tokio::net::TcpStream::connect(seeder.running.registry_addr).await.unwrap();
    slow.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    slow.read_u8().await.unwrap();
    let got = seeder.get(&path).await;
    assert_eq!((got.status, got.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"));
    assert_eq!(got.header("retry-after"), "1");
    assert_eq!(seeder.ask(Method::HEAD, &path).send().await.status, StatusCode::OK);
    drop(slow);
    while seeder.get(&path).await.status != StatusCode::OK {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_status_port_tells_health_and_counts() {
    let seeder = TestSeeder::start().await;
    let digest = seeder.push("a", noise(1 << 20, 1)).await;
    seeder.get(&format!("/v2/a/blobs/{digest}")).await;
    seeder.ask(Method::GET, &format!("/v2/a/blobs/{digest}")).header("range", "bytes=0-9").send().await;
    assert_eq!(seeder.status_page("/healthz").await.body, "ok\n");
    assert_eq!(seeder.status_page("/readyz").await.status, StatusCode::OK);
    assert_eq!(seeder.status_page("/x").await.status, StatusCode::NOT_FOUND);
    let text = String::from_utf8(seeder.status_page("/metrics").await.body.to_vec()).unwrap();
    for line in [
        "shoal_seeder_payload_bytes_total{kind=\"blob\"} 1048586",
        "shoal_seeder_payload_bytes_total{kind=\"pieces\"} 0",
        "shoal_seeder_events_total{kind=\"blob_pushed\"} 1",
        "shoal_seeder_requests_total{route=\"blob\",method=\"GET\",status=\"206\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}
