//! Records on a guest's disks, without any save: the guest finds all of them right while it writes,
//! and so does dom0 after its end. What tests of snapshots stand on.

use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::lvm::Group;
use crate::dom0::process;
use crate::dom0::spec::Spec;
use crate::lines::Line;
use crate::records::block::Owner;
use crate::records::look::{self, Seen, of_one_instant};
use crate::records::slots::Layout;
use crate::records::{SLOTS, disk_number};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// For two laps: emulated, a guest writes 20 records a second.
const LAPS: Duration = Duration::from_secs(180);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.in_turn("records_on_disks", on_disks)]
}

/// A raw volume and one with a file system get records until their rings have wrapped.
fn on_disks(bench: &Bench) -> Result<String> {
    let group = Group::create("lstest", &bench.image("lvm.img"), 256)?;
    let raw = group.thick("disk", 32)?;
    let files = group.thick("files", 64)?;
    make_ext4(&files)?;
    let spec = |spec: Spec| {
        let spec = spec.medium().rate("500").with("record_rate=max");
        spec.records(&[("xvda", &raw)], &[("xvdb", &files)])
    };
    // Its own: gone before the group is, whatever fails.
    let guest = bench.guest(spec)?.own();
    let first = guest.records_clean()?;
    let began = Instant::now();
    beat_from(&guest, 2 * (SLOTS + 20))?;
    let took = began.elapsed();
    let last = guest.records_clean()?;
    ensure!(last.slots == 2 * SLOTS && last.files == 8, "{last:?}");
    let beat = beat_from(&guest, last.acked + 1)?;
    let counted = ["rec_bad", "rec_err"].map(|key| beat.number(key));
    ensure!(counted == [Some(0); 2], "{beat}");
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;

    // As the guest left them in the midst of a write.
    let checked = check_ext4(&files)?;
    let disk = right(look::ring(&raw, Layout::Disk, owner("xvda")?)?)?;
    let mounted = Mounted::on(&files, &bench.results.join("mounted"))?;
    let owner = owner("xvdb")?;
    let file = right(look::ring(&mounted.0.join("records"), Layout::File, owner)?)?;
    right(look::small(&mounted.0.join("small"), owner, file.head)?)?;
    let heads = [disk.head, file.head];
    ensure!(of_one_instant(&heads), "of two instants: {heads:?}");
    ensure!(
        heads[0] + heads[1] >= last.acked,
        "{heads:?} after {last:?}"
    );
    Ok(format!(
        "{} records, {:.0} a second; e2fsck {checked}",
        heads[0] + heads[1],
        (last.acked - first.acked) as f64 / took.as_secs_f64()
    ))
}

/// The first heartbeat that tells of so many acknowledged records or more.
fn beat_from(guest: &Guest, records: u64) -> Result<Line> {
    let began = Instant::now();
    loop {
        let beat = guest.next_beat(LIMIT)?;
        if beat.number("rec").with_context(|| format!("{beat}"))? >= records {
            return Ok(beat);
        }
        ensure!(began.elapsed() < LAPS, "the records stand still: {beat}");
    }
}

/// Whose the records on that disk of a guest with the usual seed are.
fn owner(vdev: &str) -> Result<Owner> {
    let disk = disk_number(vdev).with_context(|| format!("{vdev} has no number"))?;
    Ok(Owner { seed: 1, disk })
}

fn right(seen: Seen) -> Result<Seen> {
    match seen.bad.first() {
        None => Ok(seen),
        Some(first) => Err(Harm.because(format!(
            "{} of {} are wrong, the newest record is {}; {first}",
            seen.bad.len(),
            seen.looked_at,
            seen.head
        ))),
    }
}

/// A file system for records.
pub(super) fn make_ext4(device: &Path) -> Result<()> {
    let mut make = Command::new("mkfs.ext4");
    process::check(make.args(["-q", "-F", "-b", "4096"]).arg(device), LIMIT).map(drop)
}

/// The file system must be whole once its journal was replayed; e2fsck's exit code, 0 or 1.
pub(super) fn check_ext4(device: &Path) -> Result<i32> {
    let checked = process::run(Command::new("e2fsck").args(["-f", "-y"]).arg(device), LIMIT)?;
    if checked.code() > 1 {
        return Err(Harm.because(format!("e2fsck {}: {}", checked.code(), checked.tail())));
    }
    Ok(checked.code())
}

/// The file system must be whole once the kernel has replayed its journal, as after a loss of power.
pub(super) fn must_be_clean_ext4(device: &Path, mount_at: &Path) -> Result<()> {
    drop(Mounted::with(device, mount_at, "rw")?);
    let checked = process::run(Command::new("e2fsck").args(["-f", "-n"]).arg(device), LIMIT)?;
    if checked.code() != 0 {
        return Err(Harm.because(format!("e2fsck {}: {}", checked.code(), checked.tail())));
    }
    Ok(())
}

/// A file system mounted to be looked at; unmounted when dropped.
pub(super) struct Mounted(pub PathBuf);

impl Mounted {
    /// Mounts the device there.
    pub fn on(device: &Path, at: &Path) -> Result<Self> {
        Self::with(device, at, "ro")
    }

    fn with(device: &Path, at: &Path, how: &str) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        process::check(mount.args(["-o", how]).arg(device).arg(at), LIMIT)?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg(&self.0), LIMIT);
        let _ = std::fs::remove_dir(&self.0);
    }
}
