//! PV guests whose page tables come and go all the time: page tables that a save meets in the middle of
//! a change, pages that become page tables between two rounds, and page tables that become pages.

use super::super::saves::there_and_back;
use super::super::{Bench, Kind, Test};
use super::{must_be_trackable, pv};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use std::fs;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.asked("pv_forks_all_the_time", forks)]
}

/// So many saves, each restored; the next one is of what was restored.
const SAVES: usize = 10;

/// Beside its writer it forks processes ([`crate::workload::forks`]).
fn forking(spec: Spec) -> Spec {
    pv(spec).rate("2000").with("forks=3")
}

fn forks(bench: &Bench) -> Result<String> {
    must_be_trackable(bench)?;
    let mut guest = bench.guest(forking)?;
    forked(&guest)?;
    let (mut children, mut notes) = (Vec::new(), Vec::new());
    for number in 1..=SAVES {
        let mut one = || -> Result<(u64, String)> {
            let from = forked(&guest).context("before the save")?;
            let note = there_and_back(bench, &mut guest, &[])?;
            // The restored guest's count goes on from the cut.
            let done = forked(&guest).context("restored")?.saturating_sub(from);
            fs::remove_file(bench.image("image.xl"))?;
            Ok((done, note))
        };
        let (done, note) = one().with_context(|| format!("save {number}"))?;
        children.push(done.to_string());
        notes.push(note);
    }
    let last = notes.pop().unwrap_or_default();
    Ok(format!(
        "children between save and restore: {}; the last save: {last}",
        children.join(" ")
    ))
}

/// How many children have come and gone; there must be new ones, and none may have found a wrong page.
fn forked(guest: &Guest) -> Result<u64> {
    let limit = Duration::from_secs(30);
    let count = || -> Result<u64> {
        let beat = guest.next_beat(limit)?;
        if beat.number("forks_bad").is_some_and(|bad| bad != 0) {
            return Err(Harm.because(format!("children that found something wrong: {beat}")));
        }
        beat.number("forks")
            .with_context(|| format!("a heartbeat without forks: {beat}"))
    };
    let first = count()?;
    for _ in 0..50 {
        let now = count()?;
        if now > first {
            return Ok(now);
        }
    }
    bail!("no child came and went after {first}")
}
