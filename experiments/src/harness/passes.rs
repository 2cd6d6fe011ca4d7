//! How often a stock save went over the guest's memory, told from its stream.
//!
//! Xen's pre-copy loop writes the pages of a pass in the order of their numbers, so a page number
//! that is not above the one before begins the next pass (libxc's record PAGE_DATA, `docs/specs/
//! libxc-migration-stream.pandoc` in Xen's tree).

use crate::dom0::stream::{PAGE_DATA, Sink, u32_at, walk};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

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
    walk(&mut stream).with_context(|| format!("{} is no stream of a save", image.display()))?;
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

impl<R: Read + Seek> Sink for Stream<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from.read_exact(bytes).context("it breaks off")
    }

    fn pass(&mut self, len: u64) -> Result<()> {
        self.from.seek(SeekFrom::Current(len as i64))?;
        Ok(())
    }

    fn libxc_body(&mut self, kind: u32, len: u64) -> Result<()> {
        if kind != PAGE_DATA {
            return self.pass(len);
        }
        let count = u32_at(&self.array::<8>()?, 0);
        let entries = 8 + u64::from(count) * 8;
        if entries > len {
            bail!("a record of {len} bytes with {count} pages");
        }
        for _ in 0..count {
            let entry = u64::from_le_bytes(self.array()?);
            self.passes.add(entry);
        }
        self.pass(len - entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::stream::tests::stream;

    fn pages(entries: &[u64]) -> Vec<u8> {
        let mut body = (entries.len() as u32).to_le_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        let with_data = entries.iter().filter(|e| **e >> 60 < WITHOUT_DATA);
        body.resize(body.len() + 4096 * with_data.count(), 7);
        body
    }

    /// Three passes; one page has no data.
    fn three_passes() -> Vec<u8> {
        stream(&[
            (2, &[1; 16]),
            (PAGE_DATA, &pages(&[0, 1, 0xf << 60 | 2, 3])),
            (PAGE_DATA, &pages(&[4, 9, 1])),
            (PAGE_DATA, &pages(&[4])),
            (PAGE_DATA, &pages(&[4])),
        ])
    }

    fn of(bytes: &[u8]) -> Result<Vec<u64>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("image");
        std::fs::write(&path, bytes)?;
        of_image(&path)
    }

    #[test]
    fn a_page_number_that_is_not_above_the_last_begins_a_pass() {
        assert_eq!(of(&three_passes()).unwrap(), [5, 2, 1]);
    }

    #[test]
    fn what_breaks_off_is_an_error() {
        let whole = three_passes();
        for len in [0, 20, 60, whole.len() - 1, whole.len() - 8] {
            assert!(of(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_record_with_more_pages_than_it_has_room_for_is_an_error() {
        let body = 9_u32.to_le_bytes();
        let mut body = [body, [0; 4]].concat();
        body.extend([0; 8 * 8]);
        assert!(of(&stream(&[(PAGE_DATA, &body)])).is_err());
        body.extend([0; 8]);
        assert!(of(&stream(&[(PAGE_DATA, &body)])).is_ok());
    }
}
