//! What an image is read from: the stream inside it, at any offset, whether the file is raw or
//! compressed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::trailer::{FOOTER, locate};
use super::zst::Packed;

/// Bytes at any offset.
pub trait ReadAt: Send + Sync {
    /// Fills `out` from `at` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where there is not so much; else what the system says.
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()>;

    /// The file, if it is one: it knows its holes.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, out, at)
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.get(from..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why something of an image could not be read.
#[derive(Debug)]
pub enum SourceError {
    /// The system says so.
    Io(io::Error),
    /// The file is not as it should be.
    Damaged {
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl SourceError {
    /// The file is not as it should be at that offset.
    #[must_use]
    pub fn damaged(offset: u64, what: &'static str) -> Self {
        Self::Damaged { offset, what }
    }
}

impl From<io::Error> for SourceError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An image's bytes.
pub struct Source {
    bytes: Box<dyn ReadAt>,
    len: u64,
    packed: Option<Packed>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("len", &self.len)
            .field("packed", &self.packed.is_some())
            .finish_non_exhaustive()
    }
}

impl Source {
    /// Of `len` bytes; sees by the first of them which kind it is.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn new(bytes: Box<dyn ReadAt>, len: u64) -> Result<Self, SourceError> {
        let mut magic = [0; 4];
        let compressed = len >= 4 && {
            bytes.read_exact_at(&mut magic, 0)?;
            Packed::is_one(magic)
        };
        let packed = if compressed {
            Some(Packed::open(&*bytes, len)?)
        } else {
            None
        };
        Ok(Self { bytes, len, packed })
    }

    /// The length of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// The length of the stream inside, and in a raw image of what follows it.
    #[must_use]
    pub fn stream_len(&self) -> u64 {
        self.packed.as_ref().map_or(self.len, Packed::stream_len)
    }

    /// The frames, if it is compressed.
    #[must_use]
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// The file in which the stream stands at its own offsets, if there is one.
    #[must_use]
    pub fn plain_file(&self) -> Option<&File> {
        self.bytes.as_file().filter(|_| self.packed.is_none())
    }

    /// The bytes of the file itself.
    #[must_use]
    pub fn file(&self) -> &dyn ReadAt {
        &*self.bytes
    }

    /// Where in the file something of the stream stands: the byte, or the frame that holds it.
    #[must_use]
    pub fn place(&self, at: u64) -> u64 {
        self.packed.as_ref().map_or(at, |packed| packed.place(at))
    }

    /// Fills `out` from `at` of the stream on.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn read_exact(&self, out: &mut [u8], at: u64) -> Result<(), SourceError> {
        let end = at.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.stream_len()) {
            return Err(SourceError::damaged(self.place(at), "the file is cut off"));
        }
        match &self.packed {
            Some(packed) => packed.read_exact(&*self.bytes, out, at),
            None => match self.bytes.read_exact_at(out, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(SourceError::damaged(at, "the file is cut off"))
                }
                read => Ok(read?),
            },
        }
    }

    /// Where livesave's trailer stands in the file, and how long it is; `None` if there is none.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn trailer(&self) -> Result<Option<(u64, u64)>, SourceError> {
        if let Some(packed) = &self.packed {
            return Ok(Some(packed.trailer()));
        }
        let Some(footer_at) = self.len.checked_sub(FOOTER as u64) else {
            return Ok(None);
        };
        let mut footer = [0; FOOTER];
        self.bytes.read_exact_at(&mut footer, footer_at)?;
        Ok(locate(&footer, self.len).map(|at| (at, self.len - at)))
    }
}
