//! PV guests whose page tables come and go all the time: page tables that a save meets in the middle of
//! a change, pages that become page tables between two rounds, and page tables that become pages.

use super::super::in_a_row::there_and_back_again;
use super::super::{Bench, Kind, Test};
use super::{must_be_trackable, pv};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.asked("pv_forks_all_the_time", forks)]
}

/// Beside its writer it forks processes ([`crate::workload::forks`]).
fn forking(spec: Spec) -> Spec {
    pv(spec).rate("2000").with("forks=3")
}

fn forks(bench: &Bench) -> Result<String> {
    must_be_trackable(bench)?;
    let mut guest = bench.guest(forking)?;
    let (mut children, mut from) = (Vec::new(), None);
    // The restored guest's count goes on from the cut.
    let note = there_and_back_again(bench, &mut guest, &[], |guest| {
        let now = forked(guest)?;
        match from.take() {
            None => from = Some(now),
            Some(from) => children.push(now.saturating_sub(from).to_string()),
        }
        Ok(())
    })?;
    Ok(format!(
        "{note}; children between save and restore: {}",
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
