//! The journal as the threads of a save write it: one state, changed by parts.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::caps::Caps;
use super::journal::Journal;
use super::state::{DiskState, Slowed, State, Stop};

/// What is noted of a guest. The thread that pauses it in turns writes too, so that the state is
/// under a lock: held for the write of a byte.
#[derive(Debug)]
pub struct Notes {
    journal: Arc<Journal>,
    state: Mutex<State>,
}

impl Notes {
    /// Nothing is to be put right yet.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        Self {
            journal,
            state: Mutex::new(State::NONE),
        }
    }

    /// The journal, for those who show that the save lives.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// What is noted now.
    #[must_use]
    pub fn state(&self) -> State {
        *self.lock()
    }

    /// That dirty tracking may be on, or is off.
    ///
    /// # Errors
    /// What the system says.
    pub fn tracking(&self, tracking: bool) -> io::Result<()> {
        self.change(|state| state.tracking = tracking)
    }

    /// How far the guest may be stopped.
    ///
    /// # Errors
    /// What the system says.
    pub fn stop(&self, stop: Stop) -> io::Result<()> {
        self.change(|state| state.stop = stop)
    }

    /// How the guest may be slowed. No sign of life: also called by a thread that goes on by itself.
    ///
    /// # Errors
    /// What the system says.
    pub fn slowed(&self, slowed: Slowed) -> io::Result<()> {
        self.change(|state| state.slowed = slowed)
    }

    /// How far the disks may be. No sign of life: also called by a thread that goes on by itself.
    ///
    /// # Errors
    /// What the system says.
    pub fn disks(&self, disks: DiskState) -> io::Result<()> {
        self.change(|state| state.disks = disks)
    }

    /// The caps, and then that the guest may have one of them.
    ///
    /// # Errors
    /// What the system says.
    pub fn capped(&self, caps: Caps) -> io::Result<()> {
        self.journal.set_caps(caps)?;
        self.slowed(Slowed::Capped)
    }

    /// What could not be written counts as not noted.
    fn change(&self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.lock();
        let mut new = *state;
        change(&mut new);
        crate::fault::call("note")?;
        self.journal.set(new)?;
        *state = new;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a write leaves the old state, as an error does.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
