//! Writes record after record to disk after disk, and looks at all of them on command.

use super::disk::Disk;
use super::{Output, Progress};
use crate::lines::Line;
use crate::records::block::Place;
use crate::records::judge::{Bad, Kind};
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// I/O errors that are printed; all are counted.
const PRINTED_ERRORS: u64 = 8;

/// What a look at every slot of every disk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Slots looked at.
    pub slots: u64,
    /// Small files that were there.
    pub files: u64,
    /// Places that do not hold what they must.
    pub bad: u64,
    /// Disks whose ring or small files could not be read.
    pub err: u64,
}

/// The one writer of all disks.
pub struct Writer {
    pub(super) disks: Vec<Disk>,
    /// Which of them is next.
    pub(super) turn: usize,
    progress: Arc<Progress>,
    /// What was printed once.
    printed: HashSet<(usize, Place, Kind)>,
    out: Output,
}

impl Writer {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(disks: Vec<Disk>, progress: Arc<Progress>, out: Output) -> Self {
        Self {
            disks,
            turn: 0,
            progress,
            printed: HashSet::new(),
            out,
        }
    }

    /// Writes the next record to the disk whose turn it is. After an error it is the same disk's
    /// turn, and the same record's: the order of records never changes.
    pub fn step(&mut self) -> io::Result<()> {
        let done = self.step_or_fail();
        if let Err(err) = &done {
            self.count_error(self.turn, err);
        }
        done
    }

    fn step_or_fail(&mut self) -> io::Result<()> {
        let disk = &mut self.disks[self.turn];
        // Else it is left to do by a step that failed.
        if !disk.small_is_due() {
            let before = disk.write_record()?;
            self.progress.acked.fetch_add(1, Ordering::Relaxed);
            if let Err(bad) = before {
                self.count_bad(self.turn, bad);
            }
        }
        self.disks[self.turn].write_small()?;
        self.turn = (self.turn + 1) % self.disks.len();
        Ok(())
    }

    /// Looks at every slot and every small file. Those that cannot be read are not counted as looked
    /// at.
    pub fn scan(&mut self) -> Scan {
        let mut scan = Scan::default();
        for number in 0..self.disks.len() {
            let (ring, small) = {
                let disk = &self.disks[number];
                (disk.look_at_ring(), disk.look_at_small())
            };
            scan.slots += self.count(number, ring, &mut scan.bad, &mut scan.err);
            scan.files += self.count(number, small, &mut scan.bad, &mut scan.err);
        }
        scan
    }

    /// Counts what a look found; how many places it was at.
    fn count(
        &mut self,
        number: usize,
        look: io::Result<(u64, Vec<Bad>)>,
        bad: &mut u64,
        err: &mut u64,
    ) -> u64 {
        match look {
            Ok((places, wrong)) => {
                *bad += wrong.len() as u64;
                wrong
                    .into_iter()
                    .for_each(|bad| self.count_bad(number, bad));
                places
            }
            Err(why) => {
                *err += 1;
                self.count_error(number, &why);
                0
            }
        }
    }

    fn count_bad(&mut self, number: usize, bad: Bad) {
        self.progress.bad.fetch_add(1, Ordering::Relaxed);
        if self.printed.insert((number, bad.place, bad.kind)) {
            let disk = &self.disks[number];
            let known = match bad.place {
                Place::Ring => disk.ring,
                Place::Small => disk.files,
            };
            let expected = bad
                .expected
                .map_or("none".to_owned(), |seq| seq.to_string());
            self.out.say(
                Line::new("bad_record")
                    .with("disk", &disk.name)
                    .with("place", bad.place)
                    .with("slot", bad.slot)
                    .with("kind", bad.kind)
                    .with("expected", expected)
                    .with("found", bad.found)
                    .with("issued", known.issued)
                    .with("acked", known.acked),
            );
        }
    }

    fn count_error(&self, number: usize, err: &io::Error) {
        if self.progress.err.fetch_add(1, Ordering::Relaxed) < PRINTED_ERRORS {
            let name = &self.disks[number].name;
            self.out.error(&format!("records on {name}"), err);
        }
    }
}
