//! Maps a domU's memory for the copier.

use std::sync::Arc;

use xen_sys::{DomainId, Protection, Xen};

use super::guest::{call, call_failed};
use super::sys::Mapped;
use crate::guardian::Journal;
use crate::page::GuestPage;
use crate::ports::{BATCH_PAGES, DomainError, MappedPages, Mapper};
use crate::units::Pfn;

/// Maps pages of one domU; one per copier thread, with its own scratch space.
pub struct XenMapper {
    xen: Xen,
    id: DomainId,
    /// Every batch is a sign of life.
    journal: Arc<Journal>,
    pfns: Vec<u64>,
    errors: Vec<i32>,
}

impl XenMapper {
    pub(super) fn new(xen: Xen, id: DomainId, journal: Arc<Journal>) -> Self {
        Self {
            xen,
            id,
            journal,
            pfns: Vec::with_capacity(BATCH_PAGES),
            errors: vec![0; BATCH_PAGES],
        }
    }
}

/// A mapped batch, unmapped when dropped.
pub struct XenBatch<'a>(Mapped<&'a mut [i32]>);

/// A batch that stays mapped beside others.
pub struct XenKept(Mapped<Vec<i32>>);

impl Mapper for XenMapper {
    type Batch<'a> = XenBatch<'a>;
    type Kept = XenKept;

    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<XenBatch<'a>, DomainError> {
        self.journal.beat();
        self.pfns.clear();
        self.pfns.extend(pfns.iter().map(|pfn| pfn.0));
        let Self {
            xen,
            id,
            pfns,
            errors,
            ..
        } = self;
        let mapping = call("map", *id, || {
            xen.map(*id, Protection::Read, pfns, &mut errors[..])
        });
        mapping
            .map(|mapping| XenBatch(Mapped(mapping)))
            .map_err(|error| call_failed("map memory of", *id, error))
    }

    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<XenKept>, DomainError> {
        self.journal.beat();
        self.pfns.clear();
        self.pfns.extend(pfns.iter().map(|pfn| pfn.0));
        let mapping = call("map", self.id, || {
            let errors = vec![0; pfns.len()];
            self.xen.map(self.id, Protection::Read, &self.pfns, errors)
        });
        mapping
            .map(|mapping| Some(XenKept(Mapped(mapping))))
            .map_err(|error| call_failed("map memory of", self.id, error))
    }
}

impl MappedPages for XenBatch<'_> {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        self.0.page(index)
    }
}

impl MappedPages for XenKept {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        self.0.page(index)
    }
}
