//! Guests that are slowed: whatever becomes of the save, each runs on with its own CPU cap and
//! without a pause.

use super::dying::{die, must_be_right, recover, settled};
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::{Brownout, LIMIT, Report};
use crate::dom0::pool::Lent;
use crate::dom0::process::{Finished, Running};
use crate::dom0::{image, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use xen_sys::{CpuShare, DomainId, Scheduler, Xen};

/// The cap that the administrator has set, in percent of one CPU.
pub(super) const OWN: u16 = 40;
/// The cap that he sets in mid-save.
pub(super) const OTHER: u16 = 60;
/// A save that cannot meet its target and does its best, with no round worth its while but those
/// of a throttled guest.
const SLOWED: [&str; 6] = [
    "--max-downtime",
    "1ms",
    "--min-cap",
    "20",
    "--worthwhile",
    "0",
];
/// The same by pauses.
const PAUSED: [&str; 8] = [
    "--max-downtime",
    "1ms",
    "--min-cap",
    "20",
    "--worthwhile",
    "0",
    "--throttle-by",
    "pauses",
];

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::Busy;
    vec![
        Busy.core("cap_of_administrator_is_back", cap_is_back),
        Busy.in_turn("cap_changed_by_somebody_else_is_left", changed_is_left),
        Busy.in_turn("pauses_leave_nothing_behind", pauses_leave_nothing),
    ]
}

pub(super) fn share(guest: &Guest) -> Result<CpuShare> {
    guest.cpu_share()?.context("this scheduler knows no caps")
}

/// Sets the guest's cap as an administrator does.
pub(super) fn set_cap(guest: &Guest, cap: u16) -> Result<()> {
    let command = match share(guest)?.scheduler {
        Scheduler::Credit => "sched-credit",
        Scheduler::Credit2 => "sched-credit2",
    };
    xl::xl(&[command, "-d", &guest.spec.name, "-c", &cap.to_string()])?;
    must_have_cap(guest, cap)
}

pub(super) fn must_have_cap(guest: &Guest, cap: u16) -> Result<()> {
    let share = share(guest)?;
    if share.cap != cap || share.weight != 256 {
        return Err(Harm.because(format!(
            "its cap is not {cap}, its weight not 256: {share:?}"
        )));
    }
    Ok(())
}

