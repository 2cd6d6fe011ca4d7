//! What a run gave, and the file in which the runs of a sweep stand.
//!
//! `runs.jsonl`: one JSON object a line, appended when a run has ended, never changed. A line that was
//! cut off by a kill is the last one and is left out.

use super::case::Planned;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// The name of the file in a directory of results.
pub const RUNS: &str = "runs.jsonl";

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "why")]
pub enum Outcome {
    /// It was measured.
    Good,
    /// The method failed or harmed the guest: that counts against the method.
    Method(String),
    /// livesave does not save guests of this kind so on this Xen, and said so: it counts against nobody and is not
    /// made again.
    Refused(String),
    /// The machine spoilt it (an emulator that stood still, a guest that did not boot): it counts
    /// against nobody and is made again.
    Machine(String),
}

/// One pass over the pages that were dirty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// Pages sent or written.
    pub pages: u64,
    /// Bytes written for them, where that is known.
    pub bytes: Option<u64>,
    /// Seconds, where they are known.
    pub seconds: Option<f64>,
    /// Pages found dirty at its end, where that is known.
    pub dirty_pages: Option<u64>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Longest time for which the guest stood still, by its own clock, in seconds.
    pub gap_s: f64,
    /// Time for which the host saw it suspended, in seconds; `None` where nobody looked.
    pub suspended_s: Option<f64>,
    /// From the command's start to its end, in seconds.
    pub total_s: f64,
    /// Passes while the guest ran, in their order; the last pages, in the pause, are not among them.
    pub rounds: Vec<Pass>,
    /// Pages copied in the pause, where that is known.
    pub pause_pages: Option<u64>,
    /// Pages written or sent, over all rounds and the pause.
    pub pages_sent: u64,
    /// Bytes written to the image's file over all rounds and the pause; rewritten ones count again.
    pub bytes_written: u64,
    /// Pages that the guest wrote per second before the save (writes, not different pages).
    pub writes_per_s: f64,
    /// Different pages dirtied per second, as the method saw it; `None` where it does not tell.
    pub dirty_pages_per_s: Option<f64>,
    /// Bytes that went over a network (or its loopback), both ways.
    pub network_bytes: u64,
    /// Length of the image.
    pub image_bytes: u64,
    /// What its file system has allocated for it.
    pub allocated_bytes: u64,
    /// CPU time of the host's side (dom0), in seconds.
    pub host_cpu_s: f64,
    /// Largest resident memory of any one process of the method, in bytes.
    pub peak_memory: u64,
    /// Work that the guest did not do for the save, in seconds of its work before; negative where it
    /// did more. Always there in what is stored; reports leave it out where it means nothing.
    pub work_lost_s: Option<f64>,
    /// livesave's forecast of the pause when it began it, in seconds.
    pub predicted_s: Option<f64>,
    /// The pause as livesave measured it, in seconds: what the forecast is of.
    pub window_s: Option<f64>,
    /// Whether the pause was as short as asked for, by livesave's account.
    pub target_met: Option<bool>,
    /// How long livesave throttled the guest, in seconds; 0 if it did not.
    pub throttled_s: Option<f64>,
    /// Longest time for which the machine itself stood still meanwhile, by a witness in the host.
    pub machine_stall_s: f64,
}

/// Seconds of the guest's work before that it did not do: `written` pages in `elapsed_s` seconds, at a
/// pace of so many per second. A guest without any has none to lose.
#[must_use]
pub fn work_lost(pace: f64, written: u64, elapsed_s: f64) -> f64 {
    if pace < 1.0 {
        return 0.0;
    }
    elapsed_s - written as f64 / pace
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`Planned::id`].
    pub id: String,
    /// What was to be measured.
    #[serde(flatten)]
    pub planned: Planned,
    /// 1 and up: runs that the machine spoilt are made again.
    pub attempt: u32,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// What it gave; always there if it is good.
    pub measured: Option<Measured>,
}

impl Run {
    /// What a good run gave.
    #[must_use]
    pub fn good(&self) -> Option<&Measured> {
        match self.outcome {
            Outcome::Good => self.measured.as_ref(),
            _ => None,
        }
    }
}

/// The runs of a sweep, in a file that is only ever appended to.
pub struct Store {
    path: PathBuf,
    file: File,
    /// All of them, in the order in which they were made.
    pub runs: Vec<Run>,
}

impl Store {
    /// Opens the directory's runs, or begins them. A torn last line is cut off.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join(RUNS);
        let (runs, whole) = if path.exists() {
            read_lines(&path)?
        } else {
            (Vec::new(), 0)
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.set_len(whole)
            .with_context(|| format!("cannot cut off the torn end of {}", path.display()))?;
        Ok(Self { path, file, runs })
    }

    /// Adds a run; it is on the disk when this returns.
    pub fn add(&mut self, run: Run) -> Result<()> {
        let mut line = serde_json::to_string(&run)?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.runs.push(run);
        Ok(())
    }

    /// Adds those runs of another file that are not here yet.
    pub fn take_over(&mut self, other: Vec<Run>) -> Result<()> {
        let key = |run: &Run| (run.id.clone(), run.attempt, run.began);
        let known: HashSet<_> = self.runs.iter().map(key).collect();
        let new = other.into_iter().filter(|run| !known.contains(&key(run)));
        new.into_iter().try_for_each(|run| self.add(run))
    }

