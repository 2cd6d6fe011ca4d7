//! 64-bit PV guests: their page numbers are not frames, their page tables hold frames, and their vCPUs
//! and the hypervisor share state that is not in their memory.

mod access;
mod p2m;
mod page_table;
mod shared_info;
mod tables;
mod vcpu;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use xen_sys::{ForeignWords, HypercallBuffer, MachineToPhys, PAGE_SIZE, PageType, Protection};

use access::Access;
use p2m::{Memory, Words};
use shared_info::{Anchor, SharedInfo};
use tables::{Current, Tables, Unusable};
use vcpu::VcpuError;

use super::{GuestOps, GuestType, PageAccess, Record, Tail, records};
use crate::image::libxc::record;
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};
use crate::xen::config::GuestConfig;
use crate::xen::domain::span_limit;
use crate::xen::guest::{Guest, call};

/// Bytes of an address, and levels of page tables.
const WIDTH: u8 = 8;
const LEVELS: u8 = 4;
/// How often its tables are looked at anew because it changes them meanwhile, and how long after.
const LOOKS: u32 = 50;
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Room for the state of a vCPU: its extended registers are some KiB.
const VCPU_ROOM: usize = 4 * PAGE_SIZE;

/// What is said of a hypervisor that cannot track a PV guest's writes.
pub(in crate::xen) const NO_SHADOW_PAGING: &str = "this hypervisor cannot track the writes of PV \
    guests: it was built without shadow paging, as those of Debian 12's security updates (4.17.7) and \
    of Debian 13 (4.20) are; --mode plain saves it all the same, suspended for as long as that takes";

/// A PV guest.
#[derive(Default)]
pub(super) struct Pv {
    m2p: Option<Arc<MachineToPhys>>,
    shared_info: Option<SharedInfo>,
    /// What it said when the tables were found.
    anchor: Anchor,
    current: Arc<Current>,
    /// Room for the final state, taken before the pause window.
    room: Option<HypercallBuffer>,
    types: Vec<u64>,
}

fn wrong(guest: &Guest, why: &str) -> DomainError {
    DomainError::Unsupported(format!(
        "Domain {} cannot be saved: what it tells of its memory is not usable: {why}",
        guest.name
    ))
}

impl Pv {
    /// What the guest says now of where its tables are.
    fn anchor(&mut self, guest: &Guest) -> Result<Anchor, DomainError> {
        let shared_info = match &mut self.shared_info {
            Some(shared_info) => shared_info,
            none => {
                let frame = guest.info()?.shared_info_frame;
                let mapped = SharedInfo::map(&guest.xen, guest.id, frame);
                none.insert(mapped.map_err(|error| {
                    guest.failed("map the page shared with the hypervisor of", error)
                })?)
            }
        };
        shared_info
            .anchor()
            .ok_or_else(|| wrong(guest, "its shared page is not there"))
    }

    fn m2p(&mut self, guest: &Guest) -> Result<Arc<MachineToPhys>, DomainError> {
        if let Some(m2p) = &self.m2p {
            return Ok(m2p.clone());
        }
        let m2p = call("m2p", guest.id, || guest.xen.machine_to_phys())
            .map_err(|error| guest.failed("map the hypervisor's table of frames for", error))?;
        Ok(self.m2p.insert(Arc::new(m2p)).clone())
    }

    /// Finds and maps the P2M.
    fn tables(&mut self, guest: &Guest, anchor: &Anchor) -> Result<Tables, Unusable> {
        let m2p = self.m2p.clone().ok_or(Unusable::Wrong("no M2P"))?;
        let max_pages = guest.info().map_or(0, |info| info.max_pages);
        let mut read = |frame| read_words(guest, frame);
        let mut memory = Memory {
            read: &mut read,
            end: m2p.end(),
        };
        let found = p2m::find(anchor, span_limit(max_pages), &mut memory);
        let found = found.map_err(Unusable::Wrong)?;
        Tables::map(&guest.xen, guest.id, m2p, &found)
    }
}

/// One page of the guest.
fn read_words(guest: &Guest, frame: u64) -> Option<Box<Words>> {
    let mapped = guest.xen.map(guest.id, Protection::Read, &[frame], [0; 1]);
    let mut bytes = [0; PAGE_SIZE];
    if !mapped.ok()?.copy_page(0, &mut bytes) {
        return None;
    }
    let mut words = Box::new([0; ForeignWords::PER_PAGE]);
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(words)
}

impl GuestOps for Pv {
    fn stream_type(&self) -> GuestType {
        GuestType::Pv
    }

    fn refusal(&mut self, guest: &Guest, _: &GuestConfig) -> Result<Option<String>, DomainError> {
        let width = guest
            .xen
            .guest_width(guest.id)
            .map_err(|error| guest.failed("read the width of", error))?;
        Ok((width != u32::from(WIDTH)).then(|| {
            "it is a 32-bit PV guest; of PV guests 64-bit ones only are saved (`xl save -c` saves \
             it, suspended for as long as that takes)"
                .into()
        }))
    }

