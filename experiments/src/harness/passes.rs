//! How often a stock save went over the guest's memory, told from its stream.
//!
//! Xen's pre-copy loop writes the pages of a pass in the order of their numbers, so a page number
//! that is not above the one before begins the next pass (libxc's record PAGE_DATA, `docs/specs/
//! libxc-migration-stream.pandoc` in Xen's tree).

use crate::dom0::receiver::{LIBXC_CONTEXT, LIBXC_END, LIBXL_END, u32_at};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

const XL_HEADER: u64 = 48;
const LIBXL_HEADER: u64 = 16;
const LIBXC_HEADERS: i64 = 40;
const PAGE_DATA: u32 = 1;
/// The bits of an entry that are the page's number; the highest four are its type.
const PFN: u64 = (1 << 52) - 1;
/// Types from here on have no data in the stream.
const WITHOUT_DATA: u64 = 0xd;

/// Pages with data in each pass, in their order; the last pass is that of the pause.
pub fn of_image(image: &Path) -> Result<Vec<u64>> {
    let file = File::open(image).with_context(|| format!("cannot read {}", image.display()))?;
    let mut stream = Stream {
        from: BufReader::with_capacity(64 << 10, file),
        passes: Passes::default(),
    };
    stream
        .read()
        .with_context(|| format!("{} is no stream of a save", image.display()))?;
    Ok(stream.passes.pages)
}

#[derive(Default)]
struct Passes {
    pages: Vec<u64>,
    last: Option<u64>,
}

impl Passes {
    fn add(&mut self, entry: u64) {
        if entry >> 60 >= WITHOUT_DATA {
            return;
        }
        let pfn = entry & PFN;
        match self.pages.last_mut() {
            Some(pages) if self.last < Some(pfn) => *pages += 1,
            _ => self.pages.push(1),
        }
        self.last = Some(pfn);
    }
}

struct Stream<R> {
    from: R,
    passes: Passes,
}

impl<R: Read + Seek> Stream<R> {
    fn read(&mut self) -> Result<()> {
        let header = self.bytes::<{ XL_HEADER as usize }>()?;
        self.skip(i64::from(u32_at(&header, 44)))?;
        self.bytes::<{ LIBXL_HEADER as usize }>()?;
        loop {
            match self.record()? {
                LIBXL_END => return Ok(()),
                LIBXC_CONTEXT => {
                    self.skip(LIBXC_HEADERS)?;
                    while self.page_record()? != LIBXC_END {}
                }
                _ => {}
            }
        }
    }

    /// Skips a record; its type.
    fn record(&mut self) -> Result<u32> {
        let (kind, len) = self.head()?;
        self.skip(padded(len))?;
        Ok(kind)
    }

    /// The same, counting the pages in it.
    fn page_record(&mut self) -> Result<u32> {
        let (kind, len) = self.head()?;
        let mut left = padded(len);
        if kind == PAGE_DATA {
            let head = self.bytes::<8>()?;
            let count = u32_at(&head, 0);
            if i64::from(count) * 8 > left - 8 {
                bail!("a record of {len} bytes with {count} pages");
            }
            for _ in 0..count {
                let entry = u64::from_le_bytes(self.bytes()?);
                self.passes.add(entry);
            }
            left -= 8 + i64::from(count) * 8;
        }
        self.skip(left)?;
        Ok(kind)
    }

    fn head(&mut self) -> Result<(u32, u32)> {
        let head = self.bytes::<8>().context("it breaks off")?;
        Ok((u32_at(&head, 0), u32_at(&head, 4)))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: i64) -> Result<()> {
        self.from.seek(SeekFrom::Current(bytes))?;
        Ok(())
    }
}

/// Records are padded to eight bytes.
fn padded(len: u32) -> i64 {
    (i64::from(len) + 7) & !7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::receiver::tests::put_record;

    fn pages(entries: &[u64]) -> Vec<u8> {
        let mut body = (entries.len() as u32).to_le_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        let with_data = entries.iter().filter(|e| **e >> 60 < WITHOUT_DATA);
        body.resize(body.len() + 4096 * with_data.count(), 7);
        body
    }

    /// Three passes; one page has no data.
    fn stream() -> Vec<u8> {
        let mut bytes = vec![0; 44];
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend([0; 8 + 16]);
        put_record(&mut bytes, LIBXC_CONTEXT, &[]);
        bytes.extend([0; 40]);
        put_record(&mut bytes, 2, &[1; 16]);
        put_record(&mut bytes, PAGE_DATA, &pages(&[0, 1, 0xf << 60 | 2, 3]));
        put_record(&mut bytes, PAGE_DATA, &pages(&[4, 9, 1]));
        put_record(&mut bytes, PAGE_DATA, &pages(&[4]));
        put_record(&mut bytes, PAGE_DATA, &pages(&[4]));
        put_record(&mut bytes, LIBXC_END, &[]);
        put_record(&mut bytes, LIBXL_END, &[]);
        bytes
    }

    fn of(bytes: &[u8]) -> Result<Vec<u64>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("image");
        std::fs::write(&path, bytes)?;
        of_image(&path)
    }

    #[test]
    fn a_page_number_that_is_not_above_the_last_begins_a_pass() {
        assert_eq!(of(&stream()).unwrap(), [5, 2, 1]);
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        let whole = stream();
        for len in [0, 20, 60, whole.len() - 1, whole.len() - 8] {
            assert!(of(&whole[..len]).is_err(), "{len}");
        }
    }
}
