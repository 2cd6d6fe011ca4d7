//! Incremental images: every point in time comes back, and where something else has had its hands
//! on the guest's dirty pages the next image is a full one.

use super::saves::goes_on_from_the_cut;
use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::image;
use crate::dom0::livesave::{LIMIT, Report};
use crate::dom0::log_dirty;
use crate::dom0::process::{self, Finished};
use crate::dom0::spec::Spec;
use crate::dom0::{stock, xl};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Medium.core("chain_restores_each_point", each_point),
        Kind::Medium.in_turn("increment_only_without_doubt", without_doubt),
        Kind::Small.in_turn("increment_killed_at_each_point", killed_at_each_point),
        Kind::Small.in_turn("increment_faults", faults),
    ]
}

/// What comes of an incremental save.
struct Saved {
    report: Report,
    path: PathBuf,
    /// What was said beside the report.
    said: String,
    took: Duration,
}

impl Saved {
    fn is_increment(&self) -> bool {
        self.report.parent.is_some()
    }
}

/// `livesave save DOMAIN --dir DIR --incremental`.
fn save(bench: &Bench, guest: &Guest, dir: &Path) -> Result<Saved> {
    save_by(bench, guest, dir, "--incremental")
}

fn save_by(bench: &Bench, guest: &Guest, dir: &Path, how: &str) -> Result<Saved> {
    let mut command = bench
        .livesave
        .command(&["save", &guest.spec.name, "--json", how, "--dir"]);
    let finished = process::start(command.arg(dir))?.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    if finished.code() != 0 {
        bail!("exit code {}: {}", finished.code(), finished.tail());
    }
    let report: Report = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("report is not as documented: {}", finished.stdout))?;
    Ok(Saved {
        path: report.image.clone(),
        report,
        said: finished.stderr,
        took: finished.took,
    })
}

fn livesave(bench: &Bench, words: &[&str], image: &Path) -> Result<Finished> {
    let mut command = bench.livesave.command(words);
    process::check(command.arg(image), LIMIT)
}

/// The guest runs, and its writes are tracked for the next increment.
fn must_run_tracked(guest: &Guest) -> Result<()> {
    guest
        .must_run_on()
        .context("after the save")
        .context(Harm)?;
    if !log_dirty::is_on(guest.domid)? {
        bail!("its writes are not tracked for the next increment");
    }
    Ok(())
}

fn untrack(bench: &Bench, guest: &Guest) -> Result<()> {
    let mut command = bench.livesave.command(&["untrack", &guest.spec.name]);
    process::check(&mut command, LIMIT)?;
    bench.must_be_unharmed(guest)
}

