//! The disks of an image, when the guest comes back.
//!
//! Either the guest gets volumes of its own, made from the image's snapshots or copies
//! ([`NewDisks`]), or the volumes that it was on are put back to the cut ([`Rollback`]). Both look
//! first, and refuse what cannot be or would destroy something ([`Refusal`]); nothing has been
//! touched then. An image that is given up takes its snapshots with it ([`discard`]).
//!
//! What an image says of disks is a file's word: volumes are taken from it by their UUIDs, and
//! their names from LVM.

mod commands;
mod discard;
mod error;
#[cfg(test)]
mod fake;
mod fill;
mod find;
mod names;
mod new;
mod rollback;

use std::path::PathBuf;
use std::time::Duration;

pub use discard::discard;
pub use error::{Failure, Refusal, RestoreError};
pub use names::RESTORED;
pub use new::NewDisks;
pub use rollback::Rollback;

/// Where volumes and copies are found, and how long a command of LVM may take.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where devices stand: `/dev`, but in tests.
    pub dev: PathBuf,
    /// The image's directory: a copy that is not where it was made is looked for there.
    pub beside: Option<PathBuf>,
    /// How long a command may take.
    pub limit: Duration,
    /// How long is slept before the second look at what takes LVM its time; then longer.
    pub look: Duration,
}

impl Place {
    fn device(&self, vg: &str, name: &str) -> PathBuf {
        self.dev.join(vg).join(name)
    }
}
