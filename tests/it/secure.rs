//! A seeder and an agent with TLS between them, each with a certificate.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use shoal_tests::{
    certificates,
    cluster::{Binaries, Daemon},
    image::Image,
    pull, push,
};

use crate::images::MIB;

const REPOSITORY: &str = "it/secure";

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_pulls_through_tls_from_a_seeder_that_asks_for_its_certificate() -> Result<()> {
    let (binaries, directory) = (Binaries::find()?, tempfile::tempdir()?);
    certificates::issue(directory.path(), &["127.0.0.1", "node"])?;
    let file = |name: &str| -> PathBuf { directory.path().join(name) };
    let text = |name: &str| file(name).display().to_string();
    // Pushed before there is TLS: the client of these tests speaks none.
    let image = Image::synthetic(61, &[9 * MIB, 1000, 0]);
    let mut plain = Daemon::seeder(&binaries, directory.path(), &[]).await?;
    push::image(&plain.client(), REPOSITORY, "latest", &image).await?;
    plain.stop().await?;
    let (certificate, key, ca) = (text("127.0.0.1.pem"), text("127.0.0.1.key"), text("ca.pem"));
    let flags = ["--tls-certificate", &certificate, "--tls-key", &key, "--tls-client-ca", &ca];
    let mut seeder = Daemon::seeder(&binaries, directory.path(), &flags).await?;
    let address = seeder.addresses().registry;
    let refused = seeder.client().get("/v2/").await;
    ensure!(refused.is_err(), "without TLS: {refused:?}");
    let (url, own, own_key) = (format!("https://{address}"), text("node.pem"), text("node.key"));
    let flags = ["--seeder", &url, "--seeder-ca", &ca, "--seeder-cert", &own, "--seeder-key", &own_key];
    let mut agent = Daemon::agent(&binaries, directory.path(), "agent", address, &flags).await?;
    let report = pull::image(&agent.client(), REPOSITORY, "latest", &pull::Options::default()).await?;
    ensure!(report.manifest == image.manifest.digest, "{report:?}");
    ensure!(agent.stop().await?.success() && seeder.stop().await?.success(), "SIGTERM ends both with status 0");
    let secret = std::fs::read_to_string(file("127.0.0.1.key"))?;
    let secret = secret.lines().nth(1).unwrap_or_default();
    ensure!(!std::fs::read_to_string(seeder.log())?.contains(secret), "the key is in the log");
    Ok(())
}
