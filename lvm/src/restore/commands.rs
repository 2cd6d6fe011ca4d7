//! LVM's command lines that restore disks.

use std::time::Duration;

use snapshot::units::Bytes;

use super::error::Failure;
use super::names::RESTORED;
use crate::commands::{self, of_words};
use crate::run::{Run, RunError};

/// Runs them.
pub(super) struct Lvm<'a, R> {
    pub run: &'a mut R,
    pub limit: Duration,
}

impl<R: Run> Lvm<'_, R> {
    /// A writable thin snapshot of a snapshot, active from now on.
    pub fn thin_snapshot(
        &mut self,
        vg: &str,
        snapshot: &str,
        new: &str,
        tags: &[String],
    ) -> Result<(), Failure> {
        let of = format!("{vg}/{snapshot}");
        let mut arguments = vec!["-q", "-s", "-kn", "-prw"];
        for tag in tags {
            arguments.extend(["--addtag", tag]);
        }
        arguments.extend(["-n", new, &of]);
        self.lvcreate(vg, new, &arguments)
    }

    /// A thin volume.
    pub fn thin_volume(
        &mut self,
        vg: &str,
        pool: &str,
        new: &str,
        size: Bytes,
    ) -> Result<(), Failure> {
        let size = format!("{}b", size.0);
        let arguments = [
            "-q",
            "-y",
            "-Wy",
            "-V",
            &size,
            "--thinpool",
            pool,
            "--addtag",
            RESTORED,
            "-n",
            new,
            vg,
        ];
        self.lvcreate(vg, new, &arguments)
    }

    /// A volume with extents of its own.
    pub fn thick_volume(&mut self, vg: &str, new: &str, size: Bytes) -> Result<(), Failure> {
        let size = format!("{}b", size.0);
        // Wiped, so that nobody finds in it what once was there.
        let arguments = [
            "-q", "-L", &size, "-Wy", "-y", "-Zy", "--addtag", RESTORED, "-n", new, vg,
        ];
        self.lvcreate(vg, new, &arguments)
    }

    /// Gives a volume its device, also one that is to have none on its own.
    pub fn activate(&mut self, volume: &str) -> Result<(), Failure> {
        let done = commands::activate(self.run, volume, self.limit);
        told("activate", volume, done)
    }

    /// Takes a volume's device away; fails if somebody has it open.
    pub fn deactivate(&mut self, volume: &str) -> Result<(), Failure> {
        self.call("deactivate", volume, "lvchange", &["-q", "-an", volume])
    }

    /// Gives a volume another name.
    pub fn rename(&mut self, vg: &str, old: &str, new: &str) -> Result<(), Failure> {
        let volume = format!("{vg}/{old}");
        self.call("rename", &volume, "lvrename", &["-q", vg, old, new])
    }

    /// Removes a volume.
    pub fn remove(&mut self, volume: &str) -> Result<(), Failure> {
        let done = commands::remove(self.run, volume, self.limit);
        told("remove", volume, done)
    }

    /// Has a thick volume put back to that snapshot of it, which is no more then: at once, or when
    /// it gets its device.
    pub fn merge(&mut self, snapshot: &str) -> Result<(), Failure> {
        let operation = "put the volume back to";
        let arguments = ["-q", "-y", "--merge", "-b", snapshot];
        self.call(operation, snapshot, "lvconvert", &arguments)
    }

    /// Has LVM look after a volume that is being put back.
    pub fn poll(&mut self, volume: &str) -> Result<(), Failure> {
        let arguments = ["-q", "--poll", "y", volume];
        self.call("look after", volume, "lvchange", &arguments)
    }

    fn lvcreate(&mut self, vg: &str, new: &str, arguments: &[&str]) -> Result<(), Failure> {
        self.call("make", &format!("{vg}/{new}"), "lvcreate", arguments)
    }

    fn call(
        &mut self,
        operation: &'static str,
        volume: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<(), Failure> {
        let done = of_words(self.run, program, arguments, self.limit);
        told(operation, volume, done)
    }
}

/// Says of a failed command what it was to do.
fn told(operation: &'static str, volume: &str, done: Result<(), RunError>) -> Result<(), Failure> {
    done.map_err(|source| Failure::Command {
        operation,
        volume: volume.to_owned(),
        source,
    })
}
