//! The save's own watch over itself: its lock, its journal and its guardian.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::caps::Caps;
use super::entry::Entry;
use super::journal::Journal;
use super::link::{Link, StartError};
use super::lock::SaveLock;
use super::notes::Notes;
use super::state::{Slowed, State, Stop};
use crate::ports::BoxError;

/// Notes what is done to a guest, before it is done, and has somebody look after it.
#[derive(Debug)]
pub struct Keeper {
    // Dropped first: the guardian ends before the lock is free.
    link: Option<Link>,
    /// How a guardian is started, if there is to be one.
    guardian: Option<(PathBuf, Vec<OsString>)>,
    entry: Entry,
    begun: bool,
    notes: Arc<Notes>,
    _lock: SaveLock,
}

impl Keeper {
    /// Keeps the guest of that UUID, whose lock this process has.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(lock: SaveLock, uuid: &str) -> io::Result<Self> {
        Ok(Self {
            link: None,
            guardian: None,
            entry: Entry {
                pid: std::process::id(),
                uuid: uuid.to_owned(),
                partial: None,
                caps: Caps::default(),
                disks: String::new(),
            },
            begun: false,
            notes: Arc::new(Notes::new(Arc::new(lock.journal().try_clone()?))),
            _lock: lock,
        })
    }

    /// The journal, for those who show that the save lives.
    #[must_use]
    pub fn journal(&self) -> Arc<Journal> {
        self.notes.journal().clone()
    }

    /// What is noted, for a thread that pauses the guest in turns.
    #[must_use]
    pub fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// Shows that the save lives.
    pub fn beat(&self) {
        self.notes.journal().beat();
    }

    /// Starts the guardian: `program` with these arguments, see [`Link::start`]. `partial` is the
    /// name that the unfinished image may have, `disks` what is to be known of the disks.
    ///
    /// # Errors
    /// Any; there is no guardian then.
    pub fn guard(
        &mut self,
        program: PathBuf,
        arguments: Vec<OsString>,
        partial: Option<PathBuf>,
        disks: String,
    ) -> Result<(), BoxError> {
        self.entry.partial = partial;
        self.entry.disks = disks;
        self.guardian = Some((program, arguments));
        self.begun = false;
        self.begin()?;
        self.start()?;
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        if !self.begun {
            self.notes.journal().begin(&self.entry)?;
            self.begun = true;
        }
        Ok(())
    }

    fn start(&mut self) -> Result<(), StartError> {
        if let Some((program, arguments)) = &self.guardian {
            self.link = Some(Link::start(program, arguments, self.notes.journal())?);
        }
        Ok(())
    }

    /// Notes that dirty tracking is on or off.
    ///
    /// # Errors
    /// What the system says.
    pub fn tell_tracking(&mut self, tracking: bool) -> io::Result<()> {
        self.begin()?;
        self.notes.tracking(tracking)
    }

    /// Notes how far the guest is stopped.
    ///
    /// # Errors
    /// What the system says.
    pub fn tell_stop(&mut self, stop: Stop) -> io::Result<()> {
        self.begin()?;
        self.notes.stop(stop)
    }

    /// Notes that the guest gets one of these caps. Shows life first: it was no hang to be silent
    /// before.
    ///
    /// # Errors
    /// What the system says.
    pub fn tell_capped(&mut self, caps: Caps) -> io::Result<()> {
        self.begin()?;
        self.beat();
        self.notes.capped(caps)
    }

    /// Notes that the guest is slowed no more.
    ///
    /// # Errors
    /// What the system says.
    pub fn tell_unslowed(&mut self) -> io::Result<()> {
        self.begin()?;
        self.notes.slowed(Slowed::No)
    }

    /// Sees to it that a guardian is there, before something is done that it might have to put
    /// right. One that was killed is replaced; says whether it was. Without one nothing is begun:
    /// the guest runs, and the save can end in order. (Once the guest is suspended a guardian's
    /// death changes nothing: to go on is the shortest way to a running guest.)
    ///
    /// # Errors
    /// Any; there is no guardian.
    pub fn see_to_guardian(&mut self) -> Result<bool, BoxError> {
        self.begin()?;
        let lives = self.link.as_mut().is_some_and(Link::lives);
        if lives || self.guardian.is_none() {
            return Ok(false);
        }
        self.link = None;
        self.start()?;
        Ok(true)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // What could not be put right stays noted, and the guardian tries again.
        if self.notes.state() == State::NONE {
            let _ = self.notes.journal().clear();
        }
    }
}
