//! The guardian's side: waits for the end of the save, or for a sign of life that does not come.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::entry::Entry;
use super::journal::{Journal, Sign};
use super::recover::put_right;
use super::state::{DiskState, Slowed, State, Stop};
use crate::ports::BoxError;

/// What the guardian says when it is ready.
pub(super) const READY: [u8; 1] = [b'R'];
/// How long a killed process may take to be gone; after that it will at least never run again.
const DYING: Duration = Duration::from_secs(5);
/// Pauses between attempts to put a guest right.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Puts a guest right.
pub trait PutRight {
    /// Does what `state` says for the guest of `entry`, and only for that; says what was done, in
    /// words to stand in a list. Called again, after a while, with what is noted then, if it
    /// failed: a deed that must not be done twice is noted in `journal` as done.
    ///
    /// # Errors
    /// Any.
    fn put_right(
        &mut self,
        journal: &Journal,
        entry: &Entry,
        state: State,
    ) -> Result<Vec<String>, BoxError>;
}

/// How long the guardian waits, and for what.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How often it looks.
    pub look: Duration,
    /// The handshake with the guest may take that long; the save has a limit of its own, which is
    /// shorter.
    pub handshake: Duration,
    /// With the guest suspended or slowed, the save may be silent for that long.
    pub silence: Duration,
    /// The guest's disks may be held that long; the save has a limit of its own, which is shorter.
    pub stall: Duration,
    /// It tries that long to put the guest right.
    pub retry: Duration,
}

impl Patience {
    /// Whether a save that noted `state` and then nothing for so long must be taken to hang. While
    /// the guest runs at its own pace that harms nobody but the save.
    fn ends(&self, state: State, quiet: Duration) -> bool {
        if state.disks == DiskState::Held && quiet > self.stall {
            return true;
        }
        match (state.stop, state.slowed) {
            // Whoever waits for xenstored to tell it does not hang.
            (Stop::No | Stop::Resumed, Slowed::No) => false,
            (Stop::Requested, _) => quiet > self.handshake,
            (Stop::Suspended, _) | (Stop::No | Stop::Resumed, Slowed::Capped | Slowed::Pulsing) => {
                quiet > self.silence
            }
        }
    }
}

/// What came of the watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing is left to be put right.
    Right,
    /// It could not be; the journal still says what.
    Wrong,
}

/// Runs a guardian that [`super::Link::start`] has started: gets ready by `open`, watches the save
/// until it has ended and puts right what it left. Errors and deeds go to standard error.
pub fn serve<P: PutRight>(
    patience: &Patience,
    open: impl FnOnce() -> Result<P, BoxError>,
) -> Outcome {
    let mut guardian = match Guardian::ready(patience, open) {
        Ok(guardian) => guardian,
        Err(error) => {
            say(&format!("the guardian could not get ready: {error}"));
            return Outcome::Wrong;
        }
    };
    let why = guardian.watch();
    guardian.settle(why)
}

struct Guardian<'a, P> {
    patience: &'a Patience,
    socket: UnixStream,
    journal: Journal,
    worker: Worker,
    charge: P,
}

impl<'a, P: PutRight> Guardian<'a, P> {
    fn ready(
        patience: &'a Patience,
        open: impl FnOnce() -> Result<P, BoxError>,
    ) -> Result<Self, BoxError> {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let journal = Journal::new(io::stdout().as_fd().try_clone_to_owned()?.into());
        let (entry, _) = journal.read()?.ok_or("there is no journal")?;
        let worker = Worker::parent(entry.pid)?;
        stand_apart();
        let mut guardian = Self {
            patience,
            socket,
            journal,
            worker,
            charge: open()?,
        };
        guardian.socket.set_read_timeout(Some(patience.look))?;
        guardian.socket.write_all(&READY)?;
        Ok(guardian)
    }

