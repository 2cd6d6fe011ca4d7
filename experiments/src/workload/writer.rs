//! A writer thread: dirties its ring at the set rate, and knows what each page
//! of it must hold.

use super::config::{Pattern, Rate};
use super::looks::{Asked, Asker, looks};
use super::output::Output;
use super::pattern::{Extent, Mismatch, Page, Stamp};
use crate::lines::Line;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Pages in a MiB.
pub const PAGES_PER_MIB: u64 = 256;

/// Mismatches that are printed; all are counted.
const PRINTED_MISMATCHES: u64 = 8;

/// What a writer shows the other threads.
#[derive(Default)]
pub struct Progress {
    /// Writes done so far = sequence number of the last one.
    pub seq: AtomicU64,
    /// Pages found wrong so far, in passing or on command.
    pub bad: AtomicU64,
    /// Pages checked in passing so far.
    pub scrubbed: AtomicU64,
}

/// What a writer is told to do; may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// This writer's share of the rate.
    pub rate: Rate,
    /// Order of the pages.
    pub pattern: Pattern,
    /// Pages per second to check in passing.
    pub scrub: u64,
    /// What a write changes of its page.
    pub extent: Extent,
}

/// Result of a full check of one ring, or of the static area.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    /// Sequence number at which it was checked.
    pub seq: u64,
    /// Pages checked.
    pub pages: u64,
    /// Pages that were wrong.
    pub bad: u64,
}

/// The handle of a running writer.
pub struct Writer {
    /// Counters, live.
    pub progress: Arc<Progress>,
    orders: Arc<Mutex<Orders>>,
    /// Asks for a full check.
    pub verify: Asker<Verdict>,
}

impl Writer {
    /// Fills a ring of `pages` pages, then starts writing. `number` is the
    /// writer's number and the vCPU it is bound to.
    pub fn start(number: usize, seed: u64, pages: u64, orders: Orders, out: &Output) -> Self {
        let progress = Arc::new(Progress::default());
        let shared = Arc::new(Mutex::new(orders));
        let (verify, asked) = looks();
        let mut ring = Ring {
            // Area 0 is the static one.
            seed: area_seed(seed, number as u64 + 1),
            pages: vec![Page::zero(); pages as usize],
            holds: vec![0; pages as usize],
            bodies: vec![0; pages as usize],
            random: seed | 1,
            scrub_at: 0,
            progress: Arc::clone(&progress),
            out: out.clone(),
        };
        ring.fill();
        let theirs = Arc::clone(&shared);
        let errors = out.clone();
        thread::spawn(move || {
            if let Err(err) = bind_to_cpu(number) {
                errors.error("bind writer", err);
            }
            ring.run(&theirs, &asked);
        });
        Self {
            progress,
            orders: shared,
            verify,
        }
    }

    /// Changes the writer's orders.
    pub fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().expect("no thread panics with the lock"));
    }
}

/// The seed of an area: no two areas of a guest share content.
#[must_use]
pub fn area_seed(seed: u64, area: u64) -> u64 {
    seed.wrapping_mul(0x0001_0000_0001).wrapping_add(area << 48)
}

fn bind_to_cpu(cpu: usize) -> rustix::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
}

/// Prints a mismatch, if few were before it.
pub fn report_mismatch(out: &Output, bad_before: u64, stamp: Stamp, mismatch: Mismatch) {
    if bad_before < PRINTED_MISMATCHES {
        out.say(
            Line::new("bad")
                .with("seed", stamp.seed)
                .with("page", stamp.page)
                .with("seq", stamp.seq)
                .with("word", mismatch.word)
                .with("found", format_args!("{:#x}", mismatch.found))
                .with("wanted", format_args!("{:#x}", mismatch.wanted)),
        );
    }
}

struct Ring {
    seed: u64,
    pages: Vec<Page>,
    /// Sequence number that each page holds.
    holds: Vec<u64>,
    /// Sequence number that it was last written as a whole with.
    bodies: Vec<u64>,
    random: u64,
    scrub_at: usize,
    progress: Arc<Progress>,
    out: Output,
}

impl Ring {
    fn stamp(&self, index: usize) -> Stamp {
        Stamp {
            seed: self.seed,
            page: index as u64,
            seq: self.holds[index],
            body: self.bodies[index],
        }
    }

    fn fill(&mut self) {
        for index in 0..self.pages.len() {
            let stamp = self.stamp(index);
            self.pages[index].fill(stamp);
        }
    }

    fn run(&mut self, orders: &Mutex<Orders>, asked: &Asked<Verdict>) {
        let mut now = *orders.lock().expect("no thread panics with the lock");
        let (mut writes, mut scrubs) = (Budget::new(), Budget::new());
        loop {
            if asked.answer(|| self.verify()) {
                // Time spent checking is not owed as writes.
                writes = Budget::new();
            }
            let told = *orders.lock().expect("no thread panics with the lock");
            if told != now {
                now = told;
                (writes, scrubs) = (Budget::new(), Budget::new());
            }
            for _ in 0..scrubs.due(now.scrub) {
                self.scrub_one();
            }
            match now.rate {
                _ if now.pattern == Pattern::Idle => pause(),
                Rate::Max => (0..64).for_each(|_| self.write_one(now)),
                Rate::PagesPerSecond(rate) => {
                    (0..writes.due(rate)).for_each(|_| self.write_one(now));
                    pause();
                }
            }
        }
    }

