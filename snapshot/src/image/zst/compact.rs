//! Drops superseded page copies from a zstd image whose guest runs again, and compresses what was
//! stored while it stood still.
//!
//! The frames are looked through from the last to the first: the first copy of a page that is met
//! is its newest. Then they are copied in their order into a new file: as they are if they hold
//! nothing superseded, not at all if they hold nothing else, and otherwise compressed anew.

use std::fs::File;
use std::io;

use super::job::{FrameAt, Holds, Job};
use super::pipeline::Pipeline;
use super::record;
use super::unpack::Unpacker;
use crate::image::libxc::entry_pfn;
use crate::image::source::SourceError;
use crate::page_set::PageSet;
use crate::ports::Cancel;
use crate::units::{PageCount, Pfn};

/// It is made when more than this share of the page copies with data would go (or be compressed).
///
/// Scattered superseded pages make it compress nearly everything again: it then takes nearly as
/// long as the copying did (`experiments/src/bin/compression.rs`, 256 MiB: 0.69 s after 0.78 s to
/// save 22 % of the file). Below a fifth that is not worth it; above, an image could grow without
/// bounds with the rounds.
pub const WORTHWHILE: f64 = 0.2;

/// Bytes of a record before its largest list of pages ends.
const HEADS: usize = record::FIXED + 8 * 1024;

/// What becomes of a frame.
enum Step {
    Drop,
    Copy,
    Keep(Box<[u64; record::PAGES / 64]>),
}

/// Fills `to` with the frames of `file`, without what is superseded. `span`: pfns lie below. Ends
/// early when `cancel` is raised.
///
/// # Errors
/// What the system says.
pub fn run(
    file: &File,
    frames: &[FrameAt],
    span: PageCount,
    to: &Pipeline,
    cancel: &Cancel,
) -> io::Result<()> {
    let steps = steps(file, frames, span, cancel)?;
    for (frame, step) in frames.iter().zip(steps) {
        if cancel.raised().is_some() {
            return Ok(());
        }
        match step {
            Step::Drop => {}
            Step::Copy => to.submit(Job::Copy(*frame))?,
            Step::Keep(pages) => to.submit(Job::Keep(*frame, pages))?,
        }
    }
    to.drain()
}

fn steps(
    file: &File,
    frames: &[FrameAt],
    span: PageCount,
    cancel: &Cancel,
) -> io::Result<Vec<Step>> {
    let mut unpacker = Unpacker::new()?;
    let mut seen = PageSet::new(span);
    let mut steps = Vec::with_capacity(frames.len());
    for frame in frames.iter().rev() {
        if cancel.raised().is_some() {
            break;
        }
        if frame.holds == Holds::Other {
            steps.push(Step::Copy);
            continue;
        }
        let head = unpacker
            .beginning(file, frame.at, frame.entry, HEADS)
            .map_err(unreadable)?;
        let pfns = record::entries(&head)
            .map(|entries| entries.into_iter().map(entry_pfn).collect::<Vec<_>>())
            .filter(|pfns| pfns.iter().all(|pfn| pfn.0 < span.0))
            .ok_or_else(|| io::Error::other("the unfinished image cannot be read back"))?;
        steps.push(step(frame.holds, &pfns, &mut seen));
    }
    steps.reverse();
    Ok(steps)
}

fn step(holds: Holds, pfns: &[Pfn], seen: &mut PageSet) -> Step {
    let mut keep = Box::new([0; record::PAGES / 64]);
    let mut live = 0;
    for (index, &pfn) in pfns.iter().enumerate() {
        if seen.contains(pfn) {
            continue;
        }
        seen.insert(pfn);
        live += 1;
        if let Some(word) = keep.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
    match holds {
        _ if live == 0 => Step::Drop,
        // Zeros cost nothing.
        Holds::Zeros | Holds::Other => Step::Copy,
        Holds::Pages if live == pfns.len() => Step::Copy,
        Holds::Pages | Holds::StoredPages => Step::Keep(keep),
    }
}

fn unreadable(error: SourceError) -> io::Error {
    match error {
        SourceError::Io(error) => error,
        SourceError::Damaged { what, .. } => io::Error::other(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_copy_of_a_page_is_kept_and_no_other() {
        let mut seen = PageSet::new(PageCount(1000));
        let all: Vec<_> = (0..512).map(Pfn).collect();
        let some: Vec<_> = (100..612).map(Pfn).collect();
        // From the last frame to the first.
        assert!(matches!(step(Holds::Pages, &some, &mut seen), Step::Copy));
        let Step::Keep(keep) = step(Holds::Pages, &all, &mut seen) else {
            panic!("a part is superseded");
        };
        let kept: u32 = keep.iter().map(|word| word.count_ones()).sum();
        assert_eq!((kept, keep[0]), (100, u64::MAX));
        assert!(matches!(step(Holds::Pages, &all, &mut seen), Step::Drop));
        assert!(matches!(step(Holds::Zeros, &all, &mut seen), Step::Drop));
        let late = [Pfn(700), Pfn(0)];
        assert!(matches!(step(Holds::Zeros, &late, &mut seen), Step::Copy));
        let stored = [Pfn(701)];
        let step = step(Holds::StoredPages, &stored, &mut seen);
        assert!(matches!(step, Step::Keep(keep) if keep[0] == 1));
    }
}
