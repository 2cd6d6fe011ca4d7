//! The checksums of a raw image: one for each 4096 bytes of the memory, in a table between the
//! stream and the trailer, and one for what stands before and behind the memory.
//!
//! A page's checksum is made when the page is written and kept in a nameless file beside the image
//! until the save ends, four bytes for each page: in memory it would grow with the guest. What is
//! kept is the checksum of the block, XOR that of a block of zeros, so that the holes of a sparse
//! file have the right value without having been written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use crate::checksum;
use crate::fault;
use crate::page::PAGE_SIZE;

/// The checksum of 4096 zero bytes.
const ZEROS: u32 = 0x32d8_bbdb;
/// The size of a table's entry.
pub const ENTRY: u64 = 4;
/// The length of the section in the trailer.
const SECTION: usize = 40;
const PAGE: u64 = PAGE_SIZE as u64;
/// Entries of the table that are changed in one go.
const PIECE: u64 = 1024;
/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// What the table has for a block of 4096 bytes.
#[must_use]
pub fn of_block(block: &[u8; PAGE_SIZE]) -> u32 {
    checksum::of(block) ^ ZEROS
}

/// The length of the table for `blocks` blocks, in bytes.
#[must_use]
pub fn table_len(blocks: u64) -> u64 {
    (blocks * ENTRY).next_multiple_of(8)
}

/// Where a raw image's checksums are, and those outside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawChecksums {
    /// Where the blocks begin: the memory.
    pub memory_start: u64,
    /// How many there are.
    pub blocks: u64,
    /// Where the table is in the file: right behind the stream.
    pub table_at: u64,
    /// Checksum of the table.
    pub table: u32,
    /// Checksum of what stands before the memory.
    pub before: u32,
    /// Checksum of what stands between the memory and the table.
    pub behind: u32,
}

impl RawChecksums {
    /// The body of the trailer's section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTION);
        for field in [self.memory_start, self.blocks, self.table_at] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.table, self.before, self.behind, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// Reads the body of the section, and sees that what it says fits a file whose stream ends at
    /// `stream_end` and whose trailer is at `trailer_at`.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn decode(body: &[u8], stream_end: u64, trailer_at: u64) -> Result<Self, &'static str> {
        let body: &[u8; SECTION] = body
            .try_into()
            .map_err(|_| "the section of the checksums has a wrong length")?;
        let (longs, _) = body.as_chunks::<8>();
        let (shorts, _) = body[24..].as_chunks::<4>();
        let long = |index: usize| u64::from_le_bytes(longs[index]);
        let short = |index: usize| u32::from_le_bytes(shorts[index]);
        let found = Self {
            memory_start: long(0),
            blocks: long(1),
            table_at: long(2),
            table: short(0),
            before: short(1),
            behind: short(2),
        };
        let memory_end = found
            .blocks
            .checked_mul(PAGE)
            .and_then(|length| length.checked_add(found.memory_start));
        let fits = memory_end.is_some_and(|end| end <= stream_end)
            && found.memory_start.is_multiple_of(PAGE)
            && found.table_at == stream_end
            && trailer_at.checked_sub(stream_end) == Some(table_len(found.blocks))
            && short(3) == 0;
        if !fits {
            return Err("what the trailer says of the checksums does not fit the image");
        }
        Ok(found)
    }

    /// Where the blocks end.
    #[must_use]
    pub fn memory_end(&self) -> u64 {
        self.memory_start + self.blocks * PAGE
    }
}

/// The table while the image is written.
#[derive(Debug)]
pub struct Spill {
    file: File,
    /// One piece of the table is changed at a time.
    change: Mutex<()>,
}

