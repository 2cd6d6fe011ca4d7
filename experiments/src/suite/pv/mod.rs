//! PV guests: their page tables hold machine frames, and their writes are tracked by shadow page tables,
//! which not every hypervisor has.

mod churn;
mod killed;
mod refused;

use super::cut::{self, Disks};
use super::saves::{finish, gap_beside_stock, save_and_restore, vif_and_disk};
use super::{Bench, Kind, Test, compressed, improved, in_a_row, restored};
use crate::dom0::harm::NotHere;
use crate::dom0::log_dirty;
use crate::dom0::pool::Lent;
use crate::dom0::spec::Spec;
use crate::dom0::stock;
use anyhow::Result;
use std::sync::OnceLock;

/// The tests of this file and those below it.
#[must_use]
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Kind::Pv.in_turn("pv_stock_save_restores", |bench| {
            super::stock::restored_is_right(bench, pv, stock::checkpoint)
        }),
        Kind::Pv.asked("pv_stock_live_loop", |bench| {
            must_be_trackable(bench)?;
            super::stock::restored_is_right(bench, pv, |name, image| {
                stock::live_loop(name, image, &bench.results)
            })
        }),
        Kind::Pv.core("pv_live_save_restores", |bench| {
            finish(bench, tracked(bench)?, &[])
        }),
        // Suspended all the while: that needs no tracking, so that every hypervisor can do it.
        Kind::Pv.in_turn("pv_plain_save_restores", |bench| {
            finish(bench, bench.guest(pv)?, &["--mode", "plain"])
        }),
        Kind::Pv.asked("pv_restored_by_livesave", |bench| {
            must_be_trackable(bench)?;
            restored::by_livesave(bench, pv)
        }),
        Kind::Pv.in_turn("pv_compressed", |bench| {
            must_be_trackable(bench)?;
            compressed::restores(bench, pv)
        }),
        Kind::Pv.asked("pv_overflows_capture_memory", |bench| {
            must_be_trackable(bench)?;
            improved::small_capture(bench, pv)
        }),
        Kind::Pv.in_turn("pv_gap_beside_stock", |bench| {
            must_be_trackable(bench)?;
            gap_beside_stock(bench, pv)
        }),
        Kind::Pv.asked("pv_ten_saves_in_a_row", |bench| {
            must_be_trackable(bench)?;
            in_a_row::of_one_guest(bench, pv)
        }),
        Kind::Other.asked("pv_ten_times_there_and_back", |bench| {
            must_be_trackable(bench)?;
            in_a_row::with_devices(bench, pv)
        }),
        Kind::Other.asked("pv_ten_times_with_2_vcpus", |bench| {
            must_be_trackable(bench)?;
            in_a_row::with_devices(bench, |spec| pv(spec).vcpus(2))
        }),
        Kind::Other.asked("pv_gap_with_2_vcpus", |bench| {
            must_be_trackable(bench)?;
            gap_beside_stock(bench, |spec| pv(spec).vcpus(2))
        }),
        Kind::Other.asked("pv_disks_at_the_cut", |bench| {
            must_be_trackable(bench)?;
            cut::at_the_cut(bench, Disks::Mixed, 2, pv)
        }),
        Kind::Other.asked("pv_with_2_vcpus", |bench| {
            must_be_trackable(bench)?;
            save_and_restore(bench, |spec| pv(spec).vcpus(2))
        }),
        Kind::Other.asked("pv_with_vif_and_disk", |bench| {
            must_be_trackable(bench)?;
            vif_and_disk(bench, pv)
        }),
    ];
    tests.extend(refused::tests());
    tests.extend(churn::tests());
    tests.extend(killed::tests());
    tests
}

/// The guest that these tests share.
#[must_use]
pub fn pv(spec: Spec) -> Spec {
    let spec = spec.memory(256).with("ring=64").with("static=16");
    spec.with("beat=100").pv()
}

/// That guest, where its writes can be tracked.
fn tracked(bench: &Bench) -> Result<Lent> {
    must_be_trackable(bench)?;
    bench.guest(pv)
}

/// The writes of PV guests must be trackable here. (Asked of the hypervisor, with a guest, once.)
fn must_be_trackable(bench: &Bench) -> Result<()> {
    static HERE: OnceLock<bool> = OnceLock::new();
    let here = match HERE.get() {
        Some(here) => *here,
        None => log_dirty::is_possible(bench.guest(pv)?.domid)?,
    };
    if *HERE.get_or_init(|| here) {
        return Ok(());
    }
    Err(NotHere.because("this hypervisor has no shadow paging: nobody saves its PV guests live"))
}
