//! Quotas, and upload sessions of users, as clients see them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, StatusCode};
use shoal_proto::Digest;

use super::client::{Got, OCI, TestSeeder, image, noise};
use crate::{admin, quota::Quota, users::Grants};

async fn with_quota(bytes: Option<u64>, tags: Option<u64>) -> TestSeeder {
    let quota = Quota { repositories: "team/**".parse().unwrap(), bytes, tags };
    TestSeeder::start_with(|config| config.quotas.push(quota)).await
}

fn is_denied(got: &Got, measure: &str) -> bool {
    let json = got.json();
    let detail = &json["errors"][0]["detail"];
    got.status == StatusCode::FORBIDDEN
        && got.code() == "DENIED"
        && detail["repositories"] == "team/**"
        && detail["measure"] == measure
}

#[tokio::test]
async fn a_push_over_the_quota_is_denied_with_the_numbers_and_leaves_nothing() {
    let seeder = with_quota(Some(100_000), None).await;
    let (first, second) = (noise(70_000, 1), noise(70_000, 2));
    seeder.push("team/a", first.clone()).await;
    seeder.push("team/b", first.clone()).await;
    let session = seeder.session("team/a").await;
    let got = seeder.ask(Method::PATCH, &session).body(second.clone()).send().await;
    assert_eq!(got.status, StatusCode::ACCEPTED, "it may be there already");
    let got = seeder.ask(Method::PUT, &format!("{session}?digest={}", Digest::of(&second))).send().await;
    assert!(is_denied(&got, "bytes"), "{:?}", got.body);
    let detail = got.json()["errors"][0]["detail"].clone();
    assert_eq!((&detail["limit"], &detail["used"], &detail["more"]), (&100_000.into(), &70_000.into(), &70_000.into()));
    assert_eq!(seeder.get(&session).await.status, StatusCode::NOT_FOUND, "its bytes do not stay either");
    let long = seeder.session("team/a").await;
    let parts = vec![Bytes::from(vec![0; 60_000]); 20];
    let got = seeder.ask(Method::PATCH, &long).streamed(parts).send().await;
    assert!(is_denied(&got, "bytes"), "longer than the whole quota: {:?}", got.body);
    assert_eq!(seeder.get(&long).await.status, StatusCode::NOT_FOUND);
    let digest = seeder.push("other", second).await;
    let mount = format!("/v2/team/a/blobs/uploads/?mount={digest}&from=other");
    assert!(is_denied(&seeder.ask(Method::POST, &mount).send().await, "bytes"));
    for repository in ["team/a", "team/b"] {
        let blob = format!("/v2/{repository}/blobs/{}", Digest::of(&first));
        assert_eq!(seeder.ask(Method::DELETE, &blob).send().await.status, StatusCode::ACCEPTED);
    }
    assert_eq!(seeder.ask(Method::POST, &mount).send().await.status, StatusCode::CREATED, "there is room again");
}

#[tokio::test]
async fn tags_over_the_quota_are_denied_and_what_is_in_use_is_shown_after_a_restart_too() {
    let seeder = with_quota(Some(1_000_000), Some(2)).await;
    let layer = noise(1000, 1);
    for tag in ["v1", "v2", "v2"] {
        seeder.push_image("team/a", tag, std::slice::from_ref(&layer)).await;
    }
    let seeder = seeder.restart().await;
    let other = image(&Bytes::from_static(b"{\"config\":true}"), std::slice::from_ref(&layer), r#""x":1,"#);
    let got = seeder.put_manifest("/v2/team/a/manifests/v3", OCI, &other).await;
    assert!(is_denied(&got, "tags"), "{:?}", got.body);
    let target = format!("/v2/team/a/manifests/{}?tag=v1&tag=v4", Digest::of(other.as_bytes()));
    assert!(is_denied(&seeder.put_manifest(&target, OCI, &other).await, "tags"), "all of its tags or none");
    assert_eq!(seeder.put_manifest("/v2/team/a/manifests/v1", OCI, &other).await.status, StatusCode::CREATED);
    let metrics = String::from_utf8(seeder.status_page("/metrics").await.body.to_vec()).unwrap();
    let line = r#"shoal_seeder_quota_used{repositories="team/**",measure="tags"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
    let report = admin::ask(&seeder.config.data_dir).await.unwrap();
    assert_eq!((report.quotas[0].used_tags, report.quotas.len()), (2, 1));
    assert!(report.quotas[0].used_bytes > 1000);
}

/// CVE-2026-32589: an upload session is its user's, in its repository.
#[tokio::test]
async fn cve_2026_32589_another_users_session_is_not_there() {
    let seeder = TestSeeder::start_with(|config| {
        config.insecure_open = false;
        config.access_rules = true;
    })
    .await;
    let mut shown = Vec::new();
    for user in ["one", "two"] {
        let grants = Grants { push: vec!["team/**".parse().unwrap()], ..Grants::default() };
        let password = seeder.running.members.users().put(user, grants).await.unwrap().unwrap();
        shown.push(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
    }
    let ask = |method: Method, path: &str, who: usize| seeder.ask(method, path).header("authorization", &shown[who]);
    let content = noise(1000, 1);
    let begun = ask(Method::POST, "/v2/team/a/blobs/uploads/", 0).send().await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    let session = begun.header("location").to_owned();
    let finish = format!("{session}?digest={}", Digest::of(&content));
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let got = ask(method.clone(), &session, 1).body(content.clone()).send().await;
        assert_eq!(got.status, StatusCode::NOT_FOUND, "{method}");
    }
    let got = ask(Method::PUT, &finish, 1).body(content.clone()).send().await;
    assert_eq!((got.status, got.code().as_str()), (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"));
    let got = ask(Method::PATCH, &session, 0).body(content.slice(..400)).send().await;
    assert_eq!(got.status, StatusCode::ACCEPTED);
    let seeder = seeder.restart().await;
    let ask =
        |who: usize, part: Bytes| seeder.ask(Method::PUT, &finish).header("authorization", &shown[who]).body(part);
    assert_eq!(ask(1, content.slice(400..)).send().await.status, StatusCode::NOT_FOUND);
    let got = ask(0, content.slice(400..)).send().await;
    assert_eq!(got.status, StatusCode::CREATED, "{:?}", got.body);
}
