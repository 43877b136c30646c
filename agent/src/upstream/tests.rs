//! The client of the seeder, against a server that misbehaves on demand.

use std::sync::atomic::Ordering;

use ed25519_dalek::SigningKey;
use shoal_proto::{
    api::PiecesWanted,
    have::HaveSet,
    signed::{KeySet, Version},
};

use super::{
    trust::{Trust, TrustError},
    *,
};
use crate::{
    store::{Note, Store, StoreConfig},
    testing::{FakeSeeder, Stage, content, upstream_config},
};

mod secure;

fn repository() -> Repository {
    "app".parse().unwrap()
}

fn tag() -> Reference {
    "latest".parse().unwrap()
}

#[tokio::test]
async fn a_pull_comes_with_all_envelopes_opened() {
    let stage = Stage::set().await;
    let layer = content(1, 3 << 18);
    let image = stage.seeder.push("app", "latest", std::slice::from_ref(&layer));
    let pulled = stage.upstream.pull(&repository(), &tag(), &Credentials::none()).await.unwrap();
    assert_eq!(pulled.digest, image);
    assert_eq!(pulled.statements.len(), 3);
    assert_eq!(pulled.tag_record.as_ref().unwrap().1.digest, Some(image));
    let digest = Digest::of(&layer);
    let signed = pulled.statement(&digest).unwrap();
    assert_eq!(signed.statement.size, 3 << 18);
    let hashes = stage.upstream.hashes(&repository(), &signed.statement, &Credentials::none()).await.unwrap();
    assert_eq!(hashes.layout().pieces(), 3);
    let manifest = stage.upstream.manifest(&repository(), &image, &Credentials::none()).await.unwrap();
    assert_eq!(Digest::of(&manifest), image);
    let single = stage.upstream.statement(&repository(), &digest, Some(3 << 18), &Credentials::none()).await.unwrap();
    assert_eq!(&single, signed);
    let misfit = stage.upstream.statement(&repository(), &digest, Some(5), &Credentials::none()).await;
    assert!(matches!(misfit, Err(UpstreamError::Protocol { .. })));
}

#[tokio::test]
async fn an_unchanged_tag_costs_a_bare_head() {
    let stage = Stage::set().await;
    let image = stage.seeder.push("app", "latest", &[]);
    let ask = async |known| {
        stage.upstream.head_manifest(&repository(), &tag(), &[], known, &Credentials::none()).await.unwrap()
    };
    let head = ask(None).await;
    assert_eq!((head.digest, head.media_type.as_str()), (image, crate::testing::MANIFEST_TYPE));
    assert!(head.size.unwrap() > 0);
    assert_eq!(ask(Some(&image)).await.media_type, "");
    let moved = stage.seeder.push("app", "latest", &[content(5, 5)]);
    assert_eq!(ask(Some(&image)).await.digest, moved);
}

#[tokio::test]
async fn pieces_come_in_the_order_given_and_only_wanted_ones_count() {
    let stage = Stage::set().await;
    let data = content(2, (2 << 18) + 77);
    stage.seeder.put_blob(&data);
    let digest = Digest::of(&data);
    let layout = Layout::new(data.len() as u64).unwrap();
    let mut want = HaveSet::empty(&layout);
    want.insert(layout.piece(0).unwrap());
    want.insert(layout.piece(2).unwrap());
    let wanted = PiecesWanted { want: want.to_bytes(), max: 16, stalled: false, urgent: None };
    let none = Credentials::none();
    let mut stream = stage.upstream.pieces(&repository(), &digest, &layout, &wanted, &none).await.unwrap();
    assert_eq!(stream.given().iter().map(|piece| piece.get()).collect::<Vec<_>>(), [0, 2]);
    let (mut back, mut ends) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await.unwrap() {
        back.extend_from_slice(&chunk.data);
        ends += u32::from(chunk.last);
    }
    let expected = [&data[..1 << 18], &data[2 << 18..]].concat();
    assert!(back == expected && ends == 2);
}

#[tokio::test]
async fn a_seeder_that_stumbles_is_asked_again_and_a_dead_one_is_named() {
    let stage = Stage::set().await;
    stage.seeder.push("app", "latest", &[]);
    stage.seeder.failing.store(ATTEMPTS - 1, Ordering::Relaxed);
    stage.upstream.pull(&repository(), &tag(), &Credentials::none()).await.unwrap();
    stage.seeder.requests();
    stage.seeder.down.store(true, Ordering::Relaxed);
    let error = stage.upstream.pull(&repository(), &tag(), &Credentials::none()).await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains(&stage.address.to_string()), "{error}");
    assert_eq!(stage.seeder.requests().len(), ATTEMPTS as usize);
}

