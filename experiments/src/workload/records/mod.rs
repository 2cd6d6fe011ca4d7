//! Writes records to disks ([`crate::records`]) and tells whether memory and disks are of the same
//! instant: what the disks must hold stands in this process's locked memory and nowhere else.

mod disk;
#[cfg(test)]
mod tests;
mod writer;

pub use disk::Disk;
pub use writer::{Scan, Writer};

use super::config::{Config, Rate};
use super::faults::run;
use super::looks::{Asked, Asker, looks};
use super::output::Output;
use super::writer::Budget;
use crate::lines::Line;
use crate::records::block::Owner;
use crate::records::disk_number;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

/// A disk's front-end connects in a moment after its driver was loaded.
const DISK_LIMIT: Duration = Duration::from_secs(20);

/// An answer is due within so long: not while the disks are held still, or gone.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// All of a stack is locked memory, of which small guests have little.
const STACK: usize = 256 << 10;

/// After an I/O error the same record is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// What the writer shows the other threads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Acknowledged records of all disks.
    pub acked: AtomicU64,
    /// Places found wrong so far, in passing or on command.
    pub bad: AtomicU64,
    /// Failed reads and writes so far.
    pub err: AtomicU64,
}

impl Progress {
    /// The line with the three counters, for the heartbeat.
    #[must_use]
    pub fn add_to(&self, line: Line) -> Line {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        line.with("rec", get(&self.acked))
            .with("rec_bad", get(&self.bad))
            .with("rec_err", get(&self.err))
    }
}

/// The handle of the running writer.
pub struct Records {
    /// Counters, live.
    pub progress: Arc<Progress>,
    scan: Asker<Scan>,
}

impl Records {
    /// Starts writing, if the settings name any disk.
    pub fn start(config: &Config, out: &Output) -> io::Result<Option<Self>> {
        let mut disks = Vec::new();
        for vdev in &config.records {
            let device = wait_for(vdev)?;
            disks.push(Disk::raw(vdev, &device, owner(config, vdev)?)?);
        }
        for vdev in &config.files {
            let device = wait_for(vdev)?;
            let mounted = mount(vdev, &device)?;
            disks.push(Disk::files(vdev, &mounted, owner(config, vdev)?)?);
        }
        if disks.is_empty() {
            return Ok(None);
        }
        let progress = Arc::new(Progress::default());
        let mut writer = Writer::new(disks, Arc::clone(&progress), out.clone());
        let (scan, asked) = looks();
        let (rate, caches) = (config.record_rate, !config.files.is_empty());
        let out = out.clone();
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || write(&mut writer, rate, &asked, caches, &out))?;
        Ok(Some(Self { progress, scan }))
    }

    /// Has the writer look at every slot between two records, and says what it found.
    pub fn scan(&self) -> io::Result<Line> {
        let began = Instant::now();
        let answer = self.scan.ask().recv_timeout(ANSWER_LIMIT);
        let scan = answer.map_err(|why| {
            io::Error::other(match why {
                RecvTimeoutError::Disconnected => "the writer of records is gone",
                RecvTimeoutError::Timeout => "the writer of records waits for a disk",
            })
        })?;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Line::new("records")
            .with("slots", scan.slots)
            .with("files", scan.files)
            .with("bad", get(&self.progress.bad))
            .with("err", get(&self.progress.err))
            .with("acked", get(&self.progress.acked))
            .with("bad_now", scan.bad)
            .with("ms", began.elapsed().as_millis()))
    }
}

fn owner(config: &Config, vdev: &str) -> io::Result<Owner> {
    let disk =
        disk_number(vdev).ok_or_else(|| io::Error::other(format!("{vdev} has no number")))?;
    Ok(Owner {
        seed: config.seed,
        disk,
    })
}

fn wait_for(vdev: &str) -> io::Result<PathBuf> {
    let device = Path::new("/dev").join(vdev);
    let began = Instant::now();
    while !device.exists() {
        if began.elapsed() > DISK_LIMIT {
            return Err(io::Error::other(format!(
                "there is no {}",
                device.display()
            )));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(device)
}

/// Mounts the ext4 file system that dom0 has made.
fn mount(vdev: &str, device: &Path) -> io::Result<PathBuf> {
    let at = Path::new("/mnt").join(vdev);
    std::fs::create_dir_all(&at)?;
    let (from, to) = (device.display().to_string(), at.display().to_string());
    run("mount", &["-t", "ext4", &from, &to])?;
    // A record in several blocks could be there in part at an instant.
    if rustix::fs::statvfs(&at)?.f_bsize < 4096 {
        return Err(io::Error::other(format!(
            "{vdev} needs blocks of 4 KiB (mkfs.ext4 -b 4096)"
        )));
    }
    Ok(at)
}

fn write(writer: &mut Writer, rate: Rate, asked: &Asked<Scan>, caches: bool, out: &Output) {
    let mut budget = Budget::new();
    loop {
        let scanned = asked.answer(|| {
            // What the file system remembers is of memory's instant, not the disk's. What its
            // journal still holds stays: there e2fsck sees more, after the guest's end.
            if caches && let Err(err) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
                out.error("drop caches", err);
            }
            writer.scan()
        });
        if scanned {
            // Time spent looking is not owed as writes.
            budget = Budget::new();
        }
        let due = match rate {
            Rate::Max => 1,
            Rate::PagesPerSecond(rate) => budget.due(rate),
        };
        for _ in 0..due {
            if writer.step().is_err() {
                thread::sleep(RETRY);
                break;
            }
        }
        if rate != Rate::Max {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
