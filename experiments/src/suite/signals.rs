//! Ctrl-C and SIGTERM in each phase of a save.

use super::faults::start;
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::image;
use crate::dom0::livesave::LIMIT;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Small.core("sigint_in_each_phase", |bench| {
            in_each_phase(bench, Signal::INT, 130)
        }),
        Kind::Small.asked("sigterm_in_each_phase", |bench| {
            in_each_phase(bench, Signal::TERM, 143)
        }),
        Kind::Small.in_turn("sigint_while_guest_does_not_ack", while_waiting),
    ]
}

/// When the signal is sent.
struct Moment {
    name: &'static str,
    when: When,
    /// The save may be over before the signal takes effect: then it must have
    /// succeeded, with a good image.
    may_win: bool,
}

enum When {
    /// So many milliseconds after the start.
    After(u64),
    /// At that text.
    Said(&'static str),
    /// At that point, at which the save has stopped itself.
    Stopped(&'static str),
}

const fn at(name: &'static str, when: When, may_win: bool) -> Moment {
    Moment {
        name,
        when,
        may_win,
    }
}

const MOMENTS: [Moment; 7] = [
    at("start", When::After(0), false),
    at("preflight", When::After(60), false),
    at("arming", When::Said("Saving domain"), false),
    at("round 0", When::Stopped("write:stop:6"), false),
    at("later round", When::Stopped("round:stop"), false),
    at("pause window", When::Said("Suspending"), true),
    at("flush", When::Said("Paused for"), true),
];

fn in_each_phase(bench: &Bench, signal: Signal, code: i32) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let mut ended = Vec::new();
    for moment in &MOMENTS {
        let outcome = interrupt(bench, &guest, moment, signal, code)
            .with_context(|| format!("at {}", moment.name))?;
        ended.push(format!("{}: {outcome}", moment.name));
    }
    guest.verify_clean()?;
    Ok(ended.join(", "))
}

fn interrupt(
    bench: &Bench,
    guest: &Guest,
    moment: &Moment,
    signal: Signal,
    code: i32,
) -> Result<String> {
    let path = bench.image("x.xl");
    let mut running = match moment.when {
        When::Stopped(fault) => start(bench, guest, fault, &[])?,
        _ => bench.livesave.start(&guest.spec.name, &path, &[])?,
    };
    match moment.when {
        When::After(ms) => thread::sleep(Duration::from_millis(ms)),
        When::Said(text) => {
            if !running.wait_for_stderr(text, LIMIT)? {
                bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
            }
        }
        When::Stopped(_) => running.wait_until_stopped(LIMIT)?,
    }
    running.signal(signal)?;
    if let When::Stopped(_) = moment.when {
        running.signal(Signal::CONT)?;
    }
    let sent = running.elapsed();
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() == code {
        bench.must_hold_only(&bench.images, &[])?;
    } else if finished.code() == 0 && moment.may_win {
        bench.must_hold_only(&bench.images, &["x.xl"])?;
        image::stock_verify(&path).context("the image that was complete before the signal")?;
        std::fs::remove_file(&path)?;
    } else {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    bench.must_be_unharmed(guest)?;
    Ok(format!(
        "{} after {:.2} s",
        finished.code(),
        finished.took.saturating_sub(sent).as_secs_f64()
    ))
}

/// The wait for the guest's answer is the longest of all: it must be cut short.
fn while_waiting(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    guest.ask("hog 10")?;
    thread::sleep(Duration::from_millis(600));
    let mark = guest.console.mark()?;
    let mut running = bench
        .livesave
        .start(&guest.spec.name, &bench.image("x.xl"), &[])?;
    if !running.wait_for_stderr("Suspending", LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    thread::sleep(Duration::from_millis(500));
    running.signal(Signal::INT)?;
    let sent = running.elapsed();
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    let late = finished.took.saturating_sub(sent);
    if finished.code() != 130 {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    if late > Duration::from_secs(5) {
        bail!("it ended {:.1} s after the signal only", late.as_secs_f64());
    }
    bench.must_hold_only(&bench.images, &[])?;
    guest
        .console
        .wait_for(mark, Duration::from_secs(120), "end of the hog", |line| {
            line.kind == "hog" && line.get("state") == Some("end")
        })?;
    bench.must_be_unharmed(&guest)?;
    Ok(format!(
        "ended {:.2} s after the signal",
        late.as_secs_f64()
    ))
}
