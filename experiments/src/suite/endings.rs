//! Guests that crash or reboot in mid-save.
//!
//! They are preserved, so that what the save leaves of them is seen.

use super::faults::{must_be_over, start};
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::hypervisor::Domain;
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::process::Finished;
use crate::dom0::spec::Spec;
use crate::dom0::{log_dirty, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::ShutdownReason;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Medium.in_turn("fault_guest_crashes", |bench| {
            ends(bench, &CRASH, ("having acknowledged", after_its_answer))
        }),
        Kind::Medium.in_turn("fault_guest_reboots", |bench| {
            ends(bench, &REBOOT, ("asked to suspend", before_its_answer))
        }),
    ]
}

/// A way to end.
struct Ending {
    /// What the workload is told.
    command: &'static str,
    /// What the hypervisor sees.
    reason: ShutdownReason,
    /// What livesave says.
    says: &'static str,
}

const CRASH: Ending = Ending {
    command: "crash",
    reason: ShutdownReason::Crash,
    says: "crashed during the save",
};
const REBOOT: Ending = Ending {
    command: "reboot",
    reason: ShutdownReason::Reboot,
    says: "rebooted during the save",
};

/// A save in which the guest ends.
type Save = fn(&Bench, &Guest, &Ending) -> Result<Finished>;

/// Time for a guest to end.
const END_LIMIT: Duration = Duration::from_secs(60);

fn ends(bench: &Bench, ending: &Ending, other: (&str, Save)) -> Result<String> {
    let mut notes = Vec::new();
    for (place, save) in [("in the rounds", in_the_rounds as Save), other] {
        // `nofreeze` mounts a file system, which takes more memory than the small guest has.
        let guest = bench.guest(Spec::medium)?.own();
        let one = || -> Result<String> {
            let finished = save(bench, &guest, ending)?;
            bench.livesave.note(&finished)?;
            if finished.code() != exit::GONE || !finished.stderr.contains(ending.says) {
                bail!("exit code {}: {}", finished.code(), finished.tail());
            }
            log_dirty::must_be_off(guest.domid)?;
            must_be_over(bench, &guest)?;
            guest.destroy()?;
            if xl::list(&guest.spec.name)?.is_some() {
                bail!("the destroyed guest is still there: something holds its memory");
            }
            Ok(format!("{place} {:.1} s", finished.took.as_secs_f64()))
        };
        notes.push(one().with_context(|| place.to_owned())?);
    }
    Ok(notes.join(", "))
}

fn wait_for_end(guest: &Guest, ending: &Ending) -> Result<()> {
    let domain = Domain::of(guest.domid)?;
    domain.wait(ending.command, END_LIMIT, |info| {
        info.shutdown == Some(ending.reason)
    })?;
    Ok(())
}

/// Between two rounds.
fn in_the_rounds(bench: &Bench, guest: &Guest, ending: &Ending) -> Result<Finished> {
    let mut running = start(bench, guest, "round:stop", &[])?;
    running.wait_until_stopped(LIMIT)?;
    guest.console.send(guest.domid, ending.command)?;
    wait_for_end(guest, ending)?;
    running.signal(Signal::CONT)?;
    running.wait(LIMIT)
}

/// With the request standing, which it never sees.
fn before_its_answer(bench: &Bench, guest: &Guest, ending: &Ending) -> Result<Finished> {
    guest.ask(&format!("{} 6", ending.command))?;
    let mut running = bench
        .livesave
        .start(&guest.spec.name, &bench.image("x.xl"), &[])?;
    // On a slow machine it ends before; then that is seen, as above.
    running.wait_for_stderr("Suspending", LIMIT)?;
    wait_for_end(guest, ending)?;
    running.wait(LIMIT)
}

/// While it freezes its tasks.
fn after_its_answer(bench: &Bench, guest: &Guest, ending: &Ending) -> Result<Finished> {
    guest.ask("nofreeze 30000")?;
    let mut running = start(bench, guest, "requested:stop", &[])?;
    running.wait_until_stopped(LIMIT)?;
    let deadline = Instant::now() + END_LIMIT;
    while !guest.request()?.is_empty() {
        if Instant::now() > deadline {
            bail!("the guest does not acknowledge the request");
        }
        thread::sleep(Duration::from_millis(20));
    }
    // Its tasks are frozen, so it cannot be told to; this looks the same from outside.
    Domain::of(guest.domid)?.end(ending.reason)?;
    running.signal(Signal::CONT)?;
    running.wait(LIMIT)
}