/// A full image, four increments by tracking and one by comparing, under load, each restored with
/// every page right, and the third from a merged image too.
fn each_point(bench: &Bench) -> Result<String> {
    let mut guest = bench.guest(Spec::medium)?;
    let dir = bench.images.clone();
    let mut points = Vec::new();
    for number in 0..6 {
        let before = guest.verify_clean().context("before a save")?.seq;
        let compared = number == 5;
        let how = if compared {
            "--incremental=compared"
        } else {
            "--incremental"
        };
        let saved = save_by(bench, &guest, &dir, how).with_context(|| format!("save {number}"))?;
        if compared {
            bench.must_be_unharmed(&guest)?;
        } else {
            must_run_tracked(&guest)?;
        }
        if saved.is_increment() != (number > 0) {
            bail!("save {number} is of the wrong kind: {}", saved.said);
        }
        let after = guest.verify_clean().context("after a save")?.seq;
        let size = image::size(&saved.path)?.allocated;
        points.push((saved, before, after, size));
    }
    let (full, increments) = points.split_first().context("no saves")?;
    for (saved, _, _, size) in increments {
        if *size * 2 > full.3 {
            bail!(
                "{} takes {size} bytes, the full one {}",
                saved.path.display(),
                full.3
            );
        }
    }
    bench.keep(
        "reports.json",
        &points
            .iter()
            .map(|(saved, ..)| &saved.report)
            .collect::<Vec<_>>(),
    )?;
    // Stock tools must not make a guest of an increment alone.
    let alone = bench.image("alone.xl");
    let mut unpack = std::process::Command::new("zstd");
    unpack
        .args(["-dqf", "-o"])
        .arg(&alone)
        .arg(&points[1].0.path);
    process::check(&mut unpack, LIMIT)?;
    guest.destroy()?;
    let mut stock = std::process::Command::new("xl");
    let refused = process::run(stock.arg("restore").arg(&alone), LIMIT)?;
    if refused.code() == 0 || !format!("{}{}", refused.stdout, refused.stderr).contains("flag") {
        return Err(Harm.because(format!("xl restored an increment: {}", refused.tail())));
    }
    std::fs::remove_file(&alone)?;
    let merged = bench.image("merged.xl");
    let mut merge = bench.livesave.command(&["merge"]);
    process::check(merge.arg(&points[3].0.path).arg("-o").arg(&merged), LIMIT)?;
    livesave(bench, &["verify"], &merged)?;
    image::stock_verify(&merged)?;
    let mut ways: Vec<_> = points
        .iter()
        .map(|(saved, before, after, _)| (saved.path.as_path(), *before, *after))
        .collect();
    ways.push((&merged, points[3].1, points[3].2));
    for (path, before, after) in ways {
        livesave(bench, &["verify"], path)?;
        let mark = guest.console.mark()?;
        livesave(bench, &["restore"], path)?;
        guest.find_again()?;
        goes_on_from_the_cut(&guest, mark, before, after)
            .with_context(|| path.display().to_string())?;
        guest.destroy()?;
    }
    let (last, compared) = (&points[4], &points[5]);
    Ok(format!(
        "full {:.1} MB in {:.1} s, last increment {:.1} MB in {:.1} s (compared {:.1} MB in {:.1} \
         s), pauses {:.3} and {:.3} s",
        full.3 as f64 / 1e6,
        full.0.took.as_secs_f64(),
        last.3 as f64 / 1e6,
        last.0.took.as_secs_f64(),
        compared.3 as f64 / 1e6,
        compared.0.took.as_secs_f64(),
        full.0.report.window.total_s,
        last.0.report.window.total_s
    ))
}

/// What may happen between two saves, and whether the next may be an increment.
type Between = (&'static str, fn(&Bench, &Guest) -> Result<()>, bool);

const BETWEEN: [Between; 7] = [
    ("nothing", |_, _| Ok(()), true),
    (
        "a stock save",
        |bench, guest| {
            let path = bench.results.join("stock.xl");
            stock::checkpoint(&guest.spec.name, &path)?;
            Ok(std::fs::remove_file(path)?)
        },
        false,
    ),
    (
        "a stock save killed after it has switched tracking off and on",
        |_, guest| {
            log_dirty::switch_off(guest.domid)?;
            log_dirty::switch_on(guest.domid)
        },
        false,
    ),
    (
        "a fetch by another tool",
        |_, guest| log_dirty::fetch(guest.domid),
        false,
    ),
    (
        "a look by another tool",
        |_, guest| log_dirty::look(guest.domid),
        true,
    ),
    (
        "another save by livesave",
        |bench, guest| {
            let path = bench.results.join("other.xl");
            bench.livesave.save(&guest.spec.name, &path, &[])?;
            Ok(std::fs::remove_file(path)?)
        },
        false,
    ),
    (
        "a resize",
        |_, guest| {
            let mib = guest.spec.memory_mib;
            xl::xl(&["mem-set", &guest.spec.name, &format!("{}m", mib - 16)])?;
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        },
        false,
    ),
];

/// After whatever may have taken dirty pages the next image is a full one and says why.
fn without_doubt(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::medium)?.own();
    let dir = bench.images.clone();
    let first = save(bench, &guest, &dir)?;
    if first.is_increment() || !first.said.contains("full image") {
        bail!(
            "the first image is not said to be a full one: {}",
            first.said
        );
    }
    for (what, between, increment) in BETWEEN {
        between(bench, &guest).context(what)?;
        let saved = save(bench, &guest, &dir).context(what)?;
        must_run_tracked(&guest).context(what)?;
        if saved.is_increment() != increment {
            let wrong = if increment {
                "a full image"
            } else {
                "an increment"
            };
            return Err(Harm.because(format!("after {what}: {wrong}: {}", saved.said)));
        }
        if !increment && !saved.said.contains("full image") {
            bail!(
                "after {what} it is not said why all was saved: {}",
                saved.said
            );
        }
        livesave(bench, &["verify"], &saved.path).context(what)?;
    }
    let rotten = save(bench, &guest, &dir)?;
    if !rotten.is_increment() {
        bail!("not an increment: {}", rotten.said);
    }
    flip_a_byte(&rotten.path)?;
    let saved = save_by(bench, &guest, &dir, "--incremental=compared")?;
    if saved.is_increment() || !saved.said.contains("saving all of it") {
        return Err(Harm.because(format!("compared with a damaged image: {}", saved.said)));
    }
    livesave(bench, &["verify"], &saved.path)?;
    bench.must_be_unharmed(&guest)?;
    // What the increment is to be built on is not there any more.
    save(bench, &guest, &dir)?;
    for file in std::fs::read_dir(&dir)? {
        std::fs::remove_file(file?.path())?;
    }
    let saved = save(bench, &guest, &dir)?;
    if saved.is_increment() {
        return Err(Harm.because("an increment on an image that is gone".into()));
    }
    untrack(bench, &guest)?;
    let after = save(bench, &guest, &dir)?;
    if after.is_increment() {
        return Err(Harm.because("an increment after tracking was ended".into()));
    }
    untrack(bench, &guest)?;
    guest.verify_clean()?;
    Ok(format!("{} ways", BETWEEN.len() + 3))
}

