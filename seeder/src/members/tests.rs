//! Tokens, members and revocations over a real store.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::{order::Order, *};
use crate::{
    kubernetes::{Account, Vouched},
    store::local::Local,
};

struct Setup {
    members: Members,
    store: Arc<dyn Store>,
    dir: tempfile::TempDir,
}

async fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Local::open(dir.path(), 0).unwrap());
    let fleet = Arc::new(Fleet::load(dir.path(), &*store).await.unwrap());
    let members = Members::load(store.clone(), fleet).await.unwrap();
    Setup { members, store, dir }
}

impl Setup {
    async fn again(&self) -> Members {
        let fleet = Arc::new(Fleet::load(self.dir.path(), &*self.store).await.unwrap());
        Members::load(self.store.clone(), fleet).await.unwrap()
    }

    async fn join(&self, node: u16, token: &JoinToken) -> Result<Membership, JoinError> {
        let node = id(node);
        let now = unix_seconds();
        self.members.join(&node, Some(&token.show(&node, now)), now).await
    }
}

fn id(n: u16) -> NodeId {
    let mut node = [0; 32];
    node[..2].copy_from_slice(&n.to_be_bytes());
    NodeId(node)
}

fn labels() -> Labels {
    Labels { region: "eu".parse().ok(), ..Labels::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_nodes_that_come_with_the_last_use_in_the_same_instant_one_becomes_a_member() {
    let setup = setup().await;
    for uses in [1, 3] {
        let token = setup.members.create_token(uses, 60, labels()).await.unwrap();
        let joins = join_all((0..24).map(|n| setup.join(n + 100 * u16::try_from(uses).unwrap(), &token))).await;
        let refused = joins.iter().filter_map(|join| join.as_ref().err());
        assert!(refused.clone().all(|error| matches!(error, JoinError::TokenUsedUp)));
        assert_eq!(refused.count(), 24 - uses as usize);
        let serials: BTreeSet<_> = joins.iter().flatten().map(|membership| membership.serial).collect();
        assert_eq!(serials.len(), uses as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_renews_without_a_use_and_keeps_labels_and_serial() {
    let setup = setup().await;
    let token = setup.members.create_token(1, 60, labels()).await.unwrap();
    let first = setup.join(1, &token).await.unwrap();
    assert_eq!((first.node, &first.labels), (id(1), &labels()));
    let again = setup.join(1, &token).await.unwrap();
    let renewed = setup.members.join(&id(1), None, unix_seconds()).await.unwrap();
    assert_eq!([again.serial, renewed.serial], [first.serial; 2]);
    assert_eq!(renewed.labels, labels());
    assert!(matches!(setup.join(2, &token).await, Err(JoinError::TokenUsedUp)));
    let other = setup.members.create_token(1, 60, Labels::default()).await.unwrap();
    assert_eq!(setup.join(1, &other).await.unwrap().labels, Labels::default(), "another token, other labels");
    let members = setup.again().await;
    assert_eq!(members.count.load(Ordering::Relaxed), 1);
    assert!(members.join(&id(1), None, unix_seconds()).await.is_ok(), "a restart forgets nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_that_is_no_good_is_refused_for_its_own_reason() {
    let setup = setup().await;
    let now = unix_seconds();
    let refused = async |shown: Option<TokenShown>, time| {
        let error = setup.members.join(&id(1), shown.as_ref(), time).await.unwrap_err();
        error.as_str()
    };
    assert_eq!(refused(None, now).await, "token-needed");
    let good = setup.members.create_token(1, 60, labels()).await.unwrap();
    let unknown = JoinToken::new(*setup.members.fleet.root(), [7; 16]);
    assert_eq!(refused(Some(unknown.show(&id(1), now)), now).await, "token-unknown");
    assert_eq!(refused(Some(good.show(&id(2), now)), now).await, "token-unknown", "overheard from another node");
    assert_eq!(refused(Some(good.show(&id(1), now - 1)), now).await, "token-unknown", "overheard earlier");
    let ended = setup.members.create_token(1, 0, labels()).await.unwrap();
    assert_eq!(refused(Some(ended.show(&id(1), now)), now).await, "token-ended");
    let taken_back = setup.members.create_token(1, 60, labels()).await.unwrap();
    setup.members.revoke_token(&taken_back.id()).await.unwrap();
    assert_eq!(refused(Some(taken_back.show(&id(1), now)), now).await, "token-unknown");
    assert!(setup.join(1, &good).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_member_is_on_the_signed_list_and_needs_another_token() {
    let setup = setup().await;
    let token = setup.members.create_token(5, 60, labels()).await.unwrap();
    let (bad, good) = (setup.join(1, &token).await.unwrap(), setup.join(2, &token).await.unwrap());
    assert_eq!(setup.members.revocations(), None);
    setup.members.revoke(&bad.node).await.unwrap();
    assert!(matches!(setup.members.revoke(&id(9)).await, Err(OrderError::Unknown(_))));
    assert!(setup.members.is_revoked(bad.serial) && !setup.members.is_revoked(good.serial));
    let open =
        |members: &Members| members.revocations().unwrap().open::<RevocationList>(&*members.fleet.key_set()).unwrap();
    let list = open(&setup.members);
    assert_eq!(list.serials, [bad.serial]);
    assert!(matches!(setup.join(1, &token).await, Err(JoinError::Revoked)));
    assert!(matches!(setup.members.join(&bad.node, None, unix_seconds()).await, Err(JoinError::Revoked)));
    assert_eq!(open(&setup.again().await), list, "the list outlives a restart");
    let other = setup.members.create_token(1, 60, labels()).await.unwrap();
    let back = setup.join(1, &other).await.unwrap();
    assert!(!setup.members.is_revoked(back.serial) && setup.members.is_revoked(bad.serial));
    setup.members.revoke(&good.node).await.unwrap();
    let next = open(&setup.members);
    assert!(next.version > list.version && next.serials.len() == 2 && next.serials.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_hold_under_new_keys_however_often_they_change() {
    let setup = setup().await;
    let root = std::fs::read_to_string(setup.dir.path().join("root.key")).unwrap();
    let rotate = || Order::RotateKeys { root: order::RootKey(root.clone()) };
    let token = setup.members.create_token(5, 60, labels()).await.unwrap();
    let (bad, good) = (setup.join(1, &token).await.unwrap(), setup.join(2, &token).await.unwrap());
    let shown = setup.members.fleet.sign(&good);
    setup.members.execute(rotate()).await.unwrap();
    assert_eq!(setup.members.revocations(), None, "there was nothing to be signed anew");
    setup.members.revoke(&bad.node).await.unwrap();
    let mut before =
        setup.members.revocations().unwrap().open::<RevocationList>(&*setup.members.fleet.key_set()).unwrap();
    for _ in 0..3 {
        setup.members.execute(rotate()).await.unwrap();
        for members in [&setup.members, &setup.again().await] {
            let list = members.revocations().unwrap().open::<RevocationList>(&*members.fleet.key_set()).unwrap();
            assert_eq!(list.serials, [bad.serial]);
            assert!(list.version > before.version, "agents take no list that is not newer");
        }
        before.version.counter += 1;
    }
    assert!(shown.open::<Membership>(&*setup.members.fleet.key_set()).is_err(), "its key was replaced long ago");
    let renewed = setup.members.join(&good.node, None, unix_seconds()).await.unwrap();
    assert_eq!(renewed.serial, good.serial, "a renewal makes up for that");
    let foreign = Order::RotateKeys { root: order::RootKey("ab".repeat(32)) };
    assert!(matches!(setup.members.execute(foreign.clone()).await, Err(OrderError::Rotate(_))));
    assert!(!format!("{foreign:?}").contains("abab"), "a root key is never shown");
}

/// What a cluster says of the holder of token `n`.
fn vouched(n: u8, until: UnixSeconds) -> Vouched {
    let account = Account {
        cluster: "prod".into(),
        namespace: "shoal".into(),
        name: "agent".into(),
        pod: Some(format!("agent-{n}")),
        machine: None,
    };
    Vouched { account, labels: labels(), token: [n; 32], until }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_token_is_good_for_one_node_and_is_shown_at_every_renewal() {
    let setup = setup().await;
    let now = unix_seconds();
    let join = async |node: u16, vouched: &Vouched| setup.members.join_vouched(&id(node), vouched).await;
    let (one, two) = (vouched(1, now + 60), vouched(2, now + 60));
    let first = join(1, &one).await.unwrap();
    assert_eq!((first.node, &first.labels), (id(1), &labels()));
    assert_eq!(join(1, &one).await.unwrap().serial, first.serial, "an answer that was lost costs nothing");
    assert_eq!(join(2, &one).await.unwrap_err().as_str(), "service-account-of-another-node");
    let renewed = setup.members.join(&id(1), None, now).await.unwrap_err();
    assert_eq!(renewed.as_str(), "service-account-needed");
    let moved = Vouched { labels: Labels::default(), ..two };
    let moved = join(1, &moved).await.unwrap();
    assert_eq!((moved.serial, moved.labels), (first.serial, Labels::default()), "the rule of today counts");
    // Of several that come with one token in the same instant, one becomes a member.
    let last = vouched(3, now + 60);
    let joins = join_all((10..20).map(|node| join(node, &last))).await;
    let refused = joins.iter().filter_map(|join| join.as_ref().err());
    assert!(refused.clone().all(|error| matches!(error, JoinError::AccountUsed)));
    assert_eq!(refused.count(), 9);
    let listed = setup.members.execute(Order::ListMembers { after: None }).await.unwrap();
    let member = listed["items"].as_array().unwrap().iter().find(|member| member["node"] == hex::encode(id(1).0));
    assert_eq!(member.unwrap()["kubernetes"]["service_account"], "shoal/agent");
    setup.members.revoke(&id(1)).await.unwrap();
    assert_eq!(join(1, &vouched(4, now + 60)).await.unwrap_err().as_str(), "membership-revoked");
    let token = setup.members.create_token(1, 60, labels()).await.unwrap();
    assert!(setup.join(1, &token).await.is_ok(), "a join token lets it in again");
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_service_account_tokens_are_forgotten() {
    let setup = setup().await;
    let now = unix_seconds();
    for n in 0..40 {
        let until = if n % 2 == 0 { now - 2 * CLOCK_SKEW_MAX_S } else { now + 60 };
        setup.members.join_vouched(&id(1), &vouched(n, until)).await.unwrap();
    }
    let shown = setup.store.fleet_records(b"k".to_vec(), None, 100).await.unwrap().items.len();
    assert_eq!(shown, 20, "those that hold");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_carried_out_as_they_are_written() {
    let setup = setup().await;
    let order = async |order: Order| setup.members.execute(order).await;
    let labels = "region=eu,zone=a".parse().unwrap();
    let made = order(Order::CreateToken { uses: 1, ttl_s: 60, labels }).await.unwrap();
    let token: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    setup.join(1, &token).await.unwrap();
    let tokens = order(Order::ListTokens { after: None }).await.unwrap();
    assert_eq!((&tokens["items"][0]["uses_left"], &tokens["items"][0]["labels"]["zone"]), (&0.into(), &"a".into()));
    assert!(!tokens.to_string().contains(&token.to_string()[75..]), "a list shows no secret");
    let node = hex::encode(id(1).0);
    assert_eq!(order(Order::RevokeMember { node: node.clone() }).await.unwrap()["node"], node.as_str());
    let members = order(Order::ListMembers { after: None }).await.unwrap();
    assert!(members["items"][0]["revoked_at"].is_u64() && members["more"] == false);
    let none = order(Order::ListMembers { after: Some(node) }).await.unwrap();
    assert_eq!(none["items"], serde_json::json!([]));
    for bad in [
        Order::RevokeMember { node: "../../etc".into() },
        Order::CreateToken { uses: 0, ttl_s: 1, labels: order::LabelTexts::default() },
        Order::RevokeToken { id: String::new() },
    ] {
        assert!(matches!(order(bad).await, Err(OrderError::Value(_))));
    }
    for bad in ["region=../x", "planet=earth", "region", "region=EU"] {
        assert!(bad.parse::<order::LabelTexts>().is_err(), "{bad}");
    }
}
