//! Decompresses one frame, or its beginning, and believes nothing of it.

use std::io;

use zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective};

use super::frame::{self, MAX_HEAD};
use super::seek_table::Entry;
use crate::image::source::{ReadAt, SourceError};

/// Compressed bytes read at a time for the beginning of a frame: a whole block, head and all.
const CHUNK: usize = (128 << 10) + 32;

/// Decompresses frames, one after the other.
pub struct Unpacker {
    context: DCtx<'static>,
    input: Vec<u8>,
}

/// The longest that a frame of so much content may be.
pub fn longest(content: u32) -> u64 {
    u64::from(content) + u64::from(content) / 64 + 1024
}

impl Unpacker {
    /// Ready for any frame.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            context: DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?,
            input: vec![],
        })
    }

    /// The first `want` bytes of a frame's content, or all if it has less.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn beginning(
        &mut self,
        file: &dyn ReadAt,
        at: u64,
        entry: Entry,
        want: usize,
    ) -> Result<Vec<u8>, SourceError> {
        let want = want.min(entry.content as usize);
        let damaged = |what| SourceError::damaged(at, what);
        let mut out = Vec::with_capacity(want);
        let mut taken = 0;
        // A frame that was left in the middle is forgotten.
        self.context
            .reset(ResetDirective::SessionOnly)
            .map_err(|_| damaged("a frame cannot be decompressed"))?;
        while out.len() < want {
            let length = CHUNK.min(entry.compressed as usize - taken);
            if length == 0 {
                return Err(damaged("a frame ends before its content does"));
            }
            self.input.resize(length, 0);
            file.read_exact_at(&mut self.input, at + taken as u64)?;
            if taken == 0 {
                check_size(&self.input, entry).map_err(damaged)?;
            }
            taken += length;
            let mut input = InBuffer::around(&self.input);
            while out.len() < want && input.pos() < length {
                let filled = out.len();
                let mut output = OutBuffer::around_pos(&mut out, filled);
                self.context
                    .decompress_stream(&mut output, &mut input)
                    .map_err(|_| damaged("a frame cannot be decompressed"))?;
            }
        }
        Ok(out)
    }

    /// The whole content of a frame, its checksum checked.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn whole(
        &mut self,
        file: &dyn ReadAt,
        at: u64,
        entry: Entry,
        out: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        self.input.resize(entry.compressed as usize, 0);
        file.read_exact_at(&mut self.input, at)?;
        let input = std::mem::take(&mut self.input);
        let done = self.whole_of(&input, entry, out);
        self.input = input;
        done.map_err(|what| SourceError::damaged(at, what))
    }

    /// The same of a frame that has been read.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn whole_of(
        &mut self,
        frame: &[u8],
        entry: Entry,
        out: &mut Vec<u8>,
    ) -> Result<(), &'static str> {
        check_size(frame, entry)?;
        if frame.last_chunk() != Some(&entry.checksum.to_le_bytes()) {
            return Err("a frame's checksum is not that of the seek table");
        }
        out.clear();
        out.reserve_exact(entry.content as usize);
        let length = self
            .context
            .decompress(out, frame)
            .map_err(|_| "a frame cannot be decompressed, or fails its checksum")?;
        if length != entry.content as usize {
            return Err("a frame's content is not as long as the seek table says");
        }
        Ok(())
    }
}

fn check_size(frame: &[u8], entry: Entry) -> Result<(), &'static str> {
    let head = &frame[..frame.len().min(MAX_HEAD)];
    if frame::content_size(head)? != u64::from(entry.content) {
        return Err("a frame's content is not as long as the seek table says");
    }
    Ok(())
}
