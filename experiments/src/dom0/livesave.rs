//! Running the command under test, and reading its report.

use super::process::{self, Finished, Running};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use snapshot::disks::DiskFacts;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Enough for any save here; its own time limits are far below.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Exit codes that `livesave --help` documents.
pub mod exit {
    /// No such domain, or not one that can be saved.
    pub const NOT_SAVABLE: i32 = 3;
    /// Xen cannot be used here.
    pub const NO_XEN: i32 = 4;
    /// The guest did not suspend in time.
    pub const NOT_SUSPENDED: i32 = 5;
    /// The image could not be written.
    pub const NOT_WRITTEN: i32 = 6;
    /// The domain went away during the save.
    pub const GONE: i32 = 7;
    /// The file is not an image, or a damaged one.
    pub const BAD_IMAGE: i32 = 8;
    /// The pause would have been longer than asked for.
    pub const TARGET_MISSED: i32 = 9;
    /// The guest cannot be restored here and now.
    pub const NOT_RESTORABLE: i32 = 10;
    /// There is no snapshot of a disk to be had.
    pub const NO_DISK_SNAPSHOT: i32 = 12;
}

/// What `--json` prints; only what the tests and tables look at.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// `plain`, `live` or `improved`.
    pub mode: String,
    /// The image.
    pub image: PathBuf,
    /// Its length.
    pub image_bytes: u64,
    /// What is allocated for it.
    pub allocated_bytes: u64,
    /// Pages of the guest in the image.
    pub memory_pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// One entry for each pass while the guest ran.
    pub rounds: Vec<Round>,
    /// Why no further round was made.
    pub stop: String,
    /// The pause window.
    pub window: Window,
    /// Whether it was as short as asked for; not of a plain save.
    pub target: Option<Target>,
    /// How the guest was throttled, if it was.
    pub brownout: Option<Brownout>,
    /// Seconds from start to end.
    pub total_s: f64,
    /// What an increment is built on.
    #[serde(default)]
    pub parent: Option<serde_json::Value>,
    /// The disks at the cut, if they were saved.
    #[serde(default)]
    pub disks: Option<DiskFacts>,
}

impl Report {
    /// Pages written to the image over all rounds and the window; zero pages are holes.
    #[must_use]
    pub fn pages_written(&self) -> u64 {
        let rounds: u64 = self.rounds.iter().map(|round| round.bytes).sum();
        let window = &self.window;
        (rounds + window.captured_bytes + window.written_in_window_bytes) / 4096
    }
}

/// The pause asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Target {
    /// Seconds.
    pub max_downtime_s: f64,
    /// Whether the window was no longer.
    pub met: bool,
}

/// How the guest was throttled.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Brownout {
    /// By what.
    pub means: String,
    /// For how long.
    pub seconds: f64,
    /// The limits in their order.
    pub caps: Vec<Cap>,
    /// CPU time that the guest would have used more.
    pub cpu_lost_s: f64,
}

/// One limit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cap {
    /// Percent of one CPU.
    pub cap: u32,
    /// How long it stood.
    pub seconds: f64,
}

/// One pass over the pages dirtied since the last.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Round {
    /// Pages copied.
    pub pages: u64,
    /// They were copied to memory.
    #[serde(default)]
    pub held: bool,
    /// Bytes written for them.
    pub bytes: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Pages found dirty at its end.
    pub dirty_pages: u64,
    /// The pause foretold after it.
    pub window_s: f64,
}

/// The pause window, in seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Window {
    /// From the request to the suspended guest.
    pub suspend_s: f64,
    /// Stopping the emulator of an HVM guest and taking its state; 0 for others.
    #[serde(default)]
    pub emulator_s: f64,
    /// Fetching the last dirty set.
    pub dirty_fetch_s: f64,
    /// Copying it to memory.
    pub copy_s: f64,
    /// Reading the state of vCPUs and devices.
    pub state_s: f64,
    /// Waiting for the disks to be held.
    pub disks_s: f64,
    /// Letting the guest run again.
    pub resume_s: f64,
    /// All of it.
    pub total_s: f64,
    /// The guest's own share of it.
    pub suspended_s: f64,
    /// Pages in the last dirty set.
    pub pages: u64,
    /// Bytes held in memory until after it.
    pub captured_bytes: u64,
    /// Bytes written to the image within it.
    pub written_in_window_bytes: u64,
    /// What it was foretold to be.
    pub predicted_s: f64,
    /// Pages left when the guest was asked to suspend.
    pub left_pages: u64,
    /// Pages that it dirtied per second before.
    pub dirty_rate: f64,
}

/// The livesave binary under test.
#[derive(Clone, Debug)]
pub struct Livesave {
    /// Where it is.
    pub binary: PathBuf,
    /// What it says is kept here.
    pub log: PathBuf,
}

impl Livesave {
    /// `livesave ARGS…`, not started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args);
        command
    }

    /// Saves a domain; it must succeed. Returns the report, and how long the
    /// whole command took.
    pub fn save(&self, domain: &str, image: &Path, more: &[&str]) -> Result<(Report, Duration)> {
        let finished = self.start(domain, image, more)?.wait(LIMIT)?;
        self.note(&finished)?;
        if !finished.status.success() {
            bail!(
                "livesave ended with {}: {}",
                finished.code(),
                finished.tail()
            );
        }
        let report = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("report is not as documented: {}", finished.stdout))?;
        Ok((report, finished.took))
    }

    /// Starts a save in the background.
    pub fn start(&self, domain: &str, image: &Path, more: &[&str]) -> Result<Running> {
        process::start(&mut self.save_command(domain, image, more))
    }

    /// Runs a save that must fail with that exit code, and says why.
    pub fn must_fail(
        &self,
        domain: &str,
        image: &Path,
        more: &[&str],
        code: i32,
    ) -> Result<Finished> {
        self.failed(self.start(domain, image, more)?, code)
    }

    /// A save that runs must fail with that exit code, and say why.
    pub fn failed(&self, running: Running, code: i32) -> Result<Finished> {
        let finished = running.wait(LIMIT)?;
        self.note(&finished)?;
        must_have_failed(&finished, code)?;
        Ok(finished)
    }

    /// Keeps what a finished livesave said.
    pub fn note(&self, finished: &Finished) -> Result<()> {
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{}", self.log.display()))?;
        write!(
            log,
            "{}{}-- exit code {} after {:.2} s\n\n",
            finished.stderr,
            finished.stdout,
            finished.code(),
            finished.took.as_secs_f64()
        )?;
        Ok(())
    }

    /// `livesave save DOMAIN --json -o IMAGE MORE…`, not started.
    #[must_use]
    pub fn save_command(&self, domain: &str, image: &Path, more: &[&str]) -> Command {
        let mut command = self.command(&["save", domain, "--json", "-o"]);
        command.arg(image).args(more);
        command
    }
}

/// The exit code must be that one, with a message and no report.
fn must_have_failed(finished: &Finished, code: i32) -> Result<()> {
    if finished.code() != code {
        bail!(
            "exit code {}, not {code}: {}",
            finished.code(),
            finished.tail()
        );
    }
    if finished.stderr.trim().is_empty() {
        bail!("failed without a word");
    }
    if !finished.stdout.trim().is_empty() {
        bail!("printed a report of a failed save: {}", finished.stdout);
    }
    Ok(())
}
