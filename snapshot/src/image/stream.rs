//! An image as the stream that stock `xl restore` reads, from the xl header to the libxl END
//! record, with a configuration of the caller's choice in the header.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::libxc::record;
use super::{GuestType, ImageError, Reader, xl_header};
use crate::units::Bytes;

/// The longest piece.
const PIECE: usize = 256 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// The bytes that `xl restore` reads, in their order, piece by piece.
pub trait Stream {
    /// How many bytes all pieces have together.
    fn length(&self) -> Bytes;

    /// The next bytes; empty at the end, and from then on.
    ///
    /// # Errors
    /// [`ImageError`]: the image cannot be read or is not what it was when it was opened.
    fn piece(&mut self) -> Result<&[u8], ImageError>;
}

/// The stream of an image behind its header, as the reader has it; holes are not read.
pub(super) struct ReaderStream<'a> {
    reader: &'a Reader,
    /// The file in which the stream stands at its own offsets, if there is one: it tells the holes.
    holes: Option<&'a File>,
    header: Option<Vec<u8>>,
    length: Bytes,
    /// What of the file is still to come.
    rest: Range<u64>,
    /// Up to where the file is one hole, or one run of data, from `rest.start` on.
    run_end: u64,
    in_hole: bool,
    buffer: Vec<u8>,
}

impl<'a> ReaderStream<'a> {
    /// The part `body` of what the reader reads, behind a header with `config`.
    pub fn new(
        reader: &'a Reader,
        holes: Option<&'a File>,
        body: Range<u64>,
        config: &[u8],
    ) -> Self {
        let header = xl_header::encode(config, 0, false);
        Self {
            reader,
            holes,
            length: Bytes(header.len() as u64 + body.end - body.start),
            header: Some(header),
            run_end: body.start,
            rest: body,
            in_hole: false,
            buffer: vec![],
        }
    }

    /// Sees whether a hole or data comes next, and how far it goes.
    fn next_run(&mut self) -> Result<(), ImageError> {
        let (at, end) = (self.rest.start, self.rest.end);
        (self.in_hole, self.run_end) = (false, end);
        let Some(file) = self.holes else {
            return Ok(());
        };
        let io = |source: io::Error| self.reader.failed(source.into());
        match seek(file, SeekFrom::Data(at)).map_err(io)? {
            // A cut-off file has no data there either.
            Seek::None if file.metadata().map_err(io)?.len() < end => {
                return Err(self.reader.damaged(at, "the file is cut off"));
            }
            Seek::None => self.in_hole = true,
            Seek::At(data) if data > at => {
                (self.in_hole, self.run_end) = (true, data.min(end));
            }
            Seek::At(_) => {
                if let Seek::At(hole) = seek(file, SeekFrom::Hole(at)).map_err(io)? {
                    self.run_end = hole.clamp(at + 1, end);
                }
            }
            Seek::Unknown => {}
        }
        Ok(())
    }
}

impl Stream for ReaderStream<'_> {
    fn length(&self) -> Bytes {
        self.length
    }

    fn piece(&mut self) -> Result<&[u8], ImageError> {
        if let Some(header) = self.header.take() {
            self.buffer = header;
            return Ok(&self.buffer);
        }
        if self.rest.is_empty() {
            return Ok(&[]);
        }
        if self.rest.start >= self.run_end {
            self.next_run()?;
        }
        let at = self.rest.start;
        let length = (self.run_end - at).min(PIECE as u64) as usize;
        self.rest.start += length as u64;
        if self.in_hole {
            return Ok(&ZEROS[..length]);
        }
        self.buffer.resize(length, 0);
        self.reader.read_exact(&mut self.buffer, at)?;
        Ok(&self.buffer)
    }
}

impl Reader {
    /// Checks, without reading page contents, that the image has what stock `xl restore` needs and
    /// that its page records are what they say.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn check_structure(&self) -> Result<(), ImageError> {
        let mut found = [false; 3];
        let needed = [
            (record::STATIC_DATA_END, "it has no STATIC_DATA_END record"),
            (record::HVM_CONTEXT, "it has no HVM_CONTEXT record"),
            (record::HVM_PARAMS, "it has no HVM_PARAMS record"),
        ];
        for at in self.libxc_records() {
            if at.kind == record::PAGE_DATA {
                self.page_entries(at)?;
            }
            if let Some(which) = needed.iter().position(|(kind, _)| *kind == at.kind) {
                found[which] = true;
            }
        }
        let missing = needed.iter().zip(found).find(|(_, found)| !found);
        match missing {
            Some(((_, what), _)) if self.guest() == GuestType::Hvm => Err(self.damaged(0, what)),
            _ => Ok(()),
        }
    }
}

