//! How far it is: a line that tells, and the end when somebody presses Ctrl-C.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    num::{floor, ratio, secs},
    out,
    world::{Watcher, World},
};

/// Pause between two lines: on a terminal, and in a log.
const LIVE_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(15);
/// Width of the bar in characters.
const BAR: usize = 24;

/// The progress of all runs under way.
#[derive(Debug)]
pub(crate) struct Board {
    started: Instant,
    total: usize,
    /// Finished runs, in millionths of a run.
    done: AtomicU64,
    shown: Mutex<Instant>,
    stop: Arc<AtomicBool>,
}

impl Board {
    /// For so many runs. The first Ctrl-C ends them in order; the second at once.
    pub(crate) fn new(total: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
                .context("cannot listen for signals")?;
        }
        let now = Instant::now();
        Ok(Self { started: now, total, done: AtomicU64::new(0), shown: Mutex::new(now), stop })
    }

    /// Whether somebody wants it to end.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The eye on one run.
    pub(crate) fn eye(&self, name: impl Into<String>) -> Eye<'_> {
        Eye { board: self, name: name.into(), counted: 0 }
    }

    /// Takes the line away.
    pub(crate) fn finish(&self) {
        if out::is_live() {
            out::progress("");
        }
    }

    fn show(&self, text: &str) {
        let every = if out::is_live() { LIVE_EVERY } else { LOG_EVERY };
        let Ok(mut shown) = self.shown.try_lock() else { return };
        if shown.elapsed() < every {
            return;
        }
        *shown = Instant::now();
        let part = ratio(self.done.load(Ordering::Relaxed) as f64, 1e6 * self.total as f64).min(1.0);
        let full = usize::try_from(floor(part * BAR as f64)).unwrap_or(BAR);
        let bar = "█".repeat(full) + &"░".repeat(BAR - full);
        let left = self.started.elapsed().as_secs_f64() * (1.0 - part) / part.max(1e-3);
        let eta = if part > 0.002 { format!("{left:.0} s left") } else { "…".to_owned() };
        out::progress(&format!("{bar} {:3.0} %  {eta}  {text}", 100.0 * part));
    }
}

/// Watches one run for a board.
#[derive(Debug)]
pub(crate) struct Eye<'a> {
    board: &'a Board,
    name: String,
    counted: u64,
}

impl Watcher for Eye<'_> {
    fn look(&mut self, world: &World) -> bool {
        let part = ratio(world.meter.pieces as f64, world.meter.pieces_total as f64);
        let now = floor(1e6 * part);
        self.board.done.fetch_add(now.saturating_sub(self.counted), Ordering::Relaxed);
        self.counted = self.counted.max(now);
        let (arrived, nodes) = (world.meter.arrived, world.meter.logs.len());
        self.board.show(&format!(
            "{}: {:.1} s simulated, {arrived} of {nodes} nodes have it",
            self.name,
            secs(world.now)
        ));
        !self.board.stopped()
    }
}

impl Drop for Eye<'_> {
    fn drop(&mut self) {
        self.board.done.fetch_add(1_000_000u64.saturating_sub(self.counted), Ordering::Relaxed);
    }
}