    fn write_one(&mut self, orders: Orders) {
        let seq = self.progress.seq.load(Ordering::Relaxed) + 1;
        let len = self.pages.len() as u64;
        let index = match orders.pattern {
            Pattern::Ring => seq % len,
            Pattern::Hot(mib) => seq % len.min(mib * PAGES_PER_MIB),
            Pattern::Random => {
                // xorshift64: good enough to scatter, and no table.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % len
            }
            Pattern::Idle => return,
        } as usize;
        let before = self.stamp(index);
        if let Err(mismatch) = self.pages[index].check_quickly(before) {
            self.count_bad(before, mismatch);
        }
        self.holds[index] = seq;
        match orders.extent {
            Extent::Whole => {
                self.bodies[index] = seq;
                let stamp = self.stamp(index);
                self.pages[index].fill(stamp);
            }
            Extent::Edges => {
                let stamp = self.stamp(index);
                self.pages[index].fill_edges(stamp);
            }
        }
        self.progress.seq.store(seq, Ordering::Relaxed);
    }

    fn scrub_one(&mut self) {
        self.scrub_at = (self.scrub_at + 1) % self.pages.len();
        let stamp = self.stamp(self.scrub_at);
        if let Err(mismatch) = self.pages[self.scrub_at].check(stamp) {
            self.count_bad(stamp, mismatch);
        }
        self.progress.scrubbed.fetch_add(1, Ordering::Relaxed);
    }

    fn verify(&self) -> Verdict {
        let mut verdict = Verdict {
            seq: self.progress.seq.load(Ordering::Relaxed),
            ..Verdict::default()
        };
        let mut newest = 0;
        for (index, page) in self.pages.iter().enumerate() {
            let stamp = self.stamp(index);
            newest = newest.max(stamp.seq);
            verdict.pages += 1;
            if let Err(mismatch) = page.check(stamp) {
                verdict.bad += 1;
                self.count_bad(stamp, mismatch);
            }
        }
        // Stale pages together with an equally stale `holds` would agree with
        // each other, but not with the counter.
        if newest != verdict.seq {
            verdict.bad += 1;
            self.progress.bad.fetch_add(1, Ordering::Relaxed);
            self.out.error(
                "verify",
                format_args!("newest page {newest}, counter {}", verdict.seq),
            );
        }
        verdict
    }

    fn count_bad(&self, stamp: Stamp, mismatch: Mismatch) {
        let before = self.progress.bad.fetch_add(1, Ordering::Relaxed);
        report_mismatch(&self.out, before, stamp, mismatch);
    }
}

fn pause() {
    thread::sleep(Duration::from_millis(1));
}

/// Turns a rate into how many are due now.
pub(super) struct Budget {
    since: Instant,
    done: u64,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            done: 0,
        }
    }

    pub(super) fn due(&mut self, per_second: u64) -> u64 {
        let elapsed = self.since.elapsed();
        let wanted = (elapsed.as_secs_f64() * per_second as f64) as u64;
        let due = wanted.saturating_sub(self.done);
        // More than 100 ms behind: the guest cannot keep the rate. It then goes
        // on at the rate it can, without a burst later.
        let most = per_second / 10 + 1;
        if due > most {
            *self = Self::new();
            return most;
        }
        self.done += due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(pages: usize) -> Ring {
        let mut ring = Ring {
            seed: 1,
            pages: vec![Page::zero(); pages],
            holds: vec![0; pages],
            bodies: vec![0; pages],
            random: 1,
            scrub_at: 0,
            progress: Arc::default(),
            out: Output::to_stdout(),
        };
        ring.fill();
        ring
    }

    fn orders(pattern: Pattern, extent: Extent) -> Orders {
        Orders {
            rate: Rate::Max,
            pattern,
            scrub: 0,
            extent,
        }
    }

    #[test]
    fn every_pattern_leaves_a_ring_that_verifies() {
        let mut ring = ring(300);
        for pattern in [
            Pattern::Ring,
            Pattern::Random,
            Pattern::Hot(1),
            Pattern::Ring,
        ] {
            for extent in [Extent::Edges, Extent::Whole, Extent::Edges] {
                (0..500).for_each(|_| ring.write_one(orders(pattern, extent)));
                let verdict = ring.verify();
                assert_eq!((verdict.pages, verdict.bad), (300, 0), "{pattern}");
            }
        }
        assert_eq!(ring.progress.seq.load(Ordering::Relaxed), 6000);
    }

    #[test]
    fn a_stale_page_a_stale_table_and_a_stale_counter_are_each_found() {
        let mut ring = ring(16);
        (0..40).for_each(|_| ring.write_one(orders(Pattern::Ring, Extent::Whole)));
        let (old_page, old_holds) = (ring.pages[3].clone(), ring.holds[3]);
        (0..16).for_each(|_| ring.write_one(orders(Pattern::Ring, Extent::Whole)));

        let new_page = std::mem::replace(&mut ring.pages[3], old_page.clone());
        assert_eq!(ring.verify().bad, 1, "stale page");
        ring.pages[3] = new_page;
        let new_holds = std::mem::replace(&mut ring.holds[3], old_holds);
        assert_eq!(ring.verify().bad, 1, "stale table");
        ring.holds[3] = new_holds;
        assert_eq!(ring.verify().bad, 0);
        ring.progress.seq.fetch_sub(1, Ordering::Relaxed);
        assert_eq!(ring.verify().bad, 1, "stale counter");
    }
}
