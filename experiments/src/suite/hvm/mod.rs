//! HVM guests: beside the guest a QEMU writes to its memory and holds the state of its devices.

mod emulator;
mod killed;

use super::restored;
use super::saves::{
    MEMORY_ONLY, finish, goes_on_from_the_cut, save, save_and_restore, ten_in_a_row, vif_and_disk,
};
use super::table::median;
use super::{Bench, Kind, Test};
use crate::dom0::boot_disk;
use crate::dom0::spec::Spec;
use crate::dom0::{image, stock};
use anyhow::{Context, Result, ensure};
use std::fs;

/// The tests of this file and those below it.
#[must_use]
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Kind::Hvm.asked("hvm_stock_save_restores", |bench| {
            super::stock::restored_is_right(bench, hvm, stock::checkpoint)
        }),
        Kind::Hvm.asked("hvm_stock_live_loop", |bench| {
            super::stock::restored_is_right(bench, hvm, |name, image| {
                stock::live_loop(name, image, &bench.results)
            })
        }),
        Kind::Hvm.asked("hvm_live_save_restores", |bench| {
            save_and_restore(bench, hvm)
        }),
        Kind::Hvm.asked("hvm_plain_save_restores", |bench| {
            finish(bench, bench.guest(hvm)?, &["--mode", "plain"])
        }),
        Kind::Hvm.asked("hvm_gap_beside_stock", gap_beside_stock),
        Kind::Hvm.asked("hvm_ten_saves_in_a_row", |bench| ten_in_a_row(bench, hvm)),
        Kind::Hvm.asked("hvm_restored_by_livesave", restored_by_livesave),
        Kind::Other.asked("hvm_with_2_vcpus", |bench| {
            save_and_restore(bench, |spec| hvm(spec).vcpus(2))
        }),
        Kind::Other.asked("hvm_with_vif_and_disk", |bench| vif_and_disk(bench, hvm)),
        Kind::Other.asked("hvm_boots_by_bios", boots_by_bios),
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

/// The same bars as for PVH: no longer a gap than Xen's own live loop has on this guest, in turn with
/// it, and an image that does not grow with what was written.
fn gap_beside_stock(bench: &Bench) -> Result<String> {
    let guest = bench.guest(hvm)?;
    let (ours, theirs) = (bench.image("ours.xl"), bench.image("theirs.xl"));
    let mut gaps = [Vec::new(), Vec::new()];
    for _ in 0..bench.repeats {
        guest.take_gap()?;
        stock::live_loop(&guest.spec.name, &theirs, &bench.results)?;
        gaps[1].push(guest.take_gap()?.as_secs_f64());
        fs::remove_file(&theirs)?;
        bench.must_be_unharmed(&guest).context("after xl save")?;
        guest.take_gap()?;
        bench.livesave.save(&guest.spec.name, &ours, &[])?;
        gaps[0].push(guest.take_gap()?.as_secs_f64());
        let bytes = image::size(&ours)?.bytes;
        let largest = super::saves::largest_image(guest.spec.max_memory_mib << 20);
        ensure!(bytes <= largest, "the image has {bytes} bytes");
        fs::remove_file(&ours)?;
        bench.must_be_unharmed(&guest)?;
    }
    let [ours, theirs] = gaps.map(|gaps| median(&gaps));
    ensure!(
        ours <= theirs,
        "gap {ours:.3} s, that of Xen's live loop {theirs:.3} s"
    );
    Ok(format!("gap {ours:.3} s, Xen's live loop {theirs:.3} s"))
}

fn restored_by_livesave(bench: &Bench) -> Result<String> {
    let mut guest = bench.guest(hvm)?;
    let path = bench.image("image.xl");
    let before = guest.verify_clean().context("before the save")?.seq;
    save(bench, &guest, &path, &[])?;
    let after = guest.verify_clean().context("the source")?.seq;
    guest.destroy()?;
    let mark = guest.console.mark()?;
    let restored = restored::finish(bench, restored::restore(bench, &path, &[])?, 0)?;
    guest.find_again()?;
    goes_on_from_the_cut(&guest, mark, before, after)?;
    bench.must_be_unharmed(&guest)?;
    Ok(format!("restored in {:.1} s", restored.took.as_secs_f64()))
}

/// As most HVM guests begin: BIOS, boot loader, a distribution's kernel, all from a disk.
fn boots_by_bios(bench: &Bench) -> Result<String> {
    let file = bench.results.join("boot.img");
    // Declared first, so that it is detached after the guest's end.
    let disk = boot_disk::make(&hvm(Spec::default()), &file)?;
    let guest = bench.guest(|spec| {
        let mut spec = hvm(spec);
        spec.pc.boot_disk = Some(disk.0.clone());
        spec
    })?;
    let note = finish(bench, guest, &MEMORY_ONLY)?;
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
