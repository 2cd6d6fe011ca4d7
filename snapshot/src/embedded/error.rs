//! What can go wrong with an embedded guest.

use std::io;
use std::time::Duration;

use super::spec::{SpecError, TrackerChoice};
use super::state::StateError;

/// A call on an embedded guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The description fits no guest.
    #[error("Failed to describe an embedded guest")]
    Spec(#[from] SpecError),
    /// The state record fits no guest.
    #[error("Failed to restore an embedded guest")]
    State(#[from] StateError),
    /// Its process has ended.
    #[error("Embedded guest {0} is gone")]
    Gone(String),
    /// It is running in an odd way: it does not answer.
    #[error("Embedded guest {name} did not answer within {waited:?} when asked: {operation} it")]
    Silent {
        /// The guest's name.
        name: String,
        /// What it was asked.
        operation: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It did not suspend in time; the request has been taken back.
    #[error("Embedded guest {name} {} within {waited:?}", if *.acknowledged {
        "acknowledged the suspend request but did not suspend"
    } else {
        "did not acknowledge the suspend request"
    })]
    NotSuspended {
        /// The guest's name.
        name: String,
        /// Whether it got as far as that.
        acknowledged: bool,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A signal ended the wait for it to suspend; the request has been taken back.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
    /// It says no.
    #[error("Embedded guest {name} refused to {operation} it: {reason}")]
    Refused {
        /// The guest's name.
        name: String,
        /// What was asked.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// A system call failed.
    #[error("Failed to {operation} embedded guest {name}")]
    Call {
        /// The guest's name.
        name: String,
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No way of dirty tracking works here.
    #[error("No dirty tracking works on this machine (tried: {0:?})")]
    NoTracker(TrackerChoice, #[source] Option<Box<GuestError>>),
}
