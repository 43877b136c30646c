//! The page around the drawings.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::{
    charts,
    svg::{escape, number},
};
use crate::{
    cause,
    commands::sweep::{FIGURES, Point},
    job::Outcome,
    num::secs,
    plan::Plan,
    scenario::units::Bytes,
    setup::Setup,
};

/// Nodes in the table of the slowest.
const SLOWEST: usize = 20;

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2530;--soft:#5d6b7a;--rule:#d9dfe6;--shoal:#0b7285;--random:#9c36b5;
--mirror:#e8590c;--origin:#868e96;--bound:#495057;--ready:#2b8a3e}
@media (prefers-color-scheme:dark){:root{--paper:#12171d;--ink:#e6ebf0;--soft:#97a5b4;--rule:#2b3540;--shoal:#3bc9db;
--random:#da77f2;--mirror:#ffa94d;--origin:#adb5bd;--bound:#ced4da;--ready:#69db7c}}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb}body{font-size:10pt;max-width:none}
section{break-inside:avoid}details{display:none}}
*{box-sizing:border-box}body{margin:2rem auto;padding:0 1rem;max-width:60rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .4rem}
p{margin:.4rem 0}.soft{color:var(--soft)}svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--soft)}
svg .name{fill:var(--ink)}.grid{stroke:var(--rule);stroke-width:1}.line{fill:none;stroke:var(--c);stroke-width:2}
.area{fill:var(--c);opacity:.15;stroke:none}.shoal{--c:var(--shoal)}.random{--c:var(--random)}
.mirror-per-region{--c:var(--mirror)}.origin-only,.origin{--c:var(--origin)}.cross{--c:var(--mirror)}
.bound{--c:var(--bound)}.line.bound{stroke-dasharray:6 4}.ready{--c:var(--ready)}.line.ready{stroke-width:1.2}
.key span{display:inline-block;margin-right:1.2rem}.key i{display:inline-block;width:1.6em;height:0;border-top:3px solid
var(--c);vertical-align:middle;margin-right:.4em}.key i.bound{border-top-style:dashed}
table{border-collapse:collapse;width:100%;font-size:.88rem}th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px
solid var(--rule)}th:first-child,td:first-child,td.text,th.text{text-align:left}tr.main td{font-weight:600}
.heat td{background:color-mix(in srgb,var(--shoal) var(--heat),transparent);text-align:center}caption{text-align:left;
color:var(--soft)}.wide{overflow-x:auto}pre{white-space:pre-wrap;font-size:.8rem;background:color-mix(in srgb,var(--rule)
35%,transparent);padding:.8rem}";

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{0}</title><style>{STYLE}</style></head><body>\n",
        escape(title)
    )
}

/// The report of a run: `outcomes` by policy, the last told in detail.
pub(crate) fn page(setup: &Setup, outcomes: &[Outcome]) -> Result<String> {
    let main = outcomes.last().context("a report is about at least one run")?;
    let summary = &main.summary;
    let plan = Plan::new(&setup.scenario, setup.seed, summary.policy, setup.rates.with(setup.epsilon))?;
    let mut html = head(&format!("{}: {} nodes", setup.name, summary.nodes));
    let _ = writeln!(
        html,
        "<h1>{}</h1><p>{}</p><p class=\"soft\">{} nodes × {} in {} pieces · seed {} · {} rates · trace {} · {}</p>",
        escape(&setup.name),
        escape(&setup.scenario.about),
        summary.nodes,
        Bytes(summary.image_bytes),
        summary.pieces,
        setup.seed,
        if setup.rates == crate::cli::RatesChoice::Exact { "exact" } else { "fast" },
        summary.trace_hash,
        escape(&summary.version)
    );
    if !summary.is_complete() {
        let _ = writeln!(
            html,
            "<p><strong>{} of {} nodes are ready: the run ended with “{}” after {:.1} s.</strong></p>",
            summary.nodes_ready, summary.nodes, summary.ended, summary.ended_s
        );
    }
    section(&mut html, "Who has it when", &(key(outcomes) + &charts::completion(outcomes)));
    section(&mut html, "In figures", &figures(outcomes));
    section(&mut html, "What the origin sends", &charts::origin(main));
    if summary.regions.len() > 1 {
        section(&mut html, "From region to region", &charts::heat(main));
    }
    if summary.policy.swarms() {
        section(&mut html, "Who gives", &charts::lorenz(main));
    }
    section(&mut html, "The slowest nodes", &slowest(main, &plan));
    let scenario = toml::to_string_pretty(&setup.scenario).context("a scenario is TOML")?;
    let _ = writeln!(
        html,
        "<details><summary>The scenario</summary><pre>{}</pre></details>\n<p class=\"soft\">The same again: \
         <code>shoal-sim replay</code> on this folder.</p></body></html>",
        escape(&scenario)
    );
    Ok(html)
}

