//! The registry under TLS: its files, their replacement, and clients that must show a certificate.

use std::{fs::File, io::Write as _, path::PathBuf, time::Duration};

use http::{Method, StatusCode};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use shoal_http::tls::{Files, Tls, TlsError};
use shoal_proto::Digest;

use super::{
    client::{TestSeeder, noise},
    secure_client::{Authority, Client, Identity},
};
use crate::{Seeder, StartError, config::TlsFiles};

/// Much longer than the files are left alone.
const LONG: Duration = Duration::from_secs(30);

/// An authority, and a folder for what it signs.
struct Pki {
    authority: Authority,
    dir: tempfile::TempDir,
}

impl Pki {
    /// With a certificate for the seeder.
    fn new() -> Self {
        let pki = Self { authority: Authority::new(), dir: tempfile::tempdir().unwrap() };
        pki.write(&pki.authority.certify("127.0.0.1"));
        std::fs::write(pki.path("ca.pem"), &pki.authority.pem).unwrap();
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, identity: &Identity) {
        std::fs::write(self.path("cert.pem"), &identity.0).unwrap();
        std::fs::write(self.path("key.pem"), &identity.1).unwrap();
    }

    /// Puts a pipe in the certificate's place.
    fn pipe(&self) {
        let (pipe, mode) = (self.path("pipe"), Mode::RUSR | Mode::WUSR);
        mknodat(CWD, &pipe, FileType::Fifo, mode, 0).unwrap();
        std::fs::rename(pipe, self.path("cert.pem")).unwrap();
    }