impl Spill {
    /// In an empty file: all blocks are zeros so far.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            file,
            change: Mutex::new(()),
        }
    }

    /// Keeps checksums of blocks, each with its block's number. Those whose blocks lie near each
    /// other cost one change of the table together, however strewn they are.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&self, checksums: &[(u64, u32)]) -> io::Result<()> {
        fault::call("write-checksums")?;
        for near in checksums.chunk_by(|a, b| a.0 / PIECE == b.0 / PIECE) {
            self.change_piece(near[0].0 / PIECE, near)?;
        }
        Ok(())
    }

    fn change_piece(&self, piece: u64, checksums: &[(u64, u32)]) -> io::Result<()> {
        let at = piece * PIECE * ENTRY;
        let mut table = [0; (PIECE * ENTRY) as usize];
        // What a panic left is the table as it was, or with all of a change: one write each.
        let _alone = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        if (checksums.len() as u64) < PIECE {
            read_or_zeros(&self.file, &mut table, at)?;
        }
        let (entries, _) = table.as_chunks_mut::<{ ENTRY as usize }>();
        for (block, checksum) in checksums {
            entries[(block % PIECE) as usize] = checksum.to_le_bytes();
        }
        self.file.write_all_at(&table, at)
    }

    /// Writes the table of `blocks` blocks to `to` at an offset; its checksum.
    ///
    /// # Errors
    /// What the system says.
    pub fn copy_to(&self, to: &File, mut at: u64, blocks: u64) -> io::Result<u32> {
        let length = table_len(blocks);
        // What was never put, and the padding, reads as zeros.
        self.file.set_len(length)?;
        let mut sum = checksum::Running::new();
        let mut buffer = vec![0; CHUNK.min(length as usize)];
        let mut done = 0;
        while done < length {
            let now = (length - done).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..now];
            self.file.read_exact_at(chunk, done)?;
            sum.add(chunk);
            to.write_all_at(chunk, at)?;
            at += now as u64;
            done += now as u64;
        }
        Ok(sum.value())
    }
}

/// Reads what the file has at an offset; behind its end are zeros.
fn read_or_zeros(file: &File, mut to: &mut [u8], mut at: u64) -> io::Result<()> {
    while !to.is_empty() {
        match file.read_at(to, at) {
            Ok(0) => {
                to.fill(0);
                break;
            }
            Ok(read) => {
                to = &mut to[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_has_zero() {
        assert_eq!(of_block(&[0; PAGE_SIZE]), 0);
        let mut block = [0; PAGE_SIZE];
        block[4095] = 1;
        assert_ne!(of_block(&block), 0);
    }

    #[test]
    fn the_section_is_read_as_written_and_distrusted() {
        let good = RawChecksums {
            memory_start: 8192,
            blocks: 5,
            table_at: 40_000,
            table: 1,
            before: 2,
            behind: 3,
        };
        let body = good.encode();
        assert_eq!(RawChecksums::decode(&body, 40_000, 40_024), Ok(good));
        // The checksums themselves are whatever they are.
        for at in (0..24).chain(36..40) {
            let mut bad = body.clone();
            bad[at] ^= 0x41;
            let found = RawChecksums::decode(&bad, 40_000, 40_024);
            assert!(found.is_err(), "byte {at}: {found:?}");
        }
        for (end, trailer) in [(40_008, 40_032), (40_000, 40_016), (40_000, 39_000)] {
            assert!(RawChecksums::decode(&body, end, trailer).is_err());
        }
        assert!(RawChecksums::decode(&body[..39], 40_000, 40_024).is_err());
    }

    #[test]
    fn the_table_has_what_was_put_and_zeros() {
        let spill = Spill::new(tempfile::tempfile().expect("a file"));
        spill.put(&[(1, 7), (2, 8)]).expect("put");
        let to = tempfile::tempfile().expect("a file");
        let sum = spill.copy_to(&to, 16, 5).expect("copied");
        let mut found = [0; 24];
        to.read_exact_at(&mut found, 16).expect("read");
        assert_eq!((found[4], found[8]), (7, 8));
        assert_eq!(found.iter().filter(|&&b| b != 0).count(), 2);
        assert_eq!(sum, checksum::of(&found));
        assert_eq!(to.metadata().expect("metadata").len(), 40);
    }

    #[test]
    fn strewn_checksums_leave_the_others_as_they_are() {
        let spill = Spill::new(tempfile::tempfile().expect("a file"));
        let all: Vec<_> = (0..2500).map(|block| (block, block as u32 + 1)).collect();
        spill.put(&all).expect("put");
        let strewn = [(2400, 1), (3, 2), (1023, 3), (1024, 4), (2400, 5)];
        spill.put(&strewn).expect("put");
        let to = tempfile::tempfile().expect("a file");
        spill.copy_to(&to, 0, 2500).expect("copied");
        let mut found = vec![0; 10_000];
        to.read_exact_at(&mut found, 0).expect("read");
        let (entries, _) = found.as_chunks::<4>();
        for (block, entry) in entries.iter().enumerate() {
            let wanted = match block {
                3 => 2,
                1023 => 3,
                1024 => 4,
                2400 => 5,
                other => other as u32 + 1,
            };
            assert_eq!(u32::from_le_bytes(*entry), wanted, "block {block}");
        }
    }
}