    /// Returns when the save has ended, and says how.
    fn watch(&mut self) -> &'static str {
        let mut seen: Option<(bool, Stop, DiskState, Option<Sign>)> = None;
        let mut since = Instant::now();
        while !self.hung_up() {
            // In this order: who slows the guest shows life before it notes that.
            let (Ok(state), Ok(sign)) = (self.journal.state(), self.journal.last_sign()) else {
                continue;
            };
            // Not how the guest is slowed: pauses are noted by a thread that goes on by itself
            // when the save hangs.
            let now = state.map(|state| (state.tracking, state.stop, state.disks, sign));
            if now != seen {
                seen = now;
                since = Instant::now();
            }
            if state.is_some_and(|state| self.patience.ends(state, since.elapsed())) {
                self.worker.kill();
                let until = Instant::now() + DYING;
                while !self.hung_up() && Instant::now() < until {}
                return "hung with the guest held up or slowed and was killed";
            }
        }
        "ended in the middle"
    }

    /// Waits for a look's time, or until the save's end of the socket is closed.
    fn hung_up(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
            ),
        }
    }

    /// Puts the guest right, first of all; then the file, whose file system may hang.
    fn settle(&mut self, why: &str) -> Outcome {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match put_right(&self.journal, &mut self.charge) {
                Ok(done) => {
                    if let Some((pid, done)) = done {
                        say(&format!(
                            "the save (process {pid}) {why}; {}",
                            done.join(", ")
                        ));
                    }
                    return Outcome::Right;
                }
                Err(error) if began.elapsed() > self.patience.retry => {
                    say(&format!(
                        "the save {why}, and its guest could not be put right: {error}; \
                         `livesave recover` tries again"
                    ));
                    return Outcome::Wrong;
                }
                Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The saving process, so that none other is killed in its place.
struct Worker {
    pid: Pid,
    /// Kernels before 5.3 have none.
    descriptor: Option<OwnedFd>,
}

impl Worker {
    /// Our parent, which must be the process of that number.
    fn parent(pid: u32) -> Result<Self, BoxError> {
        let gone = "the save has ended already";
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(gone)?;
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        // Asked last: a parent that still is one has kept its number.
        if rustix::process::getppid() != Some(pid) {
            return Err(gone.into());
        }
        Ok(Self { pid, descriptor })
    }

    fn kill(&self) {
        // If it has ended meanwhile, so much the better.
        if let Some(descriptor) = &self.descriptor {
            let _ = rustix::process::pidfd_send_signal(descriptor, Signal::KILL);
        } else if rustix::process::getppid() == Some(self.pid) {
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        }
    }
}

/// Leaves what the save's end might take along: its session, its name, its place in the queue of
/// an out-of-memory killer. None is vital.
fn stand_apart() {
    // Before "ready": what signals the save's terminal or group is not meant for us.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"livesave-guard");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

fn say(text: &str) {
    // The terminal may be gone with the save.
    let _ = writeln!(io::stderr(), "livesave: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_save_that_holds_the_guest_up_is_taken_to_hang() {
        let s = Duration::from_secs;
        let patience = Patience {
            look: s(1),
            handshake: s(90),
            silence: s(60),
            stall: s(20),
            retry: s(1),
        };
        let (no, capped, pulsing) = (Slowed::No, Slowed::Capped, Slowed::Pulsing);
        for (stop, slowed, quiet, hangs) in [
            (Stop::No, no, 1_000_000, false),
            (Stop::Resumed, no, 1_000_000, false),
            (Stop::Resumed, capped, 61, true),
            (Stop::No, capped, 60, false),
            (Stop::No, capped, 61, true),
            (Stop::No, pulsing, 60, false),
            (Stop::No, pulsing, 61, true),
            (Stop::Requested, no, 90, false),
            (Stop::Requested, no, 91, true),
            (Stop::Requested, capped, 90, false),
            (Stop::Requested, capped, 91, true),
            (Stop::Requested, pulsing, 91, true),
            (Stop::Suspended, no, 60, false),
            (Stop::Suspended, no, 61, true),
            (Stop::Suspended, capped, 61, true),
            (Stop::Suspended, pulsing, 61, true),
        ] {
            for tracking in [false, true] {
                for disks in [DiskState::No, DiskState::Made] {
                    let state = State {
                        tracking,
                        stop,
                        slowed,
                        disks,
                    };
                    assert_eq!(patience.ends(state, s(quiet)), hangs, "{state:?} {quiet} s");
                }
            }
            // A guest whose disks are held does not get far.
            let held = State {
                stop,
                slowed,
                disks: DiskState::Held,
                ..State::NONE
            };
            assert!(!patience.ends(held, s(20)), "{held:?}");
            assert!(patience.ends(held, s(21)), "{held:?}");
        }
    }
}
