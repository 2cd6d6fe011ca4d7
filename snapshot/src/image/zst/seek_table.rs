//! The seek table at the end of a zstd image, in the official zstd seekable format.
//!
//! ```text
//! u32 0x184d2a5e, u32 length of what follows
//! per frame  u32 compressed length, u32 length of its content, u32 checksum of its content
//! footer     u32 number of frames, u8 0x80 (checksums are there), u32 0x8f92eab1
//! ```
//!
//! All little-endian. Every frame before the table has an entry, the skippable one with livesave's
//! facts too (its content is empty).

use super::frame::MAX_CONTENT;

/// The first of the magic numbers of skippable frames.
const SKIPPABLE: u32 = 0x184d_2a5e;
const SEEKABLE: u32 = 0x8f92_eab1;
const WITH_CHECKSUMS: u8 = 0x80;
const ENTRY: u64 = 12;
/// The size of a skippable frame's head.
pub const SKIPPABLE_HEAD: u64 = 8;
/// The size of the footer: the last bytes of the file.
pub const FOOTER: usize = 9;
/// No image has more frames: 32 TiB of memory make that many.
const MAX_FRAMES: u64 = 1 << 24;
/// The checksum of an empty content.
pub const EMPTY: u32 = 0x51d8_e999;

/// What the table says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its length in the file.
    pub compressed: u32,
    /// The length of its content.
    pub content: u32,
    /// The low half of XXH64 of its content.
    pub checksum: u32,
}

/// The table's frame.
pub fn encode(entries: impl ExactSizeIterator<Item = Entry>) -> Vec<u8> {
    let count = entries.len();
    let length = count * ENTRY as usize + FOOTER;
    let mut out = Vec::with_capacity(SKIPPABLE_HEAD as usize + length);
    out.extend_from_slice(&SKIPPABLE.to_le_bytes());
    out.extend_from_slice(&(length as u32).to_le_bytes());
    for entry in entries {
        for field in [entry.compressed, entry.content, entry.checksum] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
    out.extend_from_slice(&(count as u32).to_le_bytes());
    out.push(WITH_CHECKSUMS);
    out.extend_from_slice(&SEEKABLE.to_le_bytes());
    out
}

/// Where the table begins, from the last bytes of a file of `file_len` bytes.
///
/// # Errors
/// A text that says what is wrong.
pub fn locate(footer: &[u8; FOOTER], file_len: u64) -> Result<u64, &'static str> {
    let [n0, n1, n2, n3, descriptor, m0, m1, m2, m3] = *footer;
    if u32::from_le_bytes([m0, m1, m2, m3]) != SEEKABLE {
        return Err(
            "it is compressed by zstd and has no seek table at its end: it is cut off, or \
                    not written by livesave",
        );
    }
    if descriptor != WITH_CHECKSUMS {
        return Err("the seek table is of a kind that livesave does not write");
    }
    let count = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
    let length = SKIPPABLE_HEAD + count * ENTRY + FOOTER as u64;
    if count > MAX_FRAMES {
        return Err("the seek table has more frames than any image");
    }
    file_len
        .checked_sub(length)
        .ok_or("the seek table is longer than the file")
}

/// The entries of a table that begins at `offset` of the file.
///
/// # Errors
/// A text that says what is wrong.
pub fn decode(table: &[u8], offset: u64) -> Result<Vec<Entry>, &'static str> {
    let inner = table
        .split_at_checked(SKIPPABLE_HEAD as usize)
        .filter(|(_, inner)| inner.len() >= FOOTER);
    let (head, inner) = inner.ok_or("the seek table is cut off")?;
    let mut want = SKIPPABLE.to_le_bytes().to_vec();
    want.extend_from_slice(&(inner.len() as u32).to_le_bytes());
    if head != want {
        return Err("the seek table does not begin where it should");
    }
    let (rows, rest) = inner[..inner.len() - FOOTER].as_chunks::<{ ENTRY as usize }>();
    if !rest.is_empty() {
        return Err("the seek table's length is not that of its entries");
    }
    let field = |row: &[u8; ENTRY as usize], at: usize| {
        u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
    };
    let mut total = 0;
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let entry = Entry {
            compressed: field(row, 0),
            content: field(row, 4),
            checksum: field(row, 8),
        };
        if u64::from(entry.content) > MAX_CONTENT {
            return Err("the seek table has a frame larger than an image's may be");
        }
        if u64::from(entry.compressed) < SKIPPABLE_HEAD {
            return Err("the seek table has a frame shorter than any");
        }
        total += u64::from(entry.compressed);
        entries.push(entry);
    }
    if total != offset {
        return Err("the frames of the seek table are not as long together as the file before it");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        (1..5)
            .map(|n| Entry {
                compressed: n * 100,
                content: n * 7,
                checksum: n,
            })
            .collect()
    }

    fn footer(table: &[u8]) -> [u8; FOOTER] {
        *table.last_chunk().expect("a footer")
    }

    #[test]
    fn what_is_written_is_found_and_read() {
        let table = encode(entries().into_iter());
        let length = 1000 + table.len() as u64;
        assert_eq!(locate(&footer(&table), length), Ok(1000));
        assert_eq!(decode(&table, 1000), Ok(entries()));
        assert_eq!(EMPTY, crate::checksum::of(&[]));
    }

    #[test]
    fn a_table_that_does_not_fit_its_file_is_refused() {
        let table = encode(entries().into_iter());
        assert!(locate(&footer(&table), table.len() as u64 - 1).is_err());
        assert!(decode(&table, 999).is_err());
        for at in (0..8).chain([8 + 3, 8 + 4 + 3]) {
            let mut bad = table.clone();
            bad[at] ^= 0x80;
            assert!(decode(&bad, 1000).is_err(), "byte {at}");
        }
        for at in 0..FOOTER {
            let mut bad = footer(&table);
            bad[at] ^= 0x10;
            let found = locate(&bad, 1000 + table.len() as u64);
            assert!(found != Ok(1000), "byte {at} of the footer");
        }
        for length in 0..table.len() {
            assert!(decode(&table[..length], 1000).is_err(), "{length} bytes");
        }
    }
}
