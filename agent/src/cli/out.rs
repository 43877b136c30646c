//! The one writer to standard output and standard error.

use std::io::{self, Write};

use serde::Serialize;

/// A mistake on the command line that clap cannot see. Exit 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// Where output goes.
pub(super) struct Out {
    data: Box<dyn Write + Send>,
    errors: Box<dyn Write + Send>,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Out")
    }
}

impl Out {
    pub(super) fn standard() -> Self {
        Self { data: Box::new(io::stdout()), errors: Box::new(io::stderr()) }
    }

    #[cfg(test)]
    pub(super) fn to(data: Box<dyn Write + Send>, errors: Box<dyn Write + Send>) -> Self {
        Self { data, errors }
    }

    /// A line of data. Whoever closed the pipe has read enough.
    pub(super) fn line(&mut self, text: &str) {
        let _ = writeln!(self.data, "{text}");
    }

    /// Text that ends its own lines.
    pub(super) fn text(&mut self, text: &str) {
        let _ = self.data.write_all(text.as_bytes());
        let _ = self.data.flush();
    }

    /// A value as JSON on one line.
    pub(super) fn json<T: Serialize>(&mut self, value: &T) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?);
        Ok(())
    }

    /// A table with its columns aligned.
    pub(super) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let head: Vec<String> = head.iter().map(|&name| name.to_owned()).collect();
        for row in std::iter::once(&head).chain(rows) {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            self.line(cells.join("  ").trim_end());
        }
    }

    /// What is under way, for people.
    pub(super) fn note(&mut self, text: &str) {
        let _ = writeln!(self.errors, "{text}");
    }

    /// An error in one line, with its causes.
    pub(super) fn error(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}").replace('\n', "; ");
        let _ = writeln!(self.errors, "shoal: {text}");
    }

    /// What clap has to say, in one line.
    pub(super) fn usage(&mut self, error: &clap::Error) {
        let text = error.to_string();
        // What follows the first empty line is the usage.
        let what: Vec<_> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
        let what = what.join(" ");
        let _ = writeln!(self.errors, "shoal: {} (see `shoal --help`)", what.trim_start_matches("error: "));
    }
}

/// Bytes for people: `12.3 MiB`.
pub(super) fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
