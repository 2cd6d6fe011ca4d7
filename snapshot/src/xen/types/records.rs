//! The records around the memory: what a guest was started with, and the state of a
//! hardware-virtualised one at the cut (`docs/specs/libxc-migration-stream.pandoc` of Xen).

use xen_sys::state::hvm_param;
use xen_sys::{DomainId, Error, Xen};

use super::{GuestOps, Preamble, Record};
use crate::image::libxc::record;
use crate::ports::DomainError;
use crate::xen::guest::{Guest, call};

/// What stands before the memory, whatever the guest's type.
pub(in crate::xen) fn preamble(
    guest: &Guest,
    ops: &mut dyn GuestOps,
    config: Vec<u8>,
) -> Result<Preamble, DomainError> {
    let static_data = ops.static_data(guest)?;
    let before_memory = ops.before_memory(guest)?;
    call("preamble", guest.id, || {
        let (major, minor) = guest.xen.xen_version()?;
        Ok(Preamble {
            config,
            guest: ops.stream_type(),
            xen_version: (major.into(), minor.into()),
            static_data: with_policy(&guest.xen, guest.id, static_data)?,
            before_memory,
            increment: false,
        })
    })
    .map_err(|error| guest.failed("read the CPU policy of", error))
}

fn with_policy(
    xen: &Xen,
    id: DomainId,
    mut static_data: Vec<Record>,
) -> Result<Vec<Record>, Error> {
    let policy = xen.cpu_policy(id)?;
    // A record without entries must not be written.
    for (kind, body) in [
        (record::X86_CPUID_POLICY, policy.leaves),
        (record::X86_MSR_POLICY, policy.msrs),
    ] {
        if !body.is_empty() {
            static_data.push(Record::new(kind, body));
        }
    }
    Ok(static_data)
}

/// The records behind the memory of a hardware-virtualised guest, read while it is suspended.
/// `context` is scratch space of [`Xen::hvm_context_size`] bytes, given so that nothing is
/// allocated for it in the pause window.
pub(super) fn hardware(xen: &Xen, id: DomainId, context: &mut [u8]) -> Result<Vec<Record>, Error> {
    let tsc = tsc(xen, id)?;
    let length = xen.hvm_context(id, context)?;
    let context = context[..length.min(context.len())].to_vec();

    Ok(vec![
        tsc,
        Record::new(record::HVM_CONTEXT, context),
        Record::new(record::HVM_PARAMS, params(xen, id)?),
    ])
}

/// The record of a guest's time stamp counter, of whatever type it is.
pub(super) fn tsc(xen: &Xen, id: DomainId) -> Result<Record, Error> {
    let tsc = xen.tsc_info(id)?;
    let mut body = Vec::with_capacity(24);
    body.extend_from_slice(&tsc.mode.to_le_bytes());
    body.extend_from_slice(&tsc.khz.to_le_bytes());
    body.extend_from_slice(&tsc.elapsed_ns.to_le_bytes());
    body.extend_from_slice(&tsc.incarnation.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    Ok(Record::new(record::X86_TSC_INFO, body))
}

/// The body of HVM_PARAMS: u32 count, u32 0, then u64 index and u64 value of each that is set.
fn params(xen: &Xen, id: DomainId) -> Result<Vec<u8>, Error> {
    let mut body = vec![0; 8];
    let mut count = 0u32;
    for (index, _) in hvm_param::SAVED {
        let value = xen.hvm_param_get(id, index)?;
        if value != 0 {
            body.extend_from_slice(&u64::from(index).to_le_bytes());
            body.extend_from_slice(&value.to_le_bytes());
            count += 1;
        }
    }
    body[..4].copy_from_slice(&count.to_le_bytes());
    Ok(body)
}
