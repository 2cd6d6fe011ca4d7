//! Zstandard frames (RFC 8878) as far as livesave makes and looks at them itself.
//!
//! A **stored** frame is made without compressing: its blocks are raw, or for zero pages RLE, a
//! few bytes for 128 KiB of zeros. All others are made by libzstd.

use crate::checksum;
use crate::page::PAGE_SIZE;

const MAGIC: u32 = 0xfd2f_b528;
/// The longest block of any frame.
const MAX_BLOCK: usize = 128 << 10;
/// Bytes of an image's frame when decompressed, at most: readers do not allocate more.
pub const MAX_CONTENT: u64 = 32 << 20;
/// No frame of an image asks for a larger window.
const MAX_WINDOW: u64 = MAX_CONTENT;
/// Magic, descriptor, window descriptor, eight bytes of content size.
pub const MAX_HEAD: usize = 14;

const RAW: u32 = 0;
const RLE: u32 = 1;
/// Four bytes of content size (bits 7, 6), one segment (5), with a checksum (2).
const STORED_DESCRIPTOR: u8 = 0b1010_0100;

/// What the head of a frame says of its content's length, for a frame as images have them: with
/// content size and checksum, without dictionary.
///
/// # Errors
/// A text that says what is wrong.
pub fn content_size(frame: &[u8]) -> Result<u64, &'static str> {
    const CUT: &str = "a frame is cut off in its head";
    if frame.first_chunk::<4>() != Some(&MAGIC.to_le_bytes()) {
        return Err("there is no zstd frame");
    }
    let descriptor = *frame.get(4).ok_or(CUT)?;
    let one_segment = descriptor & 0x20 != 0;
    if descriptor & 0x04 == 0 {
        return Err("a frame has no checksum");
    }
    if descriptor & 0x1b != 0 {
        return Err("a frame has a dictionary or reserved bits");
    }
    let mut at = 5;
    let mut window = 0;
    if !one_segment {
        let byte = u64::from(*frame.get(at).ok_or(CUT)?);
        let base = 1u64 << (10 + (byte >> 3));
        window = base + (base / 8) * (byte & 7);
        at += 1;
    }
    let field = |length: usize| {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(frame.get(at..at + length)?);
        Some(u64::from_le_bytes(bytes))
    };
    let size = match descriptor >> 6 {
        0 if one_segment => field(1),
        0 => return Err("a frame does not say how long its content is"),
        1 => field(2).map(|size| size + 256),
        2 => field(4),
        _ => field(8),
    };
    let size = size.ok_or(CUT)?;
    if size > MAX_CONTENT || window > MAX_WINDOW {
        return Err("a frame is larger than an image's may be");
    }
    Ok(size)
}

/// A frame made without compressing.
pub struct Stored {
    frame: Vec<u8>,
    sum: checksum::Running,
    /// The head of the last block, which is to be marked as such.
    last_block: usize,
    left: usize,
}

impl Stored {
    /// A frame for so many bytes of content, which then follow.
    pub fn new(content: usize) -> Self {
        let mut frame = Vec::with_capacity(content + content / MAX_BLOCK * 3 + 64);
        frame.extend_from_slice(&MAGIC.to_le_bytes());
        frame.push(STORED_DESCRIPTOR);
        frame.extend_from_slice(&(content as u32).to_le_bytes());
        Self {
            frame,
            sum: checksum::Running::new(),
            last_block: 0,
            left: content,
        }
    }

    fn block(&mut self, kind: u32, size: usize) {
        self.last_block = self.frame.len();
        let head = (size as u32) << 3 | kind << 1;
        self.frame.extend_from_slice(&head.to_le_bytes()[..3]);
        self.left -= size;
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.sum.add(bytes);
        for piece in bytes.chunks(MAX_BLOCK) {
            self.block(RAW, piece.len());
            self.frame.extend_from_slice(piece);
        }
    }

    /// Appends pages of zeros.
    pub fn zero_pages(&mut self, mut pages: usize) {
        for _ in 0..pages {
            self.sum.add(&[0; PAGE_SIZE]);
        }
        while pages > 0 {
            let now = pages.min(MAX_BLOCK / PAGE_SIZE);
            self.block(RLE, now * PAGE_SIZE);
            self.frame.push(0);
            pages -= now;
        }
    }

    /// The whole frame.
    pub fn finish(mut self) -> Vec<u8> {
        debug_assert_eq!(self.left, 0, "less content than was announced");
        if let Some(head) = self.frame.get_mut(self.last_block) {
            *head |= 1;
        }
        let checksum = self.sum.value();
        self.frame.extend_from_slice(&checksum.to_le_bytes());
        self.frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(parts: &[(&[u8], usize)]) -> (Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = parts
            .iter()
            .flat_map(|(bytes, zeros)| [bytes.to_vec(), vec![0; zeros * PAGE_SIZE]].concat())
            .collect();
        let mut frame = Stored::new(content.len());
        for (bytes, zeros) in parts {
            frame.bytes(bytes);
            frame.zero_pages(*zeros);
        }
        (frame.finish(), content)
    }

    #[test]
    fn libzstd_reads_stored_frames_and_checks_their_checksum() {
        let noise: Vec<u8> = (0..300_000u32)
            .map(|i| (i.wrapping_mul(i) >> 7) as u8)
            .collect();
        for parts in [
            &[(&b"x"[..], 0)][..],
            &[(&noise[..], 0)],
            &[(&noise[..16], 1024)],
            &[(&noise[..4112], 33), (&noise[..PAGE_SIZE], 1)],
        ] {
            let (frame, content) = stored(parts);
            let mut out = vec![0; content.len()];
            let length = zstd_safe::decompress(&mut out[..], &frame).expect("a good frame");
            assert_eq!(length, content.len());
            assert!(out == content);
            assert_eq!(content_size(&frame), Ok(content.len() as u64));
            let (_, sum) = frame.split_last_chunk::<4>().expect("a checksum");
            assert_eq!(u32::from_le_bytes(*sum), checksum::of(&content));
            let mut bad = frame.clone();
            *bad.last_mut().expect("a byte") ^= 1;
            assert!(zstd_safe::decompress(&mut out[..], &bad).is_err());
        }
    }

    #[test]
    fn a_gibibyte_of_zeros_takes_some_kilobytes() {
        let (frame, content) = stored(&[(&b"12345678"[..], 1024)]);
        assert!(frame.len() * 256 < 64 << 10, "{} bytes", frame.len());
        assert_eq!(content.len(), 8 + (4 << 20));
    }

    #[test]
    fn heads_that_no_image_has_are_refused() {
        let (good, _) = stored(&[(&b"x"[..], 0)]);
        let with = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] = byte;
            content_size(&bad)
        };
        for bad in [
            with(0, 0),
            with(4, STORED_DESCRIPTOR & !4),
            with(4, STORED_DESCRIPTOR | 1),
            with(4, STORED_DESCRIPTOR | 8),
            with(4, STORED_DESCRIPTOR | 16),
            with(4, 0x04),
            with(8, 0xff),
            with(8, 0x04).and(content_size(&good[..8])),
            content_size(&good[..4]),
            content_size(&[0x28, 0xb5, 0x2f, 0xfd, 0x44, 0xff, 1, 1]),
        ] {
            assert!(bad.is_err(), "{bad:?}");
        }
    }
}
