//! The only place that writes to the terminal.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
};

/// A line of the answer. Whoever closed the pipe does not want more, so failures are none.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A line beside the answer.
pub(crate) fn warn(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "shoal-sim: {text}");
}

/// Overwrites the line of progress; nothing where nobody looks.
pub(crate) fn progress(text: &str) {
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}");
        let _ = err.flush();
    } else if !text.is_empty() {
        let _ = writeln!(err, "{text}");
    }
}

/// Whether progress is seen as it happens.
pub(crate) fn is_live() -> bool {
    std::io::stderr().is_terminal()
}
