//! Saves of PV guests that are killed: the guest runs on, and off its shadow page tables.

use super::super::guardian::{POINTS, at_points, both_at_points, plain_killed_at_points};
use super::super::throttle::{OWN, killed_slowed, must_not_be_paused, set_cap};
use super::super::{Bench, Kind, Test};
use super::{must_be_trackable, pv, tracked};
use anyhow::Result;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Pv.in_turn("pv_killed_at_each_point", at_each_point),
        Kind::Other.asked("pv_killed_while_slowed", while_slowed),
        Kind::Pv.asked("pv_recovered_when_both_were_killed", both_killed),
        Kind::Pv.asked("pv_plain_save_killed", plain_killed),
    ]
}

fn at_each_point(bench: &Bench) -> Result<String> {
    let guest = tracked(bench)?;
    at_points(bench, &guest, &POINTS, &[])
}

/// The points that only a save passes which slows the guest.
fn while_slowed(bench: &Bench) -> Result<String> {
    must_be_trackable(bench)?;
    let guest = bench.guest(|spec| pv(spec).with("ring=128").with("static=8").rate("max"))?;
    set_cap(&guest, OWN)?;
    let notes = killed_slowed(bench, &guest)?;
    set_cap(&guest, 0)?;
    must_not_be_paused(&guest)?;
    guest.verify_clean()?;
    Ok(notes.join(", "))
}

fn both_killed(bench: &Bench) -> Result<String> {
    let guest = tracked(bench)?;
    // And whether the guest stands still until it is recovered.
    let points = [
        ("armed", false),
        ("requested", false),
        ("suspended", true),
        ("in-window", true),
        ("captured", true),
        ("half-resumed", false),
        ("resumed", false),
    ];
    both_at_points(bench, &guest, &points, &[])
}

/// Every hypervisor can do this.
fn plain_killed(bench: &Bench) -> Result<String> {
    plain_killed_at_points(bench, &*bench.guest(pv)?)
}
