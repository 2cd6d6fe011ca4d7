//! Saves that succeed: on every kind of guest the image restores by stock
//! `xl restore` with every page right, and the source goes on unharmed.

use super::table::median;
use super::{Bench, Kind, Test};
use crate::dom0::console::Mark;
use crate::dom0::guest::Guest;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::lvm::Loop;
use crate::dom0::pool::Lent;
use crate::dom0::process::check;
use crate::dom0::spec::{GuestType, Spec};
use crate::dom0::{echo, image, stock};
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::{Large, Other};
    vec![
        Large.core("live_save_restores", |b| save_and_restore(b, |s| s)),
        Large.core("plain_save_restores", plain),
        Other.core("save_with_2_vcpus", |b| save_and_restore(b, |s| s.vcpus(2))),
        Other.in_turn("save_with_4_vcpus", |b| save_and_restore(b, |s| s.vcpus(4))),
        Other.asked("save_random_writes", |b| {
            save_and_restore(b, |s| s.with("pattern=random").rate("20000"))
        }),
        Large.in_turn("save_as_fast_as_it_can", |b| {
            save_and_restore(b, |s| s.rate("max"))
        }),
        Other.in_turn("save_ballooned_down", ballooned),
        Other.core("save_with_vif_and_disk", |b| vif_and_disk(b, |s| s)),
    ]
}

/// For guests whose disks are no logical volumes.
pub(super) const MEMORY_ONLY: [&str; 2] = ["--disks", "memory-only"];

/// Total RAM of the guest in bytes, as `xl create` was told.
fn ram(spec: &Spec) -> u64 {
    spec.max_memory_mib << 20
}

/// The bound on an image's length: RAM + 1 % + 1 MiB.
#[must_use]
pub fn largest_image(ram: u64) -> u64 {
    ram + ram / 100 + (1 << 20)
}

pub(super) fn check_image(spec: &Spec, path: &Path, report: &Report) -> Result<()> {
    let size = image::size(path)?;
    if size.bytes != report.image_bytes {
        bail!(
            "the report says {} bytes, the file has {}",
            report.image_bytes,
            size.bytes
        );
    }
    let bound = largest_image(ram(spec));
    if size.bytes > bound {
        bail!("the image has {} bytes, more than {bound}", size.bytes);
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata()?.permissions().mode() & 0o7777;
    if mode != 0o600 {
        bail!("the image's mode is {mode:o}");
    }
    image::stock_verify(path)
}

/// A save that succeeded.
pub(super) struct Saved {
    pub report: Report,
    /// How long the guest saw itself stand still.
    pub gap: Duration,
    /// How long it was until the command had ended.
    took: Duration,
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = &self.report.window;
        let gap = self.gap.as_secs_f64();
        write!(f, "gap {gap:.3} s, window {:.3} s ", window.total_s)?;
        write!(f, "({:.3} s suspended", window.suspended_s)?;
        if window.emulator_s > 0.0 {
            write!(f, ", {:.3} s of them its emulator", window.emulator_s)?;
        }
        let rounds = self.report.rounds.len();
        let took = self.took.as_secs_f64();
        write!(f, "), {took:.1} s in all, {rounds} rounds")
    }
}

/// Saves, and checks everything that can be checked without a restore.
pub(super) fn save(bench: &Bench, guest: &Guest, path: &Path, more: &[&str]) -> Result<Saved> {
    guest.take_gap()?;
    let (report, took) = bench.livesave.save(&guest.spec.name, path, more)?;
    let gap = guest.take_gap()?;
    bench.must_be_unharmed(guest)?;
    Ok(Saved { report, gap, took })
}

/// The whole story of one image: saved, accepted by Xen's checker, restored
/// after the source is gone; every page right and the counter from the cut on.
pub(super) fn save_and_restore(bench: &Bench, change: impl FnOnce(Spec) -> Spec) -> Result<String> {
    let guest = bench.guest(change)?;
    finish(bench, guest, &[])
}

pub(super) fn finish(bench: &Bench, mut guest: Lent, more: &[&str]) -> Result<String> {
    Ok(there_and_back(bench, &mut guest, more)?.to_string())
}

/// The same with a guest that is kept; the image stays.
pub(super) fn there_and_back(bench: &Bench, guest: &mut Guest, more: &[&str]) -> Result<Saved> {
    let path = bench.image("image.xl");
    let before = guest.verify_clean().context("before the save")?.seq;
    let saved = save(bench, guest, &path, more)?;
    let after = guest
        .verify_clean()
        .context("the source after its save")?
        .seq;
    bench.keep("report.json", &saved.report)?;
    check_image(&guest.spec, &path, &saved.report)?;
    if guest.spec.kind != GuestType::Pvh {
        // There are parts in it that images of PVH guests do not have.
        let mut verify = bench.livesave.command(&["verify"]);
        check(verify.arg(&path), LIMIT).context("livesave verify")?;
    }
    bench.must_hold_only(&bench.images, &["image.xl"])?;
    guest.destroy()?;
    restored_is_right(guest, &path, before, after)?;
    Ok(saved)
}

/// Restores the image by stock `xl restore`. The source had done `before`
/// writes before the save and `after` afterwards.
pub(super) fn restored_is_right(
    guest: &mut Guest,
    path: &Path,
    before: u64,
    after: u64,
) -> Result<()> {
    let mark = guest.restore(path)?;
    goes_on_from_the_cut(guest, mark, before, after)
}

