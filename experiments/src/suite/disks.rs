//! Saves of guests with their disks: snapshots of logical volumes at the cut of the memory.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ::lvm::tags::Tagged;
use anyhow::{Context, Result, bail, ensure};
use snapshot::disks::{DiskFacts, Kept, SnapshotKept};

use super::dying::KILLED;
use super::saves::devices_go_on;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::lvm::{self, Group};
use crate::dom0::pool::Lent;
use crate::dom0::process;
use crate::native::median;

/// The tests of this file.
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

/// What the disks add to the window: saves with and without them in turns, and what `lvcreate` in the
/// window would have cost.
fn window(bench: &Bench) -> Result<String> {
    let mut notes = vec![];
    for thin in [true, false] {
        let group = group(bench, thin)?;
        let guest = guest_on(bench, &group, "disk")?;
        devices_go_on(&guest).context("before")?;
        let (mut with, mut without, mut naive) = (vec![], vec![], vec![]);
        let (mut stalls, mut before, mut disks) = (vec![], vec![], vec![]);
        for _ in 0..bench.repeats.max(7) {
            let path = bench.image("with.xl");
            let (report, _) = bench.livesave.save(&guest.spec.name, &path, &[])?;
            fs::remove_file(&path)?;
            with.push(report.window.total_s);
            disks.push(report.window.disks_s);
            let facts = report.disks.context("no facts of the disks")?;
            stalls.push(facts.stall_s);
            before.push(facts.stall_before_s);
            let snapshot = only_snapshot(&facts)?;
            lvm::remove(&format!("{}/{}", group.name, snapshot.name))?;

            let path = bench.image("without.xl");
            let memory_only = ["--disks", "memory-only"];
            let (report, _) = bench.livesave.save(&guest.spec.name, &path, &memory_only)?;
            fs::remove_file(&path)?;
            without.push(report.window.total_s);
        }
        for _ in 0..3 {
            let began = Instant::now();
            let origin = format!("{}/disk", group.name);
            let mut words = vec!["lvcreate", "-q", "-y", "-s", "-n", "naive", &origin];
            if !thin {
                words.extend(["-L", "16m"]);
            }
            lvm::lvm(&words)?;
            naive.push(began.elapsed().as_secs_f64());
            lvm::remove(&format!("{}/naive", group.name))?;
        }
        devices_go_on(&guest).context("afterwards")?;
        bench.must_be_unharmed(&guest)?;
        guest.destroy()?;
        let [with, without, naive, stall, before, disks] =
            [with, without, naive, stalls, before, disks].map(|mut all| median(&mut all) * 1e3);
        notes.push(format!(
            "{}: window {with:.1} ms with, {without:.1} ms without ({:.2}), of it waiting for the disks \
             {disks:.2} ms; I/O waited {stall:.0} ms for the cut, {before:.0} ms before; lvcreate in the \
             window would add {naive:.0} ms",
            if thin { "thin" } else { "thick" },
            with / without,
        ));
        ensure!(with <= without * 1.15, "{}", notes.join("; "));
    }
    Ok(notes.join("; "))
}

/// What writes cost with snapshots of the volume: 4 KiB at a time, each place for the first time since
/// the snapshots were made and for the second, as multiples of what they cost without.
fn cost(bench: &Bench) -> Result<String> {
    let mut notes = vec![];
    for thin in [false, true] {
        let group = group(bench, thin)?;
        let disk = group.path("disk");
        // A thin volume gets its blocks first.
        writes(&disk)?;
        let alone = writes(&disk)?;
        let mut all = vec![];
        for count in 1..=2 {
            let name = format!("snap{count}");
            let origin = format!("{}/disk", group.name);
            let mut words = vec!["lvcreate", "-q", "-y", "-s", "-n", &name, &origin];
            if !thin {
                words.extend(["-L", "48m"]);
            }
            lvm::lvm(&words)?;
            let (first, second) = (writes(&disk)?, writes(&disk)?);
            all.push(format!(
                "{count}: {:.2} and {:.2}",
                first / alone,
                second / alone
            ));
        }
        let kind = if thin { "thin" } else { "thick" };
        notes.push(format!("{kind} {}", all.join(", ")));
    }
    Ok(notes.join("; "))
}

