//! Puts right what a save that did not end in order left of an embedded guest.

use std::path::{Path, PathBuf};

use super::domain::uuid_of;
use super::error::GuestError;
use super::handle::EmbeddedGuest;
use crate::guardian::{Entry, Journal, PutRight, State, Stop};
use crate::ports::BoxError;
use crate::units::CpuPercent;

/// One guest that may have to be put right, by its socket.
#[derive(Debug)]
pub struct Charge {
    socket: PathBuf,
    /// The cap that its owner has set.
    own_cap: Option<CpuPercent>,
    guest: Option<EmbeddedGuest>,
}

impl Charge {
    /// The guest that listens at `socket`, where somebody may have capped it otherwise than its
    /// owner. Nothing is opened before it is needed.
    #[must_use]
    pub fn new(socket: &Path, own_cap: Option<CpuPercent>) -> Self {
        Self {
            socket: socket.to_owned(),
            own_cap,
            guest: None,
        }
    }

    /// Opens at once what will be needed, as a guardian should.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn opened(mut self) -> Result<Self, GuestError> {
        self.guest = Some(EmbeddedGuest::attach(&self.socket)?);
        Ok(self)
    }

    fn settle(&mut self, entry: &Entry, state: State) -> Result<Vec<String>, GuestError> {
        let guest = match self.guest.take() {
            Some(guest) => guest,
            None => EmbeddedGuest::attach(&self.socket)?,
        };
        if uuid_of(guest.pid(), guest.name()) != entry.uuid {
            return Ok(vec!["another guest is there, which was left alone".into()]);
        }
        // First, or the suspend request of a save that is no more might be done last.
        guest.send_others_away()?;
        let mut done = vec![];
        let is = guest.status()?;
        if matches!(state.stop, Stop::Requested | Stop::Suspended) && is.suspended {
            guest.resume()?;
            done.push("the suspended guest resumed".into());
        }
        let own_cap = self.own_cap.map_or(0, |cap| cap.0);
        if is.cap != own_cap {
            // A save caps the guest only while it tracks it.
            guest.cap_cpu(own_cap)?;
            done.push("its own CPU cap put back".into());
        }
        if state.tracking && is.tracked {
            guest.untrack_whoever_tracks()?;
            done.push("its dirty tracking switched off".into());
        }
        if done.is_empty() {
            done.push("the guest needs nothing".into());
        }
        self.guest = Some(guest);
        Ok(done)
    }
}

impl PutRight for Charge {
    fn put_right(
        &mut self,
        _: &Journal,
        entry: &Entry,
        state: State,
    ) -> Result<Vec<String>, BoxError> {
        if state == State::NONE {
            return Ok(vec![]);
        }
        match self.settle(entry, state) {
            Err(GuestError::Gone(_)) => Ok(vec!["the guest is gone".into()]),
            done => Ok(done?),
        }
    }
}
