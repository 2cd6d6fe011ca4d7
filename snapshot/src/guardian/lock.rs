//! One livesave per domain.
//!
//! A file per domain (`/run/livesave/<domid>`) is locked for as long as a save or its guardian runs
//! (the kernel frees the lock of dead processes) and holds the journal of the save ([`Journal`]).
//! Found unlocked with a journal in it, it tells that both were killed.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::journal::Journal;
use crate::ports::Cancel;

/// How often a lock that is waited for is tried.
const LOOK: Duration = Duration::from_millis(100);

/// The directory of the locks.
#[derive(Clone, Debug)]
pub struct Locks {
    directory: PathBuf,
}

/// The right to save one domain, or to put it right.
#[derive(Debug)]
pub struct SaveLock {
    journal: Journal,
}

/// A lock that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it: that process, if it has noted its number.
    #[error("it is being saved or put right by another livesave{}", holder(.0))]
    Taken(Option<u32>),
    /// The file cannot be used.
    #[error("its lock {0} cannot be used")]
    Io(PathBuf, #[source] io::Error),
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl Locks {
    /// The locks in that directory, which is made when it is needed.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Takes the lock of a domain.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(&self, domid: u32) -> Result<SaveLock, LockError> {
        let path = self.directory.join(domid.to_string());
        let io = |error| LockError::Io(path.clone(), error);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(io)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        SaveLock::lock(file).map_err(|error| match error {
            Ok(pid) => LockError::Taken(pid),
            Err(error) => io(error),
        })
    }

    /// Takes it as soon as it is free, within that time and while `cancel` stays quiet.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take_within(
        &self,
        domid: u32,
        wait: Duration,
        cancel: &Cancel,
    ) -> Result<SaveLock, LockError> {
        let began = Instant::now();
        loop {
            match self.take(domid) {
                Err(LockError::Taken(_)) if began.elapsed() < wait && cancel.raised().is_none() => {
                    std::thread::sleep(LOOK.min(wait));
                }
                done => return done,
            }
        }
    }

    /// The domains that livesave has ever locked since the machine was started.
    ///
    /// # Errors
    /// What the system says.
    pub fn all(&self) -> io::Result<Vec<u32>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(error),
        };
        let mut domids = vec![];
        for entry in entries {
            domids.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u32>().ok()),
            );
        }
        domids.sort_unstable();
        Ok(domids)
    }
}

impl SaveLock {
    /// Fails with the holder's number, where it is known, or with what the system says.
    fn lock(file: File) -> Result<Self, Result<Option<u32>, io::Error>> {
        let locked = file.try_lock();
        let journal = Journal::new(file);
        match locked {
            Ok(()) => Ok(Self { journal }),
            Err(TryLockError::WouldBlock) => {
                let entry = journal.read().ok().flatten();
                Err(Ok(entry.map(|(entry, _)| entry.pid)))
            }
            Err(TryLockError::Error(error)) => Err(Err(error)),
        }
    }

    /// The journal in it.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::{Caps, Entry, State};

    #[test]
    fn one_save_at_a_time_and_what_it_left_is_told() {
        let dir = tempfile::tempdir().expect("directory");
        let locks = Locks::new(dir.path());
        let first = locks.take(7).expect("taken");
        let taken = || locks.take(7).expect_err("taken twice");
        assert!(matches!(taken(), LockError::Taken(None)));
        assert!(locks.take(8).is_ok());
        assert_eq!(first.journal().read().expect("read"), None);
        let entry = Entry {
            pid: 4711,
            uuid: "uuid-1".into(),
            partial: None,
            caps: Caps::default(),
            disks: String::new(),
        };
        first.journal().begin(&entry).expect("noted");
        assert!(taken().to_string().ends_with("(process 4711)"));

        // What a guardian shares keeps it locked when the save is gone.
        let shared = first.journal().try_clone().expect("shared");
        drop(first);
        assert!(matches!(taken(), LockError::Taken(Some(4711))));
        drop(shared);

        let second = locks.take(7).expect("taken");
        let found = second.journal().read().expect("read");
        assert_eq!(found, Some((entry, State::NONE)));
        assert_eq!(locks.all().expect("read"), [7, 8]);
    }
}
