//! Commands with a time limit: nothing that hangs may hang the suite.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Finished {
    /// The exit code as a shell shows it: 128 + N for signal N.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// The end of what it said, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let both = format!("{}\n{}", self.stdout.trim(), self.stderr.trim());
        let lines: Vec<_> = both.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(6)..].join(" | ")
    }
}

/// A command that runs in the background; killed if it is dropped unfinished.
pub struct Running {
    what: String,
    child: Child,
    stdout: Collector,
    stderr: Collector,
    started: Instant,
}

/// Starts a command with its output captured and its input empty.
pub fn start(command: &mut Command) -> Result<Running> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{what} could not be started"))?;
    Ok(Running {
        stdout: Collector::start(child.stdout.take()),
        stderr: Collector::start(child.stderr.take()),
        what,
        child,
        started: Instant::now(),
    })
}

/// Runs a command to its end, however it ends.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    start(command)?.wait(limit)
}

/// Runs a command that must succeed.
pub fn check(command: &mut Command, limit: Duration) -> Result<Finished> {
    let what = format!("{command:?}");
    let finished = run(command, limit)?;
    if !finished.status.success() {
        bail!("{what} ended with {}: {}", finished.code(), finished.tail());
    }
    Ok(finished)
}

/// Sends a signal to a process by its number.
pub fn signal_process(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("process id out of range")?;
    Ok(kill_process(pid, signal)?)
}

/// Reads a stream to its end in the background; what came so far can be seen.
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn start(stream: Option<impl Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let thread = stream.map(|mut stream| {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                // An error ends it: what was read before is still worth showing.
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    let mut bytes = into.lock().expect("no thread panics with the lock");
                    bytes.extend_from_slice(&buffer[..len]);
                }
            })
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().expect("no thread panics with the lock");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All of it. A grandchild may hold the pipe open after its parent's end;
    /// the wait is bounded so that it cannot hang the suite.
    fn finish(&mut self) -> String {
        if let Some(thread) = self.thread.take() {
            let deadline = Instant::now() + Duration::from_secs(2);
            while !thread.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        self.text()
    }
}

impl Running {
    /// Time since it was started.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it has ended.
    pub fn is_finished(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal_process(self.child.id(), signal)
            .with_context(|| format!("{} could not be signalled", self.what))
    }

    /// Waits until it has been stopped by a signal.
    pub fn wait_until_stopped(&mut self, limit: Duration) -> Result<()> {
        let path = format!("/proc/{}/stat", self.child.id());
        let deadline = Instant::now() + limit;
        loop {
            let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            // The name before it is in brackets, and may hold any.
            if stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')) {
                return Ok(());
            }
            if self.is_finished()? || Instant::now() >= deadline {
                let said = self.stderr.finish();
                bail!("{} did not stop itself: {}", self.what, said.trim());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `text` appears on its standard error. `false` if it ended
    /// without.
    pub fn wait_for_stderr(&mut self, text: &str, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let finished = self.is_finished()?;
            if self.stderr.text().contains(text) {
                return Ok(true);
            }
            if finished {
                return Ok(self.stderr.finish().contains(text));
            }
            if Instant::now() >= deadline {
                bail!("{} did not say {text:?} within {limit:?}", self.what);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end; at the limit it is killed, and that is an error.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                let took = self.started.elapsed();
                return Ok(Finished {
                    status,
                    stdout: self.stdout.finish(),
                    stderr: self.stderr.finish(),
                    took,
                });
            }
            if self.started.elapsed() >= limit {
                self.child.kill()?;
                self.child.wait()?;
                let said = self.stderr.finish();
                bail!(
                    "{} did not end within {limit:?}: {}",
                    self.what,
                    said.trim()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn captures_both_outputs_and_the_code() {
        let done = run(
            &mut sh("echo a; echo b >&2; exit 3"),
            Duration::from_secs(5),
        )
        .unwrap();
        assert_eq!((done.code(), done.stdout.as_str()), (3, "a\n"));
        assert_eq!(done.tail(), "a | b");
        assert!(check(&mut sh("exit 3"), Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let began = Instant::now();
        let err = run(&mut sh("exec sleep 30"), Duration::from_millis(200)).unwrap_err();
        assert!(err.to_string().contains("did not end"), "{err}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn output_is_seen_while_it_runs() {
        let mut running = start(&mut sh("echo ready >&2; exec sleep 30")).unwrap();
        assert!(
            running
                .wait_for_stderr("ready", Duration::from_secs(5))
                .unwrap()
        );
        assert!(!running.is_finished().unwrap());
        let mut ended = start(&mut sh("echo other >&2")).unwrap();
        assert!(
            !ended
                .wait_for_stderr("ready", Duration::from_secs(5))
                .unwrap()
        );
    }

    #[test]
    fn a_process_that_stops_itself_is_seen() {
        let mut running = start(&mut sh("kill -STOP $$; echo on")).unwrap();
        running.wait_until_stopped(Duration::from_secs(5)).unwrap();
        running.signal(Signal::CONT).unwrap();
        let done = running.wait(Duration::from_secs(5)).unwrap();
        assert_eq!(done.stdout, "on\n");
        let mut ended = start(&mut sh("exit 0")).unwrap();
        assert!(ended.wait_until_stopped(Duration::from_secs(5)).is_err());
    }

    #[test]
    fn a_signal_shows_as_a_shell_shows_it() {
        let running = start(&mut sh("exec sleep 30")).unwrap();
        // SIGINT is ignored in what a shell runs in the background.
        running.signal(Signal::TERM).unwrap();
        assert_eq!(running.wait(Duration::from_secs(5)).unwrap().code(), 143);
    }
}
