//! The request to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request to stop, raised by a signal handler and looked at everywhere the save may wait.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicUsize>);

impl Cancel {
    /// A request not raised yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop because of a signal.
    pub fn raise(&self, signal: i32) {
        self.0
            .store(signal.unsigned_abs() as usize, Ordering::SeqCst);
    }

    /// The word itself, for a signal handler to store the signal's number in.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicUsize> {
        self.0.clone()
    }

    /// The signal that asked to stop, if one did.
    #[must_use]
    pub fn raised(&self) -> Option<i32> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}
