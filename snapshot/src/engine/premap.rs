//! Maps what the window will copy before the guest stands still.
//!
//! Mapping and unmapping a foreign page costs several times its copying. So while the guest is on
//! its way to the suspension, the pages left are mapped, and then, once or twice, those that it
//! has dirtied since; what is still missing when it stands is mapped in the window, and everything
//! is unmapped after the resume.
//!
//! What is mapped is a frame of the host, and a guest can give a page back and take it again on its
//! way (a balloon, grants that it maps): the page has another frame then, and what is kept shows the
//! old one. It never shows anybody else's: a mapping holds a reference to its frame, and until that
//! goes the frame is the guest's (Xen's `get_page_from_l1e`, of a PVH dom0 `p2m_entry_modify`). And
//! it is seen: a frame is taken off the guest's number of pages only when it is freed
//! (`free_domheap_pages`, Xen 4.14 to 4.22), so a page that has come back while its old frame is
//! mapped counts twice, and [`Domain::map_holds`](crate::ports::Domain::map_holds) says no in the
//! window, before anything that is mapped is copied.
//!
//! Only where just as many other pages are out then is the number right all the same. But between
//! the ones' coming and the others' going, whichever was first, it was another one. So it is compared
//! at every look at the guest on its way ([`Meanwhile::resized`]), which shows it anyway, and nothing
//! is copied if it ever differed. (To be sure by mapping anew in the window, or by unmapping there and
//! counting again, would cost what mapping ahead saves.) What is not seen: kept pages that come back and as many others that go for
//! good between two looks, 0.3 to 20 ms; and kept pages that are still out, of which the image then
//! has what they held before, and the guest no use for it.

use std::time::Duration;

use super::capture::Capture;
use crate::page::GuestPage;
use crate::page_set::PageSet;
use crate::ports::{BATCH_PAGES, DomainError, MappedPages, Mapper, Meanwhile};
use crate::units::{PageCount, Pfn};

/// So many pages are mapped in a moment: the guest's standstill is not to be seen late.
const AT_ONCE: usize = 256;
/// A look at the dirty set stops the guest for a moment; it must promise so many pages.
const WORTH_A_LOOK: f64 = 800.0;
/// With so many pages threads are worth their start: some 50 µs, as long as copying 50 pages takes.
const WORTH_THREADS: usize = 2048;
/// When the guest is looked at, as shares of the time that it is expected to take.
const LOOKS: [f64; 2] = [0.5, 0.8];

/// A page that is mapped: which of the batches, and where in it.
type Place = (Pfn, u32, u32);

/// Mapped pages, kept until this is dropped.
pub(super) struct Premap<'a, M: Mapper> {
    mapper: &'a mut M,
    kept: Vec<M::Kept>,
    /// By pfn.
    places: Vec<Place>,
    todo: PageSet,
    mapped: PageSet,
    /// Times after the request at which the dirty set is looked at.
    looks: Vec<Duration>,
    /// How long the guest is expected to take.
    expected: Duration,
    /// At most so many pages are kept.
    room: usize,
    /// Scratch space.
    pfns: Vec<Pfn>,
    /// Keeping pages mapped is of no use here.
    idle: bool,
    /// The guest's number of pages was another one.
    resized: bool,
}

impl<'a, M: Mapper> Premap<'a, M> {
    /// Nothing is mapped yet: `left` will be, and what else turns up, `room` pages at most.
    /// `extra` pages more are expected to be dirtied, in `suspend_s` seconds; 0 is not known.
    pub fn new(
        mapper: &'a mut M,
        left: &PageSet,
        extra: f64,
        suspend_s: f64,
        room: PageCount,
    ) -> Self {
        let expected = ((left.count().0 as f64 + 2.0 * extra) as u64).min(room.0) as usize;
        let looks: &[f64] = if extra >= WORTH_A_LOOK { &LOOKS } else { &[] };
        Self {
            mapper,
            kept: Vec::with_capacity(expected / 64 + 8),
            places: Vec::with_capacity(expected),
            todo: left.clone(),
            mapped: PageSet::new(left.span()),
            looks: looks
                .iter()
                .rev()
                .map(|share| Duration::from_secs_f64(share * suspend_s))
                .collect(),
            expected: Duration::from_secs_f64(suspend_s),
            room: room.0 as usize,
            pfns: Vec::with_capacity(BATCH_PAGES),
            idle: false,
            resized: false,
        }
    }

