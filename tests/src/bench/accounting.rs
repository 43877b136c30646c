//! What processes cost, from the kernel's own accounts.
//!
//! `utime` and `stime` of `/proc/<pid>/stat` together are the scheduler's exact run time of all threads, dead ones too;
//! only the last step rounds, to 10 ms on most machines. Children count: those that live are walked, those that were
//! waited for stand in their parent's account.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Where the fields that are read lie in `/proc/<pid>/stat`, counted from the one behind the name in brackets.
mod field {
    pub(super) const PARENT: usize = 1;
    pub(super) const TIMES: std::ops::Range<usize> = 11..15;
    pub(super) const CHILDREN_TIMES: std::ops::Range<usize> = 13..15;
}

/// CPU seconds that a process, its living descendants, and those that were waited for have used.
///
/// # Errors
/// It is not there.
pub fn cpu_of(process: Pid) -> Result<f64> {
    let process = process.as_raw_nonzero().get();
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is in its parent's account a moment later.
        if let Ok(fields) = stat(child) {
            children.entry(parse(&fields, field::PARENT)?).or_default().push(child);
        }
    }
    let (mut ticks, mut open) = (sum(&stat(process)?, field::TIMES)?, children.remove(&process).unwrap_or_default());
    while let Some(child) = open.pop() {
        if let Ok(fields) = stat(child) {
            ticks += sum(&fields, field::TIMES)?;
        }
        open.extend(children.remove(&child).unwrap_or_default());
    }
    Ok(seconds(ticks))
}

/// CPU seconds of all children of this process that have ended and were waited for.
///
/// # Errors
/// `/proc` cannot be read.
pub fn cpu_of_ended_children() -> Result<f64> {
    let own = i32::try_from(std::process::id()).context("a process id")?;
    Ok(seconds(sum(&stat(own)?, field::CHILDREN_TIMES)?))
}

/// The most memory that a process ever had resident, in bytes.
///
/// # Errors
/// It is not there.
pub fn rss_peak(process: Pid) -> Result<u64> {
    status_kib(process, "VmHWM:")
}

/// The memory that a process has resident now, in bytes.
///
/// # Errors
/// It is not there.
pub fn rss(process: Pid) -> Result<u64> {
    status_kib(process, "VmRSS:")
}

fn status_kib(process: Pid, name: &str) -> Result<u64> {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {path}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn stat(process: i32) -> Result<Vec<String>> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name may hold blanks and brackets itself.
    let (_, fields) = text.rsplit_once(')').with_context(|| format!("no name in {path}"))?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

fn parse<T: std::str::FromStr>(fields: &[String], at: usize) -> Result<T> {
    fields.get(at).and_then(|field| field.parse().ok()).context("a field of /proc/<pid>/stat")
}

fn sum(fields: &[String], which: std::ops::Range<usize>) -> Result<u64> {
    which.map(|at| parse::<u64>(fields, at)).sum()
}

/// How busy the machine was, all of it, between two moments: others may be at work on it.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    busy: u64,
    at: Instant,
}

impl Machine {
    /// Now.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // user, nice, system; idle, iowait; irq, softirq.
        let busy = [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum();
        Ok(Self { busy, at: Instant::now() })
    }

    /// CPU seconds that anybody used since then, and the time that has passed.
    ///
    /// # Errors
    /// `/proc/stat` cannot be read.
    pub fn since(&self) -> Result<(f64, Duration)> {
        let now = Self::now()?;
        Ok((seconds(now.busy.saturating_sub(self.busy)), now.at - self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_burns_time_is_in_the_account() {
        let before = cpu_of_ended_children().unwrap();
        let burn = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done";
        let mut child = std::process::Command::new("sh");
        child.args(["-c", &format!("{burn}; read x")]);
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while cpu_of(pid).unwrap() < 0.02 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let alive = cpu_of(pid).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(alive >= 0.02, "{alive}");
        assert!(cpu_of_ended_children().unwrap() - before >= alive);
    }
}
