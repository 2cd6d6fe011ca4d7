//! Saves with disks that fail or are killed: the disks go on, and nothing is left.

use super::{group, guest_on, must_be_tied, names};
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::lvm::{self, Group};
use crate::dom0::process;
use crate::suite::Bench;
use crate::suite::dying::KILLED;
use crate::suite::saves::devices_go_on;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

/// Killed at each point of a save that has to do with disks, alone and with its guardian: the guest's
/// disk goes on, and nothing is left.
pub(super) fn killed(bench: &Bench, thin: bool, points: &[&str]) -> Result<String> {
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

pub(super) const POINTS: &[&str] = &[
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

/// No room, an `lvcreate` that hangs with the volume held: the save fails in time and in order.
pub(super) fn faults(bench: &Bench) -> Result<String> {
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
