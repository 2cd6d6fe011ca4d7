//! The pause that is asked for: foretold, and met or missed as was said.

use super::saves::restored_is_right;
use super::table::median;
use super::{Bench, Kind, Test};
use crate::dom0::image;
use crate::dom0::livesave::{LIMIT, exit};
use crate::dom0::log_dirty;
use crate::dom0::process;
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Small.in_turn("target_missed_or_given_up", missed),
        Kind::Large.in_turn("pauses_are_foretold", foretold),
        Kind::Small.in_turn("plan_saves_nothing", plan),
        Kind::Small.in_turn("small_capture_memory", |bench| {
            small_capture(bench, |spec| spec.small().rate("4000"))
        }),
    ]
}

/// A pause of 1 ms cannot be had: the save goes on with a warning, or gives up with a code of its
/// own.
fn missed(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.small().rate("4000"))?;
    let name = guest.spec.name.as_str();
    let path = bench.image("x.xl");
    let target = ["--max-downtime", "1ms"];
    let running = bench.livesave.start(name, &path, &target)?;
    let finished = running.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != 0 || !finished.stderr.contains("longer than 1ms") {
        bail!(
            "--on-miss proceed: {}: {}",
            finished.code(),
            finished.tail()
        );
    }
    image::stock_verify(&path)?;
    fs::remove_file(&path)?;
    let (report, _) = bench.livesave.save(name, &path, &target)?;
    if report.target.as_ref().is_none_or(|target| target.met) {
        bail!("a pause of 1 ms was met: {:?}", report.window);
    }
    fs::remove_file(&path)?;
    bench.must_be_unharmed(&guest)?;

    guest.take_gap()?;
    let abort = ["--max-downtime", "1ms", "--on-miss", "abort"];
    let refused = bench
        .livesave
        .must_fail(name, &path, &abort, exit::TARGET_MISSED)?;
    bench.must_hold_only(&bench.images, &[])?;
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    Ok(refused.stderr.lines().last().unwrap_or_default().to_owned())
}

/// Of some saves in a row the later ones are foretold from the earlier: none by far too little.
fn foretold(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.rate("20000"))?;
    let path = bench.image("x.xl");
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let (report, _) = bench.livesave.save(&guest.spec.name, &path, &[])?;
        fs::remove_file(&path)?;
        let window = &report.window;
        if window.predicted_s <= 0.0 || report.rounds.iter().any(|round| round.window_s <= 0.0) {
            bail!("nothing was foretold: {report:?}");
        }
        ratios.push(window.total_s / window.predicted_s);
    }
    bench.must_be_unharmed(&guest)?;
    // The machine's moods are no fault of a forecast: the bars of `compare` are closer.
    let middle = median(&ratios[1..]);
    if !(0.4..=2.5).contains(&middle) {
        bail!("measured ÷ foretold: {ratios:.2?}");
    }
    Ok(format!("measured ÷ foretold {ratios:.2?}"))
}

/// What `livesave plan --json` prints; only what is looked at.
#[derive(Deserialize)]
struct Plan {
    sample: Sample,
    save: Outlook,
    outlooks: Vec<Outlook>,
}

#[derive(Deserialize)]
struct Sample {
    image_bytes: u64,
    zero_share: f64,
}

#[derive(Deserialize)]
struct Outlook {
    window_s: f64,
    rounds: u32,
    total_s: f64,
}

/// A plan neither pauses nor saves, and says what comes.
fn plan(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.small().rate("4000"))?;
    let name = guest.spec.name.as_str();
    // With one save behind it, it knows the guest.
    let path = bench.image("x.xl");
    let (report, _) = bench.livesave.save(name, &path, &[])?;
    fs::remove_file(&path)?;
    let printed = process::check(
        &mut bench.livesave.command(&["plan", name, "--json"]),
        LIMIT,
    )?;
    let plan: Plan = serde_json::from_str(&printed.stdout)
        .with_context(|| format!("not as documented: {}", printed.stdout))?;
    bench.must_be_unharmed(&guest)?;
    bench.must_hold_only(&bench.images, &[])?;
    let text = process::check(&mut bench.livesave.command(&["plan", name]), LIMIT)?;
    bench.livesave.note(&text)?;

    let length = report.image_bytes as f64 / plan.sample.image_bytes as f64;
    if !(0.999..=1.001).contains(&length) {
        bail!("image of {} bytes foretold", plan.sample.image_bytes);
    }
    let zero = report.zero_pages as f64 / report.memory_pages as f64;
    if (zero - plan.sample.zero_share).abs() > 0.15 {
        bail!(
            "zero pages: {zero:.2}, foretold {:.2}",
            plan.sample.zero_share
        );
    }
    if plan.outlooks.len() < 2 || plan.save.rounds == 0 {
        bail!("an empty plan: {}", printed.stdout);
    }
    log_dirty::must_be_off(guest.domid)?;

    // Interrupted, it leaves nothing either.
    let running = process::start(&mut bench.livesave.command(&["plan", name, "--watch", "60s"]))?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    running.signal(rustix::process::Signal::INT)?;
    let stopped = running.wait(LIMIT)?;
    if stopped.code() != 130 {
        bail!("interrupted: {}: {}", stopped.code(), stopped.tail());
    }
    bench.must_be_unharmed(&guest)?;
    Ok(format!(
        "foretold {:.3} s and {:.1} s in all, as it was {:.3} and {:.1}",
        plan.save.window_s, plan.save.total_s, report.window.total_s, report.total_s
    ))
}

/// With room for few pages the rest is written in the window, and the report says so.
pub(super) fn small_capture(bench: &Bench, change: fn(Spec) -> Spec) -> Result<String> {
    let mut guest = bench.guest(change)?;
    let path = bench.image("x.xl");
    let before = guest.verify_clean().context("before the save")?.seq;
    let more = ["--capture-memory", "256KiB", "--max-rounds", "1"];
    let (report, _) = bench.livesave.save(&guest.spec.name, &path, &more)?;
    let window = &report.window;
    if window.captured_bytes != 256 << 10 || window.written_in_window_bytes == 0 {
        bail!("room for 64 pages: {window:?}");
    }
    bench.must_be_unharmed(&guest)?;
    let after = guest.verify_clean().context("the source")?.seq;
    image::stock_verify(&path)?;
    guest.destroy()?;
    restored_is_right(&mut guest, &path, before, after)?;
    Ok(format!(
        "{} pages captured, {} MB written in the window",
        window.captured_bytes >> 12,
        window.written_in_window_bytes / 1_000_000
    ))
}
