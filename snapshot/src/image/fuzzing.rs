//! Entry points that take any bytes, for the fuzzers in `snapshot/fuzz` and the test
//! `fuzz_images` that runs them for a bounded time: none may panic, hang or take memory without
//! bounds.

use super::checksums::RawChecksums;
use super::existing::Ranges;
use super::index::PageIndex;
use super::verify::{Course, verify_bytes};
use super::zst::{frame, seek_table};
use super::{ImageError, Reader, libxc, libxl, trailer, xl_header};
use crate::ports::Cancel;
use crate::units::PageCount;

/// The headers before the records.
pub fn headers(bytes: &[u8]) {
    if let Some(fixed) = bytes.first_chunk() {
        let _ = xl_header::decode(fixed);
    }
    if let Some(header) = bytes.first_chunk() {
        let _ = libxl::decode_header(header);
    }
    if let Some(headers) = bytes.first_chunk() {
        let _ = libxc::decode_header(headers);
    }
    let _ = frame::content_size(bytes);
}

/// A whole image of either kind: everything that reads one.
pub fn image(bytes: &[u8]) {
    let cancel = Cancel::new();
    let course = Course {
        threads: 1,
        progress: &|_| {},
        cancel: &cancel,
    };
    let _ = verify_bytes(bytes.to_vec(), &course);
    let Ok(reader) = Reader::of_bytes(bytes.to_vec()) else {
        return;
    };
    for record in reader.libxc_records().iter().chain(reader.libxl_records()) {
        let _ = reader.read(record);
    }
    let mut pages = 0;
    let _ = reader.for_each_page(|_, _| {
        pages += 1;
        Ok::<_, ImageError>(())
    });
    if let Ok(index) = PageIndex::of(&reader) {
        let _ = index.for_each_in(0..u64::MAX, |_, _| Ok::<_, ImageError>(()));
    }
}

/// livesave's trailer, the section of the checksums and the seek table.
pub fn trailers(bytes: &[u8]) {
    let length = bytes.len() as u64;
    if let Some(footer) = bytes.last_chunk() {
        let _ = trailer::locate(footer, length);
    }
    let _ = trailer::decode(bytes, 0);
    if let Some((count, body)) = bytes.split_first_chunk() {
        let _ = Ranges::decode(body, PageCount(u64::from_le_bytes(*count)));
    }
    let _ = RawChecksums::decode(bytes, 8, length);
    if let Some(footer) = bytes.last_chunk() {
        let _ = seek_table::locate(footer, length);
    }
    let _ = seek_table::decode(bytes, length);
}
