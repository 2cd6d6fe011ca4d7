//! Why an image is not restored: found out before anything is created.

use std::path::PathBuf;

use crate::units::Bytes;

/// A reason, and the way out where there is one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The guest from which the image was taken runs, and the second one is to be the same.
    #[error(
        "domain {domid} ({name}), which it is an image of, runs; give the second one another name \
         with --name NEW, or end the first (`xl destroy {domid}`)"
    )]
    OriginalRuns {
        /// Its number.
        domid: u32,
        /// Its name.
        name: String,
    },
    /// Another domain has the name.
    #[error("domain {domid} has the name {name} already; choose another with --name NEW")]
    NameTaken {
        /// Its number.
        domid: u32,
        /// The name.
        name: String,
    },
    /// Another livesave is at it.
    #[error("another livesave restores a guest {0} at the moment")]
    BeingRestored(String),
    /// No domain should have that name.
    #[error(
        "{0:?} is no name for a domain: letters, digits, `.`, `_`, `-` and `+` are, if not digits \
         alone"
    )]
    BadName(String),
    /// Two guests would write to one disk.
    #[error(
        "domain {domid} ({original}) runs on the disks {disks}, which the second guest would write \
         to as well: two guests on one disk destroy it; give the second one copies of them as they \
         were at the cut, by --disks new if the image has its disks, or by --config FILE, or end \
         the first"
    )]
    SharedDisks {
        /// The number of the guest from which the image was taken.
        domid: u32,
        /// Its name.
        original: String,
        /// The disks: names in the guest, and what they are on.
        disks: String,
    },
    /// Two guests would drive one device of the host.
    #[error(
        "domain {domid} ({original}) runs and has a device of the host passed through to it, which \
         cannot be in a second guest; leave it out with --config FILE, or end the first"
    )]
    SharedDevices {
        /// The number of the guest from which the image was taken.
        domid: u32,
        /// Its name.
        original: String,
    },
    /// A disk is not there.
    #[error("its disk {vdev} is to be on {path}, which does not exist")]
    DiskMissing {
        /// Its name in the guest.
        vdev: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// There is too little memory.
    #[error(
        "it needs {need} of memory, the host has {free} free, and dom0 gives none of its own \
         (autoballoon is off); shrink or end another guest, or dom0 (`xl mem-set 0 …`)"
    )]
    MemoryShort {
        /// What the guest takes.
        need: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// Its disks cannot be put back under it while it runs.
    #[error(
        "domain {domid} ({name}), which it is an image of, runs on the disks that are to be put \
         back; end it first (`xl destroy {domid}`)"
    )]
    PutBackWhileItRuns {
        /// Its number.
        domid: u32,
        /// Its name.
        name: String,
    },
    /// The image is of the memory alone.
    #[error(
        "the image is of the guest's memory alone and tells of no disks; `--disks as-is` restores \
         the guest on its disks as they are now"
    )]
    NoDisks,
    /// The image is not one of a domU.
    #[error(
        "it is an image of an embedded guest (`livesave demo`, tests), which Xen cannot restore"
    )]
    Embedded,
}
