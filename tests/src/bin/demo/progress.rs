//! The live display: a bar for each agent on a terminal, a line now and then elsewhere.

use std::{
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shoal_tests::report::line;

/// Between two looks at the counters: what the eye takes as smooth.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);
/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// What is shown while the pulls run.
pub(crate) struct Display {
    counters: Vec<(ProgressBar, Arc<AtomicU64>)>,
    total: u64,
    plain: bool,
    last_line: Instant,
    started: Instant,
}

impl Display {
    pub(crate) fn new<'a>(counters: impl Iterator<Item = (&'a str, Arc<AtomicU64>)>, total: u64) -> Self {
        let plain = !std::io::stdout().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stdout() };
        let bars = MultiProgress::with_draw_target(target);
        let style =
            ProgressStyle::with_template("{prefix:>8} [{bar:40}] {bytes:>10}/{total_bytes} {bytes_per_sec:>12}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        let counters = counters.map(|(name, counter)| {
            let bar = bars.add(ProgressBar::new(total).with_style(style.clone()).with_prefix(name.to_owned()));
            (bar, counter)
        });
        let now = Instant::now();
        Self { counters: counters.collect(), total, plain, last_line: now, started: now }
    }

    pub(crate) fn show(&mut self) {
        for (bar, counter) in &self.counters {
            bar.set_position(counter.load(Ordering::Relaxed));
        }
        if self.plain && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.line();
        }
    }

    fn line(&self) {
        let share = |counter: &AtomicU64| (counter.load(Ordering::Relaxed) * 100 / self.total.max(1)).to_string();
        let shares: Vec<_> = self.counters.iter().map(|(_, counter)| share(counter)).collect();
        line(&format!(
            "pulling: {:.0} s, per cent received: {}",
            self.started.elapsed().as_secs_f64(),
            shares.join(" ")
        ));
    }

    pub(crate) fn finish(mut self) {
        self.show();
        for (bar, _) in &self.counters {
            bar.finish();
        }
        if self.plain {
            self.line();
        }
    }
}
