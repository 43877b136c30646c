//! Clusters, their keys and their tokens: what is believed, and what is not for its own reason.

pub(crate) mod issuer;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use self::issuer::{ISSUER, KeyServer, Signer, claims, key_set};
use super::{keys::Keys, source::ASK_AGAIN, *};
use crate::{
    config::join::Allow, members::order::LabelTexts, mutate::fuzz, tests::secure_client::Authority, time::unix_seconds,
};

/// A cluster that lets `shoal/agent` in, whose keys are at `keys_url`.
pub(crate) fn cluster(keys_url: String) -> Kubernetes {
    let allow = |machine: Option<&str>, region: &str| Allow {
        namespace: "shoal".into(),
        service_account: "agent".into(),
        machine: machine.map(str::to_owned),
        labels: LabelTexts { region: Some(region.into()), ..LabelTexts::default() },
    };
    Kubernetes {
        name: "prod".into(),
        issuer: ISSUER.into(),
        keys_url,
        allow: vec![allow(Some("us-1"), "us"), allow(Some("eu-*"), "eu"), allow(None, "elsewhere")],
        ..Kubernetes::default()
    }
}

impl KeyServer {
    /// How often it was asked.
    fn asked(&self) -> usize {
        self.published.lock().unwrap().asked.len()
    }
}

struct Setup {
    server: KeyServer,
    clusters: Clusters,
    rsa: Signer,
    ec: Signer,
    now: UnixSeconds,
    instant: Instant,
}

impl Setup {
    async fn new() -> Self {
        let (rsa, ec) = (Signer::rs256("one"), Signer::es256("two"));
        let server = KeyServer::start(key_set(&[&rsa, &ec])).await;
        let config = cluster(format!("http://{}/openid/v1/jwks", server.address));
        let clusters = Clusters::load(&[config]).unwrap();
        Self { server, clusters, rsa, ec, now: unix_seconds(), instant: Instant::now() }
    }

    async fn vouch(&self, token: &str, after: Duration) -> Result<Vouched, NotVouched> {
        self.clusters.vouch(token, self.now, self.instant + after).await
    }

    /// The word of the refusal of a token with these changes to its claims.
    async fn refused(&self, changes: Value) -> &'static str {
        let mut changed = claims(self.now);
        for (name, value) in changes.as_object().unwrap() {
            changed[name] = value.clone();
        }
        self.vouch(&self.ec.sign(&changed), Duration::ZERO).await.unwrap_err().as_str()
    }
}

#[tokio::test]
async fn a_token_of_either_algorithm_is_believed_and_the_rule_says_the_labels() {
    let setup = Setup::new().await;
    for signer in [&setup.rsa, &setup.ec] {
        let token = signer.sign(&claims(setup.now));
        let vouched = setup.vouch(&token, Duration::ZERO).await.unwrap();
        assert_eq!((vouched.account.cluster.as_str(), vouched.account.name.as_str()), ("prod", "agent"));
        assert_eq!(
            (vouched.account.pod.as_deref(), vouched.account.machine.as_deref()),
            (Some("agent-x7"), Some("eu-a-17"))
        );
        assert_eq!((vouched.labels.region.unwrap().as_str(), vouched.until), ("eu", setup.now + 3600));
    }
    for (machine, region) in
        [(json!({ "name": "us-1" }), "us"), (json!({ "name": "us-12" }), "elsewhere"), (Value::Null, "elsewhere")]
    {
        let mut placed = claims(setup.now);
        placed["kubernetes.io"]["node"] = machine;
        let vouched = setup.vouch(&setup.rsa.sign(&placed), Duration::ZERO).await.unwrap();
        assert_eq!(vouched.labels.region.unwrap().as_str(), region);
    }
    let mut single = claims(setup.now);
    single["aud"] = "shoal".into();
    assert!(setup.vouch(&setup.ec.sign(&single), Duration::ZERO).await.is_ok(), "an audience may stand alone");
}

