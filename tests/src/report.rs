//! Output for people: the one place of this crate that writes to the terminal.

use std::io::Write;

/// Writes a line to standard output.
pub fn line(text: &str) {
    // A closed pipe (`| head`) is no fault of a demo.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Writes a line to standard error; below a test to what the test runner shows if it fails.
#[expect(clippy::print_stderr, reason = "only the macro's output is kept by the test runner")]
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// A count of bytes as people read it.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn human(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
