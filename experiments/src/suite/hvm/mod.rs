//! HVM guests: beside the guest a QEMU writes to its memory and holds the state of its devices.

mod emulator;
mod killed;

use super::cut::{self, Disks};
use super::saves::{
    MEMORY_ONLY, finish, gap_beside_stock, save_and_restore, there_and_back, vif_and_disk,
};
use super::{Bench, Kind, Test};
use super::{in_a_row, restored};
use crate::dom0::boot_disk;
use crate::dom0::guest::Guest;
use crate::dom0::spec::Spec;
use crate::dom0::stock;
use anyhow::Result;
use std::fs;

/// The tests of this file and those below it.
#[must_use]
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Kind::Hvm.in_turn("hvm_stock_save_restores", |bench| {
            super::stock::restored_is_right(bench, hvm, stock::checkpoint)
        }),
        Kind::Hvm.asked("hvm_stock_live_loop", |bench| {
            super::stock::restored_is_right(bench, hvm, |name, image| {
                stock::live_loop(name, image, &bench.results)
            })
        }),
        Kind::Hvm.core("hvm_live_save_restores", |bench| {
            save_and_restore(bench, hvm)
        }),
        Kind::Hvm.in_turn("hvm_plain_save_restores", |bench| {
            finish(bench, bench.guest(hvm)?, &["--mode", "plain"])
        }),
        Kind::Hvm.in_turn("hvm_gap_beside_stock", |bench| gap_beside_stock(bench, hvm)),
        Kind::Hvm.asked("hvm_ten_saves_in_a_row", |bench| {
            in_a_row::of_one_guest(bench, hvm)
        }),
        Kind::Other.asked("hvm_ten_times_there_and_back", |bench| {
            in_a_row::with_devices(bench, hvm)
        }),
        Kind::Other.asked("hvm_ten_times_with_2_vcpus", |bench| {
            in_a_row::with_devices(bench, |spec| hvm(spec).vcpus(2))
        }),
        Kind::Other.asked("hvm_gap_with_2_vcpus", |bench| {
            gap_beside_stock(bench, |spec| hvm(spec).vcpus(2))
        }),
        Kind::Other.asked("hvm_disks_at_the_cut", |bench| {
            cut::at_the_cut(bench, Disks::Mixed, 2, hvm)
        }),
        Kind::Hvm.asked("hvm_restored_by_livesave", |bench| {
            restored::by_livesave(bench, hvm)
        }),
        Kind::Other.asked("hvm_with_2_vcpus", |bench| {
            save_and_restore(bench, |spec| hvm(spec).vcpus(2))
        }),
        Kind::Other.asked("hvm_with_vif_and_disk", |bench| vif_and_disk(bench, hvm)),
        Kind::Other.asked("hvm_boots_by_bios", |bench| {
            by_bios(bench, |bench, guest| {
                Ok(there_and_back(bench, guest, &MEMORY_ONLY)?.to_string())
            })
        }),
        Kind::Other.asked("hvm_ten_times_by_bios", |bench| {
            by_bios(bench, |bench, guest| {
                in_a_row::there_and_back_again(bench, guest, &MEMORY_ONLY, |_| Ok(()))
            })
        }),
        Kind::Other.asked(
            "hvm_suspended_by_the_hypervisor",
            suspended_by_the_hypervisor,
        ),
    ];
    tests.extend(emulator::tests());
    tests.extend(killed::tests());
    tests
}

/// The guest that most of these tests share: it takes minutes to boot.
#[must_use]
pub fn hvm(spec: Spec) -> Spec {
    let spec = spec.memory(256).with("ring=64").with("static=16");
    spec.with("beat=100").hvm()
}

/// As most HVM guests begin: BIOS, boot loader, a distribution's kernel, all from a disk.
fn by_bios(
    bench: &Bench,
    test: impl FnOnce(&Bench, &mut Guest) -> Result<String>,
) -> Result<String> {
    let file = bench.results.join("boot.img");
    // Declared first, so that it is detached after the guest's end.
    let disk = boot_disk::make(&hvm(Spec::default()), &file)?;
    let mut guest = bench.guest(|spec| {
        let mut spec = hvm(spec);
        spec.pc.boot_disk = Some(disk.0.clone());
        spec
    })?;
    let note = test(bench, &mut guest)?;
    drop(guest);
    bench.pool.clear();
    fs::remove_file(file)?;
    Ok(note)
}

/// A guest that knows nothing of Xen hears of no request: the hypervisor suspends it where it is, as
/// `xl save` has it do, which comes first.
fn suspended_by_the_hypervisor(bench: &Bench) -> Result<String> {
    // A serial port takes a while for each letter.
    let change = |spec: Spec| {
        let spec = hvm(spec).without_xen().rate("1000");
        spec.with("beat=1000").with("gap=1000")
    };
    let stock = super::stock::restored_is_right(bench, change, stock::checkpoint)?;
    let note = finish(bench, bench.guest(change)?, &[])?;
    Ok(format!("xl save -c: {stock}; livesave: {note}"))
}