/// Where the next data or hole is.
enum Seek {
    At(u64),
    /// There is none up to the file's end.
    None,
    /// The file system cannot say.
    Unknown,
}

fn seek(file: &File, to: SeekFrom) -> io::Result<Seek> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Seek::At(at)),
        Err(Errno::NXIO) => Ok(Seek::None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Seek::Unknown),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::image::{Preamble, Record, Tail};

    fn all(stream: &mut dyn Stream) -> Vec<u8> {
        let mut out = vec![];
        loop {
            let piece = stream.piece().expect("a piece");
            if piece.is_empty() {
                break;
            }
            out.extend_from_slice(piece);
        }
        assert!(stream.piece().expect("a piece").is_empty());
        assert_eq!(out.len() as u64, stream.length().0);
        out
    }

    fn new_file(path: &Path) -> File {
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        options.open(path).expect("created")
    }

    /// A file that begins and ends as an image and has `pages` of which one in four is data, the
    /// others holes; what is behind its END record is no part of the stream.
    fn sparse_image(file: &File, pages: u64) -> Vec<u8> {
        let preamble = Preamble {
            config: b"{\"c_info\":{\"name\":\"old\"}}".to_vec(),
            guest: GuestType::Hvm,
            xen_version: (4, 17),
            static_data: vec![],
            before_memory: vec![],
            increment: false,
        };
        let mut bytes = preamble.encode();
        bytes.extend_from_slice(&record::PAGE_DATA.to_le_bytes());
        let length = 8 + 8 * pages + 4096 * pages;
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&(pages as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for pfn in 0..pages {
            bytes.extend_from_slice(&pfn.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        file.write_all_at(&bytes, 0).expect("written");
        let start = bytes.len() as u64;
        let end = start + 4096 * pages;
        file.set_len(end).expect("grown");
        for page in (0..pages).step_by(4) {
            let content = vec![page as u8 | 1; 4096];
            file.write_all_at(&content, start + 4096 * page)
                .expect("written");
        }
        let tail = Tail {
            libxc: vec![
                Record::new(record::HVM_CONTEXT, vec![2; 24]),
                Record::new(record::HVM_PARAMS, vec![1; 16]),
            ],
            libxl: vec![],
        };
        file.write_all_at(&tail.encode(), end).expect("written");
        let mut whole = vec![0; (end as usize) + tail.encode().len()];
        file.read_exact_at(&mut whole, 0).expect("read");
        whole
    }

    #[test]
    fn everything_but_the_configuration_comes_as_it_stands() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("image.xl");
        let file = new_file(&path);
        for pages in [1, 3, 700] {
            file.set_len(0).expect("emptied");
            let whole = sparse_image(&file, pages);
            let reader = Reader::open(&path).expect("an image");
            let out = all(&mut *reader.stream(b"{\"new\":1}"));
            let header = out[..52].try_into().expect("52 bytes");
            let skip = 52 + xl_header::decode(&header).expect("a header").config_len as usize;
            let text = std::str::from_utf8(&out[52..skip - 1]).expect("text");
            assert_eq!(text.trim_end(), "{\"new\":1}");
            let old = 52 + u32::from_le_bytes(whole[48..52].try_into().expect("4 bytes")) as usize;
            assert!(out[skip..] == whole[old..], "{pages} pages");
        }
    }

    #[test]
    fn an_image_without_its_state_is_told_from_a_whole_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("image.xl");
        let file = new_file(&path);
        let whole = sparse_image(&file, 3);
        let check = || Reader::open(&path).expect("records").check_structure();
        check().expect("a whole image");
        let state = Record::new(record::HVM_CONTEXT, vec![2; 24]);
        let mut bytes = vec![];
        state.encode_into(&mut bytes);
        let at = whole
            .windows(bytes.len())
            .position(|window| window == bytes)
            .expect("the record") as u64;
        // Of another kind: optional, and skipped by readers.
        file.write_all_at(&[0xff, 0, 0, 0x80], at).expect("written");
        let error = check().expect_err("a record is missing").to_string();
        assert!(error.contains("HVM_CONTEXT"), "{error}");
    }

    #[test]
    fn a_file_cut_off_meanwhile_is_noticed_in_a_hole_too() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("image.xl");
        let file = new_file(&path);
        let whole = sparse_image(&file, 700);
        let reader = Reader::open(&path).expect("an image");
        for keep in [whole.len() / 2, whole.len() - 9, 100] {
            file.set_len(keep as u64).expect("cut off");
            let mut stream = reader.stream(b"{}");
            let mut given = 0;
            let error = loop {
                match stream.piece() {
                    Ok(piece) => given += piece.len(),
                    Err(error) => break error,
                }
                assert!(given <= whole.len() + 8192, "it went on for ever");
            };
            assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
        }
    }
}
