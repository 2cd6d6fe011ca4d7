//! A guest in memory, scripted and faulty on demand, for tests of the engine.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use crate::disks::DiskFacts;
pub use crate::image::samples::{facts as some_facts, first_pages, preamble};
use crate::image::{Preamble, Record, Tail, libxc};
use crate::lineage::ImageId;
use crate::page::{GuestPage, PAGE_SIZE, PageBytes};

use crate::page_set::PageSet;
use crate::ports::{
    BoxError, Cancel, Cpu, Disks, Domain, DomainError, Identity, MappedPages, Mapper, Meanwhile,
};
use crate::units::{Bytes, CpuPercent, Pfn};

/// Counts calls and fails the one that was asked for.
#[derive(Clone, Default)]
pub struct Faults(Rc<FaultsInner>);

#[derive(Default)]
struct FaultsInner {
    calls: Cell<u32>,
    fail_at: Cell<Option<u32>>,
    log: RefCell<Vec<&'static str>>,
}

impl Faults {
    pub fn at(call: u32) -> Self {
        let faults = Self::default();
        faults.0.fail_at.set(Some(call));
        faults
    }

    pub fn fail_at(&self, call: u32) {
        self.0.fail_at.set(Some(call));
    }

    pub fn log(&self) -> Vec<&'static str> {
        self.0.log.borrow().clone()
    }

    fn call(&self, name: &'static str) -> Result<(), BoxError> {
        let call = self.0.calls.get();
        self.0.calls.set(call + 1);
        self.0.log.borrow_mut().push(name);
        if self.0.fail_at.get() == Some(call) {
            return Err(Box::new(io::Error::other(name)));
        }
        Ok(())
    }
}

type Memory = Arc<RwLock<Vec<PageBytes>>>;

/// The guest. It writes when the engine fetches the dirty set or suspends it: the pages of the
/// next entry of `writes`, each with a value of its own.
pub struct FakeDomain {
    pub memory: Memory,
    pub pages: PageSet,
    pub writes: Vec<Vec<u64>>,
    /// After that many fetches the set of pages becomes this one; 0 is while it suspends.
    pub resize: Option<(usize, PageSet)>,
    /// How often the memory map is in motion before it can be had.
    pub moving: u32,
    pub faults: Faults,
    pub suspended: bool,
    pub log_dirty: bool,
    /// It was left on for an increment on that image.
    pub kept_for: Option<ImageId>,
    /// The limit set by the engine, if it has set one.
    pub throttled: Option<CpuPercent>,
    /// It has a limit of its own.
    pub own_cap: Option<CpuPercent>,
    /// It is free of that now, and how often it was.
    pub uncapped: bool,
    pub lifts: u32,
    /// CPU time used so far.
    pub cpu_time: Duration,
    /// All limits that were set.
    pub limits: Vec<CpuPercent>,
    /// Memory at the moment of the suspend.
    pub at_cut: Vec<PageBytes>,
    /// Pages that cannot be mapped while the guest runs.
    pub unmappable: Arc<Mutex<Vec<u64>>>,
    /// What its balloon does while it suspends: after so many ms it gives these pages back, and takes
    /// those, which it had given back before, again.
    pub balloon: Vec<(u64, Vec<u64>, Vec<u64>)>,
    frames: Arc<Mutex<Frames>>,
    identity: Identity,
    dirty: PageSet,
    mapped_size: u64,
    fetches: usize,
    counter: u8,
}

