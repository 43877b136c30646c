//! The conformance suite, against our seeder and against a registry whose gaps are known.

use anyhow::{Result, ensure};
use shoal_tests::{
    cluster::{self, Cluster},
    conformance::{Suite, Verdict, expect_failures},
    daemons::Registry,
};

/// The only rules that may be skipped: whether a mount names its source is the registry's choice, and ours asks for it.
const MAY_SKIP: &str = "push/mount/anonymous-finds-it/";
/// What docker-registry 2.8 cannot know: it is older than these parts of the specification, or is known to get them wrong.
const DISTRIBUTION_FAILS: &str = include_str!("data/distribution-2.8-fails.txt");
/// Rules whose names begin so are run against docker-registry: the others ask for the same again, in more cases.
const DISTRIBUTION_RULES: [&str; 5] = ["push/chunked/", "push/session/", "pull/range/", "discovery/", "catalog/"];

#[tokio::test(flavor = "multi_thread")]
async fn our_seeder_fails_no_rule() -> Result<()> {
    let cluster = Cluster::start(0).await?;
    let report = Suite::all().run(&cluster.seeder.addresses().registry.to_string()).await?;
    ensure!(report.count(Verdict::Fail) == 0, "{}", report.text());
    ensure!(report.of(Verdict::Skip).all(|skipped| skipped.rule.starts_with(MAY_SKIP)), "{}", report.text());
    ensure!(report.count(Verdict::Pass) > 850, "{}", report.summary());
    cluster.finish().await
}

/// A suite that everybody passes would test nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_suite_finds_what_is_known_of_docker_registry() -> Result<()> {
    if !shoal_tests::daemons::on_path("docker-registry") {
        shoal_tests::report::note("SKIPPED: no docker-registry here");
        return Ok(());
    }
    let directory = cluster::scratch()?;
    let registry = Registry::start(directory.path()).await?;
    let report = Suite::all().starting_with(&DISTRIBUTION_RULES).run(&registry.address().to_string()).await?;
    expect_failures(&report, DISTRIBUTION_FAILS)?;
    registry.stop().await
}