    /// Waits until the pipe is being read; what is read so far is broken, and ends when the file is dropped.
    async fn reader_of_pipe(&self) -> File {
        let (path, (tell, opened)) = (self.path("cert.pem"), tokio::sync::oneshot::channel());
        // A thread of its own: a task that waits for a reader could not be ended.
        std::thread::spawn(move || tell.send(File::options().write(true).open(path)));
        let opened = tokio::time::timeout(LONG, opened).await.expect("the files are looked at").unwrap();
        let mut pipe = opened.unwrap();
        pipe.write_all(b"-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
        pipe
    }

    fn files(&self) -> Files {
        Files { certificate: self.path("cert.pem"), key: self.path("key.pem"), client_ca: None }
    }

    async fn seeder(&self, clients: bool) -> TestSeeder {
        let Files { certificate, key, .. } = self.files();
        let client_ca = clients.then(|| self.path("ca.pem"));
        let tls = TlsFiles { certificate: Some(certificate), key: Some(key), client_ca };
        TestSeeder::start_with(|config| config.tls = tls).await
    }

    async fn connect(&self, seeder: &TestSeeder, http2: bool) -> Client {
        Client::connect(seeder.running.registry_addr, http2, &self.authority, None).await.unwrap()
    }
}

#[tokio::test]
async fn blobs_are_pushed_and_pulled_by_http_1_and_by_http_2() {
    let pki = Pki::new();
    let seeder = pki.seeder(false).await;
    for http2 in [false, true] {
        let mut client = pki.connect(&seeder, http2).await;
        let content = noise(5 << 20, u8::from(http2));
        let digest = Digest::of(&content);
        let upload = format!("/v2/a/blobs/uploads/?digest={digest}");
        let pushed = client.send(Method::POST, &upload, content.clone()).await.unwrap();
        assert_eq!(pushed.status(), StatusCode::CREATED, "{:?}", pushed.body());
        // In parts: a session, a chunk, and the end.
        let opened = client.send(Method::POST, "/v2/b/blobs/uploads/", "").await.unwrap();
        let session = opened.headers()["location"].to_str().unwrap().to_owned();
        assert!(session.starts_with('/'), "{session}");
        let half = content.len() / 2;
        let chunk = client.send(Method::PATCH, &session, content.slice(..half)).await.unwrap();
        assert_eq!(chunk.status(), StatusCode::ACCEPTED);
        let end = format!("{session}?digest={digest}");
        let ended = client.send(Method::PUT, &end, content.slice(half..)).await.unwrap();
        assert_eq!(ended.status(), StatusCode::CREATED, "{:?}", ended.body());
        for repository in ["a", "b"] {
            let got = client.send(Method::GET, &format!("/v2/{repository}/blobs/{digest}"), "").await.unwrap();
            assert!(got.body() == &content, "{repository}, http2: {http2}");
        }
        let missing = client.send(Method::GET, "/v2/a/manifests/none", "").await.unwrap();
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections_while_open_ones_go_on() {
    let pki = Pki::new();
    let seeder = pki.seeder(false).await;
    let mut open = pki.connect(&seeder, true).await;
    let fresh = pki.authority.certify("127.0.0.1");
    pki.write(&fresh);
    let fresh = CertificateDer::from_pem_slice(fresh.0.as_bytes()).unwrap();
    assert_ne!(open.shown, fresh);
    let replaced = tokio::time::timeout(LONG, async {
        while pki.connect(&seeder, false).await.shown != fresh {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    replaced.await.expect("the new certificate is shown");
    assert!(open.tasks.try_join_next().is_none(), "it is the same connection");
    assert_eq!(open.send(Method::GET, "/v2/", "").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn files_that_are_no_good_change_nothing_until_they_are() {
    let pki = Pki::new();
    let tls = Tls::load(pki.files()).unwrap();
    assert!(!tls.refresh().unwrap(), "nothing has changed");
    let good = std::fs::read(pki.path("cert.pem")).unwrap();
    let other = pki.authority.certify("127.0.0.1");
    std::fs::write(pki.path("cert.pem"), &other.0).unwrap();
    assert!(matches!(tls.refresh(), Err(TlsError::Mismatch { .. })), "the certificate came before its key");
    assert!(!tls.refresh().unwrap(), "the same is not complained of twice");
    std::fs::remove_file(pki.path("cert.pem")).unwrap();
    assert!(matches!(tls.refresh(), Err(TlsError::Read { .. })));
    std::fs::write(pki.path("cert.pem"), &good[..good.len() / 2]).unwrap();
    assert!(matches!(tls.refresh(), Err(TlsError::Content { .. })));
    pki.write(&other);
    assert!(tls.refresh().unwrap(), "a pair again");
}

#[tokio::test]
async fn a_seeder_whose_files_go_bad_shows_the_certificate_that_it_had() {
    let pki = Pki::new();
    let seeder = pki.seeder(false).await;
    let had = pki.connect(&seeder, false).await.shown;
    // A pipe's writer learns when it is read. That the second one is means that what the first gave was refused.
    pki.pipe();
    let first = pki.reader_of_pipe().await;
    pki.pipe();
    drop(first);
    let second = pki.reader_of_pipe().await;
    std::fs::write(pki.path("broken"), "-----BEGIN CERTIFICATE-----\nbroken\n").unwrap();
    std::fs::rename(pki.path("broken"), pki.path("cert.pem")).unwrap();
    drop(second);
    let mut client = pki.connect(&seeder, true).await;
    assert_eq!(client.shown, had);
    assert_eq!(client.send(Method::GET, "/v2/", "").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn where_clients_must_have_a_certificate_of_the_authority_no_other_is_served() {
    let (pki, foreign) = (Pki::new(), Authority::new());
    let seeder = pki.seeder(true).await;
    let addr = seeder.running.registry_addr;
    for http2 in [false, true] {
        let (own, other) = (pki.authority.certify("node"), foreign.certify("node"));
        for (identity, served) in [(Some(&own), true), (None, false), (Some(&other), false)] {
            // A client hears of the refusal only when it reads.
            let answer = match Client::connect(addr, http2, &pki.authority, identity).await {
                Ok(mut client) => client.send(Method::GET, "/v2/", "").await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            assert_eq!(answer.is_ok(), served, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_told_at_the_start_and_nothing_of_the_key() {
    let pki = Pki::new();
    let secret = std::fs::read_to_string(pki.path("key.pem")).unwrap();
    let body = secret.lines().nth(1).unwrap();
    std::fs::write(pki.path("broken.key"), format!("-----BEGIN {body}\n{body}\n")).unwrap();
    std::fs::write(pki.path("other.key"), pki.authority.certify("127.0.0.1").1).unwrap();
    let cases = [
        ("none.pem", "key.pem", "cannot read the TLS certificate"),
        ("cert.pem", "none.key", "cannot read the TLS key"),
        ("key.pem", "key.pem", "-----BEGIN CERTIFICATE-----"),
        ("cert.pem", "broken.key", "-----BEGIN PRIVATE KEY-----"),
        ("cert.pem", "other.key", "is not that of the first certificate"),
    ];
    let plain = TestSeeder::start().await;
    for (certificate, key, told) in cases {
        let mut config = plain.config.clone();
        config.tls = TlsFiles { certificate: Some(pki.path(certificate)), key: Some(pki.path(key)), client_ca: None };
        let error = Seeder::start(config).await.unwrap_err();
        assert!(matches!(error, StartError::Tls(_)), "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(told) && !error.to_string().contains('\n'), "{told}: {text}");
        assert!(!text.contains(body), "the key is told: {text}");
    }
}
