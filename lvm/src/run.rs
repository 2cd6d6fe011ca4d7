//! LVM's own commands, each with a time limit.
//!
//! A command that hangs must not hold anybody up: it is killed with all that it has started, and
//! not waited for any longer.

mod sys;

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// What a command that has ended may take to close its output: what it has started may hold it open.
const CLOSING: Duration = Duration::from_secs(1);
/// More output than that is no answer.
const LONGEST: u64 = 64 << 20;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such program, or it cannot be run.
    #[error("Failed to run `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with an error of its own.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        said: String,
    },
    /// It did not end in time and was killed.
    #[error("`{command}` did not end within {limit:?} and was killed")]
    TimedOut {
        /// The command line.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
}

/// Runs commands; tests put another in its place.
pub trait Run {
    /// Runs `program` with `arguments` to its end (`lvcreate` is killed if this thread ends), for `limit` at most, and returns its standard
    /// output. `meanwhile` is called every few milliseconds until then.
    ///
    /// # Errors
    /// [`RunError`]; of a command that was killed nobody knows how far it came.
    fn run(
        &mut self,
        program: &str,
        arguments: &[OsString],
        limit: Duration,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, RunError>;
}

/// Runs the commands of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Run for Host {
    fn run(
        &mut self,
        program: &str,
        arguments: &[OsString],
        limit: Duration,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, RunError> {
        let line = line(program, arguments);
        let began = Instant::now();
        let mut child = start(program, arguments).map_err(|source| RunError::Start {
            command: line.clone(),
            source,
        })?;
        let output = collect(child.stdout.take());
        let said = collect(child.stderr.take());
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if began.elapsed() < limit => {}
                _ => {
                    kill(&mut child);
                    return Err(RunError::TimedOut {
                        command: line,
                        limit,
                    });
                }
            }
            meanwhile();
            thread::sleep(LOOK);
        };
        let text = |from: Receiver<Vec<u8>>| from.recv_timeout(CLOSING).unwrap_or_default();
        if !status.success() {
            let said = String::from_utf8_lossy(&text(said)).trim().to_owned();
            return Err(RunError::Failed {
                command: line,
                status,
                said: said.replace('\n', "; "),
            });
        }
        Ok(text(output))
    }
}

fn start(program: &str, arguments: &[OsString]) -> io::Result<Child> {
    // Of a cron job's path the administrator's folders are often missing.
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new(program);
    // Others finish what they do to a volume: half of it would leave that held.
    if program == "lvcreate" {
        sys::dies_with_us(&mut command);
    }
    command
        .args(arguments)
        .env("PATH", path)
        // Its words and numbers are read.
        .env("LC_ALL", "C")
        // Files that we hold open are not its affair.
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // To be killed as a whole; and a Ctrl-C is ours to answer.
        .process_group(0)
        .spawn()
}

/// Reads to the end in a thread of its own, which whoever holds the other end open may keep.
fn collect(from: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (all, taken) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = vec![];
        if let Some(from) = from {
            // What was read before an error is what there is.
            let _ = from.take(LONGEST).read_to_end(&mut bytes);
        }
        let _ = all.send(bytes);
    });
    taken
}

fn kill(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    // One that the kernel holds does not die; it is reaped when we end.
    let until = Instant::now() + CLOSING;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        thread::sleep(LOOK);
    }
}

fn line(program: &str, arguments: &[OsString]) -> String {
    let mut line = program.to_owned();
    for argument in arguments {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Vec<u8>, RunError> {
        Host.run("sh", &["-c".into(), script.into()], limit, &mut || ())
    }

    #[test]
    fn its_output_is_returned_and_its_error_told() {
        let long = Duration::from_secs(60);
        assert_eq!(shell("echo yes", long).expect("run"), b"yes\n");
        // More than a pipe holds, on both of them.
        let much = shell(
            "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2",
            long,
        );
        assert_eq!(much.expect("run").len(), 300_000);
        let failed = shell("echo no room >&2; exit 5", long).expect_err("failed");
        assert!(
            failed.to_string().ends_with("(exit status: 5): no room"),
            "{failed}"
        );
        let none = Host.run("no-such-command-here", &[], long, &mut || ());
        assert!(matches!(none, Err(RunError::Start { .. })));
    }

    #[test]
    fn one_that_hangs_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().expect("directory");
        let pid = directory.path().join("pid");
        // What it has started holds its output open.
        let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
        let hung = shell(&script, Duration::from_millis(500)).expect_err("killed");
        assert!(matches!(hung, RunError::TimedOut { .. }), "{hung}");
        let pid = std::fs::read_to_string(pid).expect("it ran");
        let stat = format!("/proc/{}/stat", pid.trim());
        let until = Instant::now() + Duration::from_secs(20);
        let lives = || {
            let stat = std::fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        while lives() && Instant::now() < until {
            thread::sleep(LOOK);
        }
        assert!(!lives());
    }

    #[test]
    fn something_is_done_meanwhile() {
        let mut calls = 0;
        let arguments = ["0.2".into()];
        Host.run("sleep", &arguments, Duration::from_secs(60), &mut || {
            calls += 1;
        })
        .expect("run");
        assert!(calls > 1);
    }
}
