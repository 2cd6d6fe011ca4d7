//! A guest's disk on a logical volume: what `lvm` sees of it, that it can be held still under the
//! running guest, and that LVM makes the snapshot of a thick one meanwhile.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lvm::dm::{Dm, Status};
use lvm::inventory::{Layout, Volume, volumes};
use lvm::run::{Host, Run, RunError};

use super::saves::{Loop, devices_go_on};
use super::{Bench, Kind, Test};
use crate::dom0::process;

pub(super) const VG: &str = "lstest";
const LIMIT: Duration = Duration::from_secs(60);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.core("volume_held_thick", |bench| held(bench, Layout::Thick)),
        Kind::Other.in_turn("volume_held_thin", |bench| held(bench, Layout::Thin)),
    ]
}

/// A volume group with one volume in it; gone when dropped.
pub(super) struct Group {
    device: Option<Loop>,
    file: PathBuf,
}

impl Group {
    pub(super) fn create(file: &Path, layout: Layout) -> Result<Self> {
        let device = Loop::create(file, 256)?;
        lvm(&["vgcreate", "-q", VG, &device.0.display().to_string()])?;
        // Dropped from here on, whatever fails.
        let group = Self {
            device: Some(device),
            file: file.to_owned(),
        };
        match layout {
            Layout::Thin => {
                lvm(&["lvcreate", "-q", "-L", "64m", "-T", &format!("{VG}/pool")])?;
                let pool = format!("{VG}/pool");
                lvm(&["lvcreate", "-q", "-V", "32m", "-T", &pool, "-n", "disk"])?;
            }
            _ => lvm(&["lvcreate", "-q", "-L", "32m", "-n", "disk", VG])?,
        }
        Ok(group)
    }

    /// One more thick volume; its device.
    pub(super) fn add(&self, name: &str, mib: u64) -> Result<PathBuf> {
        lvm(&["lvcreate", "-q", "-L", &format!("{mib}m"), "-n", name, VG])?;
        Ok(PathBuf::from(format!("/dev/{VG}/{name}")))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A test that failed may have left its guest on it.
        if lvm(&["vgremove", "-q", "-ff", "-y", VG]).is_ok() {
            self.device = None;
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn lvm(arguments: &[&str]) -> Result<()> {
    process::check(Command::new("lvm").args(arguments), LIMIT).map(drop)
}

fn volume(name: &str) -> Result<Volume> {
    let all = volumes(&mut Host, LIMIT)?;
    let mut found = all.into_iter().filter(|volume| volume.vg == VG);
    let found = found.find(|volume| volume.name == name);
    found.with_context(|| format!("LVM does not tell of {VG}/{name}"))
}

fn held(bench: &Bench, layout: Layout) -> Result<String> {
    let _group = Group::create(&bench.image("lvm.img"), layout)?;
    let path = format!("/dev/{VG}/disk");
    let disk = volume("disk")?;
    ensure!(disk.layout == layout, "it is told as {disk:?}");
    let number = fs::metadata(&path)?.rdev();
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    ensure!(
        disk.device == Some(number),
        "{path} is {number:?}: {disk:?}"
    );

    let guest = bench.guest(|mut spec| {
        spec.disk = Some(path.into());
        spec.small().with("disk=1")
    })?;
    devices_go_on(&guest).context("before")?;
    let (dm, uuid) = (Dm::open()?, disk.dm_uuid());
    ensure!(dm.status("LVM-none")?.is_none(), "a device that is none");
    let is_held = || Ok::<_, anyhow::Error>(dm.status(&uuid)?.context("no device")?.held);
    ensure!(!is_held()?, "held before it is");

    // Whatever fails from here on, it is let go.
    let _let_go = LetGo(&dm, &uuid);
    let began = Instant::now();
    dm.hold(&uuid)?;
    let hold = began.elapsed();
    ensure!(is_held()?, "not held");
    let first = guest.next_beat(LIMIT)?;
    for _ in 0..4 {
        guest.next_beat(LIMIT)?;
    }
    let last = guest.next_beat(LIMIT)?;
    // One write may have been done and not been counted yet.
    let moved = last.number("disk_ok").zip(first.number("disk_ok"));
    ensure!(
        moved.is_some_and(|(last, first)| last <= first + 1),
        "the guest wrote: {last}"
    );

    // A command that hangs does not hold it up for ever.
    let hangs = Host.run(
        "sleep",
        &["600".into()],
        Duration::from_millis(300),
        &mut || (),
    );
    ensure!(matches!(hangs, Err(RunError::TimedOut { .. })), "{hangs:?}");

    if layout == Layout::Thin {
        // No snapshot of a thin volume that somebody else holds: `lvcreate -s` says that it made one,
        // and has not told the pool (LVM 2.03.16).
        dm.let_go(&uuid)?;
    }
    let note = match layout {
        Layout::Thin => String::new(),
        _ => snapshot(&disk, &dm)?,
    };
    ensure!(!is_held()?, "it is still held");
    dm.let_go(&uuid)?;
    devices_go_on(&guest).context("afterwards")?;
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;
    Ok(format!("held in {:.1} ms{note}", hold.as_secs_f64() * 1e3))
}

/// LVM makes a snapshot of a thick volume that is held, and lets it go.
fn snapshot(disk: &Volume, dm: &Dm) -> Result<String> {
    let began = Instant::now();
    let mut free = None;
    let origin = disk.full_name();
    let arguments = [
        "-q", "-s", "-L", "16m", "-n", "snap", "--addtag", "livesave", &origin,
    ];
    Host.run(
        "lvcreate",
        &arguments.map(OsString::from),
        LIMIT,
        &mut || {
            let status = dm.status(&disk.dm_uuid());
            if free.is_none() && matches!(status, Ok(Some(Status { held: false, .. }))) {
                free = Some(began.elapsed());
            }
        },
    )?;
    let made = began.elapsed();
    let snap = volume("snap")?;
    ensure!(
        snap.layout == Layout::ThickSnapshot,
        "the snapshot is told as {snap:?}"
    );
    ensure!(snap.origin.as_deref() == Some("disk"), "{snap:?}");
    ensure!(snap.tags == ["livesave"], "{snap:?}");
    Ok(format!(
        "; lvcreate {:.2} s, the guest's I/O goes on after {:.2} s of it",
        made.as_secs_f64(),
        free.unwrap_or(made).as_secs_f64()
    ))
}

/// A device that is not to stay held.
struct LetGo<'a>(&'a Dm, &'a str);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        let _ = self.0.let_go(self.1);
    }
}
