//! Somebody else meddles with the guest, or with livesave, in the middle of a
//! save.

use super::failures::works_again;
use super::faults::start;
use super::saves::restored_is_right;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty, xl};
use anyhow::{Result, bail};
use rustix::process::Signal;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Small.in_turn("fails_when_log_dirty_is_in_use", log_dirty_in_use),
        Kind::Medium.in_turn("save_while_ballooning_down", |bench| {
            ballooning(bench, 256, 200)
        }),
        Kind::Medium.in_turn("save_while_ballooning_up", |bench| {
            ballooning(bench, 200, 256)
        }),
    ]
}

/// Another tool logs the guest's writes: livesave must not steal its bits.
fn log_dirty_in_use(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
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

/// The guest's memory is resized in the middle of round 0.
fn ballooning(bench: &Bench, from_mib: u64, to_mib: u64) -> Result<String> {
    // Its size is another afterwards.
    let lent = bench.guest(|spec| {
        let mut spec = spec.medium();
        spec.memory_mib = from_mib;
        spec
    })?;
    let mut guest = lent.own();
    let name = guest.spec.name.clone();
    let path = bench.image("x.xl");
    let before = guest.verify_clean()?.seq;
    let mut running = start(bench, &guest, "write:stop:3", &[])?;
    running.wait_until_stopped(LIMIT)?;
    xl::xl(&["mem-set", &name, &format!("{to_mib}m")])?;
    // The guest goes on with it while the save goes on reading.
    running.signal(Signal::CONT)?;
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
