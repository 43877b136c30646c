//! A record of all that the core was told and said, so that a run can be replayed action for action.
//!
//! JSON lines: first `{"config": …, "seed": …}`, then `{"at": nanoseconds, "input": …}` and `{"action": …}` in the order
//! in which they happened. Feeding the inputs to a fresh [`shoal_transfer::Node`] of that configuration and seed must
//! bring about the same actions.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use shoal_transfer::{
    Config,
    event::{Action, Input},
    time::Time,
};

/// The file being written.
#[derive(Debug)]
pub(super) struct Trace {
    file: BufWriter<File>,
    failed: bool,
}

impl Trace {
    pub(super) fn create(path: &Path, config: &Config, seed: u64) -> io::Result<Self> {
        let mut trace = Self { file: BufWriter::new(File::create(path)?), failed: false };
        trace.line(&serde_json::json!({ "config": config, "seed": seed }));
        Ok(trace)
    }

    pub(super) fn input(&mut self, input: &Input<'_>, at: Time) {
        self.line(&serde_json::json!({ "at": at.as_nanos(), "input": input }));
    }

    pub(super) fn action(&mut self, action: &Action) {
        self.line(&serde_json::json!({ "action": action }));
    }

    pub(super) fn flush(&mut self) {
        let result = self.file.flush();
        self.note(result);
    }

    fn line(&mut self, line: &serde_json::Value) {
        let result = writeln!(self.file, "{line}");
        self.note(result);
    }

    /// A trace that cannot be written is given up, not the agent.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::error!(%error, "the trace cannot be written");
        }
    }
}
