//! What hardware-virtualised guests have in common, with an emulator (HVM) or without (PVH).

use xen_sys::PageType;
use xen_sys::state::hvm_param;

use super::{Record, records};
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};
use crate::xen::guest::{Guest, call};
use crate::xen::memory_map::QUERY;

/// PVH guests have their firmware tables above 0xfc000000 (4 GiB minus 64 MiB).
const FIRMWARE_TABLES: u64 = 0xf_c000;

/// Why a hardware-virtualised guest cannot be saved.
pub(super) fn refusal(guest: &Guest) -> Result<Option<String>, DomainError> {
    let pod = guest
        .xen
        .pod_target(guest.id)
        .map_err(|error| guest.failed("read the populate-on-demand memory of", error))?;
    Ok((pod.entries > 0).then(|| {
        format!(
            "{} of its pages are populate-on-demand and do not exist yet (memory < maxmem); wait \
             until its balloon driver has given them back",
            pod.entries
        )
    }))
}

fn highest(guest: &Guest) -> Result<u64, DomainError> {
    guest
        .xen
        .maximum_gpfn(guest.id)
        .map_err(|error| guest.failed("read the highest page of", error))
}

/// How many page numbers there are.
pub(super) fn span(guest: &Guest) -> Result<PageCount, DomainError> {
    Ok(PageCount(highest(guest)? + 1))
}

/// Pages that no sample is likely to meet: the rings of console and xenstore and such.
pub(super) fn hints(guest: &Guest) -> Vec<Pfn> {
    let param = |index| guest.xen.hvm_param_get(guest.id, index).unwrap_or(0);
    let params = hvm_param::SAVED.iter().map(|&(index, _)| param(index));
    params
        .filter(|&pfn| pfn != 0)
        .chain([FIRMWARE_TABLES])
        .chain(highest(guest).ok())
        .map(Pfn)
        .collect()
}

/// Which pages exist: their numbers are frames, and the hypervisor knows their types.
pub(super) fn exist(
    guest: &Guest,
    pfns: &[u64],
    answers: &mut Vec<bool>,
) -> Result<(), DomainError> {
    let mut types = [0; QUERY];
    let types = &mut types[..pfns.len()];
    types.copy_from_slice(pfns);
    call("page-types", guest.id, || {
        guest.xen.page_types(guest.id, types)
    })
    .map_err(|error| guest.failed("read the page types of", error))?;
    answers.clear();
    answers.extend(types.iter().map(|&word| PageType::of(word).has_data()));
    Ok(())
}

/// Room for the vCPU and device state, taken before the pause window.
#[derive(Default)]
pub(super) struct Context(Vec<u8>);

impl Context {
    pub fn make_room(&mut self, guest: &Guest) -> Result<(), DomainError> {
        let size = guest
            .xen
            .hvm_context_size(guest.id)
            .map_err(|error| guest.failed("read the size of the state of", error))?;
        self.0 = vec![0; size];
        Ok(())
    }

    /// The records behind the memory.
    pub fn records(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError> {
        call("final-state", guest.id, || {
            records::hardware(&guest.xen, guest.id, &mut self.0)
        })
        .map_err(|error| guest.failed("read the state of", error))
    }
}
