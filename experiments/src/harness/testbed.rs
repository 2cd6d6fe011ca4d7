//! A sweep on the real Xen of the testbed: boots it, runs the harness in its dom0, brings the runs
//! back; and boots it again where that did not end.

use super::case::GuestKind;
use super::manifest::MANIFEST;
use super::plan::Plan;
use super::record::{self, RUNS, Store};
use super::sweep::open_runs;
use crate::dom0::process::signal_process;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Memory of a dom0 that need not hold large images, in MiB; the testbed's default.
const DOM0_MIB: u64 = 3072;
/// Of dom0's memory for the emulator of an HVM guest, in MiB; of a migrated one there are two.
const EMULATOR_MIB: u64 = 160;
/// For Xen itself, in MiB.
const XEN_MIB: u64 = 640;

/// How the testbed is started.
#[derive(Clone, Debug)]
pub struct Testbed {
    /// `experiments/testbed/run` of a source tree.
    pub script: PathBuf,
    /// The plan's text.
    pub plan: String,
    /// What changes the plan: more arguments for the harness in dom0, without blanks in them.
    pub arguments: Vec<String>,
    /// Minutes from the boot on, for all of it.
    pub minutes: u64,
    /// It is booted so often at most.
    pub boots: u32,
    /// Take the binaries that are there.
    pub no_build: bool,
    /// Xen's scheduler.
    pub scheduler: String,
}

/// Where the last boot's own results are, beside the runs: consoles and logs.
const BOOT: &str = "testbed";

/// The name of the plan in what dom0 is given.
const PLAN: &str = "plan.toml";

