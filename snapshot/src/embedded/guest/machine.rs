//! The guest as a whole: memory, threads, what they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::super::content::{Kind, PageContent, mix, page_hash};
use super::super::protocol::GuestStats;
use super::super::spec::{GuestSpec, Pattern};
use super::super::state::{Cursor, GuestState};
use super::super::sys::{PageWords, Ram};
use super::budget::Budget;
use super::gate::Gate;
use super::ticker::{self, Ticks};
use super::worker::{self, Place};
use crate::units::Pfn;

/// Pages that a filling or verifying thread takes at a time.
const SHARE: u64 = 4096;

/// Everything that the threads of the guest share.
#[derive(Debug)]
pub struct Machine {
    /// What the guest is like.
    pub spec: GuestSpec,
    /// Its memory.
    pub ram: Ram,
    /// Where its threads stop for a pause.
    pub gate: Gate,
    /// Their CPU cap.
    pub budget: Budget,
    /// The sum of the hashes of all pages, kept by those who write them.
    pub checksum: AtomicU64,
    /// Where each thread of the workload stands.
    pub places: Vec<Place>,
    /// What the clock thread saw.
    pub ticks: Ticks,
}

impl Machine {
    /// A machine at rest, its memory as it is.
    pub fn new(spec: GuestSpec, ram: Ram) -> Self {
        let threads = spec.workload.threads as usize;
        let workers = if spec.workload.pattern == Pattern::Idle {
            0
        } else {
            threads
        };
        let places: Vec<_> = (0..threads).map(|_| Place::default()).collect();
        for (thread, place) in places.iter().enumerate() {
            let dice = mix(spec.content.seed ^ mix(thread as u64));
            place.store(Cursor {
                dice,
                ..Cursor::default()
            });
        }
        Self {
            spec,
            ram,
            gate: Gate::new(workers + 1),
            budget: Budget::unlimited(),
            checksum: AtomicU64::new(0),
            places,
            ticks: Ticks::default(),
        }
    }

    /// Starts the threads; they stop at the gate until it opens.
    pub fn start_threads(self: &Arc<Self>) -> std::io::Result<()> {
        if self.spec.workload.pattern != Pattern::Idle {
            for index in 0..self.places.len() {
                let machine = Arc::clone(self);
                thread::Builder::new()
                    .name(format!("worker {index}"))
                    .spawn(move || worker::run(&machine, index))?;
            }
        }
        let machine = Arc::clone(self);
        thread::Builder::new()
            .name("clock".to_owned())
            .spawn(move || ticker::run(&machine))?;
        Ok(())
    }

    /// Gives every page its first content.
    pub fn fill(&self) {
        let sum = self.sum_over_pages(|pfn, page| {
            let content = PageContent::initial(&self.spec.content, pfn);
            if self.spec.content.kind(pfn) == Kind::Zero {
                // The memory is new: it is zero already, and for a populated page one write is
                // enough.
                if self.spec.content.populated {
                    page[0].store(0, Ordering::Relaxed);
                }
                return page_hash(pfn, |_| 0);
            }
            page_hash(pfn, |index| {
                let word = content.word(index);
                page[index].store(word, Ordering::Relaxed);
                word
            })
        });
        self.checksum.store(sum, Ordering::SeqCst);
    }

    /// The checksum of the memory as it is.
    pub fn computed_checksum(&self) -> u64 {
        self.sum_over_pages(|pfn, page| page_hash(pfn, |index| page[index].load(Ordering::Relaxed)))
    }

    /// Takes over the state of a saved guest. The threads have not started yet.
    pub fn adopt(&self, state: &GuestState) {
        self.checksum.store(state.checksum, Ordering::SeqCst);
        for (place, cursor) in self.places.iter().zip(&state.threads) {
            place.store(*cursor);
        }
    }

    /// The state record of the guest, whose threads stand still.
    pub fn state(&self) -> GuestState {
        let threads = self.places.iter().map(Place::load).collect();
        GuestState::new(
            self.spec.clone(),
            self.checksum.load(Ordering::SeqCst),
            threads,
        )
    }

    /// The counters.
    pub fn stats(&self, cpu: Duration) -> GuestStats {
        GuestStats {
            written: self.places.iter().map(|place| place.load().written).sum(),
            ticks: self.ticks.count(),
            largest_gap_ns: self.ticks.largest_gap_ns(),
            cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Sums up what `hash` says of each page, on all CPUs.
    fn sum_over_pages(&self, hash: impl Fn(Pfn, &PageWords) -> u64 + Sync) -> u64 {
        let layout = self.ram.layout();
        let (next, sum) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = || {
            loop {
                let start = next.fetch_add(SHARE, Ordering::Relaxed);
                if start >= layout.pages().0 {
                    return;
                }
                let mut part = 0u64;
                for index in start..(start + SHARE).min(layout.pages().0) {
                    if let Some(pfn) = layout.nth(index)
                        && let Some(page) = self.ram.page(pfn)
                    {
                        part = part.wrapping_add(hash(pfn, page));
                    }
                }
                sum.fetch_add(part, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            let others = thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1);
            for _ in 0..others {
                scope.spawn(work);
            }
            work();
        });
        sum.load(Ordering::Relaxed)
    }
}
