//! Maps a domU's memory for the copier.

use std::sync::Arc;

use xen_sys::{DomainId, Protection, Xen};

use super::guest::{call, call_failed};
use super::sys::Mapped;
use super::types::{Normalised, PageAccess};
use crate::guardian::Journal;
use crate::page::{GuestPage, PageBytes};
use crate::ports::{BATCH_PAGES, DomainError, MappedPages, Mapper};
use crate::units::Pfn;

/// Maps pages of one domU; one per copier thread, with its own scratch space.
pub struct XenMapper {
    xen: Xen,
    id: DomainId,
    /// Every batch is a sign of life.
    journal: Arc<Journal>,
    /// How pages are reached, where a page's number is not its frame.
    access: Option<Box<dyn PageAccess>>,
    frames: Vec<u64>,
    errors: Vec<i32>,
}

impl XenMapper {
    pub(super) fn new(
        xen: Xen,
        id: DomainId,
        journal: Arc<Journal>,
        access: Option<Box<dyn PageAccess>>,
    ) -> Self {
        Self {
            xen,
            id,
            journal,
            access,
            frames: Vec::with_capacity(BATCH_PAGES),
            errors: vec![0; BATCH_PAGES],
        }
    }
}

/// A mapped batch, unmapped when dropped.
pub struct XenBatch<'a> {
    mapped: Mapped<&'a mut [i32]>,
    /// Pages that are not taken as they are, by ascending index; none for most guests.
    changed: Vec<(usize, Normalised)>,
}

/// A batch that stays mapped beside others.
pub struct XenKept(Mapped<Vec<i32>>);

impl XenMapper {
    /// Finds the frames of these pages.
    fn look_up(&mut self, pfns: &[Pfn]) -> Result<(), DomainError> {
        self.journal.beat();
        self.frames.clear();
        match &mut self.access {
            None => {
                self.frames.extend(pfns.iter().map(|pfn| pfn.0));
                Ok(())
            }
            Some(access) => access.frames(pfns, &mut self.frames),
        }
    }
}

impl Mapper for XenMapper {
    type Batch<'a> = XenBatch<'a>;
    type Kept = XenKept;

    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<XenBatch<'a>, DomainError> {
        self.look_up(pfns)?;
        let Self {
            xen,
            id,
            access,
            frames,
            errors,
            ..
        } = self;
        let mapping = call("map", *id, || {
            xen.map(*id, Protection::Read, frames, &mut errors[..])
        });
        let mapped = mapping
            .map(Mapped)
            .map_err(|error| call_failed("map memory of", *id, error))?;
        let changed = match access {
            None => vec![],
            Some(access) => {
                let mut page = |index: usize, to: &mut PageBytes| {
                    mapped.page(index).map(|page| page.copy_to(to)).is_some()
                };
                access.normalise(pfns, frames, &mut page)?
            }
        };
        Ok(XenBatch { mapped, changed })
    }

    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<XenKept>, DomainError> {
        if self.access.is_some() {
            // Another frame may be the page by then, and another type its own.
            return Ok(None);
        }
        self.look_up(pfns)?;
        let mapping = call("map", self.id, || {
            let errors = vec![0; pfns.len()];
            self.xen
                .map(self.id, Protection::Read, &self.frames, errors)
        });
        mapping
            .map(|mapping| Some(XenKept(Mapped(mapping))))
            .map_err(|error| call_failed("map memory of", self.id, error))
    }
}

impl MappedPages for XenBatch<'_> {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        if !self.changed.is_empty()
            && let Ok(at) = self
                .changed
                .binary_search_by_key(&index, |(index, _)| *index)
        {
            return match &self.changed[at].1 {
                Normalised::Rewritten(page, kind) => Some(GuestPage::of(page).of_kind(*kind)),
                Normalised::Deferred => None,
            };
        }
        self.mapped.page(index)
    }
}

impl MappedPages for XenKept {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        self.0.page(index)
    }
}
