//! The records around the memory of a PVH guest: what it was started with, and its state at the
//! cut (`docs/specs/libxc-migration-stream.pandoc` of Xen).

use xen_sys::state::hvm_param;
use xen_sys::{DomainId, Error, Xen};

use crate::image::{GuestType, Preamble, Record, Tail, libxc::record};

/// The records before the memory.
pub(super) fn preamble(xen: &Xen, id: DomainId, config: Vec<u8>) -> Result<Preamble, Error> {
    let (major, minor) = xen.xen_version()?;
    let policy = xen.cpu_policy(id)?;
    let mut static_data = vec![];
    // A record without entries must not be written.
    for (kind, body) in [
        (record::X86_CPUID_POLICY, policy.leaves),
        (record::X86_MSR_POLICY, policy.msrs),
    ] {
        if !body.is_empty() {
            static_data.push(Record::new(kind, body));
        }
    }
    Ok(Preamble {
        config,
        guest: GuestType::Hvm,
        xen_version: (major.into(), minor.into()),
        static_data,
        before_memory: vec![],
        increment: false,
    })
}

/// The records behind the memory, read from the suspended guest. `context` is scratch space of
/// [`Xen::hvm_context_size`] bytes, given so that nothing is allocated for it in the pause window.
pub(super) fn tail(xen: &Xen, id: DomainId, context: &mut [u8]) -> Result<Tail, Error> {
    let tsc = xen.tsc_info(id)?;
    let mut tsc_body = Vec::with_capacity(24);
    tsc_body.extend_from_slice(&tsc.mode.to_le_bytes());
    tsc_body.extend_from_slice(&tsc.khz.to_le_bytes());
    tsc_body.extend_from_slice(&tsc.elapsed_ns.to_le_bytes());
    tsc_body.extend_from_slice(&tsc.incarnation.to_le_bytes());
    tsc_body.extend_from_slice(&[0; 4]);

    let length = xen.hvm_context(id, context)?;
    let context = context[..length.min(context.len())].to_vec();

    Ok(Tail {
        libxc: vec![
            Record::new(record::X86_TSC_INFO, tsc_body),
            Record::new(record::HVM_CONTEXT, context),
            Record::new(record::HVM_PARAMS, params(xen, id)?),
        ],
        libxl: vec![],
    })
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
