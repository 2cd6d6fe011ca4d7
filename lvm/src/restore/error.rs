//! Why disks were not restored.

use std::io;
use std::path::PathBuf;

use snapshot::units::Bytes;

use crate::inventory::InventoryError;
use crate::run::RunError;

/// The disks were not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// LVM could not be asked; nothing was touched.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// It cannot be, here and now; nothing was touched.
    #[error("The disks cannot be restored")]
    Refused(#[from] Refusal),
    /// There are no random numbers for names; nothing was touched.
    #[error("Failed to make names for new volumes: there are no random numbers")]
    Random(#[source] io::Error),
    /// It failed on the way.
    #[error("The restore of the disks failed; {left}")]
    Failed {
        /// What is left of it.
        left: String,
        /// Why.
        #[source]
        source: Failure,
    },
    /// What an image has kept of its disks could not be removed.
    #[error("Failed to remove what the image has kept of its disks; {left} is left")]
    Discard {
        /// What is left.
        left: String,
        /// Why the first of it is.
        #[source]
        source: Failure,
    },
    /// The user wanted to stop.
    #[error("The restore of the disks was interrupted; {left}")]
    Interrupted {
        /// The signal.
        signal: i32,
        /// What is left of it.
        left: String,
    },
}

impl RestoreError {
    pub(super) fn new(failure: Failure, left: String) -> Self {
        match failure {
            Failure::Cancelled(signal) => Self::Interrupted { signal, left },
            source => Self::Failed { left, source },
        }
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A command of LVM.
    #[error("Failed to {operation} {volume}")]
    Command {
        /// What was to be done, to stand after "failed to".
        operation: &'static str,
        /// With which volume.
        volume: String,
        /// Why not.
        #[source]
        source: RunError,
    },
    /// A volume has no device, although it should be active.
    #[error("The volume is active, but there is no {0}")]
    NoDevice(PathBuf),
    /// A copy, on either side.
    #[error("Failed to copy {from} to {to}")]
    Copy {
        /// What was read.
        from: PathBuf,
        /// What was written.
        to: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A copy of a disk is not whole.
    #[error("Failed to read the copy {file} to its end")]
    BadCopy {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A copy of a disk cannot be removed.
    #[error("Failed to remove {file}")]
    RemoveCopy {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// LVM could not be asked how it stands.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A thick snapshot ran full while it was read.
    #[error("The snapshot {0} ran full while it was copied: its content is lost")]
    SnapshotLost(String),
    /// LVM could not put a volume back.
    #[error("LVM failed to put {0} back to its snapshot, see the kernel's log")]
    MergeFailed(String),
    /// The user wants to stop.
    #[error("signal {0}")]
    Cancelled(i32),
}

/// Why the disks are not restored: found out before anything is touched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The image's snapshot is not there any more.
    #[error(
        "the snapshot {name} of disk {vdev} (UUID {uuid}) is gone: it was removed, or the disk was \
         put back to it"
    )]
    SnapshotGone {
        /// The disk.
        vdev: String,
        /// What it was called, volume group first.
        name: String,
        /// Its UUID.
        uuid: String,
    },
    /// It is another kind of volume now.
    #[error("the snapshot {name} of disk {vdev} is not what it was: {what}")]
    SnapshotChanged {
        /// The disk.
        vdev: String,
        /// What it is called.
        name: String,
        /// What it is now.
        what: &'static str,
    },
    /// A thick snapshot ran full.
    #[error(
        "the snapshot {name} of disk {vdev} ran full, and its content is lost: its volume was \
         written to more than it had room for"
    )]
    SnapshotFull {
        /// The disk.
        vdev: String,
        /// What it is called.
        name: String,
    },
    /// The copy of a disk cannot be read.
    #[error("the copy {file} of disk {vdev} cannot be read: {why}")]
    CopyUnreadable {
        /// The disk.
        vdev: String,
        /// The file.
        file: PathBuf,
        /// Why not.
        why: String,
    },
    /// A volume group is not there.
    #[error("there is no volume group {vg} with volumes in it, for disk {vdev}")]
    NoGroup {
        /// The disk.
        vdev: String,
        /// The group.
        vg: String,
    },
    /// New volumes do not fit.
    #[error(
        "the volume group {vg} has {free} free, and the new volumes of the disks need {need}; \
         enlarge it, or remove volumes that nobody needs"
    )]
    NoRoom {
        /// The group.
        vg: String,
        /// What they take.
        need: Bytes,
        /// What there is.
        free: Bytes,
    },
    /// The image names a volume as no volume is named.
    #[error("the image says that disk {vdev} was on {name:?}, and no volume has such a name")]
    OddName {
        /// The disk.
        vdev: String,
        /// The name.
        name: String,
    },
    /// The volume that is to be put back is not there.
    #[error(
        "there is no volume {name} to put back disk {vdev} on, or not one of the same kind; \
         `--disks new` makes another one"
    )]
    OriginGone {
        /// The disk.
        vdev: String,
        /// The volume.
        name: String,
    },
    /// Its size is another one.
    #[error("the volume {name} of disk {vdev} is {now} large, and was {then} at the cut")]
    Resized {
        /// The disk.
        vdev: String,
        /// The volume.
        name: String,
        /// Its size now.
        now: Bytes,
        /// Its size at the cut.
        then: Bytes,
    },
    /// Somebody uses what is to be put back.
    #[error("the volume {name} of disk {vdev} is in use: end the guest, or unmount it")]
    InUse {
        /// The disk.
        vdev: String,
        /// The volume.
        name: String,
    },
    /// It is being put back already.
    #[error("the volume {name} of disk {vdev} is being put back to a snapshot already")]
    Merging {
        /// The disk.
        vdev: String,
        /// The volume.
        name: String,
    },
}
