//! Saves that die at a named point, what puts the guest right, and what must hold then.

use super::Bench;
use crate::dom0::guest::Guest;
use crate::dom0::livesave::LIMIT;
use crate::dom0::process::{self, Finished};
use crate::dom0::xl;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The command built with named points at which it dies.
pub(super) const FAULTY: &str = "/payload/livesave-faults";

/// Where the locks and journals are.
pub(super) const JOURNALS: &str = "/run/livesave";

/// Killed by SIGKILL, as a shell shows it.
pub(super) const KILLED: i32 = 137;

/// A save that dies at a point; it must have died there.
pub(super) fn die(bench: &Bench, guest: &Guest, fault: &str, more: &[&str]) -> Result<Finished> {
    let mut command = Command::new(FAULTY);
    command
        .args(["save", &guest.spec.name, "--json", "-o"])
        .arg(bench.image("x.xl"))
        .args(more)
        // A guest killed before its request was made is watched in vain.
        .env("LIVESAVE_WATCH_MS", "10000")
        .env("LIVESAVE_FAULT", fault);
    let finished = process::run(&mut command, LIMIT)?;
    if finished.code() != KILLED {
        bail!("it ended with {}: {}", finished.code(), finished.tail());
    }
    Ok(finished)
}

pub(super) fn recover(bench: &Bench) -> Result<Finished> {
    process::check(&mut bench.livesave.command(&["recover"]), LIMIT)
}

/// Waits until the guardian has done its work, and says how long that was.
pub(super) fn settled(guest: &Guest) -> Result<Duration> {
    let began = Instant::now();
    let path = Path::new(JOURNALS).join(guest.domid.to_string());
    let file = match fs::File::open(&path) {
        // It was killed before it had come that far.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Duration::ZERO),
        opened => opened.with_context(|| format!("{}", path.display()))?,
    };
    while file.try_lock().is_err() {
        if began.elapsed() > Duration::from_secs(90) {
            bail!("the guardian has not ended after 90 s");
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = began.elapsed();
    let left = fs::read_to_string(&path)?;
    if !left.is_empty() {
        bail!("the guardian has ended and left {left:?}");
    }
    Ok(took)
}

/// What must hold after a kill.
pub(super) fn must_be_right(bench: &Bench, guest: &Guest) -> Result<()> {
    bench.must_hold_only(&bench.images, &[])?;
    bench.must_be_unharmed(guest)
}

/// Killed at each of the points; the guardian puts it right.
pub(super) fn at_points(
    bench: &Bench,
    guest: &Guest,
    points: &[&str],
    more: &[&str],
) -> Result<String> {
    let mut ended = Vec::new();
    for point in points {
        let one = || -> Result<String> {
            let finished = die(bench, guest, &format!("{point}:kill"), more)?;
            let took = settled(guest)?;
            must_be_right(bench, guest)?;
            let said = finished.stderr.lines().last().unwrap_or_default();
            let said = said.rsplit("; ").next().unwrap_or_default();
            Ok(format!("{point} {} ms ({said})", took.as_millis()))
        };
        ended.push(one().with_context(|| format!("killed at {point}"))?);
    }
    guest.verify_clean()?;
    Ok(ended.join(", "))
}

/// The points that a live save passes whose guest has no emulator, in their order.
pub(super) const POINTS: [&str; 14] = [
    "guarded",
    "arming",
    "armed",
    "round",
    "requesting",
    "requested",
    "suspended",
    "in-window",
    "fetched",
    "captured",
    "half-resumed",
    "resumed",
    "announced",
    "off",
];

/// A plain save of such a guest, killed at each point that needs a remedy.
pub(super) fn plain_killed_at_points(bench: &Bench, guest: &Guest) -> Result<String> {
    let points = [
        "requested",
        "suspended",
        "in-window",
        "captured",
        "half-resumed",
        "resumed",
    ];
    at_points(bench, guest, &points, &["--mode", "plain"])
}

/// Killed with its guardian at each of the points, at some of which the guest does not run then;
/// `livesave recover` puts it right.
pub(super) fn both_at_points(
    bench: &Bench,
    guest: &Guest,
    points: &[(&str, bool)],
    more: &[&str],
) -> Result<String> {
    let mut notes = Vec::new();
    for &(point, stands) in points {
        let one = || -> Result<String> {
            die(bench, guest, &format!("{point}:kill-both"), more)?;
            let listed = xl::list(&guest.spec.name)?.context("the guest is gone")?;
            if stands && listed.is_running() {
                bail!("the guest runs before the recovery, so that nothing is shown");
            }
            let did = recover(bench)?.stdout;
            must_be_right(bench, guest)?;
            let again = recover(bench)?.stdout;
            if !again.starts_with("nothing") {
                bail!("the second recovery did something: {again}");
            }
            bench.must_be_unharmed(guest)?;
            Ok(format!("{point}: {}", did.trim()))
        };
        notes.push(one().with_context(|| format!("killed at {point}"))?);
    }
    guest.verify_clean()?;
    Ok(notes.join("; "))
}
