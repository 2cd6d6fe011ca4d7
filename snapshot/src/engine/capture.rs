//! Holds dirty pages in memory until they are written after the resume: those of the pause window,
//! and before it those of rounds that are not to wait for the disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::error::SaveError;
use crate::page::{GuestPage, PageBytes, PageKind};
use crate::ports::{BATCH_PAGES, Cancel, ImageSink};
use crate::units::{Bytes, PageCount, Pfn};

/// Copies of pages, the newest of each, in chunks of [`BATCH_PAGES`]: what is held never moves when
/// more is.
pub(super) struct Capture {
    slots: HashMap<Pfn, (u32, PageKind)>,
    chunks: Vec<Box<[PageBytes]>>,
    budget: usize,
}

impl Capture {
    /// Room for at most `budget` bytes of pages; none is taken yet.
    pub fn new(budget: Bytes) -> Self {
        Self {
            slots: HashMap::new(),
            chunks: vec![],
            // No dom0 has the 16 TiB at which slots would end.
            budget: budget.whole_pages().0.min(u64::from(u32::MAX)) as usize,
        }
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Makes ready for `more` pages than it holds, within the budget: the memory is touched now, so
    /// that the window takes no page faults for it. Says for how many pages it was.
    pub fn prepare(&mut self, more: PageCount) -> PageCount {
        let ready = self.chunks.len();
        let all = (self.slots.len() + more.0 as usize).min(self.budget);
        self.slots.reserve(all - self.slots.len());
        self.chunks.reserve(self.budget.div_ceil(BATCH_PAGES));
        while self.chunks.len() * BATCH_PAGES < all {
            self.chunks.push(new_chunk());
        }
        PageCount(((self.chunks.len() - ready) * BATCH_PAGES) as u64)
    }

    /// Takes a copy of a page, in place of an older one; `false` if the budget is used up.
    pub fn take(&mut self, pfn: Pfn, page: GuestPage<'_>) -> bool {
        let Some(slot) = self.slot_for(pfn, page.kind()) else {
            return false;
        };
        page.copy_to(&mut self.chunks[slot / BATCH_PAGES][slot % BATCH_PAGES]);
        true
    }

    /// Takes copies of pages, none of them twice, by several threads; says how many of the first it
    /// took before the budget was used up.
    pub fn take_all(&mut self, pages: &[(Pfn, GuestPage<'_>)], threads: usize) -> usize {
        let mut from: Vec<(usize, GuestPage<'_>)> = Vec::with_capacity(pages.len());
        for &(pfn, page) in pages {
            let Some(slot) = self.slot_for(pfn, page.kind()) else {
                break;
            };
            from.push((slot, page));
        }
        let taken = from.len();
        from.sort_unstable_by_key(|&(slot, _)| slot);
        let mut from = from.into_iter().peekable();
        let slots = self.chunks.iter_mut().flatten().enumerate();
        let mut todo: Vec<(GuestPage<'_>, &mut PageBytes)> = slots
            .filter_map(|(slot, to)| Some((from.next_if(|(next, _)| *next == slot)?.1, to)))
            .collect();
        let parts = todo.chunks_mut(taken.div_ceil(threads).max(1));
        // One that the system refuses to start is as if it had found nothing left.
        let parts = Mutex::new(parts);
        let work = || {
            loop {
                let part = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(part) = part else { break };
                for (page, to) in part {
                    page.copy_to(to);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        taken
    }

    /// The slot of a page, a new one if it has none; `None` if the budget is used up.
    fn slot_for(&mut self, pfn: Pfn, kind: PageKind) -> Option<usize> {
        let next = self.slots.len();
        if let Some((slot, held)) = self.slots.get_mut(&pfn) {
            *held = kind;
            return Some(*slot as usize);
        }
        if next == self.budget {
            return None;
        }
        if next == self.chunks.len() * BATCH_PAGES {
            self.chunks.push(new_chunk());
        }
        self.slots.insert(pfn, (next as u32, kind));
        Some(next)
    }

    pub fn count(&self) -> PageCount {
        PageCount(self.slots.len() as u64)
    }

    /// Writes what it holds, and gives the memory back.
    pub fn write_to<S: ImageSink>(&mut self, sink: &S, cancel: &Cancel) -> Result<(), SaveError> {
        let mut held: Vec<_> = std::mem::take(&mut self.slots).into_iter().collect();
        held.sort_unstable();
        for pages in held.chunks(BATCH_PAGES) {
            SaveError::if_raised(cancel)?;
            let page =
                |slot: u32| &self.chunks[slot as usize / BATCH_PAGES][slot as usize % BATCH_PAGES];
            let batch: Vec<_> = pages
                .iter()
                .map(|&(pfn, (slot, kind))| (pfn, GuestPage::of(page(slot)).of_kind(kind)))
                .collect();
            sink.write(&batch)?;
        }
        self.chunks = vec![];
        Ok(())
    }
}

/// Memory for [`BATCH_PAGES`] pages; writing the zeros touches every page of it.
fn new_chunk() -> Box<[PageBytes]> {
    vec![PageBytes::ZERO; BATCH_PAGES].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::file::Existing;
    use crate::image::{GuestType, Preamble, RawImage, Reader, Tail, libxc};
    use crate::testing::{first_pages, preamble, some_facts};

    #[test]
    fn what_is_held_is_of_the_kind_of_its_newest_copy() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("x.xl");
        let mut image = RawImage::create(&path, Existing::Keep).expect("created");
        let preamble = Preamble {
            guest: GuestType::Pv,
            ..preamble()
        };
        image.begin(&preamble, &first_pages(3)).expect("begun");
        let mut capture = Capture::new(PageCount(10).bytes());
        let page = PageBytes([1; 4096]);
        let of_kind = |bits| GuestPage::of(&page).of_kind(PageKind::of_bits(bits).expect("a kind"));
        for (pfn, bits) in [(0, 1), (1, 0), (2, 4), (0, 0), (1, 2)] {
            assert!(capture.take(Pfn(pfn), of_kind(bits)));
        }
        capture.take_all(&[(Pfn(2), of_kind(12))], 2);
        capture
            .write_to(&image, &Cancel::default())
            .expect("written");
        image
            .finish(&Tail::default(), &some_facts())
            .expect("finished");
        image.commit().expect("committed");
        let reader = Reader::open(&path).expect("readable");
        let mut records = reader.libxc_records().iter();
        let at = records.find(|at| at.kind == libxc::record::PAGE_DATA);
        let at = at.expect("a record");
        let (_, data) = reader.page_entries(at).expect("entries");
        let entries = reader.bytes(data - 24, 24).expect("read");
        let kinds: Vec<u8> = entries.chunks(8).map(|entry| entry[7] >> 4).collect();
        assert_eq!(kinds, [0, 2, 12]);
    }
}
