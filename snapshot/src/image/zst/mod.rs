//! The compressed image: the same `xl save` stream in a standard zstd file of many frames.
//!
//! `docs/format.md` is its specification. [`frame`] and [`seek_table`] are the outside of the file,
//! [`record`] what stands in a frame; [`sink`] writes one through the ordered threads of
//! [`pipeline`] (what they do is in [`job`]) and drops superseded copies by [`compact`];
//! [`packed`] reads one at any offset of the stream.

mod compact;
pub(super) mod frame;
mod job;
mod packed;
mod pipeline;
pub(super) mod record;
pub(super) mod seek_table;
mod sink;
#[cfg(test)]
mod tests;
pub(super) mod unpack;

pub use packed::{Packed, Span};
pub use sink::{Compression, ZstdImage};

/// The magic number of the skippable frame that holds livesave's facts.
const FACTS_MAGIC: u32 = 0x184d_2a5c;

/// Whether a file that begins so begins with a zstd frame, or a skippable one.
fn is_frame(magic: [u8; 4]) -> bool {
    let magic = u32::from_le_bytes(magic);
    magic == 0xfd2f_b528 || magic & !0xf == 0x184d_2a50
}
