//! How a PV guest's pages are read: by their frames, each by its type, page tables with page numbers in
//! the place of frames.

use std::sync::Arc;

use xen_sys::{DomainId, PageType, Xen};

use super::page_table;
use super::tables::{Current, Tables};
use crate::page::{PageBytes, PageKind};
use crate::ports::DomainError;
use crate::units::Pfn;
use crate::xen::guest::{call, call_failed};
use crate::xen::types::{Normalised, PageAccess};

/// A frame that no page has.
pub const NO_FRAME: u64 = u64::MAX;

/// For one copier thread.
pub struct Access {
    xen: Xen,
    id: DomainId,
    current: Arc<Current>,
    /// Of the batch at hand.
    tables: Option<Arc<Tables>>,
    types: Vec<u64>,
}

impl Access {
    pub fn new(xen: Xen, id: DomainId, current: Arc<Current>) -> Self {
        Self {
            xen,
            id,
            current,
            tables: None,
            types: vec![],
        }
    }
}

impl PageAccess for Access {
    fn frames(&mut self, pfns: &[Pfn], frames: &mut Vec<u64>) -> Result<(), DomainError> {
        self.tables = self.current.get();
        let frame_of = |pfn: &Pfn| self.tables.as_ref()?.frame_of(pfn.0);
        frames.extend(pfns.iter().map(|pfn| frame_of(pfn).unwrap_or(NO_FRAME)));
        Ok(())
    }

    /// The types are asked for once the batch is mapped, right before it is copied. What changes
    /// between the two makes the page dirty, so that it comes again: a write to it does, and so does
    /// every change of its type, whether it is written then or not. (Xen's `arch/x86/mm.c`, 4.17 to
    /// 4.20: a page table "is dirtied when its type count becomes non-zero" in `validate_page`, "...
    /// becomes zero" in `devalidate_page`, and "when its pin status is set" and "... cleared" in
    /// `do_mmuext_op`.) So the types need not be read once more in the pause window.
    fn normalise(
        &mut self,
        pfns: &[Pfn],
        frames: &[u64],
        page: &mut dyn FnMut(usize, &mut PageBytes) -> bool,
    ) -> Result<Vec<(usize, Normalised)>, DomainError> {
        let Some(tables) = &self.tables else {
            let none = (0..pfns.len()).map(|index| (index, Normalised::Deferred));
            return Ok(none.collect());
        };
        let types = &mut self.types;
        types.clear();
        types.extend_from_slice(frames);
        call("page-types", self.id, || {
            self.xen.page_types(self.id, types)
        })
        .map_err(|error| call_failed("read the page types of", self.id, error))?;
        let mut changed = vec![];
        for (index, &word) in types.iter().enumerate() {
            let kind = PageKind::of_bits((PageType::of(word).0 >> 60) as u8);
            let level = match kind {
                Some(kind) => match kind.level() {
                    None => continue,
                    Some(level) => level,
                },
                None => {
                    changed.push((index, Normalised::Deferred));
                    continue;
                }
            };
            let mut table = Box::new(PageBytes::ZERO);
            let done = page(index, &mut table)
                && page_table::normalise(&mut table, level, |frame| tables.pfn_of(frame));
            changed.push((
                index,
                if done {
                    Normalised::Rewritten(table, kind.unwrap_or_default())
                } else {
                    Normalised::Deferred
                },
            ));
        }
        Ok(changed)
    }
}
