//! Nodes whose clocks are off.

use shoal_proto::member::CLOCK_SKEW_MAX_S;

use super::*;

/// A little of the tolerance is left for the time that a test takes.
const SLACK_S: i64 = 20;

#[tokio::test]
async fn a_clock_may_be_off_by_ten_minutes_either_way_and_no_more() {
    let seeder = TestSeeder::closed().await;
    let token = seeder.running.members.create_token(9, 60, Labels::default()).await.unwrap();
    let most = i64::try_from(CLOCK_SKEW_MAX_S).unwrap();
    let (inside, outside) = (most - SLACK_S, most + SLACK_S);
    let good = seeder.join_by(9, &token).await.unwrap();
    let body = encode(&good.pull(6001));
    let path = "/v2/_shoal/members";
    for (n, off, reason) in [(1, -inside, ""), (2, inside, ""), (3, -outside, "bad-time"), (4, outside, "bad-time")] {
        let time = unix_seconds().saturating_add_signed(off);
        let node = Node::new(n, "eu");
        let join = Join { shown: Shown::Token(token.show(&node.id(), time)), ..node.join(&token.root, time) };
        let got = seeder.post("/v2/_shoal/join", &join).await;
        let said = if got.status == StatusCode::OK { String::new() } else { got.reason() };
        assert_eq!(said, reason, "a join, {off} s off");
        // A member that asks for something.
        let mut caller = good.caller(path, &body).unwrap();
        caller.time = time;
        caller.signature = good.key.sign(&caller_bytes(&good.root, &good.id(), time, path, &body)).to_bytes();
        let ask = seeder.ask(Method::POST, path).header(CALLER_HEADER, &caller.to_header()).body(body.clone());
        let got = ask.send().await;
        let said = if got.status == StatusCode::OK { String::new() } else { got.reason() };
        assert_eq!(said, reason, "a request, {off} s off: {:?}", got.body);
    }
}
