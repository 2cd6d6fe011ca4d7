//! Makes one full image of a chain.

use super::Chain;
use crate::image::libxc::record;
use crate::image::trailer::Facts;
use crate::image::verify::{Course, Problem, verify};
use crate::image::{GuestType, ImageError, Preamble, RECORD_HEADER, Reader, Record, Tail};
use crate::page::{GuestPage, PAGE_SIZE, PageBytes};
use crate::ports::{BATCH_PAGES, Cancel, Finished, ImageSink, SinkError};
use crate::units::{PageCount, Pfn};

/// Threads that look at a raw image.
const THREADS: usize = 2;
/// All records that are not pages, together: a guest's take some hundred KiB.
const MAX_RECORDS: u64 = 64 << 20;

/// Why a chain was not merged; no image has appeared.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The chain cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The new image cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// It is another tool's, which has nothing to merge.
    #[error("Image {0} was not made by livesave, so there is nothing to merge")]
    Foreign(String),
    /// It is a PV guest's, which is never an increment; merging would lose what its pages are.
    #[error("Image {0} is of a PV guest, which has no increments, so there is nothing to merge")]
    NoIncrements(String),
    /// The user wants to stop.
    #[error("Interrupted by signal {0}")]
    Interrupted(i32),
}

/// Writes the guest as the chain's newest image shows it into a full image of the same identity,
/// so that increments on that go on with this one. `progress` hears how many pages of how many were written.
///
/// # Errors
/// [`MergeError`].
pub fn merge(
    chain: &Chain,
    sink: &mut impl ImageSink,
    cancel: &Cancel,
    mut progress: impl FnMut(PageCount, PageCount),
) -> Result<Finished, MergeError> {
    let newest = chain.newest();
    let Some(facts) = newest.facts() else {
        return Err(MergeError::Foreign(newest.path().display().to_string()));
    };
    if newest.guest() == GuestType::Pv {
        return Err(MergeError::NoIncrements(
            newest.path().display().to_string(),
        ));
    }
    for image in chain.images() {
        trusted(image, cancel)?;
    }
    let index = chain.index()?;
    let pages = index
        .pages()
        .ok_or_else(|| newest.damaged(newest.stream_len(), "its pages lie too far apart"))?;
    sink.begin(&preamble(newest)?, &pages)?;
    let mut batch = Batch::default();
    let (mut done, total) = (PageCount(0), pages.count());
    for stretch in index.in_file_order() {
        let mut rest = Some(stretch);
        while let Some(stretch) = rest {
            if let Some(signal) = cancel.raised() {
                return Err(MergeError::Interrupted(signal));
            }
            let room = (BATCH_PAGES - batch.pfns.len()) as u64;
            let (now, later) = stretch.split(room);
            rest = later;
            batch
                .pfns
                .extend((now.first.0..now.first.0 + now.pages()).map(Pfn));
            index.append(now, &mut batch.bytes)?;
            done += PageCount(now.pages());
            if batch.pfns.len() == BATCH_PAGES {
                batch.write(sink)?;
                progress(done, total);
            }
        }
    }
    batch.write(sink)?;
    progress(done, total);
    let facts = Facts {
        parent: None,
        held_pages: None,
        zero_pages: sink.zero_pages(),
        ..facts.clone()
    };
    let finished = sink.finish(&tail(newest)?, &facts)?;
    if let Some(signal) = cancel.raised() {
        return Err(MergeError::Interrupted(signal));
    }
    sink.commit()?;
    Ok(finished)
}

/// What is in a raw image is not looked at when it is read, and what is written anew would have a
/// good checksum whatever it is. (A compressed one has its own in each frame.)
fn trusted(image: &Reader, cancel: &Cancel) -> Result<(), ImageError> {
    if image.is_compressed() {
        return Ok(());
    }
    let course = Course {
        threads: THREADS,
        progress: &|_| {},
        cancel,
    };
    match verify(image.path(), &course)?.problems.first() {
        Some(Problem { offset, what }) => Err(ImageError::Damaged {
            path: image.path().to_owned(),
            offset: *offset,
            what,
        }),
        None => Ok(()),
    }
}

/// Pages on their way.
#[derive(Default)]
struct Batch {
    pfns: Vec<Pfn>,
    bytes: Vec<u8>,
}

impl Batch {
    fn write(&mut self, sink: &impl ImageSink) -> Result<(), SinkError> {
        let (pages, _) = self.bytes.as_chunks::<PAGE_SIZE>();
        // Pages as the sink takes them are aligned, and in order.
        let mut pages: Vec<_> = self
            .pfns
            .drain(..)
            .zip(pages.iter().map(|page| PageBytes(*page)))
            .collect();
        pages.sort_unstable_by_key(|(pfn, _)| *pfn);
        let pages: Vec<_> = pages
            .iter()
            .map(|(pfn, page)| (*pfn, GuestPage::of(page)))
            .collect();
        sink.write(&pages)?;
        self.bytes.clear();
        Ok(())
    }
}

fn preamble(image: &Reader) -> Result<Preamble, ImageError> {
    let (memory, body) = (image.memory(), image.body());
    if (body.end - body.start) - (memory.end - memory.start) > MAX_RECORDS {
        return Err(image.damaged(body.start, "its records are larger than any guest's"));
    }
    let records = image.libxc_records().iter();
    let before: Result<Vec<Record>, ImageError> = records
        .take_while(|at| at.offset - RECORD_HEADER < memory.start)
        .map(|at| image.read(at))
        .collect();
    let mut static_data = before?;
    let end = static_data
        .iter()
        .position(|record| record.kind == record::STATIC_DATA_END);
    let before_memory = match end {
        Some(end) => {
            let before_memory = static_data.split_off(end + 1);
            static_data.pop();
            before_memory
        }
        None => return Err(image.damaged(memory.start, "it has no STATIC_DATA_END record")),
    };
    Ok(Preamble {
        config: image.config().to_vec(),
        guest: image.guest(),
        xen_version: image.xen_version(),
        static_data,
        before_memory,
        increment: false,
    })
}

fn tail(image: &Reader) -> Result<Tail, ImageError> {
    let memory = image.memory();
    let libxc = image.libxc_records().iter();
    let behind = libxc.filter(|at| at.offset - RECORD_HEADER >= memory.end);
    Ok(Tail {
        libxc: behind.map(|at| image.read(at)).collect::<Result<_, _>>()?,
        libxl: image
            .libxl_records()
            .iter()
            .map(|at| image.read(at))
            .collect::<Result<_, _>>()?,
    })
}