#[tokio::test]
async fn what_is_unknown_or_forbidden_is_told_apart() {
    let stage = Stage::set().await;
    let pull = async |credentials: &Credentials| stage.upstream.pull(&repository(), &tag(), credentials).await;
    assert!(matches!(pull(&Credentials::none()).await, Err(UpstreamError::NotFound { .. })));
    stage.seeder.push("app", "latest", &[]);
    *crate::testing::lock(&stage.seeder.password) = Some("Basic eDp5".into());
    let Err(UpstreamError::Unauthorized(challenge)) = pull(&Credentials::none()).await else { panic!("let in") };
    assert_eq!(challenge.www_authenticate, ["Basic realm=\"seeder\""]);
    let mut headers = HeaderMap::new();
    headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic eDp5"));
    let credentials = Credentials::of(&headers);
    pull(&credentials).await.unwrap();
    assert_eq!(format!("{credentials:?}"), "Credentials(hidden)");
}

#[tokio::test]
async fn the_first_key_is_pinned_and_another_one_refused() {
    let stage = Stage::set().await;
    let config = upstream_config(stage.address);
    let again = Upstream::connect(&config, &stage.store).await.unwrap();
    assert_eq!(again.trust().root(), &stage.seeder.root.verifying_key());
    stage.store.put_note(Note::Root, SigningKey::from_bytes(&[77; 32]).verifying_key().as_bytes()).unwrap();
    let other = Upstream::connect(&config, &stage.store).await;
    assert!(matches!(other, Err(TrustError::KeySet(_) | TrustError::RootChanged { .. })));
}

#[tokio::test]
async fn a_seeder_set_up_anew_is_another_seeder() {
    let mut stage = Stage::set().await;
    let mut impostor = FakeSeeder::new();
    Arc::get_mut(&mut impostor).unwrap().root = SigningKey::from_bytes(&[66; 32]);
    let address = impostor.serve(&mut stage.tasks, &stage.stop).await;
    let error = Upstream::connect(&upstream_config(address), &stage.store).await.unwrap_err();
    assert!(matches!(error, TrustError::RootChanged { .. }), "{error}");
}

#[tokio::test]
async fn an_old_key_set_replaces_no_newer_one_whatever_its_counter_says() {
    let stage = Stage::set().await;
    let trust = stage.upstream.trust();
    let at = |epoch, counter, root: &SigningKey| {
        let mut keys = KeySet::clone(&trust.keys());
        keys.version = Version { epoch, counter };
        Envelope::sign(&keys, root)
    };
    let root = &stage.seeder.root;
    let newest = Version { epoch: 5, counter: 2 };
    trust.accept_keys(&at(5, 2, root)).unwrap();
    for (epoch, counter) in [(4, 99), (5, 1), (0, u64::MAX), (5, 2)] {
        assert_eq!(trust.accept_keys(&at(epoch, counter, root)).unwrap(), Version { epoch, counter });
        assert_eq!(trust.keys().version, newest, "after {epoch}, {counter}");
    }
    let forged = trust.accept_keys(&at(6, 1, &SigningKey::from_bytes(&[66; 32])));
    assert!(matches!(forged, Err(TrustError::KeySet(EnvelopeError::Key { .. }))), "{forged:?}");
    let another = trust.accept_keys(&stage.seeder.revocations(9, &[]));
    assert!(matches!(another, Err(TrustError::KeySet(EnvelopeError::Type { .. }))), "{another:?}");
    assert_eq!(trust.keys().version, newest);
    trust.accept_keys(&at(6, 1, root)).unwrap();
    assert_eq!(trust.keys().version, Version { epoch: 6, counter: 1 }, "the restored store's is newer");
}

#[tokio::test]
async fn nothing_is_pinned_without_being_allowed() {
    let stage = Stage::set().await;
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig { dir: dir.path().to_owned(), quota_bytes: 1 << 20, boot_id: "b".into() };
    let store = Store::open(store).unwrap();
    let closed = UpstreamConfig { insecure_open: false, ..upstream_config(stage.address) };
    assert!(matches!(Upstream::connect(&closed, &store).await, Err(TrustError::NotPinned)));
    stage.seeder.open.store(false, Ordering::Relaxed);
    let open = upstream_config(stage.address);
    assert!(matches!(Upstream::connect(&open, &store).await, Err(TrustError::NotOpen)));
    assert_eq!(store.note(Note::Root).unwrap(), None);
}

#[tokio::test]
async fn a_pinned_seeder_may_be_down_at_the_start() {
    let stage = Stage::set().await;
    stage.seeder.down.store(true, Ordering::Relaxed);
    let upstream = Upstream::connect(&upstream_config(stage.address), &stage.store).await.unwrap();
    assert_eq!(upstream.trust().keys().keys.len(), 5);
    let member = stage.upstream.member().borrow().clone().unwrap();
    assert!(upstream.resume(&stage.identity, member.envelope.clone()).await);
    assert_eq!(upstream.member().borrow().as_ref().unwrap().membership.node, stage.identity.node());
}

#[test]
fn a_key_set_of_another_root_is_no_key_set() {
    let seeder = FakeSeeder::new();
    let root = SigningKey::from_bytes(&[3; 32]).verifying_key();
    assert!(matches!(Trust::in_memory(root, &seeder.key_set()), Err(TrustError::KeySet(_))));
}
