//! A guest's disk on a logical volume: what `lvm` sees of it, that it can be held still under the
//! running guest, and that LVM makes the snapshot of a thick one meanwhile.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lvm::dm::{Device, Dm, Status};
use lvm::inventory::{Layout, Volume};
use lvm::run::{Host, Run, RunError};

use super::saves::devices_go_on;
use super::{Bench, Kind, Test};
use crate::dom0::lvm::Group;

const LIMIT: Duration = Duration::from_secs(60);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.in_turn("volume_held_thick", |bench| held(bench, Layout::Thick)),
        Kind::Other.in_turn("volume_held_thin", |bench| held(bench, Layout::Thin)),
    ]
}

fn group(bench: &Bench, layout: Layout) -> Result<Group> {
    let group = Group::create("lstest", &bench.image("lvm.img"), 256)?;
    if layout == Layout::Thin {
        let group = group.pool(64)?;
        group.thin("disk", 32)?;
        Ok(group)
    } else {
        group.thick("disk", 32)?;
        Ok(group)
    }
}

fn held(bench: &Bench, layout: Layout) -> Result<String> {
    let group = group(bench, layout)?;
    let path = group.path("disk");
    let disk = group.volume("disk")?;
    ensure!(disk.layout == layout, "it is told as {disk:?}");
    let number = fs::metadata(&path)?.rdev();
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    ensure!(
        disk.device == Some(number),
        "{} is {number:?}: {disk:?}",
        path.display()
    );

    let guest = bench.guest(|mut spec| {
        spec.disk = Some(path);
        spec.small().with("disk=1")
    })?;
    devices_go_on(&guest).context("before")?;
    let (dm, device) = (Dm::open()?, disk.dm_device());
    ensure!(
        dm.status(&Device::Uuid("LVM-none".into()))?.is_none(),
        "a device that is none"
    );
    let is_held = || Ok::<_, anyhow::Error>(dm.status(&device)?.context("no device")?.held);
    ensure!(!is_held()?, "held before it is");

    // Whatever fails from here on, it is let go.
    let _let_go = LetGo(&dm, &device);
    let began = Instant::now();
    dm.hold(&device)?;
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
        dm.let_go(&device)?;
    }
    let note = match layout {
        Layout::Thin => String::new(),
        _ => snapshot(&group, &disk, &dm)?,
    };
    ensure!(!is_held()?, "it is still held");
    dm.let_go(&device)?;
    devices_go_on(&guest).context("afterwards")?;
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;
    Ok(format!("held in {:.1} ms{note}", hold.as_secs_f64() * 1e3))
}

/// LVM makes a snapshot of a thick volume that is held, and lets it go.
fn snapshot(group: &Group, disk: &Volume, dm: &Dm) -> Result<String> {
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
            let status = dm.status(&disk.dm_device());
            if free.is_none() && matches!(status, Ok(Some(Status { held: false, .. }))) {
                free = Some(began.elapsed());
            }
        },
    )?;
    let made = began.elapsed();
    let snap = group.volume("snap")?;
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
struct LetGo<'a>(&'a Dm, &'a Device);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        let _ = self.0.let_go(self.1);
    }
}
