//! The stream inside a zstd image, read at any offset: frames are decompressed as they are needed.

use std::sync::{Arc, Mutex, PoisonError};

use super::seek_table::{self, EMPTY, Entry, FOOTER, SKIPPABLE_HEAD};
use super::unpack::{Unpacker, longest};
use super::{FACTS_MAGIC, is_frame};
use crate::image::source::{ReadAt, SourceError};
use crate::image::trailer::MAX_TRAILER;

/// Decompressed frames kept at hand.
const KEPT: usize = 4;
/// What is asked for at the beginning of a frame does not need all of it.
const BEGINNING: usize = 32 << 10;

/// A frame of the file and the part of the stream that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its offset in the file.
    pub at: u64,
    /// The offset of its content in the stream.
    pub start: u64,
    /// Its lengths and checksum.
    pub entry: Entry,
}

impl Span {
    /// Where its content ends in the stream.
    fn end(&self) -> u64 {
        self.start + u64::from(self.entry.content)
    }
}

/// The frames of a zstd image.
pub struct Packed {
    spans: Vec<Span>,
    stream_len: u64,
    trailer: (u64, u64),
    cache: Mutex<Cache>,
}

struct Cache {
    unpacker: Unpacker,
    /// The latest last.
    whole: Vec<(usize, Arc<Vec<u8>>)>,
    beginning: Option<(usize, Arc<Vec<u8>>)>,
}

impl Packed {
    /// Whether a file that begins so is one.
    #[must_use]
    pub fn is_one(magic: [u8; 4]) -> bool {
        is_frame(magic)
    }

    /// Reads the seek table and sees that it fits the file; frames are looked at when needed.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(file: &dyn ReadAt, len: u64) -> Result<Self, SourceError> {
        let no_table = "it is compressed by zstd and too short for an image";
        let footer_at = len
            .checked_sub(FOOTER as u64)
            .ok_or(SourceError::damaged(0, no_table))?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, footer_at)?;
        let table_at = seek_table::locate(&footer, len)
            .map_err(|what| SourceError::damaged(footer_at, what))?;
        // No longer than the file, by what `locate` says.
        let mut table = vec![0; (len - table_at) as usize];
        file.read_exact_at(&mut table, table_at)?;
        let mut entries = seek_table::decode(&table, table_at)
            .map_err(|what| SourceError::damaged(table_at, what))?;
        let damaged = |what| SourceError::damaged(table_at, what);
        let facts = entries
            .pop()
            .filter(|entry| (entry.content, entry.checksum) == (0, EMPTY))
            .ok_or(damaged("the last frame is not that of livesave's facts"))?;
        let trailer = facts_frame(file, facts, table_at)?;
        let mut spans = Vec::with_capacity(entries.len());
        let (mut at, mut start) = (0, 0);
        for entry in entries {
            if entry.content == 0 || u64::from(entry.compressed) > longest(entry.content) {
                return Err(damaged(
                    "the seek table has a frame of a length that none has",
                ));
            }
            spans.push(Span { at, start, entry });
            at += u64::from(entry.compressed);
            start += u64::from(entry.content);
        }
        Ok(Self {
            spans,
            stream_len: start,
            trailer,
            cache: Mutex::new(Cache {
                unpacker: Unpacker::new()?,
                whole: vec![],
                beginning: None,
            }),
        })
    }

    /// The frames, in the order of the stream; that of the facts is not among them.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The length of the stream.
    #[must_use]
    pub fn stream_len(&self) -> u64 {
        self.stream_len
    }

    /// Offset and length of the trailer in the file.
    #[must_use]
    pub fn trailer(&self) -> (u64, u64) {
        self.trailer
    }

    /// The offset in the file of the frame that holds that offset of the stream.
    #[must_use]
    pub fn place(&self, at: u64) -> u64 {
        match self.index_of(at).and_then(|index| self.spans.get(index)) {
            Some(span) => span.at,
            None => self.trailer.0 - SKIPPABLE_HEAD,
        }
    }

    fn index_of(&self, at: u64) -> Option<usize> {
        let index = self.spans.partition_point(|span| span.end() <= at);
        (index < self.spans.len()).then_some(index)
    }

    /// Fills `out` from `at` of the stream on.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn read_exact(
        &self,
        file: &dyn ReadAt,
        out: &mut [u8],
        at: u64,
    ) -> Result<(), SourceError> {
        let mut done = 0;
        while done < out.len() {
            let from = at + done as u64;
            let Some(index) = self.index_of(from) else {
                return Err(SourceError::damaged(
                    self.place(from),
                    "the stream is cut off",
                ));
            };
            let span = &self.spans[index];
            let skip = (from - span.start) as usize;
            let length = (out.len() - done).min(span.entry.content as usize - skip);
            let content = self.content(file, index, skip + length)?;
            out[done..done + length].copy_from_slice(&content[skip..skip + length]);
            done += length;
        }
        Ok(())
    }

    /// The content of a frame, at least `needed` bytes of it.
    fn content(
        &self,
        file: &dyn ReadAt,
        index: usize,
        needed: usize,
    ) -> Result<Arc<Vec<u8>>, SourceError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cache.whole.iter().position(|(kept, _)| *kept == index) {
            let kept = cache.whole.remove(found);
            let content = kept.1.clone();
            cache.whole.push(kept);
            return Ok(content);
        }
        let Span { at, entry, .. } = self.spans[index];
        if needed <= BEGINNING && entry.content as usize > 2 * BEGINNING {
            match &cache.beginning {
                Some((kept, content)) if *kept == index => return Ok(content.clone()),
                _ => {}
            }
            let content = cache.unpacker.beginning(file, at, entry, BEGINNING)?;
            let content = Arc::new(content);
            cache.beginning = Some((index, content.clone()));
            return Ok(content);
        }
        // The buffer of the frame that goes, if nobody else holds it.
        let mut content = vec![];
        if cache.whole.len() >= KEPT {
            content = Arc::try_unwrap(cache.whole.remove(0).1).unwrap_or_default();
        }
        cache.unpacker.whole(file, at, entry, &mut content)?;
        let content = Arc::new(content);
        cache.whole.push((index, content.clone()));
        Ok(content)
    }
}

/// Offset and length of the trailer in the frame of the facts, which ends at `end`.
fn facts_frame(file: &dyn ReadAt, entry: Entry, end: u64) -> Result<(u64, u64), SourceError> {
    let at = end - u64::from(entry.compressed);
    let length = u64::from(entry.compressed) - SKIPPABLE_HEAD;
    let mut head = [0; SKIPPABLE_HEAD as usize];
    file.read_exact_at(&mut head, at)?;
    let mut want = FACTS_MAGIC.to_le_bytes().to_vec();
    want.extend_from_slice(&(length as u32).to_le_bytes());
    if head[..] != want || length > MAX_TRAILER {
        return Err(SourceError::damaged(
            at,
            "the frame of livesave's facts does not begin as one",
        ));
    }
    Ok((at + SKIPPABLE_HEAD, length))
}
