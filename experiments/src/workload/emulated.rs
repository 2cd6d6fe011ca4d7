//! Pages that no CPU of the guest writes: its emulator does, with what is read from an emulated disk.
//!
//! The hypervisor does not see such writes; a save that has not told the emulator to report them has
//! stale pages. The disk holds [`GENERATIONS`] contents for each page, which are read one after the
//! other, past the page cache. Which one a page has is remembered in memory that the CPU writes. So
//! a stale page is told from a right one.

use super::looks::{Asked, Asker, looks};
use super::output::Output;
use super::pattern::{Page, Stamp};
use super::sys;
use super::writer::{Verdict, area_seed, report_mismatch};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Pages that are read.
pub const PAGES: u64 = 256;
/// Contents that each may have.
pub const GENERATIONS: u64 = 8;
/// How many pages stand for all where they are named one by one.
const SAMPLE: usize = 16;
/// The number of the area ([`area_seed`]).
const AREA: u64 = 1001;
/// Between two reads. The CPU waits in one for its emulator, some 40 ms on an emulated Xen, and runs nothing
/// else meanwhile: with a shorter pause a check of all pages took longer than anybody waits for it.
const PAUSE: Duration = Duration::from_millis(20);
/// The kernel looks for disks for so long.
const PROBE_LIMIT: Duration = Duration::from_secs(60);

/// What the reader shows the other threads.
#[derive(Default)]
pub struct Progress {
    /// Pages read so far.
    pub read: AtomicU64,
    /// Reads that failed, and pages that were wrong.
    pub bad: AtomicU64,
}

/// A thread that reads.
pub struct EmulatedReads {
    /// Counters, live.
    pub progress: Arc<Progress>,
    /// Asks for a check of all pages.
    pub verify: Asker<Verdict>,
    /// Frame numbers of some of the pages.
    frames: Vec<u64>,
}

/// What a page holds.
fn stamp(seed: u64, page: u64, generation: u64) -> Stamp {
    Stamp {
        seed: area_seed(seed, AREA),
        page,
        seq: generation,
        body: generation,
    }
}

/// Fills the disk (or its file) of a guest with that seed. Done by dom0.
pub fn fill_disk(path: &Path, seed: u64) -> io::Result<()> {
    let disk = File::create(path)?;
    let mut page = Page::zero();
    for generation in 0..GENERATIONS {
        for index in 0..PAGES {
            page.fill(stamp(seed, index, generation));
            disk.write_all_at(page.as_bytes(), place(index, generation))?;
        }
    }
    disk.sync_data()
}

fn place(page: u64, generation: u64) -> u64 {
    (generation * PAGES + page) * 4096
}

impl EmulatedReads {
    /// Waits for the disk, then starts to read from it.
    pub fn start(name: &str, seed: u64, out: &Output) -> io::Result<Self> {
        let disk = open(Path::new("/dev").join(name).as_path())?;
        let progress = Arc::new(Progress::default());
        let (verify, asked) = looks();
        let (frames, told) = channel();
        let mut area = Area {
            seed,
            pages: vec![Page::zero(); PAGES as usize],
            holds: vec![None; PAGES as usize],
            progress: Arc::clone(&progress),
            out: out.clone(),
        };
        thread::spawn(move || {
            // Once each, so that frames are there.
            (0..PAGES).for_each(|turn| area.read_next(&disk, turn));
            let _ = frames.send(area.frames());
            area.run(&disk, &asked);
        });
        let frames = told.recv().map_err(io::Error::other)??;
        Ok(Self {
            progress,
            verify,
            frames,
        })
    }

    /// Frame numbers of some of the pages.
    #[must_use]
    pub fn frames(&self) -> &[u64] {
        &self.frames
    }
}

fn open(path: &Path) -> io::Result<File> {
    let began = Instant::now();
    loop {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        match opened {
            Err(err) if began.elapsed() > PROBE_LIMIT => return Err(err),
            Err(_) => thread::sleep(Duration::from_millis(100)),
            Ok(disk) => return Ok(disk),
        }
    }
}

