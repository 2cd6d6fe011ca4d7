//! The page that a PV guest shares with the hypervisor, as far as it tells where the guest has its own
//! table of its memory (the P2M).

use xen_sys::{DomainId, Error, ForeignWords, Xen};

/// Where the fields stand, in 64-bit words (`struct shared_info` of `xen/xen.h` and
/// `struct arch_shared_info` of `xen/arch-x86/xen.h`, for 64 bits): 32 vCPUs of 64 bytes, twice 512
/// bytes of event channels and 16 of wall clock stand before the architecture's part.
mod word {
    pub const MAX_PFN: usize = 386;
    pub const FRAME_LIST_LIST: usize = 387;
    pub const P2M_CR3: usize = 389;
    pub const P2M_VADDR: usize = 390;
    pub const P2M_GENERATION: usize = 391;
}

/// Where a guest says that its P2M is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Anchor {
    /// Page numbers that the P2M has.
    pub pages: u64,
    /// The root of the page tables through which it is seen as a list; 0 in old kernels.
    pub list_root: u64,
    /// Where the list is in that address space.
    pub list_address: u64,
    /// The frame of a list of lists of the frames of the P2M; for old kernels.
    pub tree_root: u64,
    /// Counts the changes of where the list is; odd while it changes.
    pub generation: u64,
}

impl Anchor {
    /// Whether the guest is changing it right now.
    pub fn changes(&self) -> bool {
        self.generation % 2 == 1
    }
}

/// The page, mapped.
pub struct SharedInfo(ForeignWords);

impl SharedInfo {
    /// Maps it; `frame` is the hypervisor's word for where it is.
    ///
    /// # Errors
    /// [`Error`].
    pub fn map(xen: &Xen, id: DomainId, frame: u64) -> Result<Self, Error> {
        xen.map_words(id, &[frame]).map(Self)
    }

    /// What it says now; `None` if it is not mapped.
    pub fn anchor(&self) -> Option<Anchor> {
        Some(Anchor {
            pages: self.0.get(word::MAX_PFN)?,
            list_root: self.0.get(word::P2M_CR3)? >> 12,
            list_address: self.0.get(word::P2M_VADDR)?,
            tree_root: self.0.get(word::FRAME_LIST_LIST)?,
            generation: self.0.get(word::P2M_GENERATION)?,
        })
    }

    /// A copy of it.
    pub fn copy(&self) -> Vec<u8> {
        let words = (0..ForeignWords::PER_PAGE).map_while(|index| self.0.get(index));
        words.flat_map(u64::to_le_bytes).collect()
    }
}
