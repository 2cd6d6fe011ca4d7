//! The Debian package in dom0: installed, it takes periodic snapshots as cron would have it do, and
//! goes without a trace.

use super::{Bench, Kind, Test};
use crate::dom0::guest::Guest;
use crate::dom0::livesave::{self, Report, exit};
use crate::dom0::process::{self, Finished};
use crate::dom0::spec::Spec;
use crate::dom0::{harm::Harm, image};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Put there by `experiments/testbed/run`.
const PACKAGE: &str = "/payload/livesave.deb";
/// What dpkg leaves until the package is purged.
const CONFFILE: &str = "/etc/default/livesave";
/// Processes start slowly under emulation.
const LIMIT: Duration = Duration::from_secs(60);

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Small.in_turn("packaged_livesave_saves_by_cron", by_cron)]
}

/// The installed package; purged when dropped.
struct Installed;

impl Installed {
    fn install() -> Result<(Self, Duration)> {
        let installed = Self;
        let took = dpkg(&["-i", PACKAGE])?.took;
        Ok((installed, took))
    }

    /// The files that it brought.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let listed = dpkg(&["-L", "livesave"])?.stdout;
        let paths = listed.lines().map(PathBuf::from);
        Ok(paths.filter(|path| path.is_file()).collect())
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // Already done, where the test came so far.
        let _ = process::run(Command::new("dpkg").args(["-P", "livesave"]), LIMIT);
    }
}

fn dpkg(args: &[&str]) -> Result<Finished> {
    process::check(Command::new("dpkg").args(args), LIMIT)
}

/// Runs a command line with what cron gives it: a shell and next to no environment.
fn as_cron(bench: &Bench, line: &str) -> Result<Finished> {
    let mut shell = Command::new("/bin/sh");
    shell
        .env_clear()
        .envs([
            ("PATH", "/usr/bin:/bin"),
            ("HOME", "/root"),
            ("SHELL", "/bin/sh"),
        ])
        .args(["-c", line])
        .current_dir("/root");
    let finished = process::run(&mut shell, livesave::LIMIT)?;
    bench.livesave.note(&finished)?;
    Ok(finished)
}

/// The same; it must end with that code.
fn must_end(bench: &Bench, line: &str, code: i32) -> Result<Finished> {
    let finished = as_cron(bench, line)?;
    if finished.code() != code {
        bail!(
            "{line} ended with {}, not {code}: {}",
            finished.code(),
            finished.tail()
        );
    }
    Ok(finished)
}

fn by_cron(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    let (installed, took) = Installed::install()?;
    let files = installed.files()?;
    let dir = bench.image("periodic");
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    let save = format!("livesave {} --dir {}", guest.spec.name, dir.display());

    let quiet = must_end(bench, &format!("{save} -q --keep-last 1"), 0)?;
    if !quiet.stdout.is_empty() {
        bail!("cron would mail this: {}", quiet.stdout);
    }
    let first = only_image(&dir)?;
    let logged = must_end(bench, &format!("{save} --json --json-log --keep-last 1"), 0)?;
    let second = only_image(&dir)?;
    if first == second {
        bail!("the second save left the first image, {}", first.display());
    }
    let report = logged_well(&logged, &first, &second)?;
    bench.must_be_unharmed(&guest)?;
    guest.verify_clean()?;
    refused_for_room(bench, &guest, &save, &dir, &second)?;
    image::stock_verify(&second)?;

    let status = must_end(
        bench,
        &format!("livesave status {} --max-age 10m", dir.display()),
        0,
    )?;
    let wanted = format!("LIVESAVE OK - {} ", guest.spec.name);
    if !status.stdout.starts_with(&wanted) {
        bail!("status says {:?}", status.stdout);
    }
    let list = must_end(bench, &format!("livesave list {}", dir.display()), 0)?;
    let name = second.file_name().unwrap_or_default().to_string_lossy();
    let mut rows = list.stdout.lines();
    if list.stdout.lines().count() != 2 || !rows.any(|row| row.ends_with(&*name)) {
        bail!("list shows {:?}", list.stdout);
    }
    leaves_nothing(&files)?;
    drop(installed);
    Ok(format!(
        "{} files installed in {:.1} s and removed, second save {:.1} s, window {:.3} s",
        files.len(),
        took.as_secs_f64(),
        report.total_s,
        report.window.total_s
    ))
}

/// The one image that the directory holds.
fn only_image(dir: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    match entries.as_slice() {
        [one] => Ok(one.path()),
        _ => Err(Harm.because(format!(
            "{} holds {entries:?}, not one image",
            dir.display()
        ))),
    }
}

/// The log is JSON lines that tell of the whole save, the last one with the report; which is that on
/// standard output, and tells what was pruned.
fn logged_well(finished: &Finished, removed: &Path, saved: &Path) -> Result<Report> {
    let report: Report = serde_json::from_str(&finished.stdout).context("the report")?;
    let lines: Vec<Value> = finished
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect::<Result<_>>()?;
    let events: Vec<_> = lines
        .iter()
        .filter_map(|line| line["event"].as_str())
        .collect();
    for wanted in [
        "started",
        "round-started",
        "round-ended",
        "suspending",
        "resumed",
        "flushing",
    ] {
        if !events.contains(&wanted) {
            bail!("there is no {wanted} among the events {events:?}");
        }
    }
    let last = lines.last().context("nothing was logged")?;
    if last["event"] != "saved" || last["total_s"] != report.total_s {
        bail!("the log ends with {last}");
    }
    let pruned = &last["pruned"]["removed"];
    if *pruned != serde_json::json!([removed]) {
        bail!("the log tells of {pruned} as removed");
    }
    if report.image != saved {
        bail!(
            "{} was saved, {} is there",
            report.image.display(),
            saved.display()
        );
    }
    Ok(report)
}

/// Where too little would stay free the guest is not touched.
fn refused_for_room(
    bench: &Bench,
    guest: &Guest,
    save: &str,
    dir: &Path,
    image: &Path,
) -> Result<()> {
    let refused = must_end(
        bench,
        &format!("{save} --keep-free 100% --keep-last 1"),
        exit::NOT_WRITTEN,
    )?;
    if !refused.stderr.contains("nothing was done to the guest") {
        bail!("refused without the reason: {}", refused.tail());
    }
    if only_image(dir)? != image {
        bail!("a save that was refused removed an image");
    }
    bench.must_be_unharmed(guest)
}

fn leaves_nothing(files: &[PathBuf]) -> Result<()> {
    for wanted in [
        "/usr/bin/livesave",
        CONFFILE,
        "/usr/share/man/man1/livesave-list.1.gz",
    ] {
        if !files.contains(&PathBuf::from(wanted)) {
            bail!("the package has no {wanted}");
        }
    }
    let left = || {
        files
            .iter()
            .filter(|file| file.exists())
            .collect::<Vec<_>>()
    };
    dpkg(&["-r", "livesave"])?;
    if left() != [Path::new(CONFFILE)] {
        bail!("removed, the package left {:?}", left());
    }
    dpkg(&["-P", "livesave"])?;
    if !left().is_empty() || Path::new("/var/lib/livesave").exists() {
        bail!("purged, the package left {:?} or /var/lib/livesave", left());
    }
    Ok(())
}
