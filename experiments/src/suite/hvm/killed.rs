//! Saves of HVM guests that are killed: the guest and its emulator run on, and the emulator reports
//! its writes no more.

use super::super::guardian::{at_points, both_at_points};
use super::super::saves::MEMORY_ONLY;
use super::super::{Bench, Kind, Test};
use super::emulator::{must_report_none, reading};
use anyhow::{Context, Result};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::HvmReads.asked("hvm_killed_at_each_point", at_each_point),
        Kind::HvmReads.asked("hvm_recovered_when_both_were_killed", both_killed),
        Kind::HvmReads.asked("hvm_plain_save_killed", plain_killed),
    ]
}

/// In the order in which a save passes them.
const POINTS: [&str; 22] = [
    "guarded",
    "arming",
    "emulator-log-starting",
    "emulator-log-on",
    "armed",
    "round",
    "emulator-ready",
    "requesting",
    "requested",
    "suspended",
    "in-window",
    "emulator-stopping",
    "emulator-stopped",
    "emulator-saved",
    "fetched",
    "captured",
    "emulator-runs",
    "half-resumed",
    "resumed",
    "announced",
    "off",
    "emulator-log-off",
];

fn at_each_point(bench: &Bench) -> Result<String> {
    let guest = reading(bench)?;
    let mut notes = Vec::new();
    for point in POINTS {
        notes.push(at_points(bench, &guest, &[point], &MEMORY_ONLY)?);
        must_report_none(&guest).with_context(|| format!("killed at {point}"))?;
    }
    Ok(notes.join(", "))
}

fn both_killed(bench: &Bench) -> Result<String> {
    let guest = reading(bench)?;
    let mut notes = Vec::new();
    // And whether the guest stands still until it is recovered.
    for (point, stands) in [
        ("emulator-log-on", false),
        ("armed", false),
        ("suspended", true),
        ("emulator-stopped", true),
        ("emulator-saved", true),
        ("captured", true),
        ("emulator-runs", true),
        ("half-resumed", false),
        ("resumed", false),
    ] {
        notes.push(both_at_points(
            bench,
            &guest,
            &[(point, stands)],
            &MEMORY_ONLY,
        )?);
        must_report_none(&guest).with_context(|| format!("killed at {point}"))?;
    }
    Ok(notes.join("; "))
}

fn plain_killed(bench: &Bench) -> Result<String> {
    let guest = reading(bench)?;
    let more = [&MEMORY_ONLY[..], &["--mode", "plain"]].concat();
    let points = [
        "suspended",
        "emulator-stopped",
        "emulator-saved",
        "captured",
        "emulator-runs",
        "resumed",
    ];
    let note = at_points(bench, &guest, &points, &more)?;
    must_report_none(&guest)?;
    Ok(note)
}