#[tokio::test]
async fn each_token_that_is_no_good_is_refused_for_its_own_reason() {
    let setup = Setup::new().await;
    let now = setup.now;
    for (changes, reason) in [
        (json!({ "iss": "https://kubernetes.elsewhere" }), "service-account-issuer"),
        (json!({ "aud": ["https://kubernetes.default.svc"] }), "service-account-audience"),
        (json!({ "aud": [] }), "service-account-audience"),
        (json!({ "exp": now }), "service-account-ended"),
        (json!({ "nbf": now + CLOCK_SKEW_MAX_S + 1 }), "service-account-not-yet-valid"),
        (json!({ "exp": now + TOKEN_LIFE_MAX_S + CLOCK_SKEW_MAX_S + 1 }), "service-account-lasts-too-long"),
        (json!({ "exp": null }), "service-account-lasts-too-long"),
        (json!({ "sub": "system:serviceaccount:shoal:default" }), "service-account-not-allowed"),
        (json!({ "sub": "system:serviceaccount:other:agent" }), "service-account-not-allowed"),
        (json!({ "sub": "system:serviceaccount:shoal:agent:x" }), "service-account-malformed"),
        (json!({ "sub": "system:node:eu-a-17" }), "service-account-malformed"),
    ] {
        assert_eq!(setup.refused(changes.clone()).await, reason, "{changes}");
    }
    // Ten minutes of difference between the clocks are borne.
    let mut early = claims(now + CLOCK_SKEW_MAX_S);
    early["exp"] = (now + 1).into();
    assert!(setup.vouch(&setup.ec.sign(&early), Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn a_token_that_the_cluster_has_not_signed_as_it_says_is_refused() {
    let setup = Setup::new().await;
    let good = claims(setup.now);
    let refused = async |token: String| setup.vouch(&token, Duration::ZERO).await.unwrap_err().as_str();
    let stranger = Signer::rs256("one");
    assert_eq!(refused(stranger.sign(&good)).await, "service-account-signature", "a made-up key of a known name");
    let header = |alg: &str, kid: &str| json!({ "alg": alg, "kid": kid });
    for (alg, kid, reason) in [
        ("none", "one", "service-account-algorithm"),
        ("HS256", "one", "service-account-algorithm"),
        ("RS384", "one", "service-account-algorithm"),
        ("ES256", "one", "service-account-signature"),
        ("RS256", "two", "service-account-signature"),
        ("RS256", "three", "service-account-key"),
    ] {
        assert_eq!(refused(setup.rsa.sign_with(&header(alg, kid), &good)).await, reason, "{alg} {kid}");
    }
    let whole = setup.ec.sign(&good);
    let parts: Vec<&str> = whole.split('.').collect();
    let other = setup.ec.sign(&{
        let mut other = good.clone();
        other["sub"] = "system:serviceaccount:shoal:other".into();
        other
    });
    let swapped = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    assert_eq!(refused(swapped).await, "service-account-signature", "another token's claims");
    assert_eq!(refused(format!("{}.{}.", parts[0], parts[1])).await, "service-account-signature", "no signature");
    for junk in [
        String::new(),
        "..".into(),
        parts[..2].join("."),
        format!("{whole}.x"),
        format!("{whole}="),
        "a".repeat(shoal_proto::api::SERVICE_ACCOUNT_LEN_MAX + 1),
        setup.ec.sign_with(&json!({ "alg": "ES256" }), &good),
        setup.ec.sign_with(&json!({ "alg": "ES256", "kid": "two", "crit": ["exp"] }), &good),
        setup.ec.sign(&json!({})),
    ] {
        assert_eq!(refused(junk.clone()).await, "service-account-malformed", "{junk:.60}");
    }
    assert!(setup.vouch(&whole, Duration::ZERO).await.is_ok());
    assert_eq!(Clusters::default().vouch(&whole, setup.now, setup.instant).await.unwrap_err(), NotVouched::NotTaken);
}

#[tokio::test]
async fn made_up_key_names_do_not_make_the_cluster_be_asked_more_often() {
    let setup = Setup::new().await;
    let good = setup.rsa.sign(&claims(setup.now));
    assert!(setup.vouch(&good, Duration::ZERO).await.is_ok());
    for n in 0..50 {
        let made_up = setup.rsa.sign_with(&json!({ "alg": "RS256", "kid": format!("x{n}") }), &claims(setup.now));
        assert_eq!(setup.vouch(&made_up, Duration::from_secs(1)).await, Err(NotVouched::Key));
        assert!(setup.vouch(&good, Duration::from_secs(1)).await.is_ok());
    }
    assert_eq!(setup.server.asked(), 1);
    let joins = (0..20).map(|_| setup.vouch(&good, Duration::from_secs(700)));
    assert!(futures::future::join_all(joins).await.iter().all(Result::is_ok));
    assert_eq!(setup.server.asked(), 2, "those who come at once wait for one answer");
}

#[tokio::test]
async fn a_new_key_counts_at_once_a_withdrawn_one_not_for_long_and_an_outage_is_borne_for_an_hour() {
    let setup = Setup::new().await;
    let old = setup.rsa.sign(&claims(setup.now));
    assert!(setup.vouch(&old, Duration::ZERO).await.is_ok());
    let next = Signer::es256("next");
    setup.server.publish(key_set(&[&next]));
    let new = next.sign(&claims(setup.now));
    assert_eq!(setup.vouch(&new, ASK_AGAIN / 2).await, Err(NotVouched::Key), "it was asked just now");
    assert!(setup.vouch(&new, ASK_AGAIN).await.is_ok());
    assert_eq!(setup.vouch(&old, ASK_AGAIN * 2).await, Err(NotVouched::Key), "it was withdrawn");
    setup.server.publish(String::new());
    let minutes = |n: u64| ASK_AGAIN + Duration::from_secs(60 * n);
    assert!(setup.vouch(&new, minutes(59)).await.is_ok());
    let refused = setup.vouch(&new, minutes(61)).await.unwrap_err();
    assert!(matches!(&refused, NotVouched::Unavailable(why) if why.contains("503")), "{refused}");
    setup.server.publish(key_set(&[&next]));
    assert!(setup.vouch(&new, minutes(62)).await.is_ok());
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let (certificate, key) = authority.certify("127.0.0.1");
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()))
}

/// Publishes `keys` under TLS.
async fn secure(keys: String, tls: TlsAcceptor) -> KeyServer {
    let (listener, mut server) = KeyServer::bind(keys).await;
    let published = server.published.clone();
    server.tasks.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // A client that does not believe the certificate goes away.
            if let Ok(stream) = tls.accept(tcp).await {
                issuer::answer(stream, &published).await;
            }
        }
    });
    server
}

