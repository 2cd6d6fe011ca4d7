//! PV guests.

use super::saves::finish;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::exit;
use crate::dom0::spec::Spec;
use crate::dom0::stock;
use anyhow::{Result, ensure};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Pv.asked("pv_stock_save_restores", |bench| {
            super::stock::restored_is_right(bench, pv, stock::checkpoint)
        }),
        Kind::Pv.asked("pv_stock_live_loop", |bench| {
            super::stock::restored_is_right(bench, pv, |name, image| {
                stock::live_loop(name, image, &bench.results)
            })
        }),
        Kind::Pv.asked("pv_is_refused_clearly", refused),
        Kind::Pv.asked("pv_plain_save_restores", |bench| {
            finish(bench, bench.guest(pv)?, &["--mode", "plain"])
        }),
    ]
}

/// The guest that these tests share.
#[must_use]
pub fn pv(spec: Spec) -> Spec {
    let spec = spec.memory(256).with("ring=64").with("static=16");
    spec.with("beat=100").pv()
}

/// It is said what it is that cannot be saved, and how it can all the same; nothing is done to it.
fn refused(bench: &Bench) -> Result<String> {
    let guest = bench.guest(pv)?;
    let name = guest.spec.name.as_str();
    guest.take_gap()?;
    let finished = bench
        .livesave
        .must_fail(name, &bench.image("x.xl"), &[], exit::NOT_SAVABLE)?;
    let gap = guest.take_gap()?;
    for word in [name, "PV", "--mode plain"] {
        ensure!(
            finished.stderr.contains(word),
            "it does not say {word:?}: {}",
            finished.tail()
        );
    }
    bench.must_hold_only(&bench.images, &[])?;
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    Ok(format!("{} (gap {gap:.3?})", finished.tail()))
}