impl FakeDomain {
    pub fn new(pages: PageSet, writes: Vec<Vec<u64>>) -> Self {
        let span = pages.span();
        let mut memory = vec![PageBytes::ZERO; span.0 as usize];
        for pfn in pages.iter().filter(|pfn| pfn.0 % 3 != 0) {
            memory[pfn.0 as usize].0.fill(pfn.0 as u8 | 1);
        }
        Self {
            memory: Arc::new(RwLock::new(memory)),
            pages,
            writes,
            resize: None,
            moving: 0,
            faults: Faults::default(),
            suspended: false,
            log_dirty: false,
            kept_for: None,
            throttled: None,
            own_cap: None,
            uncapped: false,
            lifts: 0,
            cpu_time: Duration::ZERO,
            limits: vec![],
            at_cut: vec![],
            unmappable: Arc::default(),
            balloon: vec![],
            frames: Arc::default(),
            identity: Identity {
                domid: 7,
                name: "fake".into(),
                uuid: "0".into(),
            },
            dirty: PageSet::new(span),
            mapped_size: 0,
            fetches: 0,
            counter: 100,
        }
    }

    /// As if nothing had been written since the last fetch.
    pub fn forget_dirty(&mut self) {
        self.dirty.clear();
    }

    pub fn resize_at_next_fetch(&mut self, pages: PageSet) {
        self.resize = Some((self.fetches + 1, pages));
    }

    fn run_a_while(&mut self) {
        // It is always busy.
        self.cpu_time += Duration::from_secs(10);
        if self.writes.is_empty() {
            return;
        }
        let mut memory = self.memory.write().expect("memory");
        for pfn in self.writes.remove(0) {
            self.counter = self.counter.wrapping_add(1);
            memory[pfn as usize].0[pfn as usize % PAGE_SIZE] = self.counter;
            if self.log_dirty {
                self.dirty.insert(Pfn(pfn));
            }
        }
    }

    /// As the hypervisor counts them: a frame that was given back is the guest's while it is mapped.
    fn size(&self) -> u64 {
        self.pages.count().0 + self.frames.lock().expect("frames").held()
    }

    fn inflate(&mut self, out: &[u64], back: &[u64]) {
        let mut memory = self.memory.write().expect("memory");
        let mut frames = self.frames.lock().expect("frames");
        for &pfn in out {
            self.pages.remove(Pfn(pfn));
            let page = std::mem::replace(&mut memory[pfn as usize], PageBytes::ZERO);
            frames.given_back.push((pfn, page));
        }
        for &pfn in back {
            // Another frame, and as of Xen 4.19 dirty by that.
            self.pages.insert(Pfn(pfn));
            memory[pfn as usize].0.fill(0xb0);
            self.dirty.insert(Pfn(pfn));
        }
    }

    fn call(&self, operation: &'static str) -> Result<(), DomainError> {
        self.faults
            .call(operation)
            .map_err(|source| DomainError::Call {
                operation,
                domain: self.identity.name.clone(),
                source,
            })
    }
}

impl Domain for FakeDomain {
    type Mapper = FakeMapper;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn preamble(&mut self) -> Result<Preamble, DomainError> {
        self.call("preamble")?;
        Ok(preamble())
    }

    fn memory_map(&mut self) -> Result<Option<PageSet>, DomainError> {
        self.call("memory_map")?;
        if self.moving > 0 {
            self.moving -= 1;
            return Ok(None);
        }
        self.mapped_size = self.size();
        Ok(Some(self.pages.clone()))
    }

    fn map_holds(&mut self, stray: &PageSet) -> Result<bool, DomainError> {
        self.call("map_holds")?;
        let mut known = stray.clone();
        known.intersect(&self.pages);
        Ok(self.mapped_size == self.size() && known.is_empty())
    }

    fn mapper(&self) -> Result<FakeMapper, DomainError> {
        self.call("mapper")?;
        Ok(FakeMapper {
            memory: self.memory.clone(),
            unmappable: self.unmappable.clone(),
            frames: self.frames.clone(),
        })
    }

    fn log_dirty_on(&mut self) -> Result<(), DomainError> {
        self.call("log_dirty_on")?;
        assert!(!self.log_dirty, "switched on twice");
        self.log_dirty = true;
        Ok(())
    }

