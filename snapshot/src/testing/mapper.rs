//! The guest's pages mapped: what shows through, and which frames it holds on to.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, RwLockReadGuard, Weak};

use super::domain::Memory;
use crate::page::{GuestPage, PageBytes};
use crate::ports::{DomainError, MappedPages, Mapper};
use crate::units::Pfn;

/// Frames that were once pages of the guest, and what is mapped beside others.
#[derive(Default)]
pub(super) struct Frames {
    /// Pages given back, in their order, with what they held.
    pub(super) given_back: Vec<(u64, PageBytes)>,
    kept: Vec<Weak<Pins>>,
}

/// What a kept batch holds on to.
struct Pins {
    pfns: Vec<u64>,
    /// How many pages had been given back when it was mapped.
    since: usize,
}

impl Frames {
    /// The frame that was this page when it was mapped, if it is no longer.
    fn old(&self, pfn: u64, since: usize) -> Option<&PageBytes> {
        let mut later = self.given_back[since..].iter();
        later.find(|(gone, _)| *gone == pfn).map(|(_, page)| page)
    }

    /// How many frames are no page any more and are mapped.
    pub(super) fn held(&self) -> u64 {
        let kept = self.kept.iter().filter_map(Weak::upgrade);
        let held = |pins: Arc<Pins>| {
            let gone = |pfn: &&u64| self.old(**pfn, pins.since).is_some();
            pins.pfns.iter().filter(gone).count() as u64
        };
        kept.map(held).sum()
    }
}

pub struct FakeMapper {
    pub(super) memory: Memory,
    pub(super) unmappable: Arc<Mutex<Vec<u64>>>,
    pub(super) frames: Arc<Mutex<Frames>>,
}

/// Pages kept mapped: each shows what its frame holds when it is looked at first.
pub struct FakeKept {
    memory: Memory,
    pages: Vec<(Option<u64>, OnceCell<PageBytes>)>,
    frames: Arc<Mutex<Frames>>,
    pins: Arc<Pins>,
}

impl MappedPages for FakeKept {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        let (pfn, page) = &self.pages[index];
        let pfn = (*pfn)?;
        let now = || {
            let frames = self.frames.lock().expect("frames");
            let old = frames.old(pfn, self.pins.since).cloned();
            old.unwrap_or_else(|| self.memory.read().expect("memory")[pfn as usize].clone())
        };
        Some(GuestPage::of(page.get_or_init(now)))
    }
}

pub struct FakeBatch<'a> {
    memory: RwLockReadGuard<'a, Vec<PageBytes>>,
    pfns: Vec<Option<u64>>,
}

impl Mapper for FakeMapper {
    type Batch<'a> = FakeBatch<'a>;
    type Kept = FakeKept;

    fn keep(&mut self, pfns: &[Pfn]) -> Result<Option<FakeKept>, DomainError> {
        let unmappable = self.unmappable.lock().expect("list");
        let pages: Vec<_> = pfns
            .iter()
            .map(|pfn| (!unmappable.contains(&pfn.0)).then_some(pfn.0))
            .map(|pfn| (pfn, OnceCell::new()))
            .collect();
        let mut frames = self.frames.lock().expect("frames");
        let pins = Arc::new(Pins {
            pfns: pages.iter().filter_map(|(pfn, _)| *pfn).collect(),
            since: frames.given_back.len(),
        });
        frames.kept.push(Arc::downgrade(&pins));
        Ok(Some(FakeKept {
            memory: self.memory.clone(),
            pages,
            frames: self.frames.clone(),
            pins,
        }))
    }

    fn map<'a>(&'a mut self, pfns: &[Pfn]) -> Result<FakeBatch<'a>, DomainError> {
        let unmappable = self.unmappable.lock().expect("list");
        let pfns = pfns
            .iter()
            .map(|pfn| (!unmappable.contains(&pfn.0)).then_some(pfn.0))
            .collect();
        Ok(FakeBatch {
            memory: self.memory.read().expect("memory"),
            pfns,
        })
    }
}

impl MappedPages for FakeBatch<'_> {
    fn page(&self, index: usize) -> Option<GuestPage<'_>> {
        let pfn = self.pfns[index]?;
        Some(GuestPage::of(&self.memory[pfn as usize]))
    }
}