fn section(html: &mut String, title: &str, body: &str) {
    let _ = writeln!(html, "<section><h2>{}</h2>\n{body}</section>", escape(title));
}

fn key(outcomes: &[Outcome]) -> String {
    let mut html = "<p class=\"key\">".to_owned();
    let names = outcomes.iter().map(|outcome| (outcome.summary.policy.name(), outcome.summary.policy.name()));
    for (class, name) in names.chain([("bound", "fluid bound"), ("ready", "ready (unpacked)")]) {
        let _ = write!(html, "<span><i class=\"{class}\"></i>{name}</span>");
    }
    html + "</p>\n"
}

fn figures(outcomes: &[Outcome]) -> String {
    let mut html = "<div class=\"wide\"><table><tr><th class=\"text\">policy</th><th>half have it</th><th>99 %</th>\
                    <th>all</th><th>all ready</th><th>÷ bound</th><th>origin copies</th><th>origin peak</th>\
                    <th>region copies</th><th>uplinks used</th><th>evenness</th></tr>\n"
        .to_owned();
    let time = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |value| format!("{} s", number(value)));
    for (index, outcome) in outcomes.iter().enumerate() {
        let s = &outcome.summary;
        let class = if index + 1 == outcomes.len() { " class=\"main\"" } else { "" };
        let _ = writeln!(
            html,
            "<tr{class}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{} Gb/s</td>\
             <td>{:.2}</td><td>{:.0} %</td><td>{:.2}</td></tr>",
            s.policy.name(),
            time(s.arrived.p50),
            time(s.arrived.p99),
            time(s.arrived.max),
            time(s.ready.max),
            s.ratio_to_bound.map_or_else(|| "—".to_owned(), |ratio| format!("{ratio:.2}")),
            s.origin.copies,
            number(s.origin.peak_gbit),
            s.cross_copies,
            100.0 * s.uplink_use,
            s.jain_upload
        );
    }
    html + "</table></div>\n<p class=\"soft\">Bound: no schedule gets the image to all nodes before. Evenness: Jain's index \
            of bytes sent, 1 where all gave the same.</p>\n"
}

fn slowest(outcome: &Outcome, plan: &Plan) -> String {
    let mut order: Vec<usize> = (0..outcome.logs.len()).collect();
    order.sort_by_key(|node| {
        let log = &outcome.logs[*node];
        (core::cmp::Reverse(log.ready), core::cmp::Reverse(log.arrived), *node)
    });
    let mut html =
        "<div class=\"wide\"><table><tr><th class=\"text\">node</th><th class=\"text\">region</th><th>began</th>\
                    <th>had it</th><th>ready</th><th class=\"text\">because</th></tr>\n"
            .to_owned();
    let time = |moment: u64| if moment == u64::MAX { "—".to_owned() } else { format!("{:.2} s", secs(moment)) };
    for &node in order.iter().take(SLOWEST) {
        let log = &outcome.logs[node];
        let name = outcome.spots.names.get(node).filter(|name| !name.is_empty());
        let name = name.map_or_else(|| node.to_string(), |name| format!("{node} ({name})"));
        let region = &outcome.summary.regions[outcome.spots.nodes[node].region as usize];
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
            escape(&name),
            escape(region),
            time(log.start),
            time(log.arrived),
            time(log.ready),
            escape(&cause::long(log, node, plan, &outcome.spots))
        );
    }
    html + "</table></div>\n<p class=\"soft\"><code>shoal-sim explain-node N</code> tells one node's story.</p>\n"
}

/// The report of a sweep.
pub(crate) fn sweep_page(name: &str, points: &[Point]) -> String {
    let mut html = head(&format!("{name}: sweep"));
    let _ = writeln!(
        html,
        "<h1>{}</h1><p class=\"soft\">Lines are means, bands reach from the least to the most of the seeds.</p>",
        escape(name)
    );
    for figure in &FIGURES {
        if let Some(chart) = charts::sweep(figure, points) {
            section(&mut html, figure.0, &chart);
        }
    }
    let mut table =
        "<div class=\"wide\"><table><tr><th class=\"text\">settings</th><th class=\"text\">policy</th>".to_owned();
    for (name, _) in &FIGURES {
        let _ = write!(table, "<th>{name}</th>");
    }
    table += "</tr>\n";
    for point in points {
        let _ = write!(table, "<tr><td>{}</td><td class=\"text\">{}</td>", escape(&point.label()), point.policy.name());
        for (_, of) in &FIGURES {
            let band = point.band(of);
            let text = band.map_or_else(
                || "—".to_owned(),
                |b| format!("{} ({}–{})", number(b.mean), number(b.least), number(b.most)),
            );
            let _ = write!(table, "<td>{text}</td>");
        }
        table += "</tr>\n";
    }
    section(&mut html, "All points", &(table + "</table></div>\n"));
    html + "</body></html>\n"
}
