//! Device-mapper, as far as volumes are held still by it.
//!
//! LVM's commands do all that changes volumes; here is only what has to take milliseconds and start
//! no process: a device is held (I/O that arrives waits, what is under way is done first) and let go.
//! A device is told by its UUID, which LVM makes of the group's and the volume's, so that one that
//! was removed meanwhile is never taken for another; or by a name that nobody else gives.

mod sys;

use std::fmt;
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
    #[error("Failed to {operation} device {device}")]
    Call {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The device.
        device: Device,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A device of device-mapper.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The one with that UUID.
    Uuid(String),
    /// The one with that name.
    Name(String),
}

impl Device {
    /// The device that LVM makes for a volume; `layer` is `cow` or `real` for one beneath it.
    #[must_use]
    pub fn of(vg: &str, name: &str, layer: Option<&str>) -> Self {
        let plain = |name: &str| name.replace('-', "--");
        let layer = layer.map(|layer| format!("-{layer}")).unwrap_or_default();
        Self::Name(format!("{}-{}{layer}", plain(vg), plain(name)))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Uuid(text) | Self::Name(text)) = self;
        f.write_str(text)
    }
}

/// A stretch of a device's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it starts, in sectors of 512 bytes.
    pub start: u64,
    /// Its length, in sectors.
    pub length: u64,
    /// Of which kind it is.
    pub kind: String,
    /// What that kind has to know.
    pub parameters: String,
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
    pub fn status(&self, device: &Device) -> Result<Option<Status>, DmError> {
        match sys::call(&self.control, sys::DEV_STATUS, device, 0) {
            Ok(flags) => Ok(Some(Status {
                held: flags & sys::SUSPENDED != 0,
                has_new_table: flags & sys::INACTIVE_PRESENT != 0,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(source) => Err(failed("look at", device, source)),
        }
    }

    /// Holds a device: returns when all I/O under way is done and no more is let through. What a file
    /// system or the page cache of this host still has for it is written first.
    ///
    /// # Errors
    /// [`DmError::Call`]; the device is not held.
    pub fn hold(&self, device: &Device) -> Result<(), DmError> {
        let held = sys::call(&self.control, sys::DEV_SUSPEND, device, sys::SUSPENDED);
        held.map(drop)
            .map_err(|source| failed("hold", device, source))
    }

    /// Lets a held device go; nothing to do for one that is not held.
    ///
    /// # Errors
    /// [`DmError::Call`]; may be called again.
    pub fn let_go(&self, device: &Device) -> Result<(), DmError> {
        let gone = sys::call(&self.control, sys::DEV_SUSPEND, device, 0);
        gone.map(drop)
            .map_err(|source| failed("let go", device, source))
    }

    /// Sends a message to the target of a device, a thin pool's.
    ///
    /// # Errors
    /// [`DmError::Call`].
    pub fn message(&self, device: &Device, text: &str) -> Result<(), DmError> {
        sys::message(&self.control, device, text)
            .map_err(|source| failed("send a message to", device, source))
    }

    /// The table of a device that has one stretch only.
    ///
    /// # Errors
    /// [`DmError::Call`].
    pub fn target(&self, device: &Device) -> Result<Target, DmError> {
        let table = sys::table(&self.control, device);
        let only = table.and_then(|table| match <[Target; 1]>::try_from(table) {
            Ok([target]) => Ok(target),
            Err(table) => Err(io::Error::other(format!(
                "its table has {} parts",
                table.len()
            ))),
        });
        only.map_err(|source| failed("read the table of", device, source))
    }

    /// Puts a table of one stretch in the place of a device's.
    ///
    /// # Errors
    /// [`DmError::Call`]; it may be held then.
    pub fn replace(&self, device: &Device, target: &Target) -> Result<(), DmError> {
        self.hold(device)?;
        sys::load(&self.control, device, target)
            .map_err(|source| failed("load a table for", device, source))?;
        self.let_go(device)
    }

    /// Drops a table that was loaded and does not apply yet.
    ///
    /// # Errors
    /// [`DmError::Call`].
    pub fn drop_new_table(&self, device: &Device) -> Result<(), DmError> {
        let dropped = sys::call(&self.control, sys::TABLE_CLEAR, device, 0);
        dropped
            .map(drop)
            .map_err(|source| failed("drop the new table of", device, source))
    }
}

fn failed(operation: &'static str, device: &Device, source: io::Error) -> DmError {
    DmError::Call {
        operation,
        device: device.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_lvm_names_them() {
        let device = Device::of("vg-0", "root.livesave-1", Some("cow"));
        assert_eq!(device.to_string(), "vg--0-root.livesave--1-cow");
        assert_eq!(Device::of("vg", "a", None).to_string(), "vg-a");
    }
}