/// Writes the first 16 MiB of a device, a block after the other, past the page cache; seconds.
fn writes(device: &Path) -> Result<f64> {
    let began = Instant::now();
    let to = format!("of={}", device.display());
    let words = [
        "if=/dev/zero",
        &to,
        "bs=4k",
        "count=4096",
        "oflag=direct",
        "conv=notrunc",
    ];
    process::check(Command::new("dd").args(words), LIMIT)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Killed at each point of a save that has to do with disks, alone and with its guardian: the guest's
/// disk goes on, and nothing is left.
fn killed(bench: &Bench, thin: bool, points: &[&str]) -> Result<String> {
    let group = group(bench, thin)?;
    let guest = guest_on(bench, &group, "disk")?;
    let faulty = bench.faulty();
    let mut count = 0;
    for &point in points {
        // Each has a step that the other has not.
        if point
            == if thin {
                "disks-forgotten"
            } else {
                "disks-deleted"
            }
        {
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
    "disks-forgotten",
    "disks-snapshot",
    "disks-let-go",
    "disks-committed",
    "disks-kept",
];

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

/// No room, an `lvcreate` that hangs with the volume held: the save fails in time and in order.
fn faults(bench: &Bench) -> Result<String> {
    let group = Group::create("lsdisks", &bench.image("lvm.img"), 256)?.pool(32)?;
    group.thick("disk", 32)?;
    group.thin("thin", 32)?;
    let guest = guest_on(bench, &group, "disk")?;
    devices_go_on(&guest).context("before")?;
    let path = bench.image("x.xl");
    let right = |what: &str| -> Result<()> {
        group
            .must_hold_only(&["pool", "disk", "thin"])
            .context(what.to_owned())?;
        devices_go_on(&guest).context(what.to_owned())?;
        bench.must_be_unharmed(&guest).context(what.to_owned())?;
        ensure!(!path.exists(), "{what}: an image");
        Ok(())
    };

    // The group is full, but for less than the snapshot is to have.
    let free = group.volume("disk")?.vg_free.0 >> 20;
    group.thick("filler", free - 8)?;
    let refused = bench
        .livesave
        .must_fail(&guest.spec.name, &path, &[], exit::NO_DISK_SNAPSHOT)?;
    ensure!(
        refused.stderr.contains("has 8.0 MiB free"),
        "{}",
        refused.stderr
    );
    lvm::remove(&format!("{}/filler", group.name))?;
    right("the group is full")?;

    // LVM holds the volume, and hangs.
    let wrappers = bench.results.join("wrappers");
    fs::create_dir_all(&wrappers)?;
    let wrapper = wrappers.join("lvcreate");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\ndmsetup suspend {}-disk\nsleep 600\n",
            group.name
        ),
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut command = bench
        .livesave
        .save_command(&guest.spec.name, &path, &["--disk-limit", "3s"]);
    let old = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{old}", wrappers.display()));
    let began = Instant::now();
    let hung = process::run(&mut command, LIMIT)?;
    bench.livesave.note(&hung)?;
    let took = began.elapsed();
    ensure!(hung.code() == 1, "lvcreate hangs: {}", hung.tail());
    ensure!(
        hung.stderr.contains("did not end within 3s"),
        "{}",
        hung.stderr
    );
    right("lvcreate hangs")?;
    fs::remove_dir_all(&wrappers)?;

    // The save hangs with the volume held: its own thread lets go.
    let faulty = bench.faulty();
    let mut command = faulty.save_command(&guest.spec.name, &path, &["--disk-limit", "10s"]);
    let hung = process::run(command.env("LIVESAVE_FAULT", "disks-cut:slow:13000"), LIMIT)?;
    faulty.note(&hung)?;
    ensure!(hung.code() == 1, "held for too long: {}", hung.tail());
    ensure!(hung.stderr.contains("--disk-limit"), "{}", hung.stderr);
    right("held for too long")?;
    guest.destroy()?;

    // A pool that is full.
    let guest = guest_on(bench, &group, "thin")?;
    let extra = group.thin("extra", 32)?;
    let full = fs::File::options().write(true).open(&extra)?;
    let block = vec![7u8; 1 << 20];
    for at in 0..31 {
        full.write_all_at(&block, at << 20)?;
    }
    full.sync_data()?;
    drop(full);
    let refused = bench
        .livesave
        .must_fail(&guest.spec.name, &path, &[], exit::NO_DISK_SNAPSHOT)?;
    ensure!(
        refused.stderr.contains("pool lsdisks/pool"),
        "{}",
        refused.stderr
    );
    guest.destroy()?;
    group.must_hold_only(&["pool", "disk", "thin", "extra"])?;
    Ok(format!(
        "lvcreate that hangs: over after {:.1} s",
        took.as_secs_f64()
    ))
}

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
