//! Puts right what a save left, and finds the saves whose guardians were killed too.

use std::io;
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::lock::{LockError, Locks, SaveLock};
use super::state::State;
use super::watch::PutRight;
use crate::ports::BoxError;

/// How often a lock is tried that a guardian at work still has.
const LOOK: Duration = Duration::from_millis(50);

/// What a recovery found of one domain.
#[derive(Debug)]
pub struct Recovered {
    /// The domain's number.
    pub domid: u32,
    /// What was done, or why nothing could be.
    pub what: Result<Vec<String>, String>,
}

/// Does what a journal says is left to be done: the guest first, then the file, whose file system
/// may hang. Says what was done, and for which process; `None` if its save had ended in order.
///
/// # Errors
/// Any; the journal then still says what is left.
pub fn put_right(
    journal: &Journal,
    charge: &mut impl PutRight,
) -> Result<Option<(u32, Vec<String>)>, BoxError> {
    let Some((entry, state)) = journal.read()? else {
        return Ok(None);
    };
    let mut done = charge.put_right(journal, &entry, state)?;
    // The guest is right, whatever becomes of the rest.
    journal.set(State::NONE)?;
    if entry.remove_partial()? {
        done.push("the unfinished image removed".into());
    }
    journal.clear()?;
    if done.is_empty() {
        done.push("nothing was to be put right".into());
    }
    Ok(Some((entry.pid, done)))
}

/// Puts right what killed saves left whose guardians were killed too. Domains that are being saved
/// are left alone, guardians at work waited for, so long; where there was nothing to do, nothing is
/// reported. `open` makes ready to put right the domain of a number.
///
/// # Errors
/// The directory of the locks cannot be read.
pub fn recover<P: PutRight>(
    locks: &Locks,
    at_work: Duration,
    mut open: impl FnMut(u32) -> Result<P, BoxError>,
) -> io::Result<Vec<Recovered>> {
    let mut found = vec![];
    for domid in locks.all()? {
        let what = match recover_one(locks, at_work, domid, &mut open) {
            Ok(None) => continue,
            Ok(Some(done)) => Ok(done),
            Err(error) => Err(with_causes(&*error)),
        };
        found.push(Recovered { domid, what });
    }
    Ok(found)
}

fn recover_one<P: PutRight>(
    locks: &Locks,
    at_work: Duration,
    domid: u32,
    open: &mut impl FnMut(u32) -> Result<P, BoxError>,
) -> Result<Option<Vec<String>>, BoxError> {
    let Some(lock) = lock_unless_saved(locks, at_work, domid)? else {
        return Ok(None);
    };
    if lock.journal().read()?.is_none() {
        return Ok(None);
    }
    let done = put_right(lock.journal(), &mut open(domid)?)?;
    Ok(done.map(|(_, done)| done))
}

/// The lock of a domain, waited for while a guardian is at work; `None` if it is being saved.
fn lock_unless_saved(
    locks: &Locks,
    at_work: Duration,
    domid: u32,
) -> Result<Option<SaveLock>, BoxError> {
    let until = Instant::now() + at_work;
    loop {
        match locks.take(domid) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::Taken(Some(pid))) if !lives(pid) => {
                if Instant::now() > until {
                    return Err("its guardian is still trying to put it right".into());
                }
                std::thread::sleep(LOOK);
            }
            Err(LockError::Taken(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a process runs; a killed one that its parent has not reaped does not.
fn lives(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // Behind the program's name, which may hold anything.
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !state.starts_with(['Z', 'X'])
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_killed_process_that_nobody_reaps_does_not_live() {
        assert!(lives(std::process::id()));
        let mut child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        assert!(lives(child.id()));
        child.kill().expect("killed");
        let began = Instant::now();
        while lives(child.id()) && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!lives(child.id()));
        child.wait().expect("reaped");
        assert!(!lives(child.id()));
    }
}