impl Testbed {
    /// Makes the runs that the directory does not have yet. `false` if some are left.
    pub fn run(&self, plan: &Plan, results: &Path, stop: &AtomicBool) -> Result<bool> {
        if !self.script.exists() {
            bail!(
                "{} is not there: start this in livesave's source tree, or say --testbed",
                self.script.display()
            );
        }
        // What a boot has left whose harness was killed.
        bring_back(results)?;
        for boot in 0..self.boots {
            let before = open(plan, results)?;
            if before == 0 {
                return Ok(true);
            }
            let status = self.boot(plan, results, boot > 0 || self.no_build, stop)?;
            let after = open(plan, results)?;
            if after == 0 {
                return Ok(true);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            // It is not booted again for nothing.
            if after >= before {
                bail!("the testbed ended with {status}, and no run was made; see its console");
            }
            eprintln!("the testbed ended with {status}; {after} runs are left, again");
        }
        Ok(false)
    }

    fn boot(
        &self,
        plan: &Plan,
        results: &Path,
        no_build: bool,
        stop: &AtomicBool,
    ) -> Result<String> {
        let extra = tempfile::tempdir().context("cannot make a directory")?;
        let extra = extra.path();
        fs::write(extra.join(PLAN), &self.plan)?;
        for name in [RUNS, MANIFEST] {
            if results.join(name).exists() {
                fs::copy(results.join(name), extra.join(name))?;
            }
        }
        fs::write(extra.join("arguments"), self.arguments.join(" "))?;
        fs::write(extra.join("commit"), commit().unwrap_or_default())?;
        let back = results.join(BOOT);
        if back.exists() {
            fs::remove_dir_all(&back)
                .with_context(|| format!("cannot remove {}", back.display()))?;
        }
        let (machine, dom0) = memory(plan);
        let mut command = Command::new(&self.script);
        command
            .args(["--sched", &self.scheduler, "--timeout"])
            .arg(self.minutes.to_string())
            .args(["--memory", &machine.to_string()])
            .args(["--dom0-memory", &dom0.to_string(), "--extra"])
            .arg(extra)
            .arg("--results")
            .arg(&back)
            .args(["--shell-command", IN_DOM0]);
        if no_build {
            command.arg("--no-build");
        }
        let status = wait(&mut command, stop)?;
        bring_back(results)?;
        Ok(status.to_string())
    }
}

/// Runs the script to its end; asked to stop, it brings back what there is.
fn wait(command: &mut Command, stop: &AtomicBool) -> Result<ExitStatus> {
    let mut child = command
        .spawn()
        .with_context(|| format!("{command:?} could not be started"))?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) && !told {
            told = true;
            signal_process(child.id(), Signal::TERM)?;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Takes over what the last boot has measured.
fn bring_back(results: &Path) -> Result<()> {
    let from = results.join(BOOT).join("experiments");
    if from.join(RUNS).exists() {
        Store::open(results)?.take_over(record::read(&from)?)?;
    }
    // Dom0 was given those before, and has added its own.
    if from.join(MANIFEST).exists() {
        fs::copy(from.join(MANIFEST), results.join(MANIFEST))
            .context("cannot bring back the manifest")?;
    }
    Ok(())
}

/// What dom0 does.
const IN_DOM0: &str = "\
set -e
mkdir -p /results/experiments
for name in runs.jsonl manifest.json; do
  if [ -e /payload/extra/$name ]; then cp /payload/extra/$name /results/experiments/; fi
done
exec /payload/livesave-experiments run --on-this-dom0 /payload/extra/plan.toml \\
  --testbed-dom0 --commit \"$(cat /payload/extra/commit)\" --results /results/experiments $(cat /payload/extra/arguments)";

/// How many runs are still to be made.
fn open(plan: &Plan, results: &Path) -> Result<usize> {
    Ok(open_runs(plan, &Store::open(results)?).len())
}

/// Memory of the machine and of dom0 in MiB, for the plan's largest guest: twice beside dom0 (a
/// migrated guest is there twice), and its image on a tmpfs of 0.7 of dom0's memory: stock images hold
/// zero pages, and rewritten pages twice and more. An HVM guest's video memory is part of its memory;
/// its emulator is a process in dom0.
fn memory(plan: &Plan) -> (u64, u64) {
    let runs = plan.runs();
    let cases = || runs.iter().map(|run| &run.case);
    let largest = cases().map(|case| case.memory_mib).max().unwrap_or(0);
    let moved = cases().filter(|case| case.method == super::case::Method::Migration);
    let moved = moved.map(|case| case.memory_mib).max().unwrap_or(0);
    let emulated = cases().any(|case| case.guest == GuestKind::Hvm);
    let emulators = u64::from(emulated) * 2 * EMULATOR_MIB;
    let dom0 = DOM0_MIB.max(largest * 2 + 1024) + emulators;
    (dom0 + XEN_MIB + largest.max(2 * moved).max(1024), dom0)
}

/// The commit of the source tree, and whether it was changed.
#[must_use]
pub fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let head = git(&["rev-parse", "HEAD"])?;
    let changed = git(&["status", "--porcelain"]).is_none_or(|text| !text.is_empty());
    Some(if changed { head + ", changed" } else { head })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_room_for_the_largest_guest_and_its_image() {
        let plan = |memory: u64, method: &str| {
            let text = format!(
                "[[study]]\nname = \"a\"\nguests = [\"pvh\"]\nmemory = [{memory}]\n\
                 loads = [\"100\"]\nmethods = [\"{method}\"]\n"
            );
            Plan::parse(&text).unwrap()
        };
        assert_eq!(memory(&plan(256, "live")), (3072 + 640 + 1024, 3072));
        let text = "[[study]]\nname = \"a\"\nguests = [\"pvh\", \"hvm\"]\nmemory = [256]\n\
                    loads = [\"100\"]\nmethods = [\"live\"]\n";
        let (_, dom0) = memory(&Plan::parse(text).unwrap());
        assert_eq!(dom0, 3072 + 320);
        let (machine, dom0) = memory(&plan(4096, "migration"));
        assert!(dom0 > 4096 + 1024 && machine >= dom0 + 2 * 4096);
    }
}
