//! A thread of the workload.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::content::{PageContent, mix, page_hash};
use super::super::spec::{GuestSpec, Pattern};
use super::super::state::Cursor;
use super::budget::Meter;
use super::machine::Machine;
use crate::units::Pfn;

/// A thread that fell behind by more than this does not catch up: what a pause or a cap took from
/// it is lost work, as it is to most programs.
const CATCH_UP: Duration = Duration::from_millis(10);
/// A thread that is ahead sleeps at least this long, and then writes what has become due at once.
const NAP: Duration = Duration::from_millis(1);
/// Under a cap, CPU time is reported after so many pages.
const REPORT_PAGES: u64 = 4;

/// Where a thread stands, for others to read while it stands still.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Place {
    written: AtomicU64,
    position: AtomicU64,
    dice: AtomicU64,
}

impl Place {
    /// Where the thread stands.
    pub fn load(&self) -> Cursor {
        Cursor {
            written: self.written.load(Ordering::Relaxed),
            position: self.position.load(Ordering::Relaxed),
            dice: self.dice.load(Ordering::Relaxed),
        }
    }

    /// Sets where the thread stands.
    pub fn store(&self, cursor: Cursor) {
        self.written.store(cursor.written, Ordering::Relaxed);
        self.position.store(cursor.position, Ordering::Relaxed);
        self.dice.store(cursor.dice, Ordering::Relaxed);
    }
}

/// Writes pages in the order of the workload until the process ends.
pub fn run(machine: &Machine, thread: usize) -> ! {
    let spec = &machine.spec;
    let part = part(spec, machine.ram.layout().pages().0, thread);
    let place = &machine.places[thread];
    let mut cursor = place.load();
    let mut pace = spec
        .workload
        .rate
        .map(|rate| Pace::new(rate, spec.workload.threads));
    let mut meter = Meter::new();
    loop {
        machine.gate.pass();
        if let Some(until) = pace.as_mut().and_then(|pace| pace.wait(Instant::now())) {
            machine.gate.sleep_until(until);
            continue;
        }
        if !machine.budget.is_limited() {
            meter.stop();
        } else if (cursor.written.is_multiple_of(REPORT_PAGES) || meter.is_stopped())
            && let Some(until) = machine.budget.spend(meter.read(), Instant::now())
        {
            machine.gate.sleep_until(until);
            continue;
        }
        let index = part.start + choose(spec.workload.pattern, &mut cursor, part.end - part.start);
        cursor.written += 1;
        if let Some(pfn) = machine.ram.layout().nth(index) {
            write(machine, pfn, cursor.written);
        }
        if let Some(pace) = &mut pace {
            pace.wrote();
        }
        place.store(cursor);
    }
}

/// Writes the whole page, and keeps the memory's checksum.
fn write(machine: &Machine, pfn: Pfn, version: u64) {
    let Some(page) = machine.ram.page(pfn) else {
        return;
    };
    let old = page_hash(pfn, |index| page[index].load(Ordering::Relaxed));
    let content = PageContent::written(machine.spec.content.seed, pfn, version);
    let new = page_hash(pfn, |index| {
        let word = content.word(index);
        page[index].store(word, Ordering::Relaxed);
        word
    });
    machine
        .checksum
        .fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
}

/// The thread's own part of the region, as indices of existing pages.
fn part(spec: &GuestSpec, pages: u64, thread: usize) -> Range<u64> {
    let region = spec.workload.region.map_or(pages, |region| region.0);
    let (thread, threads) = (thread as u64, u64::from(spec.workload.threads));
    region * thread / threads..region * (thread + 1) / threads
}

/// The next page to write, of `pages`.
fn choose(pattern: Pattern, cursor: &mut Cursor, pages: u64) -> u64 {
    let mut throw = || {
        cursor.dice = cursor.dice.wrapping_add(1);
        mix(cursor.dice)
    };
    match pattern {
        Pattern::Idle | Pattern::Ring => {
            let next = cursor.position % pages;
            cursor.position = next + 1;
            next
        }
        Pattern::Hot => {
            let hot = (pages / 10).max(1);
            let among = if throw() % 10 < 9 { hot } else { pages };
            throw() % among
        }
        Pattern::Random => throw() % pages,
    }
}

/// Keeps a thread to its rate.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

impl Pace {
    /// An equal share of a rate.
    fn new(rate: u64, threads: u32) -> Self {
        Self {
            interval: Duration::from_secs_f64(f64::from(threads) / rate as f64),
            next: None,
        }
    }

    /// Until when to sleep before the next page.
    fn wait(&mut self, now: Instant) -> Option<Instant> {
        let next = *self.next.get_or_insert(now);
        if next > now {
            return Some(next.max(now + NAP));
        }
        if now - next > CATCH_UP {
            self.next = Some(now - CATCH_UP);
        }
        None
    }

    /// A page was written.
    fn wrote(&mut self) {
        if let Some(next) = &mut self.next {
            *next += self.interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Bytes, PageCount};

    #[test]
    fn the_parts_of_the_threads_cover_the_region_and_are_disjoint() {
        let mut spec = GuestSpec::new("g", Bytes::from_mib(1));
        spec.workload.threads = 3;
        spec.workload.region = Some(PageCount(100));
        let parts: Vec<_> = (0..3).flat_map(|thread| part(&spec, 256, thread)).collect();
        assert_eq!(parts, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_patterns_are_what_they_are_called() {
        let mut cursor = Cursor {
            written: 0,
            position: 98,
            dice: 4,
        };
        let ring: Vec<_> = (0..4)
            .map(|_| choose(Pattern::Ring, &mut cursor, 100))
            .collect();
        assert_eq!(ring, [98, 99, 0, 1]);
        let mut hits = |pattern| {
            (0..10_000)
                .filter(|_| choose(pattern, &mut cursor, 1000) < 100)
                .count()
        };
        let (hot, random) = (hits(Pattern::Hot), hits(Pattern::Random));
        assert!((9_000..9_250).contains(&hot), "{hot}");
        assert!((900..1_100).contains(&random), "{random}");
    }

    #[test]
    fn the_pace_is_kept_and_lost_time_is_not_made_up_for() {
        let mut pace = Pace::new(1000, 2);
        let start = Instant::now();
        let mut write_due = |from: Duration, until: Duration| {
            let mut now = start + from;
            let mut written = 0;
            while now < start + until {
                match pace.wait(now) {
                    Some(time) => now = time,
                    None => {
                        pace.wrote();
                        written += 1;
                    }
                }
            }
            written
        };
        let second = Duration::from_secs(1);
        assert!((499..=501).contains(&write_due(Duration::ZERO, second)));
        // Away for a minute: ten milliseconds of it are made up for.
        assert!((499..=507).contains(&write_due(second * 60, second * 61)));
    }
}