#[tokio::test]
async fn keys_are_believed_from_a_server_that_the_pinned_authority_vouches_for_alone() {
    let (authority, other, signer) = (Authority::new(), Authority::new(), Signer::rs256("one"));
    let server = secure(key_set(&[&signer]), acceptor(&authority)).await;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        Some(dir.path().join(name))
    };
    let token = signer.sign(&claims(unix_seconds()));
    let vouch = async |ca: Option<std::path::PathBuf>, bearer_file: Option<std::path::PathBuf>| {
        let config = Kubernetes { ca, bearer_file, ..cluster(format!("https://{}/keys", server.address)) };
        Clusters::load(&[config]).unwrap().vouch(&token, unix_seconds(), Instant::now()).await
    };
    let refused = vouch(write("other.pem", &other.pem), write("bearer", "hush")).await.unwrap_err();
    assert_eq!(refused.as_str(), "service-account-keys-unavailable");
    assert_eq!(server.asked(), 0, "and the seeder's own token was not shown");
    assert!(!refused.to_string().contains("hush"));
    assert!(vouch(write("ca.pem", &authority.pem), write("bearer", "hush\n")).await.is_ok());
    let asked = server.published.lock().unwrap().asked.clone();
    assert!(
        asked[0].starts_with("GET /keys HTTP/1.1\r\n") && asked[0].contains("authorization: Bearer hush\r\n"),
        "{asked:?}"
    );
    let broken = Kubernetes { ca: write("empty.pem", ""), ..cluster("https://127.0.0.1/".into()) };
    assert!(matches!(Clusters::load(&[broken]), Err(ClustersError::Source { .. })));
}

