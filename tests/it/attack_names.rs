//! Names, digests and labels that would lead somewhere else name nothing.

use anyhow::{Result, ensure};
use shoal_tests::{cluster::Cluster, image::Image, pull, push, raw};

const REPOSITORY: &str = "it/names";

#[tokio::test]
async fn no_name_digest_or_tag_leads_out_of_the_store() -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let client = cluster.seeder.client();
    let image = Image::synthetic(121, &[1000]);
    push::image(&client, REPOSITORY, "1", &image).await?;
    let agent = &cluster.agents[0];
    let zeros = "0".repeat(64);
    let targets = [
        "/v2/../root.key".to_owned(),
        "/v2/../../etc/passwd".to_owned(),
        "/v2/%2e%2e/%2e%2e/etc/passwd/manifests/1".to_owned(),
        "/v2/it/../../names/manifests/1".to_owned(),
        "/v2/it%2fnames/manifests/1".to_owned(),
        "/v2/it/names/manifests/..%2f..%2froot.key".to_owned(),
        "/v2/it/names/manifests/../1".to_owned(),
        "/v2/it/names/blobs/sha256:../../../../root.key".to_owned(),
        format!("/v2/it/names/blobs/sha256:..%2f{zeros}"),
        format!("/v2/it/names/blobs/../sha256:{zeros}"),
        "/v2/it/names/blobs/sha256:%00".to_owned(),
        "/v2//etc/passwd/manifests/1".to_owned(),
        "/v2/./it/names/manifests/1".to_owned(),
        "/v2/it\\names/manifests/1".to_owned(),
        "/v2/it/names/blobs/uploads/../../../../root.key".to_owned(),
        "/v2/it/names/_shoal/statement/sha256:../../root.key".to_owned(),
        "/v2/it/names/_shoal/pull/../../1".to_owned(),
    ];
    let secret = std::fs::read_to_string(cluster.seeder.data_dir().join("root.key"))?;
    for (what, address) in [("seeder", cluster.seeder.addresses().registry), ("agent", agent.addresses().registry)] {
        for target in &targets {
            let answer = raw::http(address, &format!("GET {target} HTTP/1.1")).await?;
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            ensure!(["400", "404", "405", "403"].contains(&status.as_str()), "{what}: {target}: {answer}");
            ensure!(!answer.contains(&secret) && !answer.contains("root:"), "{what}: {target}: {answer}");
        }
    }
    for label in ["region=../eu", "region=eu/..", "region=..", "zone=/a", "region=eu,zone=a\\b", "region=e%2e"] {
        let refused = cluster.order(&["join-token", "create", "--labels", label]).await;
        ensure!(refused.is_err(), "{label} is taken");
    }
    cluster.order(&["join-token", "create", "--labels", "region=eu.1,zone=a-b"]).await?;
    pull::image(&agent.client(), REPOSITORY, "1", &pull::Options::default()).await?;
    cluster.finish().await
}
