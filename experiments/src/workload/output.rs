//! One thread prints all lines: a console that is slow or stuck must not hold
//! up the ticker or a writer.

use crate::lines::Line;
use std::io::Write;
use std::sync::mpsc;
use std::thread;

/// Where the workload's threads send their lines.
#[derive(Clone)]
pub struct Output(mpsc::Sender<Line>);

impl Output {
    /// Starts the printing thread, which writes to standard output.
    #[must_use]
    pub fn to_stdout() -> Self {
        let (sender, receiver) = mpsc::channel::<Line>();
        thread::spawn(move || {
            for line in receiver {
                // One write per line, or a kernel message could split it. An
                // error has nowhere to be told.
                let text = format!("{line}\n");
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        });
        Self(sender)
    }

    /// Queues a line.
    pub fn say(&self, line: Line) {
        // Fails only when the printing thread is gone, at exit.
        let _ = self.0.send(line);
    }

    /// Queues an error line.
    pub fn error(&self, what: &str, why: impl std::fmt::Display) {
        self.say(Line::new("error").with("what", what).with("why", why));
    }
}
