//! Why a save failed.

use std::time::Duration;

use crate::ports::{BoxError, Cancel, DomainError, SinkError};
use crate::units::Pfn;

/// Why a save failed. The guest runs on unless the domain's own error says that it is gone.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A call on the guest.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The image could not be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The disks could not be cut.
    #[error("Failed to {operation} the guest's disks")]
    Disks {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The user asked to stop.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
    /// The balloon never stood still.
    #[error(
        "The guest's memory is being resized all the time; save it when its balloon has settled"
    )]
    KeepsResizing,
    /// The pause would be longer than asked for, and the save was to be given up then.
    #[error(
        "The guest would pause for about {foretold:?}, longer than {wanted:?} ({why}); it was not \
         paused and nothing was saved"
    )]
    TargetMissed {
        /// What was asked for.
        wanted: Duration,
        /// What the pause would have been.
        foretold: Duration,
        /// Why it cannot be shorter, and what speaks against the forecast.
        why: String,
    },
    /// An increment cannot be built on the image that it was to be built on.
    #[error("The increment cannot be built on the image before it: {0}")]
    BaseLost(String),
    /// A page that should be there could not be read while the guest was suspended.
    #[error(
        "Failed to read {0} of the suspended guest: it is not there, or a page table of a PV guest \
         that refers to memory of others; the image would have a hole"
    )]
    PageLost(Pfn),
}

impl SaveError {
    /// Of what the guest's memory was when an increment was begun, or of its tracking.
    pub(super) fn base_lost(error: DomainError) -> Self {
        match error {
            DomainError::Unsupported(why) => Self::BaseLost(why),
            other => other.into(),
        }
    }

    /// What went wrong while this was done to the disks.
    pub(super) fn disks(operation: &'static str) -> impl Fn(BoxError) -> Self {
        move |source| Self::Disks { operation, source }
    }

    pub(super) fn resized_since() -> Self {
        Self::BaseLost("the guest's memory has been resized since".into())
    }

    /// An error if the user has asked to stop.
    pub(super) fn if_raised(cancel: &Cancel) -> Result<(), Self> {
        match cancel.raised() {
            Some(signal) => Err(Self::Interrupted(signal)),
            None => Ok(()),
        }
    }

    /// The signal that ended the save, if one did.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        match self {
            Self::Interrupted(signal) | Self::Domain(DomainError::Interrupted(signal)) => {
                Some(*signal)
            }
            _ => None,
        }
    }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
