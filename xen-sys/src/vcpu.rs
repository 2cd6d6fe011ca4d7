//! The state of a 64-bit PV guest's vCPUs, as an `xl save` stream carries it.

use std::mem::MaybeUninit;

use crate::bindings::xenctrl::{
    __guest_handle_vcpu_guest_context_t, XEN_DOMCTL_get_ext_vcpucontext, XEN_DOMCTL_get_vcpu_msrs,
    XEN_DOMCTL_getvcpucontext, XEN_DOMCTL_getvcpuextstate, cpu_user_regs, vcpu_guest_context,
    xen_domctl_ext_vcpucontext, xen_domctl_getvcpuinfo, xen_domctl_vcpu_msr, xen_domctl_vcpu_msrs,
    xen_domctl_vcpucontext, xen_domctl_vcpuextstate,
};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::domctl::Argument;
use crate::error::Error;
use crate::hypercall_buffer::HypercallBuffer;

// SAFETY: an integer and a pointer.
unsafe impl Argument for xen_domctl_vcpucontext {}
// SAFETY: integers only.
unsafe impl Argument for xen_domctl_ext_vcpucontext {}
// SAFETY: integers and a pointer.
unsafe impl Argument for xen_domctl_vcpuextstate {}
// SAFETY: integers and a pointer.
unsafe impl Argument for xen_domctl_vcpu_msrs {}

/// The registers of a vCPU and what the guest has told the hypervisor of it
/// (`struct vcpu_guest_context` of `xen/arch-x86/xen.h`, for 64 bits).
#[derive(Clone)]
pub struct VcpuContext(Box<vcpu_guest_context>);

/// Which of the registers of `struct cpu_user_regs` (`xen/arch-x86/xen-x86_64.h`) it is: r15, r14,
/// r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx.
const RDX: usize = 12;
const _: () = assert!(size_of::<cpu_user_regs>() == 200 && align_of::<cpu_user_regs>() == 8);

impl std::fmt::Debug for VcpuContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuContext").finish_non_exhaustive()
    }
}

impl Default for VcpuContext {
    /// All zeros.
    fn default() -> Self {
        // SAFETY: integers only.
        Self(Box::new(unsafe { MaybeUninit::zeroed().assume_init() }))
    }
}

impl VcpuContext {
    /// How long it is in a stream.
    pub const SIZE: usize = size_of::<vcpu_guest_context>();

    /// The register that a guest which suspends itself has the frame of its start-info page in.
    #[must_use]
    pub fn rdx(&self) -> u64 {
        let register = (&raw const self.0.user_regs).cast::<u64>();
        // SAFETY: within the registers, which are aligned as it is.
        unsafe { register.add(RDX).read() }
    }

    /// Changes it.
    pub fn set_rdx(&mut self, value: u64) {
        let register = (&raw mut self.0.user_regs).cast::<u64>();
        // SAFETY: as above.
        unsafe { register.add(RDX).write(value) };
    }

    /// How many entries its descriptor table has.
    #[must_use]
    pub fn gdt_entries(&self) -> u64 {
        self.0.gdt_ents
    }

    /// Changes it.
    pub fn set_gdt_entries(&mut self, entries: u64) {
        self.0.gdt_ents = entries;
    }

    /// The frames of its descriptor table, 512 entries in each.
    pub fn gdt_frames(&mut self) -> &mut [u64; 16] {
        &mut self.0.gdt_frames
    }

    /// CR0 to CR7. CR3 is the address of the kernel's page tables, CR1 that of the user's.
    pub fn control_registers(&mut self) -> &mut [u64; 8] {
        &mut self.0.ctrlreg
    }

    /// The bytes as a stream has them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let start = (&raw const *self.0).cast::<u8>();
        // SAFETY: so long, and all of it initialised: it was zeroed as a whole and is only ever
        // written field by field or by the hypervisor.
        unsafe { std::slice::from_raw_parts(start, Self::SIZE) }
    }
}

impl Xen {
    /// Whether a vCPU is online. (`xc_vcpu_getinfo` of `xenctrl.h`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]: also for a number that no vCPU has.
    pub fn vcpu_online(&self, domain: DomainId, vcpu: u32) -> Result<bool, Error> {
        let mut info = MaybeUninit::<xen_domctl_getvcpuinfo>::zeroed();
        self.domain_call("look at a vCPU of", domain, |interface, domid| {
            // SAFETY: a structure to write to.
            unsafe {
                (interface.libraries().control.xc_vcpu_getinfo)(
                    interface.handle(),
                    domid,
                    vcpu,
                    info.as_mut_ptr(),
                )
            }
            .into()
        })?;
        // SAFETY: zeroed, and every bit pattern is valid for these integers.
        Ok(unsafe { info.assume_init_ref() }.online != 0)
    }

    /// The context of a vCPU of a 64-bit PV guest. `room` is used for it, and replaced if it is too
    /// small. (`XEN_DOMCTL_getvcpucontext`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]; [`Error::HostCall`] without memory.
    pub fn vcpu_context(
        &self,
        domain: DomainId,
        vcpu: u32,
        room: &mut HypercallBuffer,
    ) -> Result<VcpuContext, Error> {
        self.fit(room, VcpuContext::SIZE as u64)?;
        let mut argument = xen_domctl_vcpucontext {
            vcpu,
            ctxt: __guest_handle_vcpu_guest_context_t {
                p: room.as_mut_ptr().cast(),
            },
        };
        // SAFETY: this command's argument; a context of 64 bits, the longest, fits.
        unsafe {
            self.domctl(
                "read the vCPU context of",
                domain,
                XEN_DOMCTL_getvcpucontext,
                &mut argument,
            )?;
        }
        // SAFETY: so long and aligned to pages; integers only.
        let context = unsafe { room.as_ptr().cast::<vcpu_guest_context>().read() };
        Ok(VcpuContext(Box::new(context)))
    }