    /// Whether the guest's number of pages was another one on its way, so that what is kept may not be
    /// what it has there.
    pub fn was_resized(&self) -> bool {
        self.resized && !self.kept.is_empty()
    }

    /// Maps the next pages that wait for it.
    fn map_some(&mut self) {
        self.pfns.clear();
        let length = AT_ONCE.min(self.room());
        if length == 0 {
            self.idle = true;
        }
        self.todo.move_first(length, &mut self.pfns);
        // What cannot be mapped now is tried again in the window.
        self.idle |= !matches!(self.map_listed(), Ok(true));
    }

    /// Maps `self.pfns`; `false` if that is of no use here.
    fn map_listed(&mut self) -> Result<bool, DomainError> {
        if self.pfns.is_empty() {
            return Ok(!self.idle);
        }
        let Some(batch) = self.mapper.keep(&self.pfns)? else {
            return Ok(false);
        };
        let number = self.kept.len() as u32;
        // One that could not be mapped shows when it is to be copied, and is tried again then.
        for (index, &pfn) in self.pfns.iter().enumerate() {
            self.mapped.insert(pfn);
            self.places.push((pfn, number, index as u32));
        }
        self.kept.push(batch);
        // Two runs in order: merged in linear time.
        self.places.sort();
        Ok(true)
    }

    /// The guest stands still: maps those of `pages` that are not mapped yet, as far as there is
    /// room and it is of use.
    pub fn complete(&mut self, pages: &PageSet) -> Result<(), DomainError> {
        self.todo.copy_from(pages);
        self.todo.subtract(&self.mapped);
        while !self.idle {
            self.pfns.clear();
            let length = BATCH_PAGES.min(self.room());
            self.todo.move_first(length, &mut self.pfns);
            if self.pfns.is_empty() {
                break;
            }
            self.idle = !self.map_listed()?;
        }
        Ok(())
    }

    /// How many more pages may be kept.
    fn room(&self) -> usize {
        self.room.saturating_sub(self.places.len())
    }

    /// Captures those of `pages` that are mapped and takes them out of `pages`.
    pub fn copy_out(&self, pages: &mut PageSet, capture: &mut Capture, threads: usize) {
        if threads > 1 && self.places.len() >= WORTH_THREADS {
            let wanted: Vec<_> = self.mapped_of(pages).collect();
            let taken = capture.take_all(&wanted, threads);
            for &(pfn, _) in &wanted[..taken] {
                pages.remove(pfn);
            }
            return;
        }
        for place in &self.places {
            if let Some((pfn, page)) = self.mapped_in(pages, place)
                && capture.take(pfn, page)
            {
                pages.remove(pfn);
            }
        }
    }

    fn mapped_of(&self, pages: &PageSet) -> impl Iterator<Item = (Pfn, GuestPage<'_>)> {
        self.places
            .iter()
            .filter_map(|place| self.mapped_in(pages, place))
    }

    fn mapped_in(
        &self,
        pages: &PageSet,
        &(pfn, batch, index): &Place,
    ) -> Option<(Pfn, GuestPage<'_>)> {
        if !pages.contains(pfn) {
            return None;
        }
        let page = self.kept[batch as usize].page(index as usize)?;
        Some((pfn, page))
    }

    /// The mapper, for what is not kept.
    pub fn mapper(&mut self) -> &mut M {
        self.mapper
    }
}

impl<M: Mapper> Meanwhile for Premap<'_, M> {
    fn expected(&self) -> Duration {
        self.expected
    }

    fn moment(&mut self, since: Duration) -> bool {
        if self.idle {
            return false;
        }
        if !self.todo.is_empty() {
            self.map_some();
            return false;
        }
        let due = self.looks.last().is_some_and(|at| *at <= since);
        if due {
            self.looks.pop();
        }
        due
    }

    fn is_busy(&self) -> bool {
        !self.idle && !self.todo.is_empty()
    }

    fn dirty(&mut self, pages: &PageSet) {
        self.todo.copy_from(pages);
        self.todo.subtract(&self.mapped);
    }

    fn resized(&mut self) {
        self.resized = true;
    }
}
