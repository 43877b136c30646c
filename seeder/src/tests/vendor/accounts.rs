//! Joins by service-account token, as nodes send them.

use std::time::Duration;

use shoal_proto::member::CLOCK_SKEW_MAX_S;

use super::*;
use crate::kubernetes::tests::{
    cluster,
    issuer::{KeyServer, Signer, claims, key_set},
};

#[tokio::test]
async fn whom_a_cluster_vouches_for_joins_and_others_are_told_why_not() {
    let signer = Signer::rs256("one");
    let server = KeyServer::start(key_set(&[&signer])).await;
    let clusters = vec![cluster(format!("http://{}/keys", server.address))];
    let seeder = TestSeeder::start_with(|config| {
        config.insecure_open = false;
        config.join.kubernetes = clusters;
    })
    .await;
    let root = seeder.info().await.root;
    let now = unix_seconds();
    let join = async |n: u8, token: String| {
        let join = Join { shown: Shown::ServiceAccount(token), ..Node::new(n, "us").join(&root, unix_seconds()) };
        seeder.post("/v2/_shoal/join", &join).await
    };
    let good = signer.sign(&claims(now));
    let joined: Joined = read(&join(1, good.clone()).await);
    let membership: Membership = joined.membership.open(&seeder.keys().await).unwrap();
    assert_eq!(membership.labels.region.unwrap().as_str(), "eu", "the rule's, not what the node would like");
    assert_eq!(join(2, good.clone()).await.reason(), "service-account-of-another-node");
    let mut ended = claims(now);
    ended["exp"] = (now - 1).into();
    let ended = join(3, signer.sign(&ended)).await;
    assert_eq!((ended.status, ended.reason().as_str()), (StatusCode::FORBIDDEN, "service-account-ended"));
    let bare = seeder.post("/v2/_shoal/join", &Node::new(1, "eu").join(&root, unix_seconds())).await;
    assert_eq!(bare.reason(), "service-account-needed");
    let mut stolen = Node::new(4, "eu").join(&root, unix_seconds());
    (stolen.node, stolen.shown) = (Node::new(1, "eu").id(), Shown::ServiceAccount(good));
    assert_eq!(seeder.post("/v2/_shoal/join", &stolen).await.reason(), "bad-signature", "another node's name");
    let late = now + CLOCK_SKEW_MAX_S + Duration::from_secs(60).as_secs();
    let late = Join { shown: Shown::ServiceAccount(String::new()), ..Node::new(5, "eu").join(&root, late) };
    assert_eq!(seeder.post("/v2/_shoal/join", &late).await.reason(), "bad-time");
}

#[tokio::test]
async fn while_a_clusters_keys_cannot_be_had_nodes_are_told_to_try_again() {
    let signer = Signer::rs256("one");
    let server = KeyServer::start(String::new()).await;
    let clusters = vec![cluster(format!("http://{}/keys", server.address))];
    let seeder = TestSeeder::start_with(|config| {
        config.insecure_open = false;
        config.join.kubernetes = clusters;
    })
    .await;
    let shown = Shown::ServiceAccount(signer.sign(&claims(unix_seconds())));
    let join = Join { shown, ..Node::new(1, "eu").join(&seeder.info().await.root, unix_seconds()) };
    assert_eq!(seeder.post("/v2/_shoal/join", &join).await.status, StatusCode::SERVICE_UNAVAILABLE);
}