    /// What of a vCPU is not in its context: the entry points of 32-bit system calls and machine
    /// check state; empty if there is nothing. (`XEN_DOMCTL_get_ext_vcpucontext`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn vcpu_extended(&self, domain: DomainId, vcpu: u32) -> Result<Vec<u8>, Error> {
        // SAFETY: integers only.
        let mut argument: xen_domctl_ext_vcpucontext =
            unsafe { MaybeUninit::zeroed().assume_init() };
        argument.vcpu = vcpu;
        let operation = "read the extended vCPU context of";
        // SAFETY: this command's argument, which points to nothing.
        unsafe {
            self.domctl(
                operation,
                domain,
                XEN_DOMCTL_get_ext_vcpucontext,
                &mut argument,
            )?;
        }
        let length = (argument.size as usize).min(size_of_val(&argument));
        let start = (&raw const argument).cast::<u8>();
        // SAFETY: the argument was zeroed as a whole and written by the hypervisor.
        Ok(unsafe { std::slice::from_raw_parts(start, length) }.to_vec())
    }

    /// The extended registers of a vCPU (two u64 of feature masks, then the XSAVE area); empty if it
    /// has none. `room` is used for it, and replaced if it is too small.
    /// (`XEN_DOMCTL_getvcpuextstate`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`]; [`Error::HostCall`] without memory.
    pub fn vcpu_xsave(
        &self,
        domain: DomainId,
        vcpu: u32,
        room: &mut HypercallBuffer,
    ) -> Result<Vec<u8>, Error> {
        let operation = "read the extended registers of a vCPU of";
        // SAFETY: integers and a pointer, which may be null.
        let mut argument: xen_domctl_vcpuextstate = unsafe { MaybeUninit::zeroed().assume_init() };
        argument.vcpu = vcpu;
        // SAFETY: this command's argument; without memory it asks for the size.
        unsafe {
            self.domctl(operation, domain, XEN_DOMCTL_getvcpuextstate, &mut argument)?;
        }
        if argument.xfeature_mask == 0 {
            return Ok(vec![]);
        }
        self.fit(room, argument.size)?;
        argument.buffer.p = room.as_mut_ptr();
        // SAFETY: this command's argument; the hypervisor writes `size` bytes, which fit.
        unsafe {
            self.domctl(operation, domain, XEN_DOMCTL_getvcpuextstate, &mut argument)?;
        }
        Ok(front(room, argument.size))
    }

    /// The MSRs of a vCPU that a stream carries, 16 bytes each (u32 index, u32 0, u64 value); empty
    /// if all are 0. `room` as above. (`XEN_DOMCTL_get_vcpu_msrs`.)
    ///
    /// # Errors
    /// As [`Xen::vcpu_xsave`].
    pub fn vcpu_msrs(
        &self,
        domain: DomainId,
        vcpu: u32,
        room: &mut HypercallBuffer,
    ) -> Result<Vec<u8>, Error> {
        let operation = "read the MSRs of a vCPU of";
        // SAFETY: integers and a pointer, which may be null.
        let mut argument: xen_domctl_vcpu_msrs = unsafe { MaybeUninit::zeroed().assume_init() };
        argument.vcpu = vcpu;
        // SAFETY: this command's argument; without memory it asks for the number.
        unsafe {
            self.domctl(operation, domain, XEN_DOMCTL_get_vcpu_msrs, &mut argument)?;
        }
        if argument.msr_count == 0 {
            return Ok(vec![]);
        }
        let bytes = |count: u32| u64::from(count) * size_of::<xen_domctl_vcpu_msr>() as u64;
        self.fit(room, bytes(argument.msr_count))?;
        argument.msrs.p = room.as_mut_ptr().cast();
        // SAFETY: this command's argument; the hypervisor writes `msr_count` entries, which fit.
        unsafe {
            self.domctl(operation, domain, XEN_DOMCTL_get_vcpu_msrs, &mut argument)?;
        }
        Ok(front(room, bytes(argument.msr_count)))
    }

    /// Sees to it that so many bytes fit.
    fn fit(&self, room: &mut HypercallBuffer, bytes: u64) -> Result<(), Error> {
        if bytes > room.size() as u64 {
            *room = self.hypercall_buffer(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        }
        Ok(())
    }
}

/// The first bytes of a buffer.
fn front(room: &HypercallBuffer, bytes: u64) -> Vec<u8> {
    let all = room.iter().flat_map(|word| word.to_le_bytes());
    all.take(bytes.min(room.size() as u64) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_as_long_as_streams_have_it_and_its_fields_stand_where_they_should() {
        let mut context = VcpuContext::default();
        assert_eq!(context.bytes().len(), 5168);
        context.set_rdx(0x11);
        context.gdt_frames()[1] = 0x22;
        context.control_registers()[3] = 0x33;
        let set: Vec<_> = (0..)
            .zip(context.bytes())
            .filter(|(_, b)| **b != 0)
            .collect();
        // After 512 bytes of FPU state and the flags rdx is the 13th register; 720 + 256 · 16 + 16.
        assert_eq!(set, [(616, &0x11), (4840, &0x22), (5008, &0x33)]);
    }
}
