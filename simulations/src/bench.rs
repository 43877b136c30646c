//! `make bench-sim`: what the simulator costs. Instructions are counted by callgrind, which runs this same program; the
//! time of a simulated transfer stands beside SimGrid's, both replaying one exported trace on the same star.

mod history;
mod simgrid;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{cli, commands::Failure, out};

/// Runs of which the median is told.
const RUNS: usize = 3;

/// What runs under callgrind, which is fifty times slower than the machine.
const COUNTED: [&str; 2] = ["dc-1k", "--policy=shoal"];
/// The same in a short bench: enough pieces a node that what each node costs once is not all that is measured.
const COUNTED_SHORT: [&str; 2] = ["--nodes=60", "--set=image.size=\"512 MiB\""];

/// Measures.
pub(crate) fn bench(args: &cli::Bench) -> Result<ExitCode, Failure> {
    if let (Some(trace), Some(links)) = (&args.replay, &args.links) {
        simgrid::replay(trace, links)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut figures: BTreeMap<&str, f64> = BTreeMap::new();
    let mut walls: BTreeMap<String, Value> = BTreeMap::new();
    let scratch = args.out.parent().unwrap_or_else(|| Path::new(".")).join("sim");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    for nodes in [64, 256] {
        match simgrid::against(nodes, &scratch)? {
            Some((ours, theirs, transfers)) => {
                let name = if nodes == 64 { "cost_vs_simgrid_64" } else { "cost_vs_simgrid_256" };
                figures.insert(name, theirs / ours);
                let per = |seconds: f64| 1e6 * seconds / transfers;
                walls.insert(
                    format!("us_per_transfer_{nodes}"),
                    json!({ "shoal_sim": per(ours), "simgrid": per(theirs) }),
                );
                tell(name, theirs / ours, "≥ 50");
            }
            None => {
                out::warn("SKIPPED cost_vs_simgrid: no g++ or libsimgrid-dev; as root: apt-get install libsimgrid-dev")
            }
        }
    }
    for (name, rates, bar) in
        [("instr_per_piece_fast", "fast", "≤ 6,000"), ("instr_per_piece_exact", "exact", "≤ 30,000")]
    {
        match counted(rates, args.short, &scratch)? {
            Some((whole, decision)) => {
                figures.insert(name, whole);
                tell(name, whole, bar);
                if rates == "exact" {
                    figures.insert("instr_per_decision", decision);
                    tell("instr_per_decision", decision, "≤ 2,500");
                }
            }
            None => out::warn("SKIPPED instr_per_*: no valgrind; as root: apt-get install valgrind"),
        }
    }
    walls.insert("dc_1k".to_owned(), wall(&["dc-1k", "--policy=shoal"], &scratch)?);
    optimum(&mut figures, &mut walls, args.short, &scratch)?;
    if !args.short {
        match history::same(&scratch)? {
            Some(same) => {
                figures.insert("trace_hash_equal", f64::from(u8::from(same)));
                tell("trace_hash_equal", f64::from(u8::from(same)), "1");
            }
            None => out::warn("SKIPPED trace_hash_equal: cargo does not build the other profile here"),
        }
        large(&mut figures, &mut walls, &scratch)?;
    }
    let told = json!({ "figures": figures, "shown": walls, "cores": crate::job::cores() });
    let text = serde_json::to_string_pretty(&told).context("figures are JSON")?;
    fs::write(&args.out, text + "\n").with_context(|| format!("cannot write {}", args.out.display()))?;
    out::say(format_args!("{}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

fn tell(name: &str, value: f64, bar: &str) {
    out::say(format_args!("{name:<24} {value:>12.2}   bar {bar}"));
}

fn own() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("a program knows where it lies")?))
}

/// Runs a scenario in a process of its own; its summary.
fn summary(args: &[&str], scratch: &Path) -> Result<Value> {
    let folder = scratch.join("run");
    let output = own()?.arg("run").args(args).arg("--out").arg(&folder).output().context("cannot start a run")?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(folder.join("summary.json")).context("a run writes a summary")?;
    serde_json::from_str(&text).context("a summary is JSON")
}

fn number(value: &Value, path: &[&str]) -> Result<f64> {
    let found = path.iter().try_fold(value, |value, key| value.get(key)).and_then(Value::as_f64);
    found.with_context(|| format!("the summary has no {}", path.join(".")))
}

/// What a run takes: seconds, memory, transfers a second.
fn wall(args: &[&str], scratch: &Path) -> Result<Value> {
    let summary = summary(args, scratch)?;
    let cost = summary.get("cost").cloned().unwrap_or_default();
    out::say(format_args!(
        "{}: {:.1} s, {} MiB",
        args.join(" "),
        number(&cost, &["wall_s"])?,
        number(&cost, &["rss_mib"])?
    ));
    Ok(cost)
}

/// How far equal swarms are from the optimum.
fn optimum(
    figures: &mut BTreeMap<&str, f64>,
    walls: &mut BTreeMap<String, Value>,
    short: bool,
    scratch: &Path,
) -> Result<()> {
    let mut worst: f64 = 0.0;
    let mut all = Vec::new();
    let sizes: &[u32] = if short { &[127, 511] } else { &[127, 511, 1023, 4095, 16383] };
    for nodes in sizes {
        let nodes_arg = format!("--nodes={nodes}");
        let summary = summary(&["lab", "--policy=shoal", &nodes_arg, "--set=image.size=\"128 MiB\""], scratch)?;
        let ratio = number(&summary, &["ratio_to_rounds"])?;
        worst = worst.max(ratio);
        all.push(json!({ "nodes": nodes, "pieces": 128, "ratio": ratio }));
    }
    figures.insert("t3_ratio_max", worst);
    walls.insert("t3_ratio".to_owned(), all.into());
    tell("t3_ratio_max", worst, "≤ 1.20");
    Ok(())
}

/// The headline at its full size.
fn large(figures: &mut BTreeMap<&str, f64>, walls: &mut BTreeMap<String, Value>, scratch: &Path) -> Result<()> {
    let run = |nodes: &str| wall(&["flash-100k", "--policy=shoal", "--rates=fast", nodes], scratch);
    let (small, whole) = (run("--nodes=10000")?, run("--nodes=100000")?);
    let growth = number(&whole, &["wall_s"])? / number(&small, &["wall_s"])?;
    figures.insert("growth_10k_100k", growth);
    tell("growth_10k_100k", growth, "≤ 14");
    let rss = number(&whole, &["rss_mib"])?;
    figures.insert("flash100k_rss_mib", rss);
    tell("flash100k_rss_mib", rss, "≤ 2,048");
    walls.insert("flash_10k".to_owned(), small);
    walls.insert("flash_100k".to_owned(), whole);
    Ok(())
}

/// Instructions of a run for each transfer, and those of one input and its actions in the policy.
fn counted(rates: &str, short: bool, scratch: &Path) -> Result<Option<(f64, f64)>> {
    let file = scratch.join(format!("callgrind.{rates}"));
    let folder = scratch.join("counted");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(std::env::current_exe().context("a program knows where it lies")?);
    valgrind
        .arg("run")
        .args(COUNTED)
        .args(COUNTED_SHORT.iter().filter(|_| short))
        .arg(format!("--rates={rates}"))
        .arg("--out")
        .arg(&folder);
    let Ok(output) = valgrind.output() else { return Ok(None) };
    if !output.status.success() {
        bail!("valgrind: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = fs::read_to_string(folder.join("summary.json")).context("a run writes a summary")?;
    let summary: Value = serde_json::from_str(&text).context("a summary is JSON")?;
    let transfers = number(&summary, &["counts", "transfers"])?;
    let decisions = number(&summary, &["counts", "decisions"])?;
    let mut annotate = Command::new("callgrind_annotate");
    let output = annotate.args(["--inclusive=yes", "--threshold=100"]).arg(&file).output();
    let output = output.context("callgrind_annotate belongs to valgrind")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let of = |what: &dyn Fn(&str) -> bool| {
        let line = text.lines().find(|line| what(line));
        let digits: String =
            line.unwrap_or_default().trim().chars().take_while(|c| *c != ' ').filter(char::is_ascii_digit).collect();
        digits.parse::<f64>().unwrap_or(0.0)
    };
    let whole = of(&|line| line.contains("PROGRAM TOTALS"));
    let core = of(&|line| line.contains("shoal_transfer::node::Node::handle"));
    Ok(Some((whole / transfers, core / decisions)))
}

/// The median of some measurements.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
