//! The image: an `xl save` stream in a file, raw with every page in one fixed slot, or compressed.
//!
//! `docs/format.md` is its specification; the modules mirror it from the outside in:
//! [`xl_header`] (the file header with the guest's configuration), [`libxl`] (the toolstack's
//! stream), [`libxc`] (the hypervisor's records, the memory among them), [`layout`] (where each
//! page's slot is), [`checksums`] and [`trailer`] (livesave's own facts, behind what stock tools
//! read). [`raw`] writes one; [`zst`] writes and reads the compressed kind. [`reader`] reads both,
//! through [`source`]; [`verify`] looks at all of one, [`index`] finds pages, [`difference`] compares
//! those of two images, [`stream`] gives one to `xl restore`. [`chain`] is an increment with all that it
//! is built on, [`existing`] the pages that a guest had, [`compared`] leaves out pages that are as they
//! were. None knows of domains.

pub mod any;
pub mod chain;
pub mod checksums;
pub mod compared;
pub mod difference;
pub mod existing;
pub mod file;
mod filled;
#[doc(hidden)]
pub mod fuzzing;
pub mod index;
mod kinds;
pub mod layout;
pub mod libxc;
pub mod libxl;
pub mod raw;
pub mod reader;
#[doc(hidden)]
pub mod samples;
pub mod source;
pub mod stream;
pub mod trailer;
pub mod verify;
pub mod xl_header;
pub mod zst;

pub use any::AnyImage;
pub use chain::Chain;
pub use compared::Compared;
pub use raw::RawImage;
pub use reader::{ImageError, Reader};
pub use stream::Stream;
pub use zst::{Compression, ZstdImage};

use crate::page::PAGE_SIZE;
use crate::page_set::PageSet;
use crate::units::{Bytes, PageCount};

/// How long an image of these pages will be, but for some KiB of final state and facts.
#[must_use]
pub fn size_for(preamble: &Preamble, pages: &PageSet) -> Bytes {
    let layout = layout::Layout::new(preamble.encode().len() as u64, pages);
    let blocks = (layout.end() - layout.start()) / PAGE_SIZE as u64;
    Bytes(layout.end() + checksums::table_len(blocks))
}

/// How long a raw image of so many pages is at most, wherever they are.
#[must_use]
pub fn largest_for(pages: PageCount) -> Bytes {
    // Headers take 0.3 % (layout.rs); the rest is for the configuration, the state and the facts.
    let memory = pages.bytes().0;
    Bytes(memory + memory / 100 + (1 << 20))
}

/// A record: a type from its stream's specification and a body. Used in the libxc image and in the
/// libxl stream alike, which share the framing (u32 type, u32 length, body, padding to 8 bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The type, one of [`libxc::record`] or [`libxl::record`].
    pub kind: u32,
    /// The body without its padding.
    pub body: Vec<u8>,
}

impl Record {
    /// A record with a body.
    #[must_use]
    pub fn new(kind: u32, body: Vec<u8>) -> Self {
        Self { kind, body }
    }

    /// Appends the record in its on-disk form: both stream levels write it so (little-endian on
    /// x86, zero padding to 8 bytes).
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind.to_le_bytes());
        // A record body is bounded by its maker: policies, contexts and parameters are far below
        // REC_LENGTH_MAX (128 MiB).
        out.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// How the names of livesave's images end: raw ones, compressed ones, increments.
pub const SUFFIXES: [&str; 3] = [".xl", ".xl.zst", ".xli.zst"];

/// The size of a record's header.
pub const RECORD_HEADER: u64 = 8;

/// The longest record body that readers take (`REC_LENGTH_MAX` of xg_sr_stream_format.h).
pub const MAX_RECORD: u64 = 128 << 20;

/// What the memory of a guest looks like from outside (libxc domain header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GuestType {
    /// Paravirtualised: page tables and vCPU state in records of their own.
    Pv = 1,
    /// Hardware virtualised, PVH and HVM alike.
    Hvm = 2,
}

/// What stands before the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// The guest's configuration, JSON as `xl list -l` prints it.
    pub config: Vec<u8>,
    /// The guest's type.
    pub guest: GuestType,
    /// The hypervisor's version, for information.
    pub xen_version: (u32, u32),
    /// Records before STATIC_DATA_END: CPUID and MSR policy; for PV first of all PV_INFO.
    pub static_data: Vec<Record>,
    /// Records between STATIC_DATA_END and the memory (PV: P2M_FRAMES).
    pub before_memory: Vec<Record>,
    /// The image is an increment: the memory is not whole. Stock tools refuse it then.
    pub increment: bool,
}

/// What stands behind the memory: the state at the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// libxc records: TSC_INFO, HVM_CONTEXT, HVM_PARAMS or the PV ones. END is added.
    pub libxc: Vec<Record>,
    /// libxl records (HVM: the emulator's). END is added.
    pub libxl: Vec<Record>,
}

impl Tail {
    /// The bytes from the end of the memory to the libxl END record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for record in &self.libxc {
            record.encode_into(&mut out);
        }
        Record::new(libxc::record::END, vec![]).encode_into(&mut out);
        for record in &self.libxl {
            record.encode_into(&mut out);
        }
        Record::new(libxl::record::END, vec![]).encode_into(&mut out);
        out
    }
}

impl Preamble {
    /// The bytes from the start of the file to the memory, padded (in the configuration, where
    /// JSON allows blanks) so that the memory begins at a multiple of the page size.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut stream = Vec::new();
        libxl::encode_header(&mut stream);
        Record::new(libxl::record::LIBXC_CONTEXT, vec![]).encode_into(&mut stream);
        libxc::encode_header(&mut stream, self.guest, self.xen_version);
        for record in &self.static_data {
            record.encode_into(&mut stream);
        }
        Record::new(libxc::record::STATIC_DATA_END, vec![]).encode_into(&mut stream);
        for record in &self.before_memory {
            record.encode_into(&mut stream);
        }
        let mut out = xl_header::encode(&self.config, stream.len() as u64, self.increment);
        out.extend_from_slice(&stream);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_begins_on_a_page_boundary_whatever_the_configuration() {
        for length in [2, 100, 4000, 4001, 4096, 9000] {
            let preamble = Preamble {
                config: vec![b' '; length],
                guest: GuestType::Hvm,
                xen_version: (4, 17),
                static_data: vec![Record::new(libxc::record::X86_CPUID_POLICY, vec![1; 24])],
                before_memory: vec![],
                increment: false,
            };
            assert_eq!(
                preamble.encode().len() % 4096,
                0,
                "configuration of {length} bytes"
            );
        }
    }

    #[test]
    fn a_record_is_padded_to_eight_bytes() {
        let mut out = vec![];
        Record::new(9, vec![1, 2, 3]).encode_into(&mut out);
        assert_eq!(out, [9, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]);
    }
}
