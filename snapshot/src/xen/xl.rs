//! Running the toolstack's command, `xl`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::ports::Cancel;

/// How long a command that asks for something may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often it is seen whether the user wants to stop.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// `xl` with arguments, not started; its input is empty.
pub(super) fn command<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    // Of a cron job's path the administrator's folders are often missing.
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new("xl");
    command
        .args(args)
        .env("PATH", path)
        .stdin(Stdio::null())
        // A Ctrl-C is ours to answer.
        .process_group(0);
    command
}

/// Runs a command to its end, no longer than a minute and than `cancel` stays quiet.
pub(super) fn output(command: &mut Command, cancel: &Cancel) -> io::Result<Output> {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_child(&child);
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || answer.send(child.wait_with_output()));
    let began = Instant::now();
    loop {
        match answered.recv_timeout(LOOK) {
            Ok(output) => return output,
            Err(_) if cancel.raised().is_none() && began.elapsed() < LIMIT => {}
            Err(_) => {
                // The thread collects it.
                let _ = kill_process(pid, Signal::KILL);
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "xl does not answer",
                ));
            }
        }
    }
}