/// A restored guest must go on from the cut, with every page right. `mark` is the place in its log
/// before the restore.
pub(super) fn goes_on_from_the_cut(
    guest: &Guest,
    mark: Mark,
    before: u64,
    after: u64,
) -> Result<()> {
    let first = guest
        .console
        .wait_for(
            mark,
            Duration::from_secs(60),
            "heartbeat after the restore",
            |l| l.kind == "beat",
        )?
        .number("seq")
        .context("a heartbeat without seq")?;
    guest.must_run_on().context("after the restore")?;
    guest.verify_clean().context("after the restore")?;
    // The cut lies between the two checks of the source. The restored guest's
    // first heartbeat comes a second or so after it, the checks are further
    // apart than that.
    let latest = after + (after - before);
    if first < before || first > latest {
        bail!(
            "the counter goes on at {first}, not from the cut ({before} to {after} at the source)"
        );
    }
    if guest.spec.disk.is_some() || guest.spec.net {
        devices_go_on(guest).context("after the restore")?;
    }
    Ok(())
}

fn plain(bench: &Bench) -> Result<String> {
    finish(bench, bench.guest(|spec| spec)?, &["--mode", "plain"])
}

fn ballooned(bench: &Bench) -> Result<String> {
    save_and_restore(bench, |mut spec| {
        spec.memory_mib = 384;
        spec
    })
}

/// A front-end of an HVM guest has reconnected by then, under emulation.
const RECONNECTED: Duration = Duration::from_secs(20);

/// Two beats apart, the devices must have moved data and no errors.
pub(super) fn devices_go_on(guest: &Guest) -> Result<()> {
    let limit = Duration::from_secs(30);
    let first = guest.next_beat(limit)?;
    let mut last = guest.next_beat(limit)?;
    // A front-end may take a moment to reconnect.
    let began = Instant::now();
    while began.elapsed() < RECONNECTED {
        let moved = |key| last.number(key) > first.number(key);
        if (guest.spec.disk.is_none() || moved("disk_ok")) && (!guest.spec.net || moved("net_back"))
        {
            break;
        }
        last = guest.next_beat(limit)?;
    }
    if guest.spec.disk.is_some() {
        if last.number("disk_bad") != Some(0) {
            bail!("the guest's disk failed: {last}");
        }
        if last.number("disk_ok") <= first.number("disk_ok") {
            bail!("the guest's disk stands still: {last}");
        }
    }
    if guest.spec.net && last.number("net_back") <= first.number("net_back") {
        bail!("the guest's network stands still: {last}");
    }
    Ok(())
}

/// A guest that writes to a disk and hears from the network. Of the two the disk is to be dropped last.
pub(super) fn with_vif_and_disk(
    bench: &Bench,
    change: impl FnOnce(Spec) -> Spec,
) -> Result<(Loop, Lent)> {
    echo::start()?;
    let disk = Loop::create(&bench.results.join("disk.img"), 16)?;
    let guest = bench.guest(|mut spec| {
        spec.disk = Some(disk.0.clone());
        spec.net = true;
        change(spec).with("disk=1").with("net=10.77.0.5")
    })?;
    devices_go_on(&guest).context("before the save")?;
    Ok((disk, guest))
}

pub(super) fn vif_and_disk(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let (_disk, guest) = with_vif_and_disk(bench, change)?;
    // Its disk is no logical volume.
    let path = bench.image("first.xl");
    let refused = bench
        .livesave
        .must_fail(&guest.spec.name, &path, &[], exit::NO_DISK_SNAPSHOT)?;
    ensure!(
        refused.stderr.contains("xvda") && refused.stderr.contains("--disks memory-only"),
        "{}",
        refused.stderr
    );
    save(bench, &guest, &path, &MEMORY_ONLY)?;
    devices_go_on(&guest).context("the source after its save")?;
    std::fs::remove_file(&path)?;
    let note = finish(bench, guest, &MEMORY_ONLY)?;
    std::fs::remove_file(bench.results.join("disk.img"))?;
    Ok(note)
}

/// The same bars as `compare` has: no longer a gap than Xen's own live loop has on this guest, in turn with
/// it, and an image that does not grow with what was written.
pub(super) fn gap_beside_stock(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let guest = bench.guest(change)?;
    let (ours, theirs) = (bench.image("ours.xl"), bench.image("theirs.xl"));
    let (mut gaps, mut emulator) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..bench.repeats {
        guest.take_gap()?;
        stock::live_loop(&guest.spec.name, &theirs, &bench.results)?;
        gaps[1].push(guest.take_gap()?.as_secs_f64());
        std::fs::remove_file(&theirs)?;
        bench.must_be_unharmed(&guest).context("after xl save")?;
        guest.take_gap()?;
        let (report, _) = bench.livesave.save(&guest.spec.name, &ours, &[])?;
        gaps[0].push(guest.take_gap()?.as_secs_f64());
        emulator.push(report.window.emulator_s);
        let bytes = image::size(&ours)?.bytes;
        let largest = largest_image(ram(&guest.spec));
        ensure!(bytes <= largest, "the image has {bytes} bytes");
        std::fs::remove_file(&ours)?;
        bench.must_be_unharmed(&guest)?;
    }
    let [ours, theirs] = gaps.map(|gaps| median(&gaps));
    let emulator = match median(&emulator) {
        0.0 => String::new(),
        part => format!(" ({part:.3} s of it the emulator)"),
    };
    let note = format!("gap {ours:.3} s{emulator}, Xen's live loop {theirs:.3} s");
    ensure!(ours <= theirs, "{note}");
    Ok(note)
}
