//! PAGE_DATA records as the content of a frame.
//!
//! ```text
//! u32 type = 1, u32 length, u32 count, u32 0, count × u64 entry, count × 4096 bytes
//! ```

use crate::image::libxc::{entry, record};
use crate::page::{GuestPage, PAGE_SIZE};
use crate::units::Pfn;

/// Pages of data in a record, at most: 2 MiB, which compresses as well as larger pieces do, and is
/// what has to be decompressed to reach one page.
pub const PAGES: usize = 512;
/// Bytes before the entries of a record.
pub const FIXED: usize = 16;
/// Bytes before the pages of the largest record.
const HEAD: usize = FIXED + 8 * PAGES;

/// Appends what stands before the pages of a record.
pub fn head(entries: impl ExactSizeIterator<Item = u64>, out: &mut Vec<u8>) {
    let count = entries.len();
    let length = 8 + count * (8 + PAGE_SIZE);
    for field in [record::PAGE_DATA, length as u32, count as u32, 0] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for entry in entries {
        out.extend_from_slice(&entry.to_le_bytes());
    }
}

/// The entries of a record that livesave made; `None` if it is not one, or not whole so far.
pub fn entries(content: &[u8]) -> Option<Vec<u64>> {
    let field = |at: usize| {
        let bytes = content.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let count = field(8)? as usize;
    let length = 8 + count.checked_mul(8 + PAGE_SIZE)?;
    if (field(0)?, field(4)?) != (record::PAGE_DATA, u32::try_from(length).ok()?) {
        return None;
    }
    let (entries, _) = content.get(FIXED..FIXED + 8 * count)?.as_chunks::<8>();
    Some(entries.iter().map(|e| u64::from_le_bytes(*e)).collect())
}

/// A record being filled with pages.
pub struct Builder {
    /// Room for the largest head, then the pages.
    bytes: Vec<u8>,
    entries: Vec<u64>,
}

/// A record's bytes, which begin somewhere in a buffer.
pub struct Content {
    bytes: Vec<u8>,
    start: usize,
}

impl Content {
    /// Of other bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl Builder {
    /// An empty record in a buffer that may have been used before.
    pub fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.reserve_exact(HEAD + PAGES * PAGE_SIZE);
        buffer.resize(HEAD, 0);
        Self {
            bytes: buffer,
            entries: Vec::with_capacity(PAGES),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() == PAGES
    }

    /// Copies a page into it.
    pub fn push(&mut self, pfn: Pfn, page: GuestPage<'_>) {
        self.entries.push(entry(pfn, page.kind()));
        page.append_to(&mut self.bytes);
    }

    /// The same with bytes that we have.
    pub fn push_bytes(&mut self, entry: u64, page: &[u8]) {
        self.entries.push(entry);
        self.bytes.extend_from_slice(page);
    }

    /// The whole record.
    pub fn finish(mut self) -> Content {
        let mut front = Vec::with_capacity(HEAD);
        head(self.entries.iter().copied(), &mut front);
        // The head ends where the pages begin.
        let start = HEAD - front.len();
        self.bytes[start..HEAD].copy_from_slice(&front);
        Content {
            bytes: self.bytes,
            start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{PageBytes, PageKind};

    #[test]
    fn a_record_is_laid_out_as_specified() {
        let page = PageBytes([7; PAGE_SIZE]);
        let mut builder = Builder::new(vec![9; 100]);
        let pinned = PageKind::of_bits(0xc).expect("a pinned L4 page table");
        builder.push(Pfn(5), GuestPage::of(&page).of_kind(pinned));
        builder.push_bytes(0x1_0000_0001, &[8; PAGE_SIZE]);
        let content = builder.finish();
        let bytes = content.bytes();
        assert_eq!(bytes.len(), 32 + 2 * PAGE_SIZE);
        assert_eq!(
            bytes[..16],
            [1, 0, 0, 0, 24, 32, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes[16..24], [5, 0, 0, 0, 0, 0, 0, 0xc0]);
        assert_eq!(bytes[24..32], [1, 0, 0, 0, 1, 0, 0, 0]);
        assert!(bytes[32..32 + PAGE_SIZE].iter().all(|&b| b == 7));
        assert!(bytes[32 + PAGE_SIZE..].iter().all(|&b| b == 8));
        let found = [0xc000_0000_0000_0005, 0x1_0000_0001];
        assert_eq!(entries(&bytes[..32]).as_deref(), Some(&found[..]));
        assert_eq!(entries(&bytes[..31]), None);
    }
}