    fn log_dirty_continue(&mut self, since: &ImageId) -> Result<(), DomainError> {
        self.call("log_dirty_continue")?;
        assert!(self.log_dirty, "it was left on");
        match self.kept_for.take_if(|kept| kept == since) {
            Some(_) => Ok(()),
            None => Err(DomainError::Unsupported("not tracked since".into())),
        }
    }

    fn log_dirty_holds(&mut self) -> Result<(), DomainError> {
        self.call("log_dirty_holds")
    }

    fn log_dirty_keep(&mut self, of: &ImageId) -> Result<(), DomainError> {
        assert!(!self.suspended && self.log_dirty);
        self.call("log_dirty_keep")?;
        self.kept_for = Some(of.clone());
        Ok(())
    }

    fn fetch_dirty(&mut self, into: &mut PageSet, last: bool) -> Result<(), DomainError> {
        assert_eq!(last, self.suspended);
        self.call("fetch_dirty")?;
        if !self.suspended {
            self.run_a_while();
            self.fetches += 1;
            if let Some((_, pages)) = self.resize.take_if(|(at, _)| *at == self.fetches) {
                self.pages = pages;
            }
        }
        into.union(&self.dirty);
        self.dirty.clear();
        Ok(())
    }

    fn peek_dirty(&mut self, into: &mut PageSet) -> Result<(), DomainError> {
        self.call("peek_dirty")?;
        into.union(&self.dirty);
        Ok(())
    }

    fn log_dirty_off(&mut self) -> Result<(), DomainError> {
        assert!(!self.suspended, "log-dirty goes off after the resume");
        self.call("log_dirty_off")?;
        self.log_dirty = false;
        Ok(())
    }

    fn cpu(&mut self) -> Result<Cpu, DomainError> {
        self.call("cpu")?;
        Ok(Cpu {
            vcpus: 1,
            own: self.own_cap,
            means: "cap",
        })
    }

    fn cpu_time(&mut self) -> Result<Duration, DomainError> {
        self.call("cpu_time")?;
        Ok(self.cpu_time)
    }

    fn throttle(&mut self, limit: CpuPercent) -> Result<(), DomainError> {
        self.throttled = Some(limit);
        self.limits.push(limit);
        self.call("throttle")
    }

    fn lift_own_cap(&mut self) -> Result<bool, DomainError> {
        assert!(self.throttled.is_none(), "freed while throttled");
        assert!(!self.suspended, "freed while suspended");
        if self.own_cap.is_none() {
            return Ok(false);
        }
        self.uncapped = true;
        self.lifts += 1;
        self.call("lift_own_cap")?;
        Ok(true)
    }

    fn unthrottle(&mut self) -> Result<(), DomainError> {
        if self.throttled.is_some() || self.uncapped {
            self.call("unthrottle")?;
            self.throttled = None;
            self.uncapped = false;
        }
        Ok(())
    }

    fn make_ready(&mut self) -> Result<(), DomainError> {
        assert!(
            !self.uncapped,
            "free of its cap while others are waited for"
        );
        self.call("make_ready")
    }

    fn suspend(
        &mut self,
        _: Duration,
        cancel: &Cancel,
        meanwhile: &mut dyn Meanwhile,
    ) -> Result<(), DomainError> {
        assert!(self.throttled.is_none(), "suspended while throttled");
        self.call("suspend")?;
        if let Some(signal) = cancel.raised() {
            return Err(DomainError::Interrupted(signal));
        }
        if let Some((_, pages)) = self.resize.take_if(|(at, _)| *at == 0) {
            self.pages = pages;
        }
        // It is looked at a few times before it stands, and writes on between the looks.
        let balloon = std::mem::take(&mut self.balloon);
        for ms in 0..100 {
            for (_, out, back) in balloon.iter().filter(|(at, ..)| *at == ms) {
                self.inflate(out, back);
            }
            if self.size() != self.mapped_size {
                meanwhile.resized();
            }
            if meanwhile.moment(Duration::from_millis(ms)) {
                self.run_a_while();
                meanwhile.dirty(&self.dirty);
            }
        }
        self.run_a_while();
        self.suspended = true;
        self.at_cut = self.memory.read().expect("memory").clone();
        self.unmappable.lock().expect("list").clear();
        Ok(())
    }

