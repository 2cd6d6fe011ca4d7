//! Device-mapper, as far as volumes are held still by it.
//!
//! LVM's commands do all that changes volumes; here is only what has to take milliseconds and start
//! no process: a device is held (I/O that arrives waits, what is under way is done first) and let go.
//! A device is told by its UUID, which LVM makes of the group's and the volume's, so that one that
//! was removed meanwhile is never taken for another.

mod sys;

use std::fs::File;
use std::io;

/// Device-mapper's own device.
const CONTROL: &str = "/dev/mapper/control";

/// A call of device-mapper failed.
#[derive(Debug, thiserror::Error)]
pub enum DmError {
    /// Device-mapper cannot be used here.
    #[error("Failed to open {CONTROL}")]
    Open(#[source] io::Error),
    /// A call on a device failed.
    #[error("Failed to {operation} device {uuid}")]
    Call {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The device.
        uuid: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// I/O to it waits.
    pub held: bool,
    /// A table is loaded that takes the place of the present one when the device is let go.
    pub has_new_table: bool,
}

/// An open connection to device-mapper.
#[derive(Debug)]
pub struct Dm {
    control: File,
}

impl Dm {
    /// Opens it; afterwards no call opens a file.
    ///
    /// # Errors
    /// [`DmError::Open`].
    pub fn open() -> Result<Self, DmError> {
        let control = File::options().read(true).write(true).open(CONTROL);
        let control = control.map_err(DmError::Open)?;
        Ok(Self { control })
    }

    /// How a device is; `None` if there is no such device.
    ///
    /// # Errors
    /// [`DmError::Call`].
    pub fn status(&self, uuid: &str) -> Result<Option<Status>, DmError> {
        match sys::call(&self.control, sys::DEV_STATUS, uuid, 0) {
            Ok(flags) => Ok(Some(Status {
                held: flags & sys::SUSPENDED != 0,
                has_new_table: flags & sys::INACTIVE_PRESENT != 0,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(source) => Err(failed("look at", uuid, source)),
        }
    }

    /// Holds a device: returns when all I/O under way is done and no more is let through. What a file
    /// system or the page cache of this host still has for it is written first.
    ///
    /// # Errors
    /// [`DmError::Call`]; the device is not held.
    pub fn hold(&self, uuid: &str) -> Result<(), DmError> {
        let held = sys::call(&self.control, sys::DEV_SUSPEND, uuid, sys::SUSPENDED);
        held.map(drop)
            .map_err(|source| failed("hold", uuid, source))
    }

    /// Lets a held device go; nothing to do for one that is not held.
    ///
    /// # Errors
    /// [`DmError::Call`]; may be called again.
    pub fn let_go(&self, uuid: &str) -> Result<(), DmError> {
        let gone = sys::call(&self.control, sys::DEV_SUSPEND, uuid, 0);
        gone.map(drop)
            .map_err(|source| failed("let go", uuid, source))
    }

    /// Drops a table that was loaded and does not apply yet.
    ///
    /// # Errors
    /// [`DmError::Call`].
    pub fn drop_new_table(&self, uuid: &str) -> Result<(), DmError> {
        let dropped = sys::call(&self.control, sys::TABLE_CLEAR, uuid, 0);
        dropped
            .map(drop)
            .map_err(|source| failed("drop the new table of", uuid, source))
    }
}

fn failed(operation: &'static str, uuid: &str, source: io::Error) -> DmError {
    DmError::Call {
        operation,
        uuid: uuid.to_owned(),
        source,
    }
}