struct Area {
    seed: u64,
    pages: Vec<Page>,
    /// Generation that each page holds.
    holds: Vec<Option<u64>>,
    progress: Arc<Progress>,
    out: Output,
}

impl Area {
    fn run(&mut self, disk: &File, asked: &Asked<Verdict>) {
        for turn in PAGES.. {
            asked.answer(|| self.verify());
            self.read_next(disk, turn);
            thread::sleep(PAUSE);
        }
    }

    fn read_next(&mut self, disk: &File, turn: u64) {
        let (index, generation) = (turn % PAGES, turn / PAGES % GENERATIONS);
        // A stale page would be covered up.
        if self.holds[index as usize].is_some() {
            self.check(index as usize);
        }
        let page = &mut self.pages[index as usize];
        // Whatever it is until the read has ended, nobody looks: the look is this thread's own.
        match disk.read_exact_at(page.as_bytes_mut(), place(index, generation)) {
            Ok(()) => self.holds[index as usize] = Some(generation),
            Err(err) => {
                self.holds[index as usize] = None;
                if self.progress.bad.fetch_add(1, Ordering::Relaxed) < 3 {
                    self.out.error("emulated disk", err);
                }
            }
        }
        self.check(index as usize);
        self.progress.read.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the page if it is not as it must be.
    fn check(&self, index: usize) {
        let Some(generation) = self.holds[index] else {
            return;
        };
        let stamp = stamp(self.seed, index as u64, generation);
        if let Err(mismatch) = self.pages[index].check(stamp) {
            let before = self.progress.bad.fetch_add(1, Ordering::Relaxed);
            report_mismatch(&self.out, before, stamp, mismatch);
        }
    }

    /// Looks at all pages. What was found in passing counts too: reading goes on, and covers it up
    /// before anybody asks.
    fn verify(&self) -> Verdict {
        let unread = self.holds.iter().filter(|holds| holds.is_none()).count() as u64;
        (0..self.pages.len()).for_each(|index| self.check(index));
        Verdict {
            seq: 0,
            pages: PAGES,
            bad: unread + self.progress.bad.load(Ordering::Relaxed),
        }
    }

    /// Frame numbers of some of the pages, spread over all of them.
    fn frames(&self) -> io::Result<Vec<u64>> {
        let step = self.pages.len() / SAMPLE;
        let sample = self.pages.iter().step_by(step);
        sample
            .map(|page| sys::frame_of(std::ptr::from_ref(page).addr()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> Area {
        Area {
            seed: 5,
            pages: vec![Page::zero(); PAGES as usize],
            holds: vec![None; PAGES as usize],
            progress: Arc::default(),
            out: Output::to_stdout(),
        }
    }

    #[test]
    fn what_was_read_last_checks_and_what_was_read_before_does_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fill_disk(file.path(), 5).unwrap();
        let (mut area, disk) = (area(), File::open(file.path()).unwrap());
        assert_eq!(area.verify().bad, PAGES);
        let turns = PAGES * (GENERATIONS + 1);
        (0..turns).for_each(|turn| area.read_next(&disk, turn));
        assert_eq!(area.verify().bad, 0);
        assert_eq!(area.progress.bad.load(Ordering::Relaxed), 0);
        let stale = area.pages[7].clone();
        (turns..turns + PAGES).for_each(|turn| area.read_next(&disk, turn));
        assert_eq!(area.verify().bad, 0);
        area.pages[7] = stale;
        // It is found before the next read covers it up.
        let turns = turns + PAGES;
        (turns..turns + PAGES).for_each(|turn| area.read_next(&disk, turn));
        assert_eq!(area.verify().bad, 1);
    }

    #[test]
    fn a_read_that_fails_is_a_bad_page() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut area = area();
        area.read_next(&File::open(file.path()).unwrap(), 0);
        assert_eq!(area.progress.bad.load(Ordering::Relaxed), 1);
        assert_eq!(area.verify().bad, PAGES + 1);
    }
}
