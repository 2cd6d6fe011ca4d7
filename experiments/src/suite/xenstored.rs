//! xenstored is away for a while. Whoever asks it something waits; the guest must not.
//!
//! Where it matters, the save stops itself at a named point, so that xenstored is stopped at that
//! very place.

use super::dying::{FAULTY, must_be_right, settled};
use super::faults::{must_be_over, start};
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::hypervisor::Domain;
use crate::dom0::livesave::{LIMIT, Report};
use crate::dom0::log_dirty;
use crate::dom0::process::{self, Running};
use crate::dom0::spec::Spec;
use crate::dom0::xenstored::Away;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::Store;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Small.in_turn("fault_xenstored_gone_in_a_save", in_a_save),
        Kind::Small.in_turn("fault_xenstored_gone_after_a_kill", after_a_kill),
    ]
}

/// Long enough for anything that is done without xenstored; far less than anybody's patience.
const SOON: Duration = Duration::from_secs(20);
/// How long xenstored stays away where the save waits for it.
const PAUSE: Duration = Duration::from_secs(2);

/// A save that has stopped itself at a point, with xenstored stopped there.
fn stopped_at(bench: &Bench, guest: &Guest, point: &str) -> Result<(Running, Away)> {
    let mut running = start(bench, guest, &format!("{point}:stop"), &[])?;
    running.wait_until_stopped(LIMIT)?;
    Ok((running, Away::begin()?))
}

/// The save goes on when xenstored is back, and the guest runs meanwhile.
fn in_a_save(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let domain = Domain::of(guest.domid)?;
    let mut notes = Vec::new();
    // It comes to the request and waits there, or to the announcement, with the guest resumed.
    for point in ["round", "requesting", "in-window"] {
        let one = || -> Result<String> {
            guest.take_gap()?;
            let (running, away) = stopped_at(bench, &guest, point)?;
            running.signal(Signal::CONT)?;
            let ran = domain.wait_running(SOON)?;
            // It runs all the time, and is asked for nothing that it could do now.
            let until = Instant::now() + PAUSE;
            while Instant::now() < until {
                if domain.info()?.is_suspended() {
                    bail!("the guest suspended while xenstored was away");
                }
                thread::sleep(Duration::from_millis(5));
            }
            away.end();
            let finished = running.wait(LIMIT)?;
            bench.livesave.note(&finished)?;
            if finished.code() != 0 {
                bail!("exit code {}: {}", finished.code(), finished.tail());
            }
            let report: Report = serde_json::from_str(&finished.stdout)?;
            if report.window.suspended_s > PAUSE.as_secs_f64() / 2.0 {
                bail!(
                    "the guest was suspended for {} s",
                    report.window.suspended_s
                );
            }
            must_be_over(bench, &guest)?;
            bench.must_be_unharmed(&guest)?;
            Ok(format!(
                "{point}: ran on after {} ms, gap {} ms",
                ran.as_millis(),
                guest.take_gap()?.as_millis()
            ))
        };
        notes.push(one().with_context(|| format!("away at {point}"))?);
    }
    notes.push(impatient(bench, &guest, &domain).context("asked twice to end")?);
    guest.verify_clean()?;
    Ok(notes.join(", "))
}

