//! One page of guest memory, as the copier sees it.
//!
//! The guest goes on writing while the copier reads, so a guest page is never a Rust reference:
//! it is an address whose bytes may change at any time. What is read may be torn; the page is then
//! dirty and is read again later, at the latest in the pause window, where nothing writes.

mod sys;

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// The size of a page in bytes.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page, held by us; aligned as a page is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(4096))]
pub struct PageBytes(pub [u8; PAGE_SIZE]);

impl PageBytes {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE]);
}

/// What a page with data is to the hypervisor, in the four bits that an image has for it
/// (`XEN_DOMCTL_PFINFO_*` of `xen/domctl.h`): 0 an ordinary page, 1 to 4 a page table of that level
/// of a PV guest, 8 more if it is pinned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageKind(u8);

impl PageKind {
    /// An ordinary page.
    pub const ORDINARY: Self = Self(0);

    /// The kind of these four bits; `None` if a page of it has no data, or there is none.
    #[must_use]
    pub const fn of_bits(bits: u8) -> Option<Self> {
        match bits {
            0..=4 | 9..=12 => Some(Self(bits)),
            _ => None,
        }
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The level of a page table.
    #[must_use]
    pub const fn level(self) -> Option<u8> {
        match self.0 & 7 {
            0 => None,
            level => Some(level),
        }
    }
}

/// A mapped page of guest memory, readable for `'a`; its bytes may change while it is read.
#[derive(Clone, Copy, Debug)]
pub struct GuestPage<'a> {
    address: NonNull<u8>,
    kind: PageKind,
    mapped: PhantomData<&'a PageBytes>,
}

impl<'a> GuestPage<'a> {
    /// A page that we hold ourselves (captured in the pause window, or a test's).
    #[must_use]
    pub fn of(bytes: &'a PageBytes) -> Self {
        Self {
            address: NonNull::from(bytes).cast(),
            kind: PageKind::ORDINARY,
            mapped: PhantomData,
        }
    }

    /// The same page, of another kind than an ordinary one.
    #[must_use]
    pub fn of_kind(self, kind: PageKind) -> Self {
        Self { kind, ..self }
    }

    /// What it is to the hypervisor.
    #[must_use]
    pub fn kind(self) -> PageKind {
        self.kind
    }

    /// The address of its first byte, to see which pages lie side by side.
    #[must_use]
    pub fn address(self) -> usize {
        self.address.as_ptr() as usize
    }
}

/// Writes pages to a file at `offset`, one after the other, straight from where they are mapped:
/// one copy, by the kernel. Pages that lie side by side in memory are handed over as one piece.
///
/// # Errors
/// What `pwritev` says; a write that makes no progress is `WriteZero`. What was written before an
/// error is undefined.
pub fn write_pages_at(file: &File, pages: &[GuestPage<'_>], offset: u64) -> io::Result<()> {
    sys::write_pages_at(file, pages, offset)
}
