//! Where the hypervisor has no shadow paging: a live save is refused, and a plain one made.

use super::super::faults::must_be_over;
use super::super::saves::finish;
use super::super::{Bench, Kind, Test};
use super::pv;
use crate::dom0::guest::Guest;
use crate::dom0::harm::NotHere;
use crate::dom0::livesave::exit;
use crate::dom0::log_dirty;
use anyhow::{Context, Result, ensure};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Pv.in_turn("pv_is_refused_clearly", refused)]
}

/// It is said what it is that cannot be saved, why, and how it can all the same; nothing is left of the
/// attempt. Then it is saved that way.
fn refused(bench: &Bench) -> Result<String> {
    let guest = bench.guest(pv)?;
    // Asked of the hypervisor: livesave's word is what is tested.
    if log_dirty::is_possible(guest.domid)? {
        return Err(NotHere.because(
            "shadow paging is there, so that nothing is refused: pv_live_save_restores is run here",
        ));
    }
    guest.take_gap()?;
    let said = live_is_refused(bench, &guest, &[]).context("without a mode")?;
    live_is_refused(bench, &guest, &["--mode", "live"]).context("--mode live")?;
    let gap = guest.take_gap()?;
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    let plain = finish(bench, guest, &["--mode", "plain"]).context("--mode plain")?;
    Ok(format!("{said} (gap {gap:.3?}); --mode plain: {plain}"))
}

/// The last line of what was said.
fn live_is_refused(bench: &Bench, guest: &Guest, more: &[&str]) -> Result<String> {
    let name = guest.spec.name.as_str();
    let path = bench.image("x.xl");
    let finished = bench
        .livesave
        .must_fail(name, &path, more, exit::NOT_SAVABLE)?;
    for word in [name, "PV", "shadow paging", "--mode plain"] {
        ensure!(
            finished.stderr.contains(word),
            "it does not say {word:?}: {}",
            finished.tail()
        );
    }
    ensure!(!path.exists(), "there is an image: {}", finished.tail());
    // The guardian's note among what could be left.
    must_be_over(bench, guest)?;
    Ok(finished
        .stderr
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned())
}
