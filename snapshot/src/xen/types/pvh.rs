//! PVH guests: hardware virtualised, no emulator.

use super::hardware::{self, Context};
use super::{GuestOps, GuestType, Record, Tail};
use crate::ports::DomainError;
use crate::units::{PageCount, Pfn};
use crate::xen::config::GuestConfig;
use crate::xen::guest::Guest;

/// A PVH guest.
#[derive(Default)]
pub(super) struct Pvh {
    context: Context,
}

impl GuestOps for Pvh {
    fn stream_type(&self) -> GuestType {
        GuestType::Hvm
    }

    fn refusal(&mut self, guest: &Guest, _: &GuestConfig) -> Result<Option<String>, DomainError> {
        hardware::refusal(guest)
    }

    fn look(&mut self, guest: &Guest) -> Result<PageCount, DomainError> {
        hardware::span(guest)
    }

    fn hints(&self, guest: &Guest) -> Vec<Pfn> {
        hardware::hints(guest)
    }

    fn exist(
        &mut self,
        guest: &Guest,
        pfns: &[u64],
        answers: &mut Vec<bool>,
    ) -> Result<(), DomainError> {
        hardware::exist(guest, pfns, answers)
    }

    fn static_data(&mut self, guest: &Guest) -> Result<Vec<Record>, DomainError> {
        self.context.make_room(guest)?;
        Ok(vec![])
    }

    fn final_state(&mut self, guest: &Guest) -> Result<Tail, DomainError> {
        Ok(Tail {
            libxc: self.context.records(guest)?,
            libxl: vec![],
        })
    }
}