    /// The runs that need not be made again: measured, refused, or failed by their method.
    #[must_use]
    pub fn settled(&self) -> HashSet<&str> {
        let settled = |run: &&Run| !matches!(run.outcome, Outcome::Machine(_));
        let runs = self.runs.iter().filter(settled);
        runs.map(|run| run.id.as_str()).collect()
    }

    /// How often a run was tried.
    #[must_use]
    pub fn attempts(&self, id: &str) -> u32 {
        self.runs.iter().filter(|run| run.id == id).count() as u32
    }
}

/// Reads the runs of a directory of results, or of a `runs.jsonl`.
pub fn read(path: &Path) -> Result<Vec<Run>> {
    let path = if path.is_dir() {
        path.join(RUNS)
    } else {
        path.to_owned()
    };
    Ok(read_lines(&path)?.0)
}

/// The runs, and how many bytes of the file are whole lines.
fn read_lines(path: &Path) -> Result<(Vec<Run>, u64)> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut runs, mut whole) = (Vec::new(), 0);
    let mut line = String::new();
    loop {
        line.clear();
        let len = reader
            .read_line(&mut line)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if len == 0 || !line.ends_with('\n') {
            return Ok((runs, whole));
        }
        match serde_json::from_str(&line) {
            Ok(run) => runs.push(run),
            Err(err) => bail!(
                "{}, line {}: not a run of livesave-experiments: {err}",
                path.display(),
                runs.len() + 1
            ),
        }
        whole += len as u64;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::case::{Backend, Case, GuestKind, Load, Method};
    use super::*;

    /// A good run of that case's method, with a gap of so many seconds.
    pub(crate) fn run(method: Method, rate: &str, repeat: u32, gap_s: f64) -> Run {
        let planned = Planned {
            case: Case {
                study: "rates".into(),
                backend: Backend::Xen,
                guest: GuestKind::Pvh,
                memory_mib: 256,
                vcpus: 1,
                cap: None,
                load: Load {
                    pattern: "ring".into(),
                    rate: rate.into(),
                },
                method,
                target_ms: None,
                dirty_percent: None,
            },
            repeat,
        };
        Run {
            id: planned.id(),
            planned,
            attempt: 1,
            began: 1_764_000_000,
            outcome: Outcome::Good,
            measured: Some(Measured {
                gap_s,
                suspended_s: Some(gap_s * 0.9),
                total_s: 4.0,
                rounds: vec![Pass {
                    pages: 65_536,
                    bytes: Some(65_536 * 4096),
                    seconds: Some(3.0),
                    dirty_pages: Some(5000),
                }],
                pause_pages: Some(200),
                pages_sent: 66_000,
                bytes_written: 66_000 * 4096,
                writes_per_s: 5000.0,
                dirty_pages_per_s: Some(4000.0),
                network_bytes: 0,
                image_bytes: 66_000 * 4096,
                allocated_bytes: 60_000 * 4096,
                host_cpu_s: 3.5,
                peak_memory: 30 << 20,
                work_lost_s: Some(0.2),
                predicted_s: Some(gap_s),
                window_s: Some(gap_s),
                target_met: Some(true),
                throttled_s: Some(0.0),
                machine_stall_s: 0.004,
            }),
        }
    }

    #[test]
    fn what_was_added_is_read_again_and_a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.add(run(Method::Live, "100", 0, 0.1)).unwrap();
        let mut spoilt = run(Method::Plain, "100", 0, 4.0);
        spoilt.outcome = Outcome::Machine("it stood still".into());
        store.add(spoilt).unwrap();
        let mut file = OpenOptions::new()
            .append(true)
            .open(dir.path().join(RUNS))
            .unwrap();
        file.write_all(b"{\"id\": \"torn").unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.runs.len(), 2);
        assert_eq!(store.settled().len(), 1);
        let plain = run(Method::Plain, "100", 0, 4.0);
        assert_eq!(store.attempts(&plain.id), 1);
        store.add(plain).unwrap();
        assert_eq!(read(dir.path()).unwrap(), store.runs);
        assert_eq!(store.settled().len(), 2);
    }

    #[test]
    fn lost_work_is_counted_in_seconds_of_the_pace_before() {
        assert_eq!(work_lost(1000.0, 1500, 2.0), 0.5);
        assert_eq!(work_lost(1000.0, 3500, 4.0), 0.5);
        assert_eq!(work_lost(1000.0, 2500, 2.0), -0.5);
        assert_eq!(work_lost(0.0, 0, 2.0), 0.0);
        assert_eq!(work_lost(0.0, 3500, 4.0), 0.0);
    }

    #[test]
    fn runs_are_taken_over_once() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut store = Store::open(dir.path()).unwrap();
        let mut second = Store::open(other.path()).unwrap();
        let (one, two) = (
            run(Method::Live, "100", 0, 0.1),
            run(Method::Live, "100", 1, 0.1),
        );
        store.add(one.clone()).unwrap();
        second.add(one).unwrap();
        second.add(two).unwrap();
        for _ in 0..2 {
            store.take_over(read(other.path()).unwrap()).unwrap();
        }
        assert_eq!(store.runs, second.runs);
    }

    #[test]
    fn what_is_no_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RUNS), "{}\n").unwrap();
        let err = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(err.contains("line 1"), "{err}");
    }
}
