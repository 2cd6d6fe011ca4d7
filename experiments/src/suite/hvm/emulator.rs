//! What the emulator writes, and what becomes of a save when it does not do as it is told.

use super::super::failures::works_again;
use super::super::faults::{must_be_over, start};
use super::super::guardian::{must_be_right, recover, settled};
use super::super::saves::{MEMORY_ONLY, check_image, goes_on_from_the_cut};
use super::super::{Bench, Kind, Test};
use super::hvm;
use crate::dom0::emulator::{self, Occupied, Stopped, reported_writes, wait_for_reads};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::lvm::Loop;
use crate::dom0::pool::Lent;
use crate::dom0::process::{self, Running};
use crate::workload::config::Config;
use crate::workload::emulated;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::HvmReads.in_turn("hvm_writes_of_the_emulator", writes_of_the_emulator),
        Kind::HvmReads.asked("hvm_emulator_logs_no_more", logs_no_more),
        Kind::Hvm.asked("hvm_when_its_emulator_fails", when_it_fails),
        Kind::Hvm.asked("hvm_when_its_emulator_refuses", when_it_refuses),
    ]
}

/// A guest that goes on reading from an emulated disk. The disk stays for as long as the suite, so that
/// tests can share the guest.
pub(super) fn reading(bench: &Bench) -> Result<Lent> {
    static DISK: OnceLock<Loop> = OnceLock::new();
    if DISK.get().is_none() {
        let file = Path::new("/run/testbed-emulated.img");
        emulated::fill_disk(file, Config::default().seed)?;
        let _ = DISK.set(Loop::on(file, 0)?);
    }
    let disk = DISK.get().context("the disk was made")?;
    bench.guest(|spec| hvm(spec).reads_emulated(&disk.0))
}

/// Pages that only the emulator writes are in the image as they were at the cut; and they are not in
/// one whose save did not tell the emulator to report its writes, so that this shows something.
fn writes_of_the_emulator(bench: &Bench) -> Result<String> {
    let mut guest = reading(bench)?;
    let (good, bad) = (bench.image("good.xl"), bench.image("bad.xl"));
    let before = guest.verify_clean().context("before the save")?.seq;
    let (reads, report) = while_reading(&guest, || {
        let (report, _) = bench.livesave.save(&guest.spec.name, &good, &MEMORY_ONLY)?;
        Ok(report)
    })?;
    bench.must_be_unharmed(&guest)?;
    let after = guest.verify_clean().context("the source")?.seq;
    check_image(&guest.spec, &good, &report)?;

    while_reading(&guest, || saved_in_ignorance(bench, &guest, &bad))?;
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean().context("the source, once more")?;

    guest.destroy()?;
    guest.restore(&bad)?;
    wait_for_reads(&guest, emulated::PAGES)?;
    let stale = guest.verify()?.bad;
    if stale == 0 {
        bail!("no page is missed where the emulator reports nothing: nothing is shown");
    }
    guest.destroy()?;
    let mark = guest.restore(&good)?;
    goes_on_from_the_cut(&guest, mark, before, after)?;
    wait_for_reads(&guest, emulated::PAGES)?;
    guest.verify_clean().context("after another round")?;
    Ok(format!(
        "{reads} pages read meanwhile; {stale} stale where the emulator was not told"
    ))
}

/// A save of which the emulator does not report its writes: it is told so behind the save's back, as
/// soon as that has told it to.
fn saved_in_ignorance(bench: &Bench, guest: &Guest, path: &Path) -> Result<()> {
    let faulty = bench.faulty();
    let mut command = faulty.save_command(&guest.spec.name, path, &MEMORY_ONLY);
    let mut running = process::start(command.env("LIVESAVE_FAULT", "emulator-log-on:stop"))?;
    running.wait_until_stopped(LIMIT)?;
    emulator::report_writes(guest.domid, false)?;
    running.signal(Signal::CONT)?;
    let finished = running.wait(LIMIT)?;
    faulty.note(&finished)?;
    ensure!(finished.code() == 0, "{}", finished.tail());
    Ok(())
}

/// Does it; how many pages the guest read from its emulated disk meanwhile, which must be many.
fn while_reading<T>(guest: &Guest, deed: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
    let read = || -> Result<u64> {
        let beat = guest.next_beat(Duration::from_secs(30))?;
        let read = beat.number("emulated");
        read.with_context(|| format!("a heartbeat without reads: {beat}"))
    };
    let from = read()?;
    let done = deed()?;
    let reads = read()? - from;
    ensure!(reads >= 32, "{reads} pages read: nothing is shown");
    Ok((reads, done))
}

