//! The guest.

use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use super::mapper::{FakeMapper, Frames};
use super::{Faults, preamble};
use crate::image::{Preamble, Record, Tail, libxc};
use crate::lineage::ImageId;
use crate::page::{PAGE_SIZE, PageBytes};
use crate::page_set::PageSet;
use crate::ports::{Cancel, Cpu, Domain, DomainError, Identity, Meanwhile};
use crate::units::{CpuPercent, Pfn};

/// Every page of the guest, by number.
pub(super) type Memory = Arc<RwLock<Vec<PageBytes>>>;

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
    /// It has an emulator.
    pub emulator: bool,
    /// How long nothing was done about it from its announcement to the end of its tracking.
    pub left_alone: Duration,
    announced: Option<Instant>,
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
            emulator: false,
            left_alone: Duration::ZERO,
            announced: None,
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
        self.left_alone = self.announced.map_or(Duration::ZERO, |at| at.elapsed());
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

    fn quiesce(&mut self) -> Result<bool, DomainError> {
        assert!(self.suspended);
        Ok(self.emulator)
    }

    fn announce(&mut self) -> Result<(), DomainError> {
        assert!(!self.suspended);
        self.announced = Some(Instant::now());
        self.call("announce")
    }
}