/// In the middle, where pages are.
fn flip_a_byte(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 0x10], at)?)
}

/// The worker of an incremental save is killed at each point that it comes to.
fn killed_at_each_point(bench: &Bench) -> Result<String> {
    const POINTS: [&str; 9] = [
        "arming",
        "armed",
        "round",
        "suspended",
        "resumed",
        "write-end",
        "link",
        "keeping",
        "kept",
    ];
    let guest = bench.guest(Spec::small)?;
    for point in POINTS {
        let finished = with_a_fault(bench, &guest, &format!("{point}:kill"))
            .with_context(|| format!("killed at {point}"))?;
        if finished.code() == 0 {
            bail!("the save did not come to {point}");
        }
    }
    guest.verify_clean()?;
    Ok(format!("killed at {}", POINTS.join(", ")))
}

/// Calls that fail: before the image stands the save fails, afterwards the next one is a full one.
fn faults(bench: &Bench) -> Result<String> {
    const CALLS: [(&str, i32, &str); 4] = [
        ("fetch:error:EIO", 1, "fetch the dirty pages"),
        ("last-fetch:error:EIO", 1, "fetch the dirty pages"),
        (
            "mark:error:EIO",
            0,
            "the next image of this guest will be a full one",
        ),
        (
            "xs-stamp:error:EIO",
            0,
            "the next image of this guest will be a full one",
        ),
    ];
    let guest = bench.guest(Spec::small)?;
    for (fault, code, says) in CALLS {
        let finished = with_a_fault(bench, &guest, fault).context(fault)?;
        if finished.code() != code || !finished.stderr.contains(says) {
            bail!(
                "{fault}: exit code {}: {}",
                finished.code(),
                finished.stderr
            );
        }
    }
    guest.verify_clean()?;
    Ok(format!("{} calls", CALLS.len()))
}

/// An increment with a fault in it. Whatever comes of it the guest runs and is not tracked, the
/// chain so far is whole, and so is all that stands under an image's name; nothing of it is left.
fn with_a_fault(bench: &Bench, guest: &Guest, fault: &str) -> Result<Finished> {
    let dir = &bench.images;
    let full = save(bench, guest, dir)?;
    let base = save(bench, guest, dir)?;
    if full.is_increment() || !base.is_increment() {
        bail!("before it: {} {}", full.said, base.said);
    }
    let mut command = bench
        .faulty()
        .command(&["save", &guest.spec.name, "--incremental", "--dir"]);
    command.arg(dir).env("LIVESAVE_FAULT", fault);
    let finished = process::start(&mut command)?.wait(LIMIT)?;
    bench.livesave.note(&finished)?;
    settled(bench, guest)?;
    livesave(bench, &["verify"], &base.path)?;
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path
            .extension()
            .is_some_and(|end| end == "zst" || end == "xl")
        {
            livesave(bench, &["verify"], &path).context(Harm)?;
        }
        std::fs::remove_file(path)?;
    }
    Ok(finished)
}

/// The guardian has put the guest right: it runs, and its writes are not tracked.
fn settled(bench: &Bench, guest: &Guest) -> Result<()> {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while log_dirty::is_on(guest.domid)? && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    bench.must_be_unharmed(guest)
}