/// After a save the emulator does not go on reporting its writes, which costs it a hypercall each.
fn logs_no_more(bench: &Bench) -> Result<String> {
    let guest = reading(bench)?;
    must_report_none(&guest).context("before the save")?;
    let path = bench.image("x.xl");
    for mode in ["live", "improved", "plain"] {
        let more = [&MEMORY_ONLY[..], &["--mode", mode]].concat();
        bench.livesave.save(&guest.spec.name, &path, &more)?;
        fs::remove_file(&path)?;
        must_report_none(&guest).with_context(|| format!("after a {mode} save"))?;
        bench.must_be_unharmed(&guest)?;
    }
    // The look at it must be able to see it.
    emulator::report_writes(guest.domid, true)?;
    let (seen, of) = reported_writes(&guest)?;
    emulator::report_writes(guest.domid, false)?;
    ensure!(
        seen > of / 2,
        "{seen} of {of} writes were reported when they were to be: nothing is shown"
    );
    must_report_none(&guest).context("at the end")?;
    guest.verify_clean()?;
    Ok(format!("reported when told to: {seen} of {of}"))
}

/// Its emulator must not be reporting its writes.
pub(super) fn must_report_none(guest: &Guest) -> Result<()> {
    let (seen, of) = reported_writes(guest)?;
    // A page may have been moved by the guest's kernel.
    if seen > of / 4 {
        return Err(Harm.because(format!(
            "the emulator goes on reporting its writes: {seen} of {of}"
        )));
    }
    Ok(())
}

/// A save that must fail, without a report and with a word of the emulator.
fn must_fail(bench: &Bench, running: Running) -> Result<String> {
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    let code = finished.code();
    ensure!(
        code == 1 || code == exit::NOT_SAVABLE,
        "exit code {code}: {}",
        finished.tail()
    );
    ensure!(
        finished.stderr.contains("emulator") && finished.stdout.trim().is_empty(),
        "{}",
        finished.tail()
    );
    bench.must_hold_only(&bench.images, &[])?;
    let last = finished.stderr.lines().last().unwrap_or_default();
    Ok(format!("{last} ({:.1} s)", finished.took.as_secs_f64()))
}

/// Somebody else talks to it and does not end; it hangs from the start; it hangs when its turn comes
/// in the window.
fn when_it_fails(bench: &Bench) -> Result<String> {
    let guest = bench.guest(hvm)?;
    let name = guest.spec.name.as_str();
    let path = bench.image("x.xl");
    let mut notes = Vec::new();

    let occupied = Occupied::occupy(guest.domid)?;
    let running = bench.livesave.start(name, &path, &[])?;
    notes.push(must_fail(bench, running).context("its monitors are taken")?);
    drop(occupied);
    settled(&guest)?;
    must_be_right(bench, &guest).context("its monitors were taken")?;

    let stopped = Stopped::stop(guest.domid)?;
    let running = bench.livesave.start(name, &path, &[])?;
    notes.push(must_fail(bench, running).context("it hangs")?);
    drop(stopped);
    settled(&guest)?;
    must_be_right(bench, &guest).context("it hung")?;

    // Not before: a guest asks it for its devices' registers on the way to its suspension.
    let mut running = start(bench, &guest, "suspended:stop", &[])?;
    running.wait_until_stopped(LIMIT)?;
    let stopped = Stopped::stop(guest.domid)?;
    running.signal(Signal::CONT)?;
    let note = must_fail(bench, running).context("it hangs in the window");
    drop(stopped);
    notes.push(note?);
    // What it was told meanwhile it does only now: somebody must see to it that it runs then.
    let guardian = settled(&guest);
    let recovered = recover(bench)?.stdout;
    notes.push(format!("guardian: {guardian:?}, {}", recovered.trim()));
    thread::sleep(Duration::from_secs(2));
    must_be_right(bench, &guest).context("it hung in the window")?;
    guest.verify_clean()?;
    works_again(bench, &guest)?;
    Ok(notes.join(" | "))
}

/// Each of its commands fails once: the save fails in order, or does well without it.
fn when_it_refuses(bench: &Bench) -> Result<String> {
    let guest = bench.guest(hvm)?;
    let mut notes = Vec::new();
    for fault in [
        "qmp-capabilities:error:EIO",
        "qmp-dirty-log:error:EIO",
        "qmp-dirty-log:error:EIO:2",
        "qmp-add-fd:error:EIO",
        "qmp-status:error:EIO",
        "qmp-stop:error:EIO",
        "qmp-save:error:EIO",
        "qmp-cont:error:EIO",
        "qmp-cont:error:EIO:1-3",
    ] {
        let code = refused(bench, &guest, fault).with_context(|| fault.to_owned())?;
        notes.push(format!("{fault} {code}"));
    }
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    Ok(notes.join(", "))
}

fn refused(bench: &Bench, guest: &Guest, fault: &str) -> Result<i32> {
    let finished = start(bench, guest, fault, &[])?.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    let stands = bench.image("x.xl").exists();
    match finished.code() {
        0 => {
            let _: Report = serde_json::from_str(&finished.stdout)?;
            ensure!(stands, "there is no image: {}", finished.tail());
        }
        1 | exit::NOT_SAVABLE => {
            ensure!(!stands, "there is an image: {}", finished.tail());
            let said = ["emulator", "devices"];
            let said = said.iter().any(|word| finished.stderr.contains(word));
            ensure!(said, "{}", finished.tail());
        }
        code => bail!("exit code {code}: {}", finished.tail()),
    }
    must_be_over(bench, guest)?;
    emulator::must_run(guest.domid)?;
    Ok(finished.code())
}
