//! A guest's console, seen from dom0.
//!
//! What the guest prints is in xenconsoled's log, which goes on in the same
//! file over a restore: so one reads from a remembered place. What it is told
//! is written to the terminal that xenstore names.

use super::xl;
use crate::lines::Line;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where xenconsoled logs to (see `dom0-init`).
pub const LOG_DIR: &str = "/var/log/xen/console";

/// No two commands of one run share an ID.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A place in a guest's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

/// The console of one guest.
#[derive(Clone, Debug)]
pub struct Console {
    log: PathBuf,
    /// Where xenstore says which terminal it is, below the domain's own directory.
    terminal: &'static str,
}

impl Console {
    /// The console of the guest with that name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self::among(Path::new(LOG_DIR), name)
    }

    /// The same, where xenconsoled logs to another directory.
    #[must_use]
    pub fn among(logs: &Path, name: &str) -> Self {
        Self {
            log: logs.join(format!("guest-{name}.log")),
            terminal: "console/tty",
        }
    }

    /// The same, but for a guest whose console is its emulated serial port. Nobody logs what that says
    /// but who asks for it ([`super::serial`]).
    #[must_use]
    pub fn on_serial_port(self) -> Self {
        Self {
            terminal: "serial/0/tty",
            ..self
        }
    }

    /// The log's file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The terminal, by xenstore.
    pub fn terminal(&self, domid: u32) -> Result<String> {
        xl::xenstore_read(&format!("/local/domain/{domid}/{}", self.terminal))
    }

    /// The end of the log as it is now; 0 while there is none.
    pub fn mark(&self) -> Result<Mark> {
        match self.log.metadata() {
            Ok(meta) => Ok(Mark(meta.len())),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(Mark(0)),
            Err(err) => Err(err).with_context(|| format!("{}", self.log.display())),
        }
    }

    /// Everything printed since the mark.
    pub fn text_since(&self, mark: Mark) -> Result<String> {
        let mut file = match File::open(&self.log) {
            Ok(file) => file,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(err) => return Err(err).with_context(|| format!("{}", self.log.display())),
        };
        file.seek(SeekFrom::Start(mark.0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The workload's complete lines since the mark.
    pub fn lines_since(&self, mark: Mark) -> Result<Vec<Line>> {
        let text = self.text_since(mark)?;
        // A last line without its end may be half of one.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(complete.lines().filter_map(Line::parse).collect())
    }

    /// Waits for a line after the mark for which `wanted` holds.
    pub fn wait_for(
        &self,
        mark: Mark,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(line) = self.lines_since(mark)?.into_iter().find(&wanted) {
                return Ok(line);
            }
            if Instant::now() >= deadline {
                let text = self.text_since(mark)?;
                let tail: Vec<_> = text.lines().rev().take(3).collect();
                bail!("no {what} from the guest within {limit:?}; its last lines: {tail:?}");
            }
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// Sends a command, without waiting for its answer. Returns its ID and the
    /// place in the log before it.
    pub fn send(&self, domid: u32, command: &str) -> Result<(u64, Mark)> {
        let mark = self.mark()?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let tty = self.terminal(domid)?;
        let mut file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(&tty)
            .with_context(|| format!("console terminal {tty}"))?;
        file.write_all(format!("{id} {command}\n").as_bytes())
            .with_context(|| format!("console terminal {tty}"))?;
        Ok((id, mark))
    }

    /// Sends a command and waits for its answer; an `error` answer is an error.
    pub fn ask(&self, domid: u32, command: &str, limit: Duration) -> Result<Line> {
        let (id, mark) = self.send(domid, command)?;
        let answer = self.wait_for(mark, limit, &format!("answer to {command:?}"), |line| {
            line.number("id") == Some(id)
        })?;
        if answer.kind == "error" {
            bail!("the guest refused {command:?}: {answer}");
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_on_from_a_mark_and_leaves_half_lines() {
        let dir = std::env::temp_dir().join(format!("livesave-console-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let console = Console {
            log: dir.join("guest-x.log"),
            ..Console::of("x")
        };
        assert_eq!(console.mark().unwrap(), Mark(0));
        std::fs::write(&console.log, "LS beat seq=1\r\nnoise\n").unwrap();
        let mark = console.mark().unwrap();
        let mut log = OpenOptions::new().append(true).open(&console.log).unwrap();
        log.write_all(b"LS beat seq=2\r\nLS beat se").unwrap();
        let seqs = |mark| -> Vec<_> {
            let lines = console.lines_since(mark).unwrap();
            lines.iter().map(|l| l.number("seq").unwrap()).collect()
        };
        assert_eq!(seqs(Mark(0)), [1, 2]);
        assert_eq!(seqs(mark), [2]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
