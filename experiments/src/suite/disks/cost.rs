//! What a guest's disks add to the pause, and what their snapshots cost writes.

use super::{group, guest_on, only_snapshot};
use crate::dom0::livesave::LIMIT;
use crate::dom0::{lvm, process};
use crate::native::median;
use crate::suite::Bench;
use crate::suite::saves::devices_go_on;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// What the disks add to the window: saves with and without them in turns, and what `lvcreate` in the
/// window would have cost.
pub(super) fn window(bench: &Bench) -> Result<String> {
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
pub(super) fn cost(bench: &Bench) -> Result<String> {
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
