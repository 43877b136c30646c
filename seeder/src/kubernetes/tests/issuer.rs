//! A cluster for tests: it signs service-account tokens, and publishes its keys.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// What tokens give as `iss`.
pub(crate) const ISSUER: &str = "https://kubernetes.test";

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
}

/// A key of the cluster.
pub(crate) struct Signer {
    pub(crate) kid: String,
    pair: Pair,
}

fn text(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(crate) fn rs256(kid: &str) -> Self {
        Self { kid: kid.to_owned(), pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")) }
    }

    pub(crate) fn es256(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self { kid: kid.to_owned(), pair: Pair::P256(pair) }
    }

    /// The public half as a JSON Web Key.
    pub(crate) fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({ "kty": "RSA", "kid": self.kid, "use": "sig", "alg": "RS256", "n": text(n), "e": text(e) })
            }
            Pair::P256(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "kid": self.kid, "use": "sig", "alg": "ES256", "crv": "P-256", "x": text(x), "y": text(y) })
            }
        }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
        }
    }

    /// A token with this header and these claims, truly signed.
    pub(crate) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", text(header.to_string()), text(claims.to_string()));
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("signed");
                signature
            }
            Pair::P256(pair) => pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed").as_ref().to_vec(),
        };
        format!("{signed}.{}", text(signature))
    }

    /// A token as a cluster makes it.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({ "alg": self.algorithm(), "kid": self.kid }), claims)
    }
}

/// What a token of `shoal/agent` says that was made at `now` for an hour.
pub(crate) fn claims(now: u64) -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:shoal:agent",
        "aud": ["shoal"],
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "kubernetes.io": {
            "namespace": "shoal",
            "serviceaccount": { "name": "agent", "uid": "1" },
            "pod": { "name": "agent-x7", "uid": "2" },
            "node": { "name": "eu-a-17", "uid": "3" },
        },
    })
}

/// A key set of these keys.
pub(crate) fn key_set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// What the server answers, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// The key set; empty: 503.
    pub(crate) keys: String,
    /// The heads of the requests.
    pub(crate) asked: Vec<String>,
}

/// Publishes keys.
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    pub(crate) published: Arc<Mutex<Published>>,
    /// Ends with the server.
    pub(crate) tasks: JoinSet<()>,
}

impl KeyServer {
    /// Publishes `keys` on loopback.
    pub(crate) async fn start(keys: String) -> Self {
        let (listener, mut server) = Self::bind(keys).await;
        let published = server.published.clone();
        server.tasks.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                answer(tcp, &published).await;
            }
        });
        server
    }

    /// A server whose connections somebody else takes.
    pub(crate) async fn bind(keys: String) -> (TcpListener, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let published = Arc::new(Mutex::new(Published { keys, asked: Vec::new() }));
        (listener, Self { address, published, tasks: JoinSet::new() })
    }

    pub(crate) fn publish(&self, keys: String) {
        self.published.lock().expect("nobody panics while holding it").keys = keys;
    }
}

/// Answers one request.
pub(crate) async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, published: &Mutex<Published>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let reply = {
        let mut published = published.lock().expect("nobody panics while holding it");
        published.asked.push(String::from_utf8_lossy(&head).into_owned());
        let status = if published.keys.is_empty() { "503 Service Unavailable" } else { "200 OK" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
            published.keys.len(),
            published.keys
        )
    };
    // A client that has left does not matter.
    let _ = stream.write_all(reply.as_bytes()).await;
    let _ = stream.shutdown().await;
}