/// Whoever does not want to wait for xenstored asks twice.
fn impatient(bench: &Bench, guest: &Guest, domain: &Domain) -> Result<String> {
    let (running, away) = stopped_at(bench, guest, "in-window")?;
    running.signal(Signal::CONT)?;
    domain.wait_running(SOON)?;
    running.signal(Signal::INT)?;
    thread::sleep(PAUSE / 4);
    running.signal(Signal::INT)?;
    let sent = running.elapsed();
    let finished = running.wait(SOON)?;
    bench.livesave.note(&finished)?;
    away.end();
    if finished.code() != 130 {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    settled(guest)?;
    must_be_over(bench, guest)?;
    must_be_right(bench, guest)?;
    let late = finished.took.saturating_sub(sent);
    Ok(format!("asked twice: ended after {} ms", late.as_millis()))
}

/// What a killed save left suspended, or tracked, the guardian puts right without xenstored.
fn after_a_kill(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let domain = Domain::of(guest.domid)?;
    let mut notes = Vec::new();
    for point in ["armed", "requested", "in-window"] {
        let one = || -> Result<String> {
            let mut running = start(bench, &guest, &format!("{point}:stop"), &[])?;
            running.wait_until_stopped(LIMIT)?;
            if point == "requested" {
                domain.wait_suspended(SOON)?;
            }
            let away = Away::begin()?;
            running.signal(Signal::KILL)?;
            let began = Instant::now();
            domain.wait_running(SOON)?;
            let ran = began.elapsed();
            while log_dirty::is_on(guest.domid)? {
                if began.elapsed() > SOON {
                    bail!("its dirty tracking is still on");
                }
                thread::sleep(Duration::from_millis(20));
            }
            let untracked = began.elapsed();
            away.end();
            let finished = running.wait(LIMIT)?;
            bench.livesave.note(&finished)?;
            must_be_over(bench, &guest)?;
            bench.must_be_unharmed(&guest)?;
            Ok(format!(
                "{point}: runs after {} ms, tracked no more after {} ms",
                ran.as_millis(),
                untracked.as_millis()
            ))
        };
        notes.push(one().with_context(|| format!("killed at {point}"))?);
    }
    notes.push(before_suspension(bench, &guest, &domain).context("killed before the suspension")?);
    notes.push(in_a_recovery(bench, &guest, &domain).context("both killed")?);
    guest.verify_clean()?;
    Ok(notes.join(", "))
}

/// The guest has acknowledged the request and not suspended yet when the save is killed and
/// xenstored goes: the guardian cannot take the request back, and must not wait for that.
fn before_suspension(bench: &Bench, guest: &Guest, domain: &Domain) -> Result<String> {
    let store = Store::open()?;
    let request = format!("/local/domain/{}/control/shutdown", guest.domid);
    // In small steps the guest does not come past the place, but on a busy machine it may.
    for attempt in 1..=5 {
        let mut running = start(bench, guest, "requesting:stop", &["--timeout", "5m"])?;
        running.wait_until_stopped(LIMIT)?;
        domain.pause()?;
        let acknowledged = (|| -> Result<bool> {
            running.signal(Signal::CONT)?;
            let deadline = Instant::now() + Duration::from_secs(120);
            let asked = || -> Result<bool> {
                if Instant::now() > deadline {
                    bail!("the request is not made, or not acknowledged");
                }
                Ok(store.read(&request)?.as_deref() == Some("suspend"))
            };
            while !asked()? {
                thread::sleep(Duration::from_millis(1));
            }
            while asked()? {
                domain.unpause()?;
                thread::sleep(Duration::from_millis(2));
                domain.pause()?;
            }
            Ok(!domain.info()?.is_suspended())
        })();
        if !matches!(acknowledged, Ok(true)) {
            domain.unpause()?;
            acknowledged?;
            running.wait(LIMIT)?;
            must_be_over(bench, guest)?;
            continue;
        }
        let away = Away::begin()?;
        running.signal(Signal::KILL)?;
        // The guardian has come to ask xenstored.
        thread::sleep(Duration::from_secs(1));
        domain.unpause()?;
        let (began, mut last_run, mut stood) = (Instant::now(), Instant::now(), Duration::ZERO);
        while began.elapsed() < PAUSE || domain.info()?.is_suspended() {
            if domain.info()?.is_suspended() {
                stood = stood.max(last_run.elapsed());
            } else {
                last_run = Instant::now();
            }
            if stood > SOON {
                bail!("nobody resumes the guest while xenstored is away");
            }
            thread::sleep(Duration::from_millis(2));
        }
        away.end();
        settled(guest)?;
        let finished = running.wait(LIMIT)?;
        bench.livesave.note(&finished)?;
        must_be_over(bench, guest)?;
        bench.must_be_unharmed(guest)?;
        let said = finished.stderr.lines().last().unwrap_or_default();
        if !said.contains("guest resumed") {
            bail!("the guest did not suspend, or nobody resumed it: {said}");
        }
        return Ok(format!(
            "before the suspension (attempt {attempt}): suspended for {} ms at most; {said}",
            stood.as_millis()
        ));
    }
    bail!("the guest was always faster: nothing is shown");
}

/// Save and guardian are killed, and xenstored is away: the recovery resumes the guest all the same.
fn in_a_recovery(bench: &Bench, guest: &Guest, domain: &Domain) -> Result<String> {
    let killed = start(bench, guest, "in-window:kill-both", &[])?.wait(LIMIT)?;
    bench.livesave.note(&killed)?;
    if !domain.info()?.is_suspended() {
        bail!("the guest runs before the recovery: {}", killed.tail());
    }
    let away = Away::begin()?;
    let recovering = process::start(Command::new(FAULTY).arg("recover"))?;
    let ran = domain.wait_running(SOON)?;
    away.end();
    let finished = recovering.wait(LIMIT)?;
    if finished.code() != 0 {
        bail!("the recovery failed: {}", finished.tail());
    }
    must_be_over(bench, guest)?;
    bench.must_be_unharmed(guest)?;
    Ok(format!("both killed: runs after {} ms", ran.as_millis()))
}
