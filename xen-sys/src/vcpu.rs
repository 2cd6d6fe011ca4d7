//! The state of a 64-bit PV guest's vCPUs, as an `xl save` stream carries it.

use std::mem::{MaybeUninit, offset_of};

use crate::bindings::xenctrl::{
    __guest_handle_vcpu_guest_context_t, XEN_DOMCTL_get_ext_vcpucontext, XEN_DOMCTL_get_vcpu_msrs,
    XEN_DOMCTL_getvcpucontext, XEN_DOMCTL_getvcpuextstate, cpu_user_regs, vcpu_guest_context,
    xen_domctl_ext_vcpucontext, xen_domctl_getvcpuinfo, xen_domctl_vcpu_msr, xen_domctl_vcpu_msrs,
    xen_domctl_vcpucontext, xen_domctl_vcpuextstate,
};
use crate::control::Xen;
use crate::domain::DomainId;
use crate::domctl::{ARGUMENT, Argument};
use crate::error::Error;
use crate::hypercall_buffer::HypercallBuffer;

// SAFETY: an integer and a pointer.
unsafe impl Argument for xen_domctl_vcpucontext {}
// SAFETY: integers and a pointer.
unsafe impl Argument for xen_domctl_vcpuextstate {}
// SAFETY: integers and a pointer.
unsafe impl Argument for xen_domctl_vcpu_msrs {}

/// The registers of a vCPU and what the guest has told the hypervisor of it
/// (`struct vcpu_guest_context` of `xen/arch-x86/xen.h`, for 64 bits). Held as the bytes that a stream
/// has: as a structure it would lose what is in its padding.
#[derive(Clone)]
pub struct VcpuContext(Vec<u8>);

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
        Self(vec![0; Self::SIZE])
    }
}

impl VcpuContext {
    /// How long it is in a stream.
    pub const SIZE: usize = size_of::<vcpu_guest_context>();

    const RDX: usize = offset_of!(vcpu_guest_context, user_regs) + RDX * 8;

    /// The register that a guest which suspends itself has the frame of its start-info page in.
    #[must_use]
    pub fn rdx(&self) -> u64 {
        self.word(Self::RDX)
    }

    /// Changes it.
    pub fn set_rdx(&mut self, value: u64) {
        self.set_word(Self::RDX, value);
    }

    /// How many entries its descriptor table has.
    #[must_use]
    pub fn gdt_entries(&self) -> u64 {
        self.word(offset_of!(vcpu_guest_context, gdt_ents))
    }

    /// Changes it.
    pub fn set_gdt_entries(&mut self, entries: u64) {
        self.set_word(offset_of!(vcpu_guest_context, gdt_ents), entries);
    }

    /// The frames of its descriptor table, 512 entries in each.
    #[must_use]
    pub fn gdt_frames(&self) -> [u64; 16] {
        self.words(offset_of!(vcpu_guest_context, gdt_frames))
    }

    /// Changes them.
    pub fn set_gdt_frames(&mut self, frames: [u64; 16]) {
        self.set_words(offset_of!(vcpu_guest_context, gdt_frames), &frames);
    }

    /// CR0 to CR7. CR3 is the address of the kernel's page tables, CR1 that of the user's.
    #[must_use]
    pub fn control_registers(&self) -> [u64; 8] {
        self.words(offset_of!(vcpu_guest_context, ctrlreg))
    }

    /// Changes them.
    pub fn set_control_registers(&mut self, registers: [u64; 8]) {
        self.set_words(offset_of!(vcpu_guest_context, ctrlreg), &registers);
    }

    /// The bytes as a stream has them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn word(&self, offset: usize) -> u64 {
        // All are within it.
        let bytes = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn set_word(&mut self, offset: usize, value: u64) {
        let place = self.0.get_mut(offset..);
        if let Some(place) = place.and_then(<[u8]>::first_chunk_mut) {
            *place = value.to_le_bytes();
        }
    }

    fn words<const N: usize>(&self, offset: usize) -> [u64; N] {
        std::array::from_fn(|index| self.word(offset + index * 8))
    }

    fn set_words(&mut self, offset: usize, values: &[u64]) {
        for (index, &value) in values.iter().enumerate() {
            self.set_word(offset + index * 8, value);
        }
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
        // What an earlier call has left is not to stand where this one writes nothing.
        room[..VcpuContext::SIZE.div_ceil(8)].fill(0);
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
        Ok(VcpuContext(front(room, VcpuContext::SIZE as u64)))
    }

    /// What of a vCPU is not in its context: the entry points of 32-bit system calls and machine
    /// check state; empty if there is nothing. (`XEN_DOMCTL_get_ext_vcpucontext`.)
    ///
    /// # Errors
    /// [`Error::DomainCall`].
    pub fn vcpu_extended(&self, domain: DomainId, vcpu: u32) -> Result<Vec<u8>, Error> {
        let mut argument = extended_of(vcpu);
        // SAFETY: this command's argument, which points to nothing.
        unsafe {
            self.domctl_bytes(
                "read the extended vCPU context of",
                domain,
                XEN_DOMCTL_get_ext_vcpucontext,
                &mut argument,
            )?;
        }
        Ok(extended_content(&argument).to_vec())
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

const _: () = assert!(size_of::<xen_domctl_ext_vcpucontext>() <= ARGUMENT);

/// What asks for the extended context of a vCPU.
fn extended_of(vcpu: u32) -> [u8; ARGUMENT] {
    let mut argument = [0; ARGUMENT];
    let place = offset_of!(xen_domctl_ext_vcpucontext, vcpu);
    argument[place..place + 4].copy_from_slice(&vcpu.to_le_bytes());
    argument
}

/// What came of it, as long as the hypervisor says that it is.
fn extended_content(argument: &[u8; ARGUMENT]) -> &[u8] {
    let place = offset_of!(xen_domctl_ext_vcpucontext, size);
    let size = argument[place..].first_chunk();
    let size = size.map_or(0, |bytes| u32::from_le_bytes(*bytes));
    &argument[..(size as usize).min(size_of::<xen_domctl_ext_vcpucontext>())]
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
        let mut frames = context.gdt_frames();
        frames[1] = 0x22;
        context.set_gdt_frames(frames);
        let mut registers = context.control_registers();
        registers[3] = 0x33;
        context.set_control_registers(registers);
        assert_eq!((context.rdx(), context.gdt_entries()), (0x11, 0));
        assert_eq!(
            (context.gdt_frames(), context.control_registers()),
            (frames, registers)
        );
        let set: Vec<_> = (0..)
            .zip(context.bytes())
            .filter(|(_, b)| **b != 0)
            .collect();
        // After 512 bytes of FPU state and the flags rdx is the 13th register; 720 + 256 · 16 + 16.
        assert_eq!(set, [(616, &0x11), (4840, &0x22), (5008, &0x33)]);
    }

    #[test]
    fn an_extended_context_is_as_long_as_it_says_and_no_longer_than_it_can_be() {
        let mut argument = extended_of(0x0102);
        assert_eq!(argument[..8], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert!(extended_content(&argument).is_empty());
        argument[4] = 40;
        assert_eq!(extended_content(&argument), &argument[..40]);
        argument[7] = 255;
        let most = size_of::<xen_domctl_ext_vcpucontext>();
        assert_eq!(extended_content(&argument).len(), most);
    }
}
