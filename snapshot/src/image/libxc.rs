//! The hypervisor's image inside (`docs/specs/libxc-migration-stream.pandoc` of Xen, version 3):
//! a header of 24 bytes, a domain header of 16, then records.

use super::GuestType;
use crate::page::PageKind;
use crate::units::Pfn;

/// The size of image header and domain header together.
pub const HEADERS: u64 = 40;

const MARKER: u64 = u64::MAX;
const IDENT: u32 = 0x5845_4e46; // "XENF"
const VERSION: u32 = 3;
const PAGE_SHIFT: u16 = 12;

/// Record types (`xg_sr_stream_format.h`).
pub mod record {
    /// The end of the image.
    pub const END: u32 = 0;
    /// Pages.
    pub const PAGE_DATA: u32 = 1;
    /// How wide a PV guest's addresses are, and of how many levels its page tables.
    pub const X86_PV_INFO: u32 = 2;
    /// The pages that a PV guest's own table of its memory is in.
    pub const X86_PV_P2M_FRAMES: u32 = 3;
    /// The context of one vCPU of a PV guest.
    pub const X86_PV_VCPU_BASIC: u32 = 4;
    /// What of a vCPU is not in its context.
    pub const X86_PV_VCPU_EXTENDED: u32 = 5;
    /// Its extended registers.
    pub const X86_PV_VCPU_XSAVE: u32 = 6;
    /// The page that a PV guest shares with the hypervisor.
    pub const SHARED_INFO: u32 = 7;
    /// TSC mode, frequency, offset.
    pub const X86_TSC_INFO: u32 = 8;
    /// vCPU and platform device state of a hardware-virtualised guest.
    pub const HVM_CONTEXT: u32 = 9;
    /// Parameters of a hardware-virtualised guest.
    pub const HVM_PARAMS: u32 = 0xa;
    /// MSRs of one vCPU of a PV guest.
    pub const X86_PV_VCPU_MSRS: u32 = 0xc;
    /// What the guest was started with is complete.
    pub const STATIC_DATA_END: u32 = 0x10;
    /// The guest's CPUID leaves.
    pub const X86_CPUID_POLICY: u32 = 0x11;
    /// The guest's MSRs.
    pub const X86_MSR_POLICY: u32 = 0x12;

    /// The name of a type, for people.
    #[must_use]
    pub fn name(kind: u32) -> &'static str {
        const NAMES: [&str; 19] = [
            "END",
            "PAGE_DATA",
            "X86_PV_INFO",
            "X86_PV_P2M_FRAMES",
            "X86_PV_VCPU_BASIC",
            "X86_PV_VCPU_EXTENDED",
            "X86_PV_VCPU_XSAVE",
            "SHARED_INFO",
            "X86_TSC_INFO",
            "HVM_CONTEXT",
            "HVM_PARAMS",
            "TOOLSTACK",
            "X86_PV_VCPU_MSRS",
            "VERIFY",
            "CHECKPOINT",
            "CHECKPOINT_DIRTY_PFN_LIST",
            "STATIC_DATA_END",
            "X86_CPUID_POLICY",
            "X86_MSR_POLICY",
        ];
        NAMES.get(kind as usize).copied().unwrap_or("unknown")
    }
}

/// The bits of a PAGE_DATA entry that are the page's number.
const ENTRY_PFN: u64 = (1 << 52) - 1;

/// A page with data as an entry of a PAGE_DATA record has it.
#[must_use]
pub fn entry(pfn: Pfn, kind: PageKind) -> u64 {
    pfn.0 & ENTRY_PFN | u64::from(kind.bits()) << 60
}

/// The page of an entry.
#[must_use]
pub fn entry_pfn(entry: u64) -> Pfn {
    Pfn(entry & ENTRY_PFN)
}

/// Page types in bits 63 to 60 of a PAGE_DATA entry (`XEN_DOMCTL_PFINFO_*`); those of pages with data
/// are a [`PageKind`].
pub mod page_type {
    /// Nothing there: no data follows.
    pub const ABSENT: u8 = 0xf;

    /// Whether page data follows for an entry of this type.
    #[must_use]
    pub const fn has_data(kind: u8) -> bool {
        // XTAB 0xf, XALLOC 0xe and BROKEN 0xd carry none.
        kind < 0xd
    }
}

/// Appends image header and domain header.
pub fn encode_header(out: &mut Vec<u8>, guest: GuestType, xen_version: (u32, u32)) {
    out.extend_from_slice(&MARKER.to_le_bytes());
    out.extend_from_slice(&IDENT.to_be_bytes());
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&[0; 8]); // options: little-endian; reserved
    out.extend_from_slice(&(guest as u32).to_le_bytes());
    out.extend_from_slice(&PAGE_SHIFT.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&xen_version.0.to_le_bytes());
    out.extend_from_slice(&xen_version.1.to_le_bytes());
}

/// Reads both headers.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode_header(
    header: &[u8; HEADERS as usize],
) -> Result<(GuestType, (u32, u32)), &'static str> {
    let field = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let guest = match field(24) {
        1 => GuestType::Pv,
        2 => GuestType::Hvm,
        _ => return Err("the libxc image is of an unknown guest type"),
    };
    let xen_version = (field(32), field(36));
    let mut want = Vec::with_capacity(HEADERS as usize);
    encode_header(&mut want, guest, xen_version);
    if header[..12] != want[..12] {
        return Err("the libxc image's identification is missing");
    }
    if header[..] != want[..] {
        return Err("the libxc image is not version 3, little-endian, of 4 KiB pages");
    }
    Ok((guest, xen_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written_and_distrusted() {
        let mut out = vec![];
        encode_header(&mut out, GuestType::Hvm, (4, 17));
        let header: [u8; 40] = out.try_into().expect("40 bytes");
        assert_eq!(decode_header(&header), Ok((GuestType::Hvm, (4, 17))));
        // Every byte but those of the version for information is checked.
        for at in 0..32 {
            let mut bad = header;
            bad[at] ^= 0x80;
            assert!(decode_header(&bad).is_err(), "byte {at}");
        }
    }
}
