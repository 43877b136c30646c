//! Progress of a pull: a bar for each blob on a terminal, a line for each finished blob elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shoal_proto::Digest;

use super::out::human;

/// How often a terminal is drawn anew.
const REDRAWS_PER_S: u8 = 10;
/// A bar that does not move still shows that time passes.
const TICK: Duration = Duration::from_millis(200);

/// All bars of a pull.
#[derive(Debug)]
pub(super) struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
}

/// One blob's.
#[derive(Debug)]
pub(super) struct Line {
    bar: Option<ProgressBar>,
    quiet: bool,
    name: String,
    size: u64,
    started: Instant,
}

impl Progress {
    /// On standard error; nothing where `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        let draw = !quiet && io::stderr().is_terminal();
        let bars = || MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_S));
        Self { bars: draw.then(bars), quiet }
    }

    pub(super) fn line(&self, what: &str, digest: &Digest, size: u64) -> Line {
        let name = format!("{what} {}", digest.to_string().chars().take(19).collect::<String>());
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(size));
            let template =
                "{msg:28} {bar:30} {binary_bytes:>11}/{binary_total_bytes:11} {binary_bytes_per_sec:>13} {eta:>4}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(name.clone());
            bar.enable_steady_tick(TICK);
            bar
        });
        Line { bar, quiet: self.quiet, name, size, started: Instant::now() }
    }
}

impl Line {
    /// The blob has so many bytes now.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    /// The blob is there.
    pub(super) fn done(self) {
        match &self.bar {
            Some(bar) => bar.finish(),
            None if self.quiet => {}
            None => {
                let seconds = self.started.elapsed().as_secs_f64();
                let _ = writeln!(io::stderr(), "{}  {}  {seconds:.1} s", self.name, human(self.size));
            }
        }
    }
}
