//! Saves of guests with their disks: snapshots of logical volumes at the cut of the memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lvm::tags::Tagged;
use snapshot::disks::{DiskFacts, Kept, SnapshotKept};

use super::guardian::KILLED;
use super::saves::devices_go_on;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, Report};
use crate::dom0::lvm::{Group, lvm};
use crate::dom0::process;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.core("disks_snapshotted_thin", |bench| snapshotted(bench, true)),
        Kind::Other.core("disks_snapshotted_thick", |bench| snapshotted(bench, false)),
        Kind::Other.core("disks_killed_thin", |bench| killed(bench, true)),
        Kind::Other.core("disks_killed_thick", |bench| killed(bench, false)),
    ]
}

/// A volume group with one volume, `disk`.
fn group(bench: &Bench, thin: bool) -> Result<Group> {
    let group = Group::create("lsdisks", &bench.image("lvm.img"), 256)?;
    if thin {
        let group = group.pool(96)?;
        group.thin("disk", 32)?;
        Ok(group)
    } else {
        group.thick("disk", 32)?;
        Ok(group)
    }
}

fn names(thin: bool) -> &'static [&'static str] {
    if thin { &["pool", "disk"] } else { &["disk"] }
}

fn only_snapshot(facts: &DiskFacts) -> Result<&SnapshotKept> {
    match &facts.disks[..] {
        [disk] => match &disk.kept {
            Kept::Snapshot(snapshot) => Ok(snapshot),
            other => bail!("the disk is kept as {other:?}"),
        },
        other => bail!("{} disks: {other:?}", other.len()),
    }
}

/// Report and facts of a save with one disk; the snapshot is as they say.
fn must_be_tied(group: &Group, report: &Report, thin: bool) -> Result<SnapshotKept> {
    let facts = report.disks.as_ref().context("no facts of the disks")?;
    let snapshot = only_snapshot(facts)?;
    let volume = group.volume(&snapshot.name)?;
    ensure!(
        volume.uuid == snapshot.uuid,
        "{volume:?}, told {snapshot:?}"
    );
    ensure!(volume.origin.as_deref() == Some("disk"), "{volume:?}");
    ensure!(snapshot.pool.is_some() == thin, "told {snapshot:?}");
    let tagged = Tagged::of(&volume.tags).context("it is not tagged")?;
    ensure!(tagged.unfinished.is_none(), "unfinished: {volume:?}");
    ensure!(tagged.image.as_ref() == Some(&report.image), "{volume:?}");
    Ok(snapshot.clone())
}

fn snapshotted(bench: &Bench, thin: bool) -> Result<String> {
    let group = group(bench, thin)?;
    let guest = bench.guest(|mut spec| {
        spec.disk = Some(group.path("disk"));
        spec.small().with("disk=1")
    })?;
    devices_go_on(&guest).context("before")?;
    let mut notes = vec![];
    for number in 0..2 {
        let path = bench.image(&format!("{number}.xl"));
        let (report, _) = bench.livesave.save(&guest.spec.name, &path, &[])?;
        devices_go_on(&guest).context("afterwards")?;
        bench.must_be_unharmed(&guest)?;
        let snapshot = must_be_tied(&group, &report, thin)?;
        let stall = report.disks.as_ref().map_or(0.0, |disks| disks.stall_s);
        notes.push(format!(
            "window {:.1} ms, of it disks {:.2} ms; I/O waited for {:.0} ms",
            report.window.total_s * 1e3,
            report.window.disks_s * 1e3,
            stall * 1e3
        ));
        fs::remove_file(&path)?;
        if thin {
            // As a restore does.
            let full = format!("{}/{}", group.name, snapshot.name);
            lvm(&["lvcreate", "-q", "-s", "-kn", "-prw", "-n", "again", &full])?;
            lvm(&[
                "lvchange",
                "-q",
                "-ay",
                "-K",
                &format!("{}/again", group.name),
            ])?;
            fs::read(group.path("again")).context("the snapshot of the snapshot")?;
            lvm(&[
                "lvremove",
                "-q",
                "-f",
                "-y",
                &format!("{}/again", group.name),
            ])?;
        }
        lvm(&[
            "lvremove",
            "-q",
            "-f",
            "-y",
            &format!("{}/{}", group.name, snapshot.name),
        ])?;
        group.must_hold_only(names(thin))?;
    }
    devices_go_on(&guest).context("at the end")?;
    guest.destroy()?;
    Ok(notes.join("; "))
}

/// Killed at each point of a save that has to do with disks, alone and with its guardian: the guest's
/// disk goes on, and nothing is left.
fn killed(bench: &Bench, thin: bool) -> Result<String> {
    let group = group(bench, thin)?;
    let guest = bench.guest(|mut spec| {
        spec.disk = Some(group.path("disk"));
        spec.small().with("disk=1")
    })?;
    let faulty = bench.faulty();
    let mut count = 0;
    for point in POINTS {
        if point == &"disks-deleted" && !thin {
            continue;
        }
        for deed in ["kill", "kill-both"] {
            let context = || format!("{point}:{deed}");
            let path = bench.image("x.xl");
            let mut command = faulty.save_command(&guest.spec.name, &path, &[]);
            let ended = process::run(
                command.env("LIVESAVE_FAULT", format!("{point}:{deed}")),
                LIMIT,
            )?;
            ensure!(ended.code() == KILLED, "{}: {}", context(), ended.tail());
            if deed == "kill-both" {
                let recovered = process::run(&mut faulty.command(&["recover"]), LIMIT)?;
                faulty.note(&recovered)?;
                ensure!(
                    recovered.status.success(),
                    "{}: recover: {}",
                    context(),
                    recovered.tail()
                );
            }
            settled(&group, thin).with_context(context)?;
            devices_go_on(&guest).with_context(context)?;
            bench.must_be_unharmed(&guest).with_context(context)?;
            ensure!(!path.exists(), "{}: an image", context());
            count += 1;
        }
    }
    // Nothing of all that hinders a save.
    let path = bench.image("good.xl");
    let (report, _) = bench.livesave.save(&guest.spec.name, &path, &[])?;
    must_be_tied(&group, &report, thin)?;
    devices_go_on(&guest).context("at the end")?;
    guest.destroy()?;
    Ok(format!("killed {count} times"))
}

const POINTS: &[&str] = &[
    "disks-noted",
    "disks-ready",
    "disks-deleted",
    "disks-prepared",
    "disks-holding",
    "disks-held",
    "disks-cut",
    "captured",
    "resumed",
    "disks-making",
    "disks-snapshot",
    "disks-let-go",
    "disks-committed",
    "disks-kept",
];

/// The guardian may be at work for a while.
fn settled(group: &Group, thin: bool) -> Result<()> {
    let mut tries = 60;
    loop {
        match group.must_hold_only(names(thin)) {
            Ok(()) => return Ok(()),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => tries -= 1,
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
