//! Somebody else meddles with the guest, or with livesave, in the middle of a
//! save.

use super::failures::works_again;
use super::saves::{finish, restored_is_right};
use super::{Bench, Test};
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::{image, log_dirty, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    let test = Test::always;
    vec![
        test("fails_when_log_dirty_is_in_use", log_dirty_in_use),
        test("two_saves_at_once", two_at_once),
        test("save_after_kill_9", after_kill_9),
        test("save_while_ballooning_down", |bench| {
            ballooning(bench, 512, 400)
        }),
        test("save_while_ballooning_up", |bench| {
            ballooning(bench, 400, 512)
        }),
    ]
}

/// Another tool logs the guest's writes: livesave must not steal its bits.
fn log_dirty_in_use(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec)?;
    log_dirty::switch_on(guest.domid)?;
    bench.livesave.must_fail(
        &guest.spec.name,
        &bench.image("x.xl"),
        &[],
        exit::NOT_SAVABLE,
    )?;
    log_dirty::must_be_on(guest.domid)?;
    bench.must_hold_only(&bench.images, &[])?;
    bench.must_be_unharmed(&guest)?;
    works_again(bench, &guest)?;
    Ok(String::new())
}

/// The second one is refused, and the first does not notice.
fn two_at_once(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec)?;
    let name = guest.spec.name.as_str();
    let mut first = bench.livesave.start(name, &bench.image("first.xl"), &[])?;
    if !first.wait_for_stderr("Saving domain", LIMIT)? {
        bail!("it ended at once: {}", first.wait(LIMIT)?.tail());
    }
    let second =
        bench
            .livesave
            .must_fail(name, &bench.image("second.xl"), &[], exit::NOT_SAVABLE)?;
    if first.is_finished()? {
        bail!("the first was over before the second: nothing is proved");
    }
    let first = first.wait(LIMIT)?;
    bench.livesave.note(&first)?;
    if first.code() != 0 {
        bail!("the first ended with {}: {}", first.code(), first.tail());
    }
    bench.must_hold_only(&bench.images, &["first.xl"])?;
    image::stock_verify(&bench.image("first.xl"))?;
    bench.must_be_unharmed(&guest)?;
    Ok(format!("the second: {}", second.tail()))
}

/// Killed beyond rescue in the middle: the guest runs, no file is left, and the
/// next save puts right what was left behind in Xen.
fn after_kill_9(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec)?;
    let name = guest.spec.name.clone();
    let mut running = bench.livesave.start(&name, &bench.image("x.xl"), &[])?;
    if !running.wait_for_stderr("Saving domain", LIMIT)? {
        bail!("it ended at once: {}", running.wait(LIMIT)?.tail());
    }
    thread::sleep(Duration::from_millis(800));
    running.signal(Signal::KILL)?;
    let killed = running.wait(LIMIT)?;
    if killed.code() != 137 {
        bail!("it ended with {} before it was killed", killed.code());
    }
    guest.must_run_on()?;
    bench.must_hold_only(&bench.images, &[])?;
    finish(bench, guest, &[]).context("the next save")
}

/// The guest's memory is resized in the middle of round 0.
fn ballooning(bench: &Bench, from_mib: u64, to_mib: u64) -> Result<String> {
    let mut guest = bench.guest(|mut spec| {
        spec.memory_mib = from_mib;
        spec
    })?;
    let name = guest.spec.name.clone();
    let path = bench.image("image.xl");
    let before = guest.verify_clean()?.seq;
    let mut running = bench.livesave.start(&name, &path, &[])?;
    if !running.wait_for_stderr("Saving domain", LIMIT)? {
        bail!("it ended at once: {}", running.wait(LIMIT)?.tail());
    }
    xl::xl(&["mem-set", &name, &format!("{to_mib}m")])?;
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != 0 {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    bench.must_be_unharmed(&guest)?;
    let after = guest.verify_clean()?.seq;
    image::stock_verify(&path)?;
    guest.destroy()?;
    restored_is_right(&mut guest, &path, before, after)?;
    Ok(format!("{:.1} s", finished.took.as_secs_f64()))
}
