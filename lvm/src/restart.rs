//! A thick snapshot begun anew.
//!
//! What a snapshot device has copied away since it was made stands in the volume beneath it
//! (`-cow`), behind a header in its first block. Without that header, and with none of it in the
//! kernel's memory, the snapshot is as it would be if it were made now. The kernel hands what it
//! remembers over from one snapshot table to the next, so that another table has to come in between.
//!
//! LVM's view of the volume stays true: the table at the end is the one that it made.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use snapshot::fault;

use crate::dm::{Device, Dm, DmError, Target};
use crate::plan::Planned;

/// What of the header has to go; a chunk, the smallest of which is that.
const HEADER: [u8; 4096] = [0; 4096];

/// A snapshot could not be begun anew; it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// Device-mapper refused something.
    #[error(transparent)]
    Device(#[from] DmError),
    /// It is something else than expected.
    #[error("Device {0} is no snapshot: {1}")]
    Other(Device, String),
    /// Its header could not be erased.
    #[error("Failed to erase the header in {0}")]
    Header(PathBuf, #[source] io::Error),
}

/// All that is needed to begin a snapshot anew, opened and read before.
#[derive(Debug)]
pub struct Restart {
    device: Device,
    table: Target,
    cow_path: PathBuf,
    cow: File,
}

impl Restart {
    /// Makes it ready for a snapshot that LVM has made.
    ///
    /// # Errors
    /// [`RestartError`]; nothing was changed.
    pub fn of(dm: &Dm, planned: &Planned) -> Result<Self, RestartError> {
        let device = Device::of(&planned.vg, &planned.name, None);
        let table = dm.target(&device)?;
        if table.kind != "snapshot" {
            return Err(RestartError::Other(device, table.kind));
        }
        let cow = Device::of(&planned.vg, &planned.name, Some("cow"));
        let cow_path = PathBuf::from(format!("/dev/mapper/{cow}"));
        let cow = File::options().write(true).open(&cow_path);
        let cow = cow.map_err(|error| RestartError::Header(cow_path.clone(), error))?;
        Ok(Self {
            device,
            table,
            cow_path,
            cow,
        })
    }

    /// Begins it anew; its origin is held.
    ///
    /// # Errors
    /// [`RestartError`]; the snapshot may be left with a table that answers every request with an
    /// error. LVM removes such a one.
    pub fn run(&self, dm: &Dm) -> Result<(), RestartError> {
        let nothing = Target {
            kind: "error".into(),
            parameters: String::new(),
            ..self.table.clone()
        };
        dm.replace(&self.device, &nothing)?;
        fault::point("disks-forgotten");
        self.cow
            .write_all_at(&HEADER, 0)
            .and_then(|()| self.cow.sync_data())
            .map_err(|error| RestartError::Header(self.cow_path.clone(), error))?;
        dm.replace(&self.device, &self.table)?;
        Ok(())
    }
}
