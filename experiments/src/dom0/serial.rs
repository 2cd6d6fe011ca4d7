//! Logs what a guest says on its emulated serial port, as xenconsoled does for Xen's consoles.

use super::console::Console;
use super::process::check;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How often the terminal is looked at; it is opened so that nothing blocks.
const LOOK: Duration = Duration::from_millis(10);

/// A thread that logs, until this is dropped or the guest's emulator is gone.
pub struct Logger(Arc<AtomicBool>);

impl Logger {
    /// Starts it for a domain that is there. What it has said before is lost.
    pub fn start(console: &Console, domid: u32) -> Result<Self> {
        let path = console.terminal(domid)?;
        // Nothing is echoed to the guest, which would answer it.
        check(
            Command::new("stty").args(["-F", &path, "raw", "-echo"]),
            Duration::from_secs(30),
        )?;
        let terminal = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("serial port {path}"))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(console.log())
            .with_context(|| format!("{}", console.log().display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        thread::spawn(move || copy(terminal, log, &told));
        Ok(Self(stop))
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn copy(mut terminal: impl Read, mut log: File, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match terminal.read(&mut buffer) {
            // Without its other end a terminal reads as an error, or as its end.
            Ok(0) => return,
            Ok(len) => {
                if log.write_all(&buffer[..len]).is_err() {
                    return;
                }
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn what_comes_is_logged_until_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let log = file.reopen().unwrap();
        let copier = thread::spawn(move || copy(ours, log, &AtomicBool::new(false)));
        theirs.write_all(b"LS beat seq=1\n").unwrap();
        let began = Instant::now();
        while file.path().metadata().unwrap().len() < 14 {
            assert!(began.elapsed() < Duration::from_secs(10));
            thread::sleep(LOOK);
        }
        drop(theirs);
        copier.join().unwrap();
        let logged = std::fs::read(file.path()).unwrap();
        assert_eq!(logged, b"LS beat seq=1\n");
    }
}
