//! Ctrl-C and SIGTERM in each phase of a save.

use super::{Bench, Test};
use crate::dom0::guest::Guest;
use crate::dom0::image;
use crate::dom0::livesave::LIMIT;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    let test = Test::always;
    vec![
        test("sigint_in_each_phase", |bench| {
            in_each_phase(bench, Signal::INT, 130)
        }),
        Test::asked("sigterm_in_each_phase", |bench| {
            in_each_phase(bench, Signal::TERM, 143)
        }),
        test("sigint_while_guest_does_not_ack", while_waiting),
    ]
}

/// When the signal is sent: after that text, and so much later.
struct Moment {
    name: &'static str,
    text: &'static str,
    later_ms: u64,
    /// The save may be over before the signal takes effect: then it must have
    /// succeeded, with a good image.
    may_win: bool,
}

const fn at(name: &'static str, text: &'static str, later_ms: u64, may_win: bool) -> Moment {
    Moment {
        name,
        text,
        later_ms,
        may_win,
    }
}

const MOMENTS: [Moment; 7] = [
    at("start", "", 0, false),
    at("preflight", "", 60, false),
    at("arming", "Saving domain", 0, false),
    at("round 0", "Saving domain", 1000, false),
    at("later round", "round 0:", 0, false),
    at("pause window", "Suspending", 0, true),
    at("flush", "Paused for", 0, true),
];

fn in_each_phase(bench: &Bench, signal: Signal, code: i32) -> Result<String> {
    let guest = bench.guest(|spec| spec)?;
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
    let mut running = bench.livesave.start(&guest.spec.name, &path, &[])?;
    if !moment.text.is_empty() && !running.wait_for_stderr(moment.text, LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    thread::sleep(Duration::from_millis(moment.later_ms));
    running.signal(signal)?;
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
    let guest = bench.guest(|spec| spec)?;
    guest.ask("hog 25")?;
    thread::sleep(Duration::from_millis(600));
    let mark = guest.console.mark()?;
    let moment = Moment {
        name: "waiting",
        text: "Suspending",
        later_ms: 1000,
        may_win: false,
    };
    let mut running = bench
        .livesave
        .start(&guest.spec.name, &bench.image("x.xl"), &[])?;
    if !running.wait_for_stderr(moment.text, LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    thread::sleep(Duration::from_millis(moment.later_ms));
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
