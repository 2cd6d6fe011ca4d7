//! Reads an image: livesave's own and, as far as they go, stock `xl save` files.
//!
//! Nothing in the file is believed before it is checked: lengths are bounded by the file before
//! anything is allocated for them, and what is wrong is reported with its place.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::checksums::RawChecksums;
use super::existing::Ranges;
use super::libxc::{self, page_type, record};
use super::source::{ReadAt, Source, SourceError};
use super::stream::{ReaderStream, Stream};
use super::trailer::{self, Facts, Trailer};
use super::{GuestType, MAX_RECORD, RECORD_HEADER, Record, libxl, xl_header};
use crate::page::{PAGE_SIZE, PageBytes};
use crate::units::Pfn;

/// No record but PAGE_DATA is longer (the largest, an HVM context, is some hundred KiB).
const MAX_SMALL_RECORD: u64 = 16 << 20;
/// No image has more: a guest of 16 TiB takes three million.
const MAX_RECORDS: usize = 1 << 22;
/// Pages read at a time.
const CHUNK: u64 = 256;

/// An image that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened or read.
    #[error("Failed to {operation} image {path}")]
    Io {
        /// What was being done, to stand after "failed to".
        operation: &'static str,
        /// The image's path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What an increment is built on is missing.
    #[error(
        "Image {path} is an increment on an image of {cut} ({file}), which is not in its directory"
    )]
    Incomplete {
        /// The increment's path.
        path: PathBuf,
        /// The name of the missing file when the increment was made.
        file: String,
        /// Its cut.
        cut: String,
    },
    /// The file is not an image, or a damaged one.
    #[error("Image {path} is not usable: {what} (at byte {offset})")]
    Damaged {
        /// The image's path.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// A record in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordAt {
    /// Its type.
    pub kind: u32,
    /// Where its body starts.
    pub offset: u64,
    /// The length of its body.
    pub length: u64,
}

/// An opened image whose structure has been walked from end to end.
#[derive(Debug)]
pub struct Reader {
    source: Source,
    path: PathBuf,
    /// Where the libxl stream begins, behind the configuration.
    start: u64,
    /// Where it ends.
    end: u64,
    config: Vec<u8>,
    increment: bool,
    guest: GuestType,
    xen_version: (u32, u32),
    libxc: Vec<RecordAt>,
    libxl: Vec<RecordAt>,
    trailer: Option<Trailer>,
    raw_checksums: Option<RawChecksums>,
    existing: Option<Ranges>,
}

