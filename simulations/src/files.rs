//! The files of a run.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{cause, job::Outcome, num::secs, world::Log};

/// Writes text into a file of the folder.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// All tables of a run.
pub(crate) fn tables(folder: &Path, outcome: &Outcome) -> Result<()> {
    let summary = serde_json::to_string_pretty(&outcome.summary).context("a summary is JSON")?;
    write(folder, "summary.json", &(summary + "\n"))?;
    write(folder, "nodes.csv", &nodes(outcome))?;
    write(folder, "timeline.csv", &timeline(outcome))?;
    write(folder, "matrix.csv", &matrix(outcome))
}

fn moment(nanos: u64) -> String {
    if nanos == u64::MAX { String::new() } else { format!("{:.6}", secs(nanos)) }
}

fn nodes(outcome: &Outcome) -> String {
    let mut text = "id,name,region,zone,site,kind,start_s,first_byte_s,arrived_s,ready_s,up_bytes,down_bytes,\
                    from_origin_bytes,retries,timeouts,crashes,cause\n"
        .to_owned();
    for (id, (log, spot)) in outcome.logs.iter().zip(&outcome.spots.nodes).enumerate() {
        let name = outcome.spots.names.get(id).map_or("", String::as_str);
        let region = &outcome.summary.regions[spot.region as usize];
        let group = outcome.spots.groups.get(spot.group as usize);
        let site = group.map_or(String::new(), |_| spot.group.to_string());
        let kind = group.map_or("", |group| group.kind.as_str());
        let Log { start, first_byte, arrived, ready, up, down, from_origin, .. } = log;
        let _ = writeln!(
            text,
            "{id},{name},{region},{},{site},{kind},{},{},{},{},{up},{down},{from_origin},{},{},{},{}",
            spot.zone,
            moment(*start),
            moment(*first_byte),
            moment(*arrived),
            moment(*ready),
            log.stats.refusals + log.stats.steals,
            log.stats.timeouts,
            log.crashes,
            cause::short(log)
        );
    }
    text
}

fn timeline(outcome: &Outcome) -> String {
    let mut text =
        "t_s,nodes_arrived,nodes_ready,done_part,origin_gbit,cross_gbit,active_flows,least_replicas\n".to_owned();
    for s in &outcome.samples {
        let (origin, cross) = (s.origin / 125e6, s.cross / 125e6);
        let _ = writeln!(
            text,
            "{:.6},{},{},{:.6},{origin:.6},{cross:.6},{},{}",
            secs(s.time),
            s.arrived,
            s.ready,
            s.done,
            s.flows,
            s.rarest
        );
    }
    text
}

fn matrix(outcome: &Outcome) -> String {
    let regions = &outcome.summary.regions;
    let mut text = format!("from_to,{}\n", regions.join(","));
    let names = regions.iter().map(String::as_str).chain(["(origin)"]);
    for (name, row) in names.zip(&outcome.summary.matrix) {
        let cells: Vec<String> = row.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "{name},{}", cells.join(","));
    }
    text
}
