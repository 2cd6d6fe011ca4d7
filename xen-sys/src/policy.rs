//! Which CPU a domain sees.

use std::ptr::NonNull;

use crate::bindings::xenctrl::{xen_cpuid_leaf_t, xen_msr_entry_t};
use crate::bindings::xenguest::xc_cpu_policy_t;
use crate::control::{Interface, Xen};
use crate::domain::DomainId;
use crate::error::{CallError, Error};
use crate::logger;

/// The most entries that a CPU policy can have on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PolicySize {
    /// CPUID leaves.
    pub leaves: u32,
    /// MSRs.
    pub msrs: u32,
}

/// A domain's CPU policy, serialised as in the records of an `xl save` stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuPolicy {
    /// CPUID leaves of 24 bytes each: leaf, subleaf, eax, ebx, ecx, edx (`xen_cpuid_leaf_t`); the
    /// body of a record `X86_CPUID_POLICY`.
    pub leaves: Vec<u8>,
    /// MSRs of 16 bytes each: index, flags, 64-bit value (`xen_msr_entry_t`); the body of a
    /// record `X86_MSR_POLICY`.
    pub msrs: Vec<u8>,
}

/// The library's own form of a policy, destroyed with it.
struct Policy<'i> {
    interface: &'i Interface,
    policy: NonNull<xc_cpu_policy_t>,
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        // SAFETY: made by xc_cpu_policy_init, destroyed once.
        unsafe { (self.interface.libraries().guest.xc_cpu_policy_destroy)(self.policy.as_ptr()) };
    }
}

impl Xen {
    /// How large a CPU policy can be here. (`xc_cpu_policy_get_size` of `xenguest.h`.)
    ///
    /// # Errors
    /// [`Error::HostCall`].
    pub fn cpu_policy_size(&self) -> Result<PolicySize, Error> {
        let mut size = PolicySize::default();
        self.host_call("read the size of CPU policies", |interface| {
            // SAFETY: two integers to write to.
            unsafe {
                (interface.libraries().guest.xc_cpu_policy_get_size)(
                    interface.handle(),
                    &raw mut size.leaves,
                    &raw mut size.msrs,
                )
            }
            .into()
        })?;
        Ok(size)
    }

    /// A domain's CPU policy. (`xc_cpu_policy_get_domain` and `xc_cpu_policy_serialise` of
    /// `xenguest.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`], [`Error::HostCall`].
    pub fn cpu_policy(&self, domain: DomainId) -> Result<CpuPolicy, Error> {
        let size = self.cpu_policy_size()?;
        let policy = self.new_policy()?;
        self.domain_call("read the CPU policy of", domain, |interface, domid| {
            // SAFETY: the policy is valid.
            unsafe {
                (interface.libraries().guest.xc_cpu_policy_get_domain)(
                    interface.handle(),
                    domid,
                    policy.policy.as_ptr(),
                )
            }
            .into()
        })?;

        let no_leaf = xen_cpuid_leaf_t {
            leaf: 0,
            subleaf: 0,
            a: 0,
            b: 0,
            c: 0,
            d: 0,
        };
        let no_msr = xen_msr_entry_t {
            idx: 0,
            flags: 0,
            val: 0,
        };
        let mut leaves = vec![no_leaf; size.leaves as usize];
        let mut msrs = vec![no_msr; size.msrs as usize];
        let (mut leaf_count, mut msr_count) = (size.leaves, size.msrs);
        self.domain_call("serialise the CPU policy of", domain, |interface, _| {
            // SAFETY: the counts are the lengths of the arrays; the library lowers them to what
            // it wrote and fails with ENOBUFS rather than write more.
            unsafe {
                (interface.libraries().guest.xc_cpu_policy_serialise)(
                    interface.handle(),
                    policy.policy.as_ptr(),
                    leaves.as_mut_ptr(),
                    &raw mut leaf_count,
                    msrs.as_mut_ptr(),
                    &raw mut msr_count,
                )
            }
            .into()
        })?;
        leaves.truncate(leaf_count as usize);
        msrs.truncate(msr_count as usize);
        Ok(CpuPolicy {
            leaves: leaves.iter().flat_map(leaf_bytes).collect(),
            msrs: msrs.iter().flat_map(msr_bytes).collect(),
        })
    }

    fn new_policy(&self) -> Result<Policy<'_>, Error> {
        let interface: &Interface = self.interface();
        logger::clear();
        // SAFETY: no arguments; null when out of memory.
        let policy = unsafe { (interface.libraries().guest.xc_cpu_policy_init)() };
        match NonNull::new(policy) {
            Some(policy) => Ok(Policy { interface, policy }),
            None => Err(Error::HostCall {
                operation: "allocate a CPU policy",
                source: CallError::of(-1),
            }),
        }
    }
}

/// A leaf in the stream's byte order.
fn leaf_bytes(entry: &xen_cpuid_leaf_t) -> [u8; 24] {
    let mut bytes = [0; 24];
    let words = [
        entry.leaf,
        entry.subleaf,
        entry.a,
        entry.b,
        entry.c,
        entry.d,
    ];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// An MSR in the stream's byte order.
fn msr_bytes(entry: &xen_msr_entry_t) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&entry.idx.to_le_bytes());
    bytes[4..8].copy_from_slice(&entry.flags.to_le_bytes());
    bytes[8..].copy_from_slice(&entry.val.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_serialised_field_by_field() {
        let leaf = xen_cpuid_leaf_t {
            leaf: 7,
            subleaf: 1,
            a: 0xA,
            b: 0xB,
            c: 0xC,
            d: 0x0102_0304,
        };
        let bytes = leaf_bytes(&leaf);
        assert_eq!(bytes[..8], [7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[20..], [4, 3, 2, 1]);
        let msr = xen_msr_entry_t {
            idx: 0xCE,
            flags: 2,
            val: 0x8000_0000_0000_0001,
        };
        let bytes = msr_bytes(&msr);
        assert_eq!(
            bytes,
            [0xCE, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80]
        );
    }
}
