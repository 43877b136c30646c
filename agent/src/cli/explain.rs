//! `shoal explain`.

use anyhow::{Context, Result, bail};
use http::Method;

use super::{
    AdminArgs,
    admin::Admin,
    image::{find, list},
    out::{Out, human},
};
use crate::history::{BlobReport, PullReport, Source};

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// NAME, NAME:TAG, NAME@DIGEST or DIGEST [default: every image]
    image: Option<String>,
    /// The last so many pulls
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    last: u16,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &ExplainArgs, out: &mut Out) -> Result<()> {
    let admin = Admin::of(&args.admin.data_dir);
    let pulls: Option<Vec<PullReport>> = admin.ask(Method::GET, "/pulls").await?;
    let mut pulls = pulls.context("the agent does not know the question; is it of this version?")?;
    if let Some(image) = &args.image {
        let digest = find(&list(&admin).await?, image)?;
        pulls.retain(|pull| pull.image == digest);
    }
    pulls.truncate(args.last.into());
    if args.admin.json {
        return out.json(&pulls);
    }
    if pulls.is_empty() {
        bail!("no such pull is remembered: the agent keeps the last few, until it is restarted");
    }
    for (n, pull) in pulls.iter().enumerate() {
        if n > 0 {
            out.line("");
        }
        show(pull, out);
    }
    Ok(())
}

/// The columns between size and time.
const COLUMNS: [(&str, Option<Source>); 6] = [
    ("LOCAL", None),
    ("SITE", Some(Source::Site)),
    ("ZONE", Some(Source::Zone)),
    ("REGION", Some(Source::Region)),
    ("ELSEWHERE", Some(Source::Fleet)),
    ("SEEDER", Some(Source::Seeder)),
];

fn of(blob: &BlobReport, source: Option<Source>) -> u64 {
    source.map_or(blob.local, |source| blob.shares.iter().filter(|s| s.source == source).map(|s| s.bytes).sum())
}

pub(super) fn show(pull: &PullReport, out: &mut Out) {
    out.line(&format!("{}@{}", pull.repository, pull.image));
    let used: Vec<_> =
        COLUMNS.iter().filter(|(_, source)| pull.blobs.iter().any(|blob| of(blob, *source) > 0)).collect();
    let head: Vec<_> =
        ["BLOB", "SIZE"].into_iter().chain(used.iter().map(|(name, _)| *name)).chain(["PEERS", "TIME"]).collect();
    let rows: Vec<Vec<String>> = pull
        .blobs
        .iter()
        .map(|blob| {
            let peers: usize = blob.shares.iter().filter(|s| s.source != Source::Seeder).map(|s| s.peers).sum();
            let state = if blob.complete { "" } else { ", not whole" };
            let sources = used.iter().map(|(_, source)| match of(blob, *source) {
                0 => "-".to_owned(),
                bytes => match blob.shares.iter().find(|s| Some(s.source) == *source) {
                    Some(share) => format!("{} in {:.1} s", human(bytes), share.seconds),
                    None => human(bytes),
                },
            });
            let start = [blob.digest.to_string().chars().take(19).collect(), human(blob.size)];
            start
                .into_iter()
                .chain(sources)
                .chain([peers.to_string(), format!("{:.1} s{state}", blob.seconds)])
                .collect()
        })
        .collect();
    out.table(&head, &rows);
    for blob in &pull.blobs {
        let name: String = blob.digest.to_string().chars().take(19).collect();
        for (why, bytes) in &blob.fallbacks {
            out.line(&format!("{name}: {} from the seeder because {}", human(*bytes), why.explain()));
        }
        if let Some(trouble) = &blob.trouble {
            out.line(&format!("{name}: the seeder failed: {trouble}"));
        }
    }
}
