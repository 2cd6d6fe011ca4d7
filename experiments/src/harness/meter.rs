//! What a command and all that it starts take: `livesave-experiments meter`.
//!
//! The kernel adds up what a process's children took, over its whole life: so each measured command
//! gets a parent of its own.

use super::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What a command took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// From its start to its end, in seconds.
    pub seconds: f64,
    /// CPU time of it and of the children that it has waited for, in seconds.
    pub cpu_s: f64,
    /// Largest resident memory of any one of these processes, in bytes.
    pub peak_memory: u64,
}

/// Exit code at the time limit, as that of `timeout`.
pub const TIMED_OUT: u8 = 124;

/// Runs the command with this process's own input and output, and writes its [`Usage`] to a file.
/// Its exit code; 128 + N for signal N; [`TIMED_OUT`] when it was killed at the limit.
pub fn run(file: &Path, limit: Duration, command: &[String]) -> Result<u8> {
    let (program, args) = command.split_first().context("no command to run")?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .spawn()
        .with_context(|| format!("{program} could not be started"))?;
    let pid = child.id();
    let (done, wait) = channel::<()>();
    let watch = thread::spawn(move || {
        let late = wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if late {
            // It is waited for below only: the number is still its own.
            let _ = crate::dom0::process::signal_process(pid, rustix::process::Signal::KILL);
        }
        late
    });
    let status = child.wait()?;
    let seconds = began.elapsed().as_secs_f64();
    drop(done);
    let late = watch.join().unwrap_or(false);
    let children = sys::children_usage()?;
    let usage = Usage {
        seconds,
        cpu_s: children.cpu_s,
        peak_memory: children.peak_memory,
    };
    fs::write(file, serde_json::to_string(&usage)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    if late {
        return Ok(TIMED_OUT);
    }
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_sh(script: &str, limit: Duration) -> (u8, Usage) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("usage");
        let command = ["sh", "-c", script].map(str::to_owned);
        let code = run(&file, limit, &command).unwrap();
        let usage = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        (code, usage)
    }

    #[test]
    fn a_command_is_measured_and_its_code_handed_on() {
        let (code, usage) = run_sh("exit 7", Duration::from_secs(20));
        assert_eq!(code, 7);
        assert!(
            usage.seconds > 0.0 && usage.peak_memory > 100_000,
            "{usage:?}"
        );
        assert_eq!(run_sh("kill -TERM $$", Duration::from_secs(20)).0, 143);
    }

    #[test]
    fn at_the_limit_it_is_killed() {
        let (code, usage) = run_sh("exec sleep 30", Duration::from_millis(200));
        assert_eq!(code, TIMED_OUT);
        assert!(usage.seconds < 15.0, "{usage:?}");
    }
}