    /// It would stay on shadow page tables, and slow, between saves.
    fn no_increments(&self) -> Option<&'static str> {
        self.only_full_images()
    }

    /// What kind its pages are is not compared.
    fn only_full_images(&self) -> Option<&'static str> {
        Some("there are no increments of PV guests")
    }

    fn look(&mut self, guest: &Guest) -> Result<PageCount, DomainError> {
        self.m2p(guest)?;
        for _ in 0..LOOKS {
            let anchor = self.anchor(guest)?;
            if anchor.pages == 0 {
                return Err(wrong(guest, "it has none yet (is it still booting?)"));
            }
            if !anchor.changes() {
                let found = self.tables(guest, &anchor);
                if self.anchor(guest)? == anchor {
                    let tables = found.map_err(|error| match error {
                        Unusable::Call(error) => guest.failed("map the tables of", error),
                        Unusable::Wrong(why) => wrong(guest, why),
                    })?;
                    let pages = PageCount(tables.pages());
                    self.current.set(Arc::new(tables));
                    self.anchor = anchor;
                    return Ok(pages);
                }
            }
            thread::sleep(LOOK_PAUSE);
        }
        Err(wrong(guest, "it changes all the time"))
    }

    fn hints(&self, _: &Guest) -> Vec<Pfn> {
        vec![]
    }

    fn exist(
        &mut self,
        guest: &Guest,
        pfns: &[u64],
        answers: &mut Vec<bool>,
    ) -> Result<(), DomainError> {
        answers.clear();
        answers.resize(pfns.len(), false);
        let Some(tables) = self.current.get() else {
            return Ok(());
        };
        let mut there = vec![];
        self.types.clear();
        for (index, &pfn) in pfns.iter().enumerate() {
            // A page whose frame the hypervisor knows as another's would never be seen to be written.
            if let Some(frame) = tables.own_frame_of(pfn) {
                there.push(index);
                self.types.push(frame);
            }
        }
        call("page-types", guest.id, || {
            guest.xen.page_types(guest.id, &mut self.types)
        })
        .map_err(|error| guest.failed("read the page types of", error))?;
        for (index, &word) in there.iter().zip(&self.types) {
            answers[*index] = PageType::of(word).has_data();
        }
        Ok(())
    }

    fn map_holds(&mut self, guest: &Guest) -> Result<bool, DomainError> {
        Ok(self.anchor(guest)? == self.anchor)
    }

    fn page_access(&self, guest: &Guest) -> Result<Option<Box<dyn PageAccess>>, DomainError> {
        let access = Access::new(guest.xen.clone(), guest.id, self.current.clone());
        Ok(Some(Box::new(access)))
    }

    fn static_data(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError> {
        if self.room.is_none() {
            let room = guest.xen.hypercall_buffer(VCPU_ROOM);
            let failed = "make room for the state of";
            self.room = Some(room.map_err(|error| guest.failed(failed, error))?);
        }
        let info = vec![WIDTH, LEVELS, 0, 0, 0, 0, 0, 0];
        Ok(vec![Record::new(record::X86_PV_INFO, info)])
    }

    /// u32 first page number of the P2M, u32 last, u64 page of each of its pages.
    fn before_memory(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError> {
        let tables = self
            .current
            .get()
            .ok_or_else(|| wrong(guest, "none was found"))?;
        let last = u32::try_from(tables.pages() - 1);
        let last = last.map_err(|_| wrong(guest, "it has too many page numbers"))?;
        let mut body = vec![0; 4];
        body.extend_from_slice(&last.to_le_bytes());
        for leaf in tables.leaves() {
            body.extend_from_slice(&leaf.0.to_le_bytes());
        }
        Ok(vec![Record::new(record::X86_PV_P2M_FRAMES, body)])
    }

    fn final_state(&mut self, guest: &Guest) -> Result<Tail, DomainError> {
        let (xen, id) = (&guest.xen, guest.id);
        let (Some(tables), Some(shared_info), Some(room)) =
            (self.current.get(), &self.shared_info, &mut self.room)
        else {
            return Err(wrong(guest, "none was found"));
        };
        let failed = |error| guest.failed("read the state of", error);
        let tsc = call("final-state", id, || records::tsc(xen, id)).map_err(failed)?;
        let mut libxc = vec![tsc, Record::new(record::SHARED_INFO, shared_info.copy())];
        let vcpus = guest.info()?.max_vcpu_id.map_or(0, |last| last + 1);
        for vcpu in 0..vcpus {
            if !xen.vcpu_online(id, vcpu).map_err(failed)? {
                continue;
            }
            let records = vcpu::records(xen, id, vcpu, room, |frame| tables.pfn_of(frame));
            libxc.extend(records.map_err(|error| match error {
                VcpuError::Call(error) => failed(error),
                VcpuError::Foreign(what) => wrong(
                    guest,
                    &format!("vCPU {vcpu}: {what} is not in the guest's memory"),
                ),
            })?);
        }
        Ok(Tail {
            libxc,
            libxl: vec![],
        })
    }
}