#[tokio::test]
async fn keys_come_from_a_file_as_well() {
    let (signer, dir) = (Signer::es256("one"), tempfile::tempdir().unwrap());
    let path = dir.path().join("keys.json");
    let config = Kubernetes { keys_file: Some(path.clone()), ..cluster(String::new()) };
    let clusters = Clusters::load(&[config]).unwrap();
    let (token, now) = (signer.sign(&claims(unix_seconds())), Instant::now());
    let missing = clusters.vouch(&token, unix_seconds(), now).await.unwrap_err();
    assert!(matches!(&missing, NotVouched::Unavailable(why) if why.contains("keys.json")), "{missing}");
    std::fs::write(&path, key_set(&[&signer])).unwrap();
    assert!(clusters.vouch(&token, unix_seconds(), now + ASK_AGAIN).await.is_ok());
}

#[test]
fn key_sets_are_read_as_far_as_they_are_known() {
    let (rsa, ec) = (Signer::rs256("one"), Signer::es256("two"));
    let change = |mut key: Value, name: &str, value: Value| {
        key[name] = value;
        key
    };
    let set = json!({ "keys": [
        rsa.jwk(),
        change(ec.jwk(), "use", "enc".into()),
        change(ec.jwk(), "crv", "P-384".into()),
        change(ec.jwk(), "alg", "ES512".into()),
        change(ec.jwk(), "x", "AA".into()),
        { "kty": "oct", "kid": "two", "k": "AA" },
        "junk",
    ]});
    let keys = Keys::read(set.to_string().as_bytes()).unwrap();
    assert!(keys.named("one").is_some() && keys.named("two").is_none());
    for junk in ["", "[]", "{}", "{\"keys\":1}"] {
        assert!(Keys::read(junk.as_bytes()).is_none(), "{junk}");
    }
}

/// The key that signs what is bent.
static SIGNER: OnceLock<Signer> = OnceLock::new();

#[test]
fn fuzz_service_account() {
    let signer = SIGNER.get_or_init(|| Signer::es256("two"));
    let token = signer.sign(&claims(1_800_000_000));
    fuzz("service_account", Path::new("fuzz/corpus/service_account"), &[token.into_bytes()], |data| {
        let signer = SIGNER.get().expect("set above");
        let keys = Keys::read(key_set(&[signer]).as_bytes()).expect("a key set");
        if let Ok(text) = std::str::from_utf8(data)
            && let Ok(token) = Token::read(text)
            && let Ok(claims) = token.verify(keys.named("two").expect("it is there"))
        {
            assert_eq!(
                (claims.account(), claims.lasts()),
                (Some(("shoal", "agent")), Some((1_800_000_000, 1_800_003_600))),
                "it was forged"
            );
        }
    });
}

#[test]
fn fuzz_key_set() {
    let set = key_set(&[&Signer::rs256("one"), &Signer::es256("two")]);
    fuzz("key_set", Path::new("fuzz/corpus/key_set"), &[set.into_bytes()], |data| {
        if let Some(keys) = Keys::read(data)
            && let Some(key) = keys.named("one")
        {
            assert!(!key.holds(keys::Algorithm::Rs256, b"message", &[1; 256]), "a made-up signature holds");
        }
    });
}
