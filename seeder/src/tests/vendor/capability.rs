//! For whom a capability is.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use shoal_proto::signed::Subject;

use super::*;
use crate::members::order::Order;

#[tokio::test]
async fn what_is_not_public_is_covered_for_the_node_alone_whose_client_may_read_it() {
    let mut seeder = TestSeeder::start_with(|config| config.insecure_open = false).await;
    for repository in ["team/app", "public/app"] {
        seeder.push_image(repository, "v1", &[noise(100, 1)]).await;
    }
    // The same store under rules.
    seeder.config.access_rules = true;
    let seeder = seeder.restart().await;
    let put = async |name: &str, pull: &str| {
        let grants = serde_json::from_value(serde_json::json!({ "pull": [pull] })).unwrap();
        seeder.running.members.execute(Order::PutUser { name: name.into(), grants }).await.unwrap()
    };
    put("anonymous", "public/**").await;
    let password = put("ci", "team/**").await["password"].as_str().unwrap().to_owned();
    let shown = format!("Basic {}", STANDARD.encode(format!("ci:{password}")));
    let token = seeder.running.members.create_token(1, 60, Labels::default()).await.unwrap();
    let node = seeder.join_by(1, &token).await.unwrap();
    let ask = async |repository: &str, authorization: Option<&str>| {
        let (path, body) = (format!("/v2/{repository}/_shoal/pull/v1"), encode(&node.pull(6001)));
        let caller = node.caller(&path, &body).unwrap().to_header();
        let ask = seeder.ask(Method::POST, &path).header(CALLER_HEADER, &caller);
        let ask = match authorization {
            Some(value) => ask.header("authorization", value),
            None => ask,
        };
        ask.body(body).send().await
    };
    let keys = seeder.keys().await;
    let subject = |got: &Got| read::<Pulled>(got).capability.open::<Capability>(&keys).unwrap().subject;
    assert_eq!(subject(&ask("team/app", Some(&shown)).await), Subject::Node(node.id()));
    assert_eq!(subject(&ask("public/app", Some(&shown)).await), Subject::AnyMember);
    assert_eq!(subject(&ask("public/app", None).await), Subject::AnyMember);
    assert_eq!(ask("team/app", None).await.status, StatusCode::UNAUTHORIZED, "a member whose client may not");
}
