//! How the save of a domU is guarded.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::suspend;

/// What the save's own limits may be exceeded by before the save is taken to hang.
const GRACE: Duration = Duration::from_secs(15);

/// How a save is guarded.
#[derive(Clone, Debug)]
pub struct Guarding {
    /// The program that [`super::guardian_main`] is called by when it is given `guardian` and some
    /// arguments.
    pub program: PathBuf,
    /// The name that the unfinished image may have.
    pub partial: Option<PathBuf>,
    /// How long the guest may take to suspend.
    pub suspend_timeout: Duration,
    /// How long the save may do nothing while the guest is suspended or slowed.
    pub silence: Duration,
    /// How long the guest's disks may be held, by the save's own limit.
    pub stall: Duration,
    /// What [`crate::guardian::DiskCare`] has to know of the disks; empty if they are left alone.
    pub disks: String,
}

impl Guarding {
    /// The guardian's arguments for a domain.
    pub(super) fn arguments(&self, domid: u32) -> Vec<OsString> {
        let handshake = self.suspend_timeout + suspend::late() + GRACE;
        vec![
            "guardian".into(),
            domid.to_string().into(),
            handshake.as_millis().to_string().into(),
            self.silence.as_millis().to_string().into(),
            (self.stall + GRACE).as_millis().to_string().into(),
        ]
    }
}
