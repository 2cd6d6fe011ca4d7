//! From page numbers to machine frames and back, by the guest's table (P2M) and the hypervisor's (M2P),
//! both mapped, so that what they say is what is so now.

use std::sync::{Arc, PoisonError, RwLock};

use xen_sys::{DomainId, Error, ForeignWords, MachineToPhys, Xen};

use super::p2m::{Leaves, PER_PAGE};
use crate::units::Pfn;

/// The two tables.
pub struct Tables {
    m2p: Arc<MachineToPhys>,
    p2m: ForeignWords,
    pages: u64,
    /// The pages that the P2M is in.
    leaves: Vec<Pfn>,
}

/// Why there are none.
pub enum Unusable {
    /// A call failed.
    Call(Error),
    /// The guest's is wrong.
    Wrong(&'static str),
}

impl Tables {
    /// Maps the P2M.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn map(
        xen: &Xen,
        id: DomainId,
        m2p: Arc<MachineToPhys>,
        found: &Leaves,
    ) -> Result<Self, Unusable> {
        let p2m = xen.map_words(id, &found.frames).map_err(Unusable::Call)?;
        let mut tables = Self {
            m2p,
            p2m,
            pages: found.pages,
            leaves: vec![],
        };
        for (number, &frame) in found.frames.iter().enumerate() {
            if tables.p2m.get(number * ForeignWords::PER_PAGE).is_none() {
                return Err(Unusable::Wrong("a page of it cannot be mapped"));
            }
            let pfn = tables.pfn_of(frame);
            let pfn = pfn.ok_or(Unusable::Wrong("a page of it is not one of the guest's"))?;
            tables.leaves.push(Pfn(pfn));
        }
        Ok(tables)
    }

    /// How many page numbers there are.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages that the P2M is in, in its order.
    pub fn leaves(&self) -> &[Pfn] {
        &self.leaves
    }

    /// The frame of a page; `None` if it has none, or not one of its own: Linux marks frames of other
    /// domains and of devices by bits that no frame has.
    pub fn frame_of(&self, pfn: u64) -> Option<u64> {
        if pfn >= self.pages {
            return None;
        }
        self.p2m
            .get(pfn as usize)
            .filter(|&frame| frame < self.m2p.end())
    }

    /// The page of a frame, if it is the guest's: the one table must lead to the page and the other
    /// back. (The M2P has an entry for frames of whatever domain.)
    pub fn pfn_of(&self, frame: u64) -> Option<u64> {
        let pfn = self.m2p.get(frame)?;
        (self.frame_of(pfn) == Some(frame)).then_some(pfn)
    }

    /// The frame of a page, if it is that page's alone.
    pub fn own_frame_of(&self, pfn: u64) -> Option<u64> {
        self.frame_of(pfn)
            .filter(|&frame| self.m2p.get(frame) == Some(pfn))
    }
}

const _: () = assert!(ForeignWords::PER_PAGE as u64 == PER_PAGE);

/// The tables as they were last found, for several threads.
#[derive(Default)]
pub struct Current(RwLock<Option<Arc<Tables>>>);

impl Current {
    /// The tables; `None` before they were first found.
    pub fn get(&self) -> Option<Arc<Tables>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// They were found anew.
    pub fn set(&self, tables: Arc<Tables>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(tables);
    }
}
