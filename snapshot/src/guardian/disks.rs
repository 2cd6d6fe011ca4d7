//! Whoever looks after the disks, on the consumer's side: the guardian knows nothing of them.

use crate::ports::BoxError;

/// Puts right what a save has done about a guest's disks, from the text that it noted
/// ([`super::Entry::disks`]). Every method may be called again, also after an error.
pub trait DiskCare: Sync {
    /// Lets every disk go that may be held. Starts no process: a guest's I/O waits. Says what was
    /// done.
    ///
    /// # Errors
    /// Any; some may still be held.
    fn let_go(&self, disks: &str) -> Result<Vec<String>, BoxError>;

    /// Removes what was made for the image if that is not there, and leaves it, marked as the
    /// image's own, if it is. Nothing is held. Says what was done.
    ///
    /// # Errors
    /// Any; some of it may be left.
    fn tidy(&self, disks: &str) -> Result<Vec<String>, BoxError>;
}

/// For saves that leave the disks alone.
#[derive(Clone, Copy, Debug)]
pub struct NoDisks;

impl DiskCare for NoDisks {
    fn let_go(&self, _: &str) -> Result<Vec<String>, BoxError> {
        Ok(vec![])
    }

    fn tidy(&self, _: &str) -> Result<Vec<String>, BoxError> {
        Ok(vec![])
    }
}