impl Reader {
    /// Opens an image, raw or compressed, and walks its records; page contents are not read.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io {
            operation: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            let what = "it is not a plain file";
            return Err(failed(path, SourceError::damaged(0, what)));
        }
        Self::walked(Box::new(file), metadata.len(), path)
    }

    /// The same of an image in memory.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let len = bytes.len() as u64;
        Self::walked(Box::new(bytes), len, Path::new("(in memory)"))
    }

    fn walked(bytes: Box<dyn ReadAt>, len: u64, path: &Path) -> Result<Self, ImageError> {
        let source = Source::new(bytes, len).map_err(|error| failed(path, error))?;
        let mut reader = Self {
            source,
            path: path.to_owned(),
            start: 0,
            end: 0,
            config: vec![],
            increment: false,
            guest: GuestType::Hvm,
            xen_version: (0, 0),
            libxc: vec![],
            libxl: vec![],
            trailer: None,
            raw_checksums: None,
            existing: None,
        };
        reader.walk()?;
        Ok(reader)
    }

    fn walk(&mut self) -> Result<(), ImageError> {
        let fixed = self.array(0)?;
        let fixed = xl_header::decode(&fixed).map_err(|what| self.damaged(0, what))?;
        self.increment = fixed.increment;
        let mut at = xl_header::FIXED;
        let config_len = u64::from(fixed.config_len);
        self.config = self.bytes(at, config_len)?;
        at += config_len;
        self.start = at;
        let header = self.array(at)?;
        libxl::decode_header(&header).map_err(|what| self.damaged(at, what))?;
        at += libxl::HEADER;
        let context = self.record(at)?;
        if (context.kind, context.length) != (libxl::record::LIBXC_CONTEXT, 0) {
            return Err(self.damaged(at, "the libxl stream does not begin with a libxc image"));
        }
        at += RECORD_HEADER;
        let header = self.array(at)?;
        (self.guest, self.xen_version) =
            libxc::decode_header(&header).map_err(|what| self.damaged(at, what))?;
        at += libxc::HEADERS;
        (self.libxc, at) = self.records(at, record::END)?;
        (self.libxl, at) = self.records(at, libxl::record::END)?;
        self.end = at;
        self.read_trailer()
    }

    /// The records from `at` to the END record; and where what follows begins.
    fn records(&self, mut at: u64, end: u32) -> Result<(Vec<RecordAt>, u64), ImageError> {
        let mut found = vec![];
        loop {
            let record = self.record(at)?;
            at = record.offset + record.length.next_multiple_of(8);
            if at > self.source.stream_len() {
                return Err(self.damaged(record.offset, "a record reaches beyond the file"));
            }
            if record.kind == end && record.length != 0 {
                return Err(self.damaged(record.offset, "an END record has content"));
            }
            if record.kind == end {
                return Ok((found, at));
            }
            if found.len() == MAX_RECORDS {
                return Err(self.damaged(at, "it has more records than any image"));
            }
            found.push(record);
        }
    }

    fn record(&self, at: u64) -> Result<RecordAt, ImageError> {
        let [k0, k1, k2, k3, l0, l1, l2, l3] = self.array(at)?;
        let length = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        if length > MAX_RECORD {
            return Err(self.damaged(at, "a record is longer than any may be"));
        }
        Ok(RecordAt {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            offset: at + RECORD_HEADER,
            length,
        })
    }

    fn read_trailer(&mut self) -> Result<(), ImageError> {
        let placed = self.source.trailer().map_err(|error| self.failed(error))?;
        let packed = self.source.packed().is_some();
        let Some((at, length)) = placed else {
            if self.increment {
                return Err(self.damaged(self.end, "an increment has no livesave trailer"));
            }
            if self.end == self.source.stream_len() {
                return Ok(());
            }
            return Err(self.damaged(self.end, "unknown bytes follow the end of the stream"));
        };
        let wrong = |what| failed(&self.path, SourceError::damaged(at, what));
        if packed && self.end != self.source.stream_len() || !packed && at < self.end {
            return Err(wrong("livesave's trailer is not where it should be"));
        }
        // At most MAX_TRAILER, and no more than the file has.
        let mut bytes = vec![0; length as usize];
        let read = self.source.file().read_exact_at(&mut bytes, at);
        read.map_err(|error| self.failed(error.into()))?;
        let trailer = trailer::decode(&bytes, at).map_err(wrong)?;
        self.raw_checksums = match &trailer.raw_sums {
            Some(body) if !packed => Some(RawChecksums::decode(body, self.end, at).map_err(wrong)?),
            None if packed || at == self.end => None,
            _ => return Err(wrong("livesave's trailer is not where it should be")),
        };
        let facts = &trailer.facts;
        let described = [facts.parent.is_some(), trailer.existing.is_some(), packed];
        if self.increment && described != [true; 3]
            || !self.increment && described[..2] != [false; 2]
        {
            return Err(wrong(
                "livesave's trailer and the header do not agree whether it is an increment",
            ));
        }
        self.existing = match &trailer.existing {
            Some(body) => Some(Ranges::decode(body, facts.memory_pages).map_err(wrong)?),
            None => None,
        };
        self.trailer = Some(trailer);
        Ok(())
    }

    /// The configuration, JSON.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        let text = self.config.strip_suffix(&[0]).unwrap_or(&self.config);
        text.trim_ascii_end()
    }

    /// Whether it is an increment: what it is built on belongs to it.
    #[must_use]
    pub fn is_increment(&self) -> bool {
        self.increment
    }

    /// The pages that the guest had, of an increment.
    #[must_use]
    pub fn existing(&self) -> Option<&Ranges> {
        self.existing.as_ref()
    }

    /// Where the page records stand in the stream; a place between records if there are none.
    #[must_use]
    pub fn memory(&self) -> Range<u64> {
        let end_of = |at: &RecordAt| at.offset + at.length.next_multiple_of(8);
        let mut records = self.libxc.iter();
        let pages = |at: &&RecordAt| at.kind == record::PAGE_DATA;
        match (records.clone().find(pages), records.clone().rfind(pages)) {
            (Some(first), Some(last)) => first.offset - RECORD_HEADER..end_of(last),
            _ => {
                let place = records
                    .rfind(|at| at.kind == record::STATIC_DATA_END)
                    .map_or(self.end, end_of);
                place..place
            }
        }
    }

    /// The stream behind the xl header, up to the libxl END record.
    pub(super) fn body(&self) -> Range<u64> {
        self.start..self.end
    }

    /// The guest's type.
    #[must_use]
    pub fn guest(&self) -> GuestType {
        self.guest
    }

    /// The version of the hypervisor that the guest ran on.
    #[must_use]
    pub fn xen_version(&self) -> (u32, u32) {
        self.xen_version
    }

    /// livesave's own facts; `None` in a stock image.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        self.trailer.as_ref().map(|trailer| &trailer.facts)
    }

    /// livesave's trailer; `None` in a stock image.
    #[must_use]
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.as_ref()
    }

    /// Where the checksums of a raw image are, if it has any.
    #[must_use]
    pub fn raw_checksums(&self) -> Option<&RawChecksums> {
        self.raw_checksums.as_ref()
    }

    /// What stock `xl restore` reads of the image, with `config` (JSON) as the configuration.
    #[must_use]
    pub fn stream(&self, config: &[u8]) -> Box<dyn Stream + '_> {
        let holes = self.source.plain_file();
        Box::new(ReaderStream::new(self, holes, self.start..self.end, config))
    }

    /// The size of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.source.file_len()
    }

    /// What it is read from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.source.packed().is_some()
    }

    /// The length of the stream that stock tools read.
    #[must_use]
    pub fn stream_len(&self) -> u64 {
        self.end
    }

    /// The records of the libxc image, END left out.
    #[must_use]
    pub fn libxc_records(&self) -> &[RecordAt] {
        &self.libxc
    }

    /// The records of the libxl stream behind the libxc image, END left out.
    #[must_use]
    pub fn libxl_records(&self) -> &[RecordAt] {
        &self.libxl
    }

    /// A record with its body; not for PAGE_DATA.
    ///
    /// # Errors
    /// [`ImageError`], also for a record too long to be held.
    pub fn read(&self, record: &RecordAt) -> Result<Record, ImageError> {
        if record.length > MAX_SMALL_RECORD {
            return Err(self.damaged(record.offset, "a record is too long for its kind"));
        }
        Ok(Record::new(
            record.kind,
            self.bytes(record.offset, record.length)?,
        ))
    }

    /// The entries of a PAGE_DATA record that have data, and where the data begins.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn page_entries(&self, at: &RecordAt) -> Result<(Vec<Pfn>, u64), ImageError> {
        const PFN: u64 = (1 << 52) - 1;
        let [c0, c1, c2, c3, ..]: [u8; 8] = self.array(at.offset)?;
        let count = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
        let head = 8 + 8 * count;
        if head > at.length {
            return Err(self.damaged(at.offset, "a page record is shorter than its entries"));
        }
        let entries = self.bytes(at.offset + 8, 8 * count)?;
        let (entries, _) = entries.as_chunks::<8>();
        let with_data: Vec<Pfn> = entries
            .iter()
            .map(|entry| u64::from_le_bytes(*entry))
            .filter(|entry| page_type::has_data((entry >> 60) as u8))
            .map(|entry| Pfn(entry & PFN))
            .collect();
        if head + (with_data.len() * PAGE_SIZE) as u64 != at.length {
            return Err(self.damaged(at.offset, "a page record's length is not that of its pages"));
        }
        Ok((with_data, at.offset + head))
    }

    /// Hands over every page in file order; where a page comes twice the later copy counts.
    ///
    /// # Errors
    /// [`ImageError`], or what the caller's function says.
    pub fn for_each_page<E: From<ImageError>>(
        &self,
        mut take: impl FnMut(Pfn, &PageBytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![PageBytes::ZERO; CHUNK as usize];
        for at in self.libxc.iter().filter(|r| r.kind == record::PAGE_DATA) {
            let (pfns, data) = self.page_entries(at)?;
            for (n, chunk) in pfns.chunks(CHUNK as usize).enumerate() {
                let mut offset = data + n as u64 * CHUNK * PAGE_SIZE as u64;
                for page in &mut buffer[..chunk.len()] {
                    self.read_exact(&mut page.0, offset)?;
                    offset += PAGE_SIZE as u64;
                }
                for (&pfn, page) in chunk.iter().zip(&buffer) {
                    take(pfn, page)?;
                }
            }
        }
        Ok(())
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], ImageError> {
        let mut out = [0; N];
        self.read_exact(&mut out, at)?;
        Ok(out)
    }

    /// Bytes of the stream.
    ///
    /// # Errors
    /// [`ImageError`], also where there are not so many.
    pub fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>, ImageError> {
        // Before allocating: what the file does not have is not asked for.
        let end = at.checked_add(length);
        if end.is_none_or(|end| end > self.source.stream_len()) {
            return Err(self.damaged(at, "the file is cut off"));
        }
        let mut out = vec![0; length as usize];
        self.read_exact(&mut out, at)?;
        Ok(out)
    }

    /// Fills `out` from `at` of the stream on.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read_exact(&self, out: &mut [u8], at: u64) -> Result<(), ImageError> {
        let read = self.source.read_exact(out, at);
        read.map_err(|error| self.failed(error))
    }

    /// What a fault of the source is to who uses the image.
    pub(super) fn failed(&self, error: SourceError) -> ImageError {
        failed(&self.path, error)
    }

    /// Something is wrong at an offset of the stream.
    #[must_use]
    pub fn damaged(&self, offset: u64, what: &'static str) -> ImageError {
        self.failed(SourceError::damaged(self.source.place(offset), what))
    }
}

fn failed(path: &Path, error: SourceError) -> ImageError {
    let path = path.to_owned();
    match error {
        SourceError::Io(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Damaged {
                path,
                offset: 0,
                what: "the file became shorter while it was read",
            }
        }
        SourceError::Io(source) => ImageError::Io {
            operation: "read",
            path,
            source,
        },
        SourceError::Damaged { offset, what } => ImageError::Damaged { path, offset, what },
    }
}
