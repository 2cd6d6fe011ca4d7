//! Others at work on the guest that is saved: nobody corrupts anybody.

use super::dying::must_be_right;
use super::faults::start;
use super::{Bench, Kind, Test};
use crate::dom0::hypervisor::Domain;
use crate::dom0::livesave::{LIMIT, Report, exit};
use crate::dom0::process::{self, Finished};
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    use Kind::{Medium, Small};
    vec![
        Medium.in_turn("save_notices_other_tools", other_tools),
        Small.in_turn("save_notices_another_livesave", another_livesave),
    ]
}

/// Nobody corrupts anybody: beside a save by `xl` none is begun, and tracking that another tool
/// switched off fails the image.
fn other_tools(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?;
    let name = guest.spec.name.as_str();
    let stock = bench.image("stock.xl");
    let mut other = process::start(xl::command(&["save", "-c", name]).arg(&stock))?;
    Domain::of(guest.domid)?.wait_suspended(LIMIT)?;
    let refused = bench
        .livesave
        .must_fail(name, &bench.image("x.xl"), &[], exit::NOT_SAVABLE)?;
    if other.is_finished()? {
        bail!("xl save was over before ours: nothing is shown");
    }
    let finished = other.wait(LIMIT)?;
    if finished.code() != 0 {
        bail!("xl save was disturbed: {}", finished.tail());
    }
    fs::remove_file(&stock)?;
    must_be_right(bench, &guest)?;

    let mut running = bench.livesave.start(name, &bench.image("x.xl"), &[])?;
    if !running.wait_for_stderr("Saving domain", LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    let other = process::check(xl::command(&["save", "-c", name]).arg(&stock), LIMIT);
    let given_up = running.wait(LIMIT)?;
    other.context("xl save in the middle of ours")?;
    if given_up.code() != exit::NOT_SAVABLE {
        bail!("xl save was not noticed: {}", given_up.tail());
    }
    image::stock_verify(&stock)?;
    fs::remove_file(&stock)?;
    must_be_right(bench, &guest)?;

    let mut running = start(bench, &guest, "write:stop:9", &[])?;
    running.wait_until_stopped(LIMIT)?;
    log_dirty::switch_off(guest.domid)?;
    running.signal(Signal::CONT)?;
    let finished = running.wait(LIMIT)?;
    if finished.code() != exit::NOT_SAVABLE {
        bail!("tracking was switched off: {}", finished.tail());
    }
    must_be_right(bench, &guest)?;
    let last = |finished: &Finished| {
        finished
            .stderr
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    Ok([&refused, &given_up, &finished].map(last).join(" | "))
}

/// The second one says who holds the guest, or waits; the first does not notice.
fn another_livesave(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let name = guest.spec.name.as_str();
    let mut first = start(bench, &guest, "round:stop", &[])?;
    first.wait_until_stopped(LIMIT)?;
    let second = bench.image("2.xl");
    let refused = bench
        .livesave
        .must_fail(name, &second, &[], exit::NOT_SAVABLE)?;
    if !refused.stderr.contains("(process ") {
        bail!("it does not say who: {}", refused.tail());
    }
    let waiting = bench.livesave.start(name, &second, &["--wait", "1m"])?;
    thread::sleep(Duration::from_millis(1000));
    first.signal(Signal::CONT)?;
    let first = first.wait(LIMIT)?;
    bench.livesave.note(&first)?;
    if first.code() != 0 {
        bail!("the first was disturbed: {}", first.tail());
    }
    let waited = waiting.wait(LIMIT)?;
    bench.livesave.note(&waited)?;
    if waited.code() != 0 {
        bail!("the one that waited: {}", waited.tail());
    }
    bench.must_hold_only(&bench.images, &["2.xl", "x.xl"])?;
    image::stock_verify(&bench.image("x.xl"))?;
    bench.must_be_unharmed(&guest)?;
    let report: Report = serde_json::from_str(&waited.stdout)?;
    Ok(format!(
        "{}; waited {:.1} s",
        refused.tail(),
        waited.took.as_secs_f64() - report.total_s
    ))
}
