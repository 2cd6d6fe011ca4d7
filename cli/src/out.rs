//! What is printed, and where: results on standard output, everything else on standard error.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Whether what is beside the result is told as JSON lines.
static JSON_LOG: AtomicBool = AtomicBool::new(false);

/// From now on everything on standard error is a JSON object a line.
pub fn log_as_json() {
    JSON_LOG.store(true, Ordering::Relaxed);
}

/// Whether it is.
pub fn logs_json() -> bool {
    JSON_LOG.load(Ordering::Relaxed)
}

/// Logs what happened, and when.
pub fn event(name: &str, fields: Value) {
    let mut line = json!({ "time": Timestamp::now().to_string(), "event": name });
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    print(&line.to_string());
}

/// Prints a line of result. A reader that has gone away is no error.
pub fn line(text: &str) {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            note(&format!(
                "livesave: failed to write to standard output: {error}"
            ));
        }
        _ => {}
    }
}

/// Prints a line beside the result.
pub fn note(text: &str) {
    if logs_json() {
        event("note", json!({ "text": text }));
    } else {
        print(text);
    }
}

/// Prints a warning.
pub fn warn(text: &str) {
    if logs_json() {
        event("warning", json!({ "text": text }));
    } else {
        print(&format!("livesave: warning: {text}"));
    }
}

/// There is nobody to tell if that fails.
fn print(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints an error with its causes in one line, and what to do about it in a second.
pub fn error(error: &anyhow::Error, hint: Option<&str>, code: u8) {
    if logs_json() {
        let what = format!("{error:#}");
        event(
            "failed",
            json!({ "error": what, "hint": hint, "exit_code": code }),
        );
        return;
    }
    note(&format!("livesave: {error:#}"));
    if let Some(hint) = hint {
        note(&format!("livesave: {hint}"));
    }
}

/// A time span for people: three digits, in a unit that fits.
pub fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 0.01 => format!("{:.2} ms", s * 1e3),
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 60.0 => format!("{s:.1} s"),
        s => humantime::format_duration(Duration::from_secs(s as u64)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_have_a_unit_that_fits() {
        for (seconds, text) in [
            (0.000_05, "50 µs"),
            (0.001_234, "1.23 ms"),
            (0.083_4, "83.4 ms"),
            (0.483, "483 ms"),
            (4.567, "4.57 s"),
            (61.0, "1m 1s"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