/// Not even for a moment, as long as a pause in turns would last.
pub(super) fn must_not_be_paused(guest: &Guest) -> Result<()> {
    let domain = DomainId::new(guest.domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(120) {
        if xen.domain_info(domain)?.context("it is gone")?.paused {
            return Err(Harm.because("it is paused".to_owned()));
        }
    }
    Ok(())
}

/// How a save that ended well slowed the guest.
fn brownout(finished: &Finished, by: &str) -> Result<Option<Brownout>> {
    if finished.code() != 0 {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    let report: Report = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("not a report: {}", finished.stdout))?;
    let Some(brownout) = report.brownout else {
        return Ok(None);
    };
    let sum: f64 = brownout.caps.iter().map(|step| step.seconds).sum();
    let right = brownout.means.contains(by)
        && !brownout.caps.is_empty()
        && brownout
            .caps
            .iter()
            .all(|step| (20..100).contains(&step.cap))
        && sum <= brownout.seconds * 1.1 + 0.1
        && brownout.cpu_lost_s >= 0.0;
    if !right {
        bail!("not right: {brownout:?}");
    }
    Ok(Some(brownout))
}

/// A save that is interrupted while the guest has a cap of ours.
fn interrupted(bench: &Bench, guest: &Guest) -> Result<()> {
    let running = capped(bench, guest)?;
    running.signal(Signal::INT)?;
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != 130 {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    must_be_right(bench, guest)
}

/// A save that must not go on when it misses its target.
fn given_up(bench: &Bench, guest: &Guest) -> Result<Finished> {
    let more = [&SLOWED[..], &["--on-miss", "abort"]].concat();
    let path = bench.image("x.xl");
    let finished = bench
        .livesave
        .start(&guest.spec.name, &path, &more)?
        .wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    // 2 is an option that it does not know.
    if matches!(finished.code(), 0 | 2 | 128..) {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    Ok(finished)
}

/// A guest that dirties so much that even a slow handshake does not make up most of its pause: a
/// save that cannot do better by slowing it does not slow it.
fn busy_guest(bench: &Bench) -> Result<Lent> {
    bench.guest(|spec| spec.medium().with("ring=128").rate("max"))
}

/// Where the windows of earlier saves are kept.
const WINDOWS: &str = "/run/livesave/windows";
/// So often a save may find that there is no need to slow the guest.
const ATTEMPTS: usize = 4;

/// Whether a save throttles is its own decision, from what it has seen: one pause that a busy
/// emulator drew out makes it expect no better of the next. So it is made to forget what it saw,
/// and one that still found no need to slow the guest (`Ok(None)`) is run again.
fn slowing<T>(mut save: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        if Path::new(WINDOWS).exists() {
            fs::remove_dir_all(WINDOWS)?;
        }
        if let Some(done) = save()? {
            return Ok(done);
        }
    }
    bail!("{ATTEMPTS} saves did not slow the guest")
}

/// A save that dies at a point of its throttling.
fn die_slowed(bench: &Bench, guest: &Guest, fault: &str, more: &[&str]) -> Result<Finished> {
    slowing(|| {
        let died = die(bench, guest, fault, more);
        let path = bench.image("x.xl");
        if died.is_ok() || !path.exists() {
            return died.map(Some);
        }
        fs::remove_file(&path)?;
        Ok(None)
    })
}

/// A save that goes its way to its end, slowed.
fn succeeds(bench: &Bench, guest: &Guest, more: &[&str], by: &str) -> Result<Brownout> {
    let path = bench.image("x.xl");
    slowing(|| {
        let running = bench.livesave.start(&guest.spec.name, &path, more)?;
        let finished = running.wait(LIMIT)?;
        bench.livesave.note(&finished)?;
        let slowed = brownout(&finished, by)?;
        image::stock_verify(&path)?;
        fs::remove_file(&path)?;
        Ok(slowed)
    })
}

/// A save whose guest has a cap of livesave's by now.
fn capped(bench: &Bench, guest: &Guest) -> Result<Running> {
    let path = bench.image("x.xl");
    slowing(|| {
        let mut running = bench.livesave.start(&guest.spec.name, &path, &SLOWED)?;
        while share(guest)?.cap == OWN {
            if !running.is_finished()? {
                sleep(Duration::from_millis(1));
                continue;
            }
            let finished = running.wait(LIMIT)?;
            bench.livesave.note(&finished)?;
            if finished.code() != 0 {
                bail!("it ended with {}: {}", finished.code(), finished.tail());
            }
            fs::remove_file(&path)?;
            return Ok(None);
        }
        Ok(Some(running))
    })
}

fn cap_is_back(bench: &Bench) -> Result<String> {
    let guest = busy_guest(bench)?;
    set_cap(&guest, OWN)?;
    let slowed = succeeds(bench, &guest, &SLOWED, " cap")?;
    must_have_cap(&guest, OWN).context("after a save")?;
    bench.must_be_unharmed(&guest)?;
    interrupted(bench, &guest).context("interrupted")?;
    must_have_cap(&guest, OWN).context("interrupted")?;
    let refused = given_up(bench, &guest)?;
    must_have_cap(&guest, OWN).context("given up")?;
    must_be_right(bench, &guest)?;

    let mut notes = killed_slowed(bench, &guest)?;
    die_slowed(bench, &guest, "throttled:kill-both", &SLOWED)?;
    if share(&guest)?.cap == OWN {
        bail!("the cap is back before the recovery, so that nothing is shown");
    }
    let did = recover(bench)?.stdout;
    must_have_cap(&guest, OWN).context("both killed")?;
    must_be_right(bench, &guest)?;
    notes.push(format!("both: {}", did.trim()));
    notes.push(refused.tail());
    guest.verify_clean()?;
    set_cap(&guest, 0)?;
    Ok(format!(
        "slowed for {:.1} s, {:.1} s of CPU lost; {}",
        slowed.seconds,
        slowed.cpu_lost_s,
        notes.join(", ")
    ))
}

/// Killed at each of the points around the slowing; the guest has the administrator's cap before and
/// after.
pub(super) fn killed_slowed(bench: &Bench, guest: &Guest) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for point in [
        "throttling",
        "throttled",
        "unthrottling",
        "unthrottled",
        "cap-lifted",
    ] {
        let one = || -> Result<String> {
            let finished = die_slowed(bench, guest, &format!("{point}:kill"), &SLOWED)?;
            settled(guest)?;
            must_have_cap(guest, OWN)?;
            must_be_right(bench, guest)?;
            let said = finished.stderr.lines().last().unwrap_or_default();
            Ok(said.rsplit("; ").next().unwrap_or_default().to_owned())
        };
        let said = one().with_context(|| format!("killed at {point}"))?;
        notes.push(format!("{point}: {said}"));
    }
    Ok(notes)
}

fn changed_is_left(bench: &Bench) -> Result<String> {
    let guest = busy_guest(bench)?;
    set_cap(&guest, OWN)?;
    let running = capped(bench, &guest)?;
    set_cap(&guest, OTHER)?;
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != 0 {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    fs::remove_file(bench.image("x.xl"))?;
    must_have_cap(&guest, OTHER).context("after a save")?;
    must_be_right(bench, &guest)?;
    // One that hangs with a cap of ours is killed, and the cap put back.
    let hangs = [&SLOWED[..], &["--hang-limit", "2s"]].concat();
    die_slowed(bench, &guest, "throttled:hang", &hangs)?;
    settled(&guest)?;
    must_have_cap(&guest, OTHER).context("hung")?;
    must_be_right(bench, &guest)?;
    set_cap(&guest, 0)?;
    Ok(String::new())
}

fn pauses_leave_nothing(bench: &Bench) -> Result<String> {
    let guest = busy_guest(bench)?;
    let slowed = succeeds(bench, &guest, &PAUSED, "pauses")?;
    must_not_be_paused(&guest).context("after a save")?;
    bench.must_be_unharmed(&guest)?;
    let mut notes = Vec::new();
    // The third pause, so that there were others before.
    for fault in ["throttled:kill", "pulse-paused:kill:3", "unthrottling:kill"] {
        let one = || -> Result<String> {
            let finished = die_slowed(bench, &guest, fault, &PAUSED)?;
            settled(&guest)?;
            must_not_be_paused(&guest)?;
            must_be_right(bench, &guest)?;
            let said = finished.stderr.lines().last().unwrap_or_default();
            Ok(said.rsplit("; ").next().unwrap_or_default().to_owned())
        };
        let said = one().with_context(|| fault.to_owned())?;
        notes.push(format!("{fault}: {said}"));
    }
    die_slowed(bench, &guest, "pulse-paused:kill-both:3", &PAUSED)?;
    let listed = xl::list(&guest.spec.name)?.context("the guest is gone")?;
    if listed.is_running() {
        bail!("the guest runs before the recovery, so that nothing is shown");
    }
    let did = recover(bench)?.stdout;
    must_not_be_paused(&guest).context("both killed")?;
    must_be_right(bench, &guest)?;
    notes.push(format!("both: {}", did.trim()));
    // The thread that pauses hangs in a pause: then the save does too when it ends it.
    let hangs = [&PAUSED[..], &["--hang-limit", "2s"]].concat();
    die_slowed(bench, &guest, "pulse-paused:hang:3", &hangs)?;
    settled(&guest)?;
    must_not_be_paused(&guest).context("hung")?;
    must_be_right(bench, &guest)?;
    must_have_cap(&guest, 0)?;
    guest.verify_clean()?;
    Ok(format!(
        "slowed for {:.1} s, {:.1} s of CPU lost; {}",
        slowed.seconds,
        slowed.cpu_lost_s,
        notes.join(", ")
    ))
}