    fn final_state(&mut self) -> Result<Tail, DomainError> {
        assert!(self.suspended);
        self.call("final_state")?;
        let context = Record::new(libxc::record::HVM_CONTEXT, vec![7; 9]);
        Ok(Tail {
            libxc: vec![context],
            libxl: vec![],
        })
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        assert!(self.suspended);
        self.call("resume")?;
        self.suspended = false;
        // It writes on at once: what is written after the cut must not be in the image.
        let pages = self.pages.iter().map(|pfn| pfn.0).collect();
        self.writes.insert(0, pages);
        self.run_a_while();
        Ok(())
    }

    fn announce(&mut self) -> Result<(), DomainError> {
        assert!(!self.suspended);
        self.call("announce")
    }
}

/// Frames that were once pages of the guest, and what is mapped beside others.
#[derive(Default)]
struct Frames {
    /// Pages given back, in their order, with what they held.
    given_back: Vec<(u64, PageBytes)>,
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
    fn held(&self) -> u64 {
        let kept = self.kept.iter().filter_map(Weak::upgrade);
        let held = |pins: Arc<Pins>| {
            let gone = |pfn: &&u64| self.old(**pfn, pins.since).is_some();
            pins.pfns.iter().filter(gone).count() as u64
        };
        kept.map(held).sum()
    }
}

pub struct FakeMapper {
    memory: Memory,
    unmappable: Arc<Mutex<Vec<u64>>>,
    frames: Arc<Mutex<Frames>>,
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

/// Disks that remember what is left of what was done to them.
#[derive(Default)]
pub struct FakeDisks {
    pub faults: Faults,
    /// Something was made, and no image has it.
    pub open: bool,
    /// The guest's I/O waits.
    pub held: bool,
    /// How often that ended without a use of the cut.
    pub let_go: u32,
}

impl Disks for FakeDisks {
    fn prepare(&mut self) -> Result<(), BoxError> {
        self.open = true;
        self.faults.call("disks.prepare")
    }
    fn begin_cut(&mut self) {
        self.held = true;
    }
    fn cut(&mut self) -> Result<(), BoxError> {
        assert!(self.held, "not begun");
        self.faults.call("disks.cut")
    }
    fn resumed(&mut self) {
        assert!(self.held, "not cut");
    }
    fn let_go(&mut self) -> Result<(), BoxError> {
        self.held = false;
        self.let_go += 1;
        Ok(())
    }
    fn commit(&mut self) -> Result<(), BoxError> {
        self.held = false;
        self.faults.call("disks.commit")
    }
    fn keep(
        &mut self,
        progress: &mut dyn FnMut(&str, Bytes, Bytes),
    ) -> Result<Option<DiskFacts>, BoxError> {
        self.faults.call("disks.keep")?;
        progress("xvda", Bytes(1), Bytes(2));
        Ok(Some(DiskFacts::default()))
    }
    fn settle(&mut self) -> Result<(), BoxError> {
        self.open = false;
        Ok(())
    }
    fn undo(&mut self) -> Result<(), BoxError> {
        self.open = false;
        self.held = false;
        Ok(())
    }
}

/// All pages of an image, by pfn.
pub fn read_image(path: &Path) -> Vec<(u64, PageBytes)> {
    let mut pages = vec![];
    crate::image::Reader::open(path)
        .expect("a readable image")
        .for_each_page(|pfn, page| {
            pages.push((pfn.0, page.clone()));
            Ok::<_, crate::image::ImageError>(())
        })
        .expect("all pages");
    pages
}

/// What stands in a directory.
pub fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .expect("directory")
        .map(|entry| entry.expect("entry").path())
        .collect()
}
