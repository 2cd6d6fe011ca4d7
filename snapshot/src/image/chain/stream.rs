//! A chain as the stream that stock `xl restore` reads: each page once, as its newest copy has it.

use super::Chain;
use crate::image::index::{PageIndex, Stretch};
use crate::image::libxc::record;
use crate::image::stream::Stream;
use crate::image::{ImageError, RECORD_HEADER, Reader, xl_header};
use crate::page::PAGE_SIZE;
use crate::units::{Bytes, Pfn};
use std::ops::Range;

/// Pages in a record, at most: some 256 KiB, as the pieces of a single image are.
const PAGES: u64 = 64;
/// What is not pages comes in pieces as long.
const PIECE: u64 = 256 << 10;

/// What comes next.
enum Next {
    Header,
    /// Records of the newest image before its memory.
    Before,
    Pages,
    /// Records behind it.
    After,
}

/// The bytes, piece by piece.
pub(super) struct ChainStream<'a> {
    newest: &'a Reader,
    index: PageIndex<'a>,
    header: Vec<u8>,
    next: Next,
    before: Range<u64>,
    after: Range<u64>,
    /// What is left to come of the memory.
    stretches: std::vec::IntoIter<Stretch>,
    rest: Option<Stretch>,
    length: u64,
    buffer: Vec<u8>,
}

impl<'a> ChainStream<'a> {
    pub fn new(chain: &'a Chain, config: &[u8]) -> Result<Self, ImageError> {
        let newest = chain.newest();
        let (body, memory) = (newest.body(), newest.memory());
        let index = chain.index()?;
        let header = xl_header::encode(config, 0, false);
        let (before, after) = (body.start..memory.start, memory.end..body.end);
        let length = header.len() as u64
            + (before.end - before.start)
            + record_bytes(index.count())
            + (after.end - after.start);
        Ok(Self {
            newest,
            stretches: index.in_file_order().into_iter(),
            index,
            header,
            next: Next::Header,
            before,
            after,
            rest: None,
            length,
            buffer: vec![],
        })
    }

    /// A record with the next pages; empty if none are left.
    fn record(&mut self) -> Result<(), ImageError> {
        let (mut pfns, mut parts, mut room) = (vec![], vec![], PAGES);
        while room > 0
            && let Some(stretch) = self.rest.take().or_else(|| self.stretches.next())
        {
            let (now, rest) = stretch.split(room);
            self.rest = rest;
            room -= now.pages();
            pfns.extend((now.first.0..now.first.0 + now.pages()).map(Pfn));
            parts.push(now);
        }
        self.buffer.clear();
        if pfns.is_empty() {
            return Ok(());
        }
        let count = pfns.len() as u64;
        let length = record_bytes(count) - RECORD_HEADER;
        // At most PAGES pages: it fits.
        for field in [record::PAGE_DATA, length as u32, count as u32, 0] {
            self.buffer.extend_from_slice(&field.to_le_bytes());
        }
        for pfn in &pfns {
            // Type 0: ordinary memory.
            self.buffer.extend_from_slice(&pfn.0.to_le_bytes());
        }
        for part in parts {
            self.index.append(part, &mut self.buffer)?;
        }
        Ok(())
    }
}

/// The next bytes of a range of the stream, which is that much shorter then.
fn piece_of(image: &Reader, range: &mut Range<u64>) -> Result<Vec<u8>, ImageError> {
    let length = (range.end - range.start).min(PIECE);
    let bytes = image.bytes(range.start, length)?;
    range.start += length;
    Ok(bytes)
}

/// How many bytes the records of so many pages take.
fn record_bytes(pages: u64) -> u64 {
    pages.div_ceil(PAGES) * (RECORD_HEADER + 8) + pages * (8 + PAGE_SIZE as u64)
}

impl Stream for ChainStream<'_> {
    fn length(&self) -> Bytes {
        Bytes(self.length)
    }

    fn piece(&mut self) -> Result<&[u8], ImageError> {
        self.buffer.clear();
        loop {
            match self.next {
                Next::Header => {
                    self.buffer = std::mem::take(&mut self.header);
                    self.next = Next::Before;
                }
                Next::Before if self.before.is_empty() => self.next = Next::Pages,
                Next::Before => self.buffer = piece_of(self.newest, &mut self.before)?,
                Next::Pages => {
                    self.record()?;
                    if self.buffer.is_empty() {
                        self.next = Next::After;
                    }
                }
                Next::After if self.after.is_empty() => return Ok(&[]),
                Next::After => self.buffer = piece_of(self.newest, &mut self.after)?,
            }
            if !self.buffer.is_empty() {
                return Ok(&self.buffer);
            }
        }
    }
}
