//! The toolstack's lock on an emulator's control socket.
//!
//! The emulator talks to one client at a time and tells nobody that it is busy. So libxl (from 4.13
//! on) locks a file for each connection (`libxl__ev_qmplock_init`), and so do we. Whoever unlocks
//! removes the file first; so after locking it must be seen that the file locked is the one that
//! stands there.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often a lock that somebody has is tried.
const LOOK: Duration = Duration::from_millis(2);

/// The lock could not be had.
#[derive(Debug, thiserror::Error)]
pub(in crate::xen) enum LockError {
    /// Somebody has it, and has had it all the time that we waited.
    #[error("Another tool talks to it (it holds {0})")]
    Taken(PathBuf),
    #[error("Failed to lock {0}")]
    Io(PathBuf, #[source] io::Error),
}

/// The right to talk to one emulator. Dropped, it is free; the kernel frees it when we die.
#[derive(Debug)]
pub(super) struct SocketLock {
    _file: File,
    path: PathBuf,
}

impl SocketLock {
    /// Takes the lock, waiting for it until then.
    pub fn take(path: &Path, until: Instant) -> Result<Self, LockError> {
        loop {
            match try_take(path).map_err(|error| LockError::Io(path.to_owned(), error))? {
                Some(file) => {
                    return Ok(Self {
                        _file: file,
                        path: path.to_owned(),
                    });
                }
                None if Instant::now() < until => thread::sleep(LOOK),
                None => return Err(LockError::Taken(path.to_owned())),
            }
        }
    }
}

fn try_take(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    Ok(match fs::metadata(path) {
        Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Some(file),
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    })
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // Before it is unlocked: whoever waits for it sees then that it is gone.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(30)
    }

    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("userdata-l.1.u.qmp-socket-lock");
        let first = SocketLock::take(&path, soon()).expect("taken");
        let error = SocketLock::take(&path, soon()).expect_err("taken twice");
        assert!(matches!(error, LockError::Taken(_)), "{error}");
        drop(first);
        assert!(!path.exists());
        drop(SocketLock::take(&path, soon()).expect("taken again"));
    }

    #[test]
    fn a_file_that_its_holder_removed_is_not_the_lock() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("lock");
        // As libxl does: removed while another has it open and waits.
        let held = File::create(&path).expect("created");
        held.lock().expect("locked");
        let waiting = thread::spawn({
            let path = path.clone();
            move || SocketLock::take(&path, Instant::now() + Duration::from_secs(20))
        });
        thread::sleep(Duration::from_millis(20));
        fs::remove_file(&path).expect("removed");
        drop(held);
        let lock = waiting.join().expect("ended").expect("taken");
        assert!(path.exists());
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn without_its_directory_there_is_no_lock() {
        let error = SocketLock::take(Path::new("/nonexistent/lock"), soon());
        assert!(matches!(error, Err(LockError::Io(..))));
    }
}
