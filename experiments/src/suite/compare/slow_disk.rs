//! A disk that writes at a set pace, as `testbed/run` gives it to the machine.

use crate::dom0::process::check;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Its device, throttled by QEMU.
const DEVICE: &str = "/dev/vdd";
const MOUNTED: &str = "/mnt/slow";
/// How much may wait in the page cache to be written. By default that is a fifth of dom0's memory,
/// more than the guest has: writers would never meet the disk.
const DIRTY: [(&str, &str); 2] = [
    ("/proc/sys/vm/dirty_background_bytes", "16777216"),
    ("/proc/sys/vm/dirty_bytes", "67108864"),
];
const LIMIT: Duration = Duration::from_secs(120);

/// The mounted disk.
pub struct SlowDisk;

impl SlowDisk {
    /// Makes a file system on it and mounts it.
    pub fn mount() -> Result<Self> {
        fs::create_dir_all(MOUNTED)?;
        check(Command::new("mkfs.ext4").args(["-q", "-F", DEVICE]), LIMIT)?;
        check(Command::new("mount").args([DEVICE, MOUNTED]), LIMIT)?;
        for (setting, value) in DIRTY {
            fs::write(setting, value).with_context(|| setting.to_owned())?;
        }
        Ok(Self)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        Path::new(MOUNTED)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // The defaults of the kernel; a machine that is left otherwise serves no further test.
        let _ = fs::write("/proc/sys/vm/dirty_background_ratio", "10");
        let _ = fs::write("/proc/sys/vm/dirty_ratio", "20");
        let _ = check(Command::new("umount").arg(MOUNTED), LIMIT);
    }
}
