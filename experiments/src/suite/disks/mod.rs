//! Saves of guests with their disks: snapshots of logical volumes at the cut of the memory.

mod cost;
mod failing;

use self::cost::{cost, window};
use self::failing::{POINTS, faults, killed};
use super::saves::devices_go_on;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, Report};
use crate::dom0::lvm::{self, Group};
use crate::dom0::pool::Lent;
use crate::dom0::process;
use ::lvm::tags::Tagged;
use anyhow::{Context, Result, bail, ensure};
use snapshot::disks::{DiskFacts, Kept, SnapshotKept};
use std::fs;
use std::process::Command;

/// The tests of this directory.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Other.in_turn("disks_snapshotted_thin", |bench| snapshotted(bench, true)),
        Kind::Other.in_turn("disks_snapshotted_thick", |bench| snapshotted(bench, false)),
        Kind::Other.asked("disks_window", window),
        Kind::Other.asked("disks_cost", cost),
        Kind::Other.in_turn("disks_pruned", pruned),
        Kind::Other.in_turn("disks_copied", copied),
        Kind::Other.in_turn("disks_faults", faults),
        Kind::Other.core("disks_killed_while_held", |bench| {
            killed(bench, false, &["disks-held", "disks-snapshot"])
        }),
        Kind::Other.in_turn("disks_killed_thin", |bench| killed(bench, true, POINTS)),
        Kind::Other.in_turn("disks_killed_thick", |bench| killed(bench, false, POINTS)),
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

/// A guest that keeps writing to one of its volumes.
fn guest_on(bench: &Bench, group: &Group, volume: &str) -> Result<Lent> {
    bench.guest(|mut spec| {
        spec.disk = Some(group.path(volume));
        spec.small().with("disk=1")
    })
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
    let guest = guest_on(bench, &group, "disk")?;
    devices_go_on(&guest).context("before")?;
    let mut notes = vec![];
    for number in 0..2 {
        let path = bench.image(&format!("{number}.xl"));
        let (report, _) = bench.livesave.save(&guest.spec.name, &path, &[])?;
        devices_go_on(&guest).context("afterwards")?;
        bench.must_be_unharmed(&guest)?;
        let snapshot = must_be_tied(&group, &report, thin)?;
        let stalls = report
            .disks
            .as_ref()
            .map(|disks| (disks.stall_s, disks.stall_before_s));
        let (stall, before) = stalls.unwrap_or_default();
        notes.push(format!(
            "window {:.1} ms, of it disks {:.2} ms; I/O waited for {:.0} ms, for {:.0} ms before",
            report.window.total_s * 1e3,
            report.window.disks_s * 1e3,
            stall * 1e3,
            before * 1e3
        ));
        fs::remove_file(&path)?;
        if thin {
            // As a restore does.
            let full = format!("{}/{}", group.name, snapshot.name);
            lvm::lvm(&["lvcreate", "-q", "-s", "-kn", "-prw", "-n", "again", &full])?;
            lvm::lvm(&[
                "lvchange",
                "-q",
                "-ay",
                "-K",
                &format!("{}/again", group.name),
            ])?;
            fs::read(group.path("again")).context("the snapshot of the snapshot")?;
            lvm::remove(&format!("{}/again", group.name))?;
        }
        lvm::remove(&format!("{}/{}", group.name, snapshot.name))?;
        group.must_hold_only(names(thin))?;
    }
    devices_go_on(&guest).context("at the end")?;
    guest.destroy()?;
    Ok(notes.join("; "))
}

/// Saves into a directory with a rule: an image that goes takes its snapshot along; one that is
/// removed by hand leaves an orphan, which is named.
fn pruned(bench: &Bench) -> Result<String> {
    let group = group(bench, true)?;
    let guest = guest_on(bench, &group, "disk")?;
    let directory = bench.image("periodic");
    fs::create_dir(&directory)?;
    let directory = directory.to_str().context("a path")?;
    let run = |args: &[&str]| -> Result<String> {
        let finished = process::run(&mut bench.livesave.command(args), LIMIT)?;
        bench.livesave.note(&finished)?;
        ensure!(finished.status.success(), "{args:?}: {}", finished.tail());
        Ok(finished.stdout)
    };
    let save = [
        "save",
        &guest.spec.name,
        "--dir",
        directory,
        "--keep-last",
        "1",
        "--json",
    ];
    let mut images = vec![];
    for _ in 0..2 {
        let report: Report = serde_json::from_str(&run(&save)?)?;
        let snapshot = must_be_tied(&group, &report, true)?;
        group.must_hold_only(&["pool", "disk", &snapshot.name])?;
        images.push(report.image);
    }
    ensure!(!images[0].exists() && images[1].exists(), "{images:?}");
    let orphans = run(&["list", "--orphans"])?;
    ensure!(orphans.contains("has its image"), "{orphans}");
    fs::remove_file(&images[1])?;
    let orphans = run(&["list", "--orphans"])?;
    ensure!(
        orphans.contains("lvremove lsdisks/disk.livesave-"),
        "{orphans}"
    );
    // Of no killed save: somebody may have moved the image.
    let recovered = run(&["recover"])?;
    ensure!(recovered.contains("nothing"), "{recovered}");
    ensure!(
        group.volumes()?.len() == 3,
        "recover removed an image's snapshot"
    );
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;
    Ok(String::new())
}

/// The snapshot is copied to a file and dropped.
fn copied(bench: &Bench) -> Result<String> {
    let group = group(bench, false)?;
    let guest = guest_on(bench, &group, "disk")?;
    devices_go_on(&guest).context("before")?;
    let path = bench.image("x.xl");
    let directory = bench.image("copies");
    fs::create_dir(&directory)?;
    let how = format!("copy:{}", directory.display());
    let (report, _) = bench
        .livesave
        .save(&guest.spec.name, &path, &["--disks", &how])?;
    let facts = report.disks.as_ref().context("no facts of the disks")?;
    let Kept::Copy(copy) = &facts.disks[0].kept else {
        bail!("{facts:?}");
    };
    group.must_hold_only(&["disk"])?;
    let tested = process::run(Command::new("zstd").arg("-tq").arg(&copy.file), LIMIT)?;
    ensure!(tested.status.success(), "{}", tested.tail());
    let name = copy.file.file_name().context("a name")?.to_string_lossy();
    ensure!(name.starts_with("x.xl.xvda."), "{name}");
    bench.must_hold_only(&directory, &[&name])?;
    devices_go_on(&guest).context("afterwards")?;
    bench.must_be_unharmed(&guest)?;
    guest.destroy()?;
    Ok(format!("{} KiB", fs::metadata(&copy.file)?.len() >> 10))
}
