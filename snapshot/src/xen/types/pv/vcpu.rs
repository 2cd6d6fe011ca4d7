//! The state of a PV guest's vCPUs as records (`docs/specs/libxc-migration-stream.pandoc` of Xen).

use xen_sys::{DomainId, Error, HypercallBuffer, VcpuContext, Xen};

use super::Record;
use crate::image::libxc::record;

/// The most entries that a guest's descriptor table has: the hypervisor has the others
/// (`FIRST_RESERVED_GDT_ENTRY` of `xen/arch-x86/xen.h`).
const GDT_ENTRIES: u64 = 14 * 512;

/// Why a vCPU's state is not in the image.
#[derive(Debug)]
pub enum VcpuError {
    /// A call failed.
    Call(Error),
    /// Its registers refer to memory that is not the guest's.
    Foreign(&'static str),
}

/// Puts page numbers in the place of the frames in a vCPU's context.
///
/// # Errors
/// What of it refers to a frame that is not the guest's.
pub fn normalise(
    context: &mut VcpuContext,
    vcpu: u32,
    pfn_of: impl Fn(u64) -> Option<u64>,
) -> Result<(), &'static str> {
    if vcpu == 0 {
        // A guest suspends itself on its first vCPU, and says where its start-info page is.
        let pfn = pfn_of(context.rdx()).ok_or("its start-info page")?;
        context.set_rdx(pfn);
    }
    let entries = context.gdt_entries();
    if entries > GDT_ENTRIES {
        return Err("its descriptor table is too long; that");
    }
    let mut frames = context.gdt_frames();
    for frame in &mut frames[..entries.div_ceil(512) as usize] {
        *frame = pfn_of(*frame).ok_or("its descriptor table")?;
    }
    context.set_gdt_frames(frames);
    let mut registers = context.control_registers();
    registers[3] = pfn_of(registers[3] >> 12).ok_or("its page table")? << 12;
    if registers[1] != 0 {
        let pfn = pfn_of(registers[1] >> 12).ok_or("its page table for programs")?;
        registers[1] = pfn << 12 | 1;
    }
    context.set_control_registers(registers);
    Ok(())
}

/// The records of one vCPU; those without content are left out.
///
/// # Errors
/// [`VcpuError`].
pub fn records(
    xen: &Xen,
    id: DomainId,
    vcpu: u32,
    room: &mut HypercallBuffer,
    pfn_of: impl Fn(u64) -> Option<u64>,
) -> Result<Vec<Record>, VcpuError> {
    let mut context = xen.vcpu_context(id, vcpu, room).map_err(VcpuError::Call)?;
    normalise(&mut context, vcpu, pfn_of).map_err(VcpuError::Foreign)?;
    let extended = xen.vcpu_extended(id, vcpu).map_err(VcpuError::Call)?;
    let xsave = xen.vcpu_xsave(id, vcpu, room).map_err(VcpuError::Call)?;
    let msrs = xen.vcpu_msrs(id, vcpu, room).map_err(VcpuError::Call)?;
    let parts = [
        (record::X86_PV_VCPU_BASIC, context.bytes()),
        (record::X86_PV_VCPU_EXTENDED, &extended),
        (record::X86_PV_VCPU_XSAVE, &xsave),
        (record::X86_PV_VCPU_MSRS, &msrs),
    ];
    let parts = parts.into_iter().filter(|(_, content)| !content.is_empty());
    Ok(parts
        .map(|(kind, content)| of(kind, vcpu, content))
        .collect())
}

/// A record: u32 vCPU, u32 0, content.
fn of(kind: u32, vcpu: u32, content: &[u8]) -> Record {
    let mut body = Vec::with_capacity(8 + content.len());
    body.extend_from_slice(&vcpu.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(content);
    Record::new(kind, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guest's frames are 0x1000 to 0x1fff, its pages 0 to 0xfff.
    fn pfn_of(frame: u64) -> Option<u64> {
        (0x1000..0x2000).contains(&frame).then(|| frame - 0x1000)
    }

    fn context(gdt_entries: u64) -> VcpuContext {
        let mut context = VcpuContext::default();
        context.set_rdx(0x1234);
        context.set_gdt_entries(gdt_entries);
        let mut frames = context.gdt_frames();
        frames[..2].copy_from_slice(&[0x1005, 0x9999]);
        context.set_gdt_frames(frames);
        set_register(&mut context, 3, 0x1007 << 12);
        context
    }

    fn set_register(context: &mut VcpuContext, register: usize, value: u64) {
        let mut registers = context.control_registers();
        registers[register] = value;
        context.set_control_registers(registers);
    }

    #[test]
    fn frames_become_page_numbers() {
        let mut first = context(512);
        assert_eq!(normalise(&mut first, 0, pfn_of), Ok(()));
        assert_eq!(first.rdx(), 0x234);
        // The second frame of the table is not in use.
        assert_eq!(first.gdt_frames()[..2], [5, 0x9999]);
        assert_eq!(first.control_registers()[..4], [0, 0, 0, 0x7000]);
        let mut other = context(0);
        set_register(&mut other, 1, 0x1008 << 12);
        assert_eq!(normalise(&mut other, 1, pfn_of), Ok(()));
        // What another vCPU has in that register is its own business.
        assert_eq!((other.rdx(), other.gdt_frames()[0]), (0x1234, 0x1005));
        assert_eq!(other.control_registers()[..4], [0, 0x8001, 0, 0x7000]);
    }

    #[test]
    fn what_is_not_the_guests_is_told() {
        assert!(normalise(&mut context(513), 1, pfn_of).is_err());
        assert!(normalise(&mut context(u64::MAX), 1, pfn_of).is_err());
        for (register, value) in [(3, 0), (3, u64::MAX), (1, 1)] {
            let mut bad = context(512);
            set_register(&mut bad, register, value);
            assert!(
                normalise(&mut bad, 1, pfn_of).is_err(),
                "CR{register} {value:#x}"
            );
        }
        let mut bad = context(512);
        bad.set_rdx(7);
        assert_eq!(normalise(&mut bad, 0, pfn_of), Err("its start-info page"));
    }
}
