//! Somebody else meddles with the guest, or with livesave, in the middle of a
//! save.

use super::failures::works_again;
use super::faults::start;
use super::saves::restored_is_right;
use super::{Bench, Kind, Test};
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::spec::Spec;
use crate::dom0::{image, log_dirty, xl};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::{DomainId, PageType, Protection, Xen};

/// The hypervisor tells the types of at most so many pages at once.
const QUERY: usize = 1024;

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
        Kind::Medium.in_turn("a_page_given_back_counts_while_mapped", given_back),
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

/// What livesave trusts in when it copies from pages mapped ahead: a frame that the guest gives back
/// is taken off its number of pages no sooner than it is mapped no more.
fn given_back(bench: &Bench) -> Result<String> {
    // Its size is another afterwards.
    let guest = bench.guest(Spec::medium)?.own();
    let id = DomainId::new(guest.domid).context("domain number out of range")?;
    let xen = Xen::open()?;
    let size = || -> Result<u64> {
        let info = xen.domain_info(id)?;
        Ok(info.context("the guest is gone")?.tot_pages)
    };
    let pfns: Vec<u64> = (0..guest.spec.memory_mib << 8).collect();
    let missing = || -> Result<u64> {
        let mut missing = 0;
        for pfns in pfns.chunks(QUERY) {
            let mut types = pfns.to_vec();
            xen.page_types(id, &mut types)?;
            let there = |word: &&u64| PageType::of(**word).has_data();
            missing += (types.len() - types.iter().filter(there).count()) as u64;
        }
        Ok(missing)
    };
    let until = |what: &str, done: &dyn Fn() -> Result<bool>| -> Result<()> {
        let began = Instant::now();
        while !done()? {
            if began.elapsed() > LIMIT {
                bail!("{what}: not within {LIMIT:?}");
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    };

    let (before, missing_before) = (size()?, missing()?);
    let mapped: Result<Vec<_>, _> = pfns
        .chunks(QUERY)
        .map(|pfns| xen.map(id, Protection::Read, pfns, vec![0; pfns.len()]))
        .collect();
    let mapped = mapped?;
    xl::xl(&["mem-set", &guest.spec.name, "200m"])?;
    until("pages given back", &|| {
        Ok(missing()? > missing_before + 4096)
    })?;
    let gone = missing()? - missing_before;
    let counted = size()?;
    // Not all of its memory need be below what was mapped.
    if counted + gone / 10 < before {
        bail!("{gone} pages are gone and mapped, and {counted} of {before} are counted");
    }
    drop(mapped);
    until("frames freed", &|| Ok(size()? + gone <= counted))?;
    guest.destroy()?;
    Ok(format!("{gone} pages"))
}
