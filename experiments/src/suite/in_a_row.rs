//! Ten saves in a row: of one guest, and each of what the one before brought back.

use super::saves::{MEMORY_ONLY, Saved, finish, there_and_back, with_vif_and_disk};
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// So many are enough to meet what happens now and then.
const SAVES: usize = 10;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Large.in_turn("ten_saves_in_a_row", |b| of_one_guest(b, |s| s))]
}

/// The same guest is saved again and again, and runs on; the last image is restored.
pub(super) fn of_one_guest(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let guest = bench.guest(change)?;
    let mut gaps = Vec::new();
    for number in 1..SAVES {
        let path = bench.image(&format!("{number}.xl"));
        guest.take_gap()?;
        let context = || format!("save {number}");
        bench
            .livesave
            .save(&guest.spec.name, &path, &[])
            .with_context(context)?;
        gaps.push(guest.take_gap()?);
        bench.must_be_unharmed(&guest).with_context(context)?;
        fs::remove_file(&path)?;
    }
    let last = finish(bench, guest, &[]).context("the last save")?;
    Ok(format!("{}; the last one: {last}", Gaps(gaps)))
}

/// Each image is restored, and what comes back is saved next.
pub(super) fn there_and_back_again(
    bench: &Bench,
    guest: &mut Guest,
    more: &[&str],
    mut must_hold: impl FnMut(&Guest) -> Result<()>,
) -> Result<String> {
    let mut saves: Vec<Saved> = Vec::new();
    for number in 1..=SAVES {
        let mut one = || -> Result<Saved> {
            must_hold(guest).context("before the save")?;
            let saved = there_and_back(bench, guest, more)?;
            must_hold(guest).context("restored")?;
            fs::remove_file(bench.image("image.xl"))?;
            Ok(saved)
        };
        saves.push(one().with_context(|| format!("save {number}"))?);
    }
    let last = saves.last().map(Saved::to_string).unwrap_or_default();
    let gaps = Gaps(saves.iter().map(|saved| saved.gap).collect());
    Ok(format!("{gaps}; the last one: {last}"))
}

/// With a disk and a network interface, which work on each time.
pub(super) fn with_devices(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let (_disk, mut guest) = with_vif_and_disk(bench, change)?;
    let note = there_and_back_again(bench, &mut guest, &MEMORY_ONLY, |_| Ok(()))?;
    drop(guest);
    bench.pool.clear();
    Ok(note)
}

/// How long a guest stood still each time.
struct Gaps(Vec<Duration>);

impl std::fmt::Display for Gaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Some(least), Some(most)) = (self.0.iter().min(), self.0.iter().max()) else {
            return f.write_str("no gaps");
        };
        let [least, most] = [least, most].map(Duration::as_secs_f64);
        write!(f, "{} gaps of {least:.3} to {most:.3} s", self.0.len())
    }
}
