//! Tests of the testbed itself: what stock Xen does must work here, or a
//! failure of livesave would prove nothing.

use super::{Bench, Kind, Test};
use crate::dom0::spec::Spec;
use crate::dom0::{image, stock};
use anyhow::{Result, bail};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Large.in_turn("stock_save_restore", save_restore),
        Kind::Large.in_turn("stock_live_loop", live_loop),
        Kind::Large.asked("stock_vnsnap_style", vnsnap_style),
        Kind::Other.in_turn("workload_notices_a_changed_page", notices_a_changed_page),
    ]
}

fn save_restore(bench: &Bench) -> Result<String> {
    restored_is_right(bench, |spec| spec, stock::checkpoint)
}

fn live_loop(bench: &Bench) -> Result<String> {
    restored_is_right(
        bench,
        |spec| spec,
        |name, image| stock::live_loop(name, image, &bench.results),
    )
}

fn vnsnap_style(bench: &Bench) -> Result<String> {
    restored_is_right(
        bench,
        |spec| spec,
        |name, image| stock::vnsnap(name, image, &bench.suite),
    )
}

/// A guest that was saved by Xen's own tools runs on unharmed, and so does the restored one.
pub(super) fn restored_is_right(
    bench: &Bench,
    change: impl FnOnce(Spec) -> Spec,
    save: impl Fn(&str, &std::path::Path) -> Result<std::time::Duration>,
) -> Result<String> {
    let mut guest = bench.guest(change)?;
    let path = bench.image("image.xl");
    guest.take_gap()?;
    let took = save(&guest.spec.name, &path)?;
    let gap = guest.take_gap()?;
    guest.must_run_on()?;
    guest.verify_clean()?;
    let size = image::size(&path)?;
    guest.destroy()?;
    guest.restore(&path)?;
    guest.must_run_on()?;
    guest.verify_clean()?;
    std::fs::remove_file(&path)?;
    Ok(format!(
        "gap {:.2} s, {:.1} s in all, {} MB",
        gap.as_secs_f64(),
        took.as_secs_f64(),
        size.bytes / 1_000_000
    ))
}

/// The check that all other tests lean on must be able to fail: an image with
/// one page of the guest's memory changed restores into a guest that says so.
fn notices_a_changed_page(bench: &Bench) -> Result<String> {
    // Wrong pages and all, it is for nobody else.
    let mut guest = bench.guest(|spec| spec.small().with("pattern=idle"))?.own();
    let path = bench.image("image.xl");
    stock::checkpoint(&guest.spec.name, &path)?;
    guest.destroy()?;
    let at = change_one_page(&path)?;
    guest.restore(&path)?;
    let verified = guest.verify()?;
    if verified.bad != 1 {
        bail!("{} pages noticed, one was changed", verified.bad);
    }
    Ok(format!("byte {at} of the image"))
}

/// Flips a bit in the middle of a page of the static area. Its pages are found
/// by their content: word 0 is 0, the others are none of them.
fn change_one_page(path: &std::path::Path) -> Result<u64> {
    use crate::workload::pattern::{Page, Stamp};
    use crate::workload::writer::area_seed;
    use std::os::unix::fs::FileExt;

    let mut wanted = Page::zero();
    wanted.fill(Stamp {
        seed: area_seed(1, 0),
        page: 100,
        seq: 0,
        body: 0,
    });
    let wanted = wanted.as_bytes();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)?;
    let len = file.metadata()?.len();
    // Pages are 8-byte aligned, counted from the end of xl's header and the
    // configuration in it, whose length is any.
    let mut config_len = [0; 4];
    file.read_exact_at(&mut config_len, 44)?;
    let mut at = 48 + u64::from(u32::from_le_bytes(config_len));
    let mut window = vec![0; (1 << 20) + wanted.len()];
    while at + wanted.len() as u64 <= len {
        let part = window.len().min((len - at) as usize);
        file.read_exact_at(&mut window[..part], at)?;
        let found = (0..=part - wanted.len())
            .step_by(8)
            .find(|&i| window[i + 8..i + 16] == wanted[8..16] && window[i..i + 4096] == *wanted);
        if let Some(i) = found {
            let place = at + i as u64 + 2048;
            file.write_all_at(&[wanted[2048] ^ 1], place)?;
            return Ok(place);
        }
        at += 1 << 20;
    }
    bail!("no page of the static area is in the image");
}
