//! The receiving end of the VNsnap-style save: takes a migration stream up to
//! its last record, stores it, and goes without taking the guest over.
//!
//! The stream never ends by itself (the sender waits for an answer), so its
//! records are followed to find the last. Layout: xen-tools' documents
//! `libxl-migration-stream` and `libxc-migration-stream`.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// What the sender waits for before it sends anything.
const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
pub(crate) const LIBXL_END: u32 = 0;
pub(crate) const LIBXC_CONTEXT: u32 = 1;
pub(crate) const LIBXC_END: u32 = 0;

/// Says that it is ready, then stores one stream from standard input.
pub fn receive(image: &Path) -> Result<()> {
    receive_from(std::io::stdin().lock(), std::io::stdout().lock(), image)
}

/// The same, from the given sender.
pub fn receive_from(from: impl Read, mut to: impl Write, image: &Path) -> Result<()> {
    to.write_all(BANNER)?;
    to.flush()?;
    let file = File::create(image).with_context(|| format!("{}", image.display()))?;
    let mut copy = Copy {
        from: BufReader::with_capacity(1 << 20, from),
        to: BufWriter::with_capacity(1 << 20, file),
    };
    copy.stream()?;
    copy.to.flush()?;
    Ok(())
}

struct Copy<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Copy<R, W> {
    fn stream(&mut self) -> Result<()> {
        let header: [u8; 48] = self.array().context("xl header")?;
        if &header[..32] != XL_MAGIC {
            bail!("the stream does not start with xl's header");
        }
        self.bytes(u64::from(u32_at(&header, 44)))?;
        let header: [u8; 16] = self.array().context("libxl header")?;
        if u64::from_be_bytes(header[..8].try_into()?) != LIBXL_IDENT {
            bail!("no libxl stream behind xl's header");
        }
        loop {
            match self.record()? {
                LIBXL_END => return Ok(()),
                LIBXC_CONTEXT => {
                    let _headers: [u8; 40] = self.array().context("libxc headers")?;
                    while self.record()? != LIBXC_END {}
                }
                _ => {}
            }
        }
    }

    /// Copies one record, of either layer; returns its type.
    fn record(&mut self) -> Result<u32> {
        let header: [u8; 8] = self.array().context("record header")?;
        let len = u64::from(u32_at(&header, 4));
        self.bytes(len.next_multiple_of(8))?;
        Ok(u32_at(&header, 0))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        self.to.write_all(&bytes)?;
        Ok(bytes)
    }

    fn bytes(&mut self, len: u64) -> Result<()> {
        let copied = std::io::copy(&mut self.from.by_ref().take(len), &mut self.to)?;
        if copied != len {
            bail!("the stream broke off");
        }
        Ok(())
    }
}

/// A little-endian word of a header.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A stream with a configuration, two libxc records and what follows it.
    fn stream() -> Vec<u8> {
        let mut bytes = XL_MAGIC.to_vec();
        for word in [0x0102_0304_u32, 3, 0, 6] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"config");
        bytes.extend(LIBXL_IDENT.to_be_bytes());
        bytes.extend([0; 8]);
        put_record(&mut bytes, LIBXC_CONTEXT, &[]);
        bytes.extend([7; 40]);
        put_record(&mut bytes, 1, &[1; 13]);
        put_record(&mut bytes, LIBXC_END, &[]);
        put_record(&mut bytes, LIBXL_END, &[]);
        bytes
    }

    pub(crate) fn put_record(bytes: &mut Vec<u8>, kind: u32, body: &[u8]) {
        bytes.extend(kind.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        let padding = body.len().next_multiple_of(8) - body.len();
        bytes.extend(std::iter::repeat_n(0, padding));
    }

    fn copy(bytes: &[u8]) -> (Result<()>, Vec<u8>) {
        let mut copy = Copy {
            from: bytes,
            to: Vec::new(),
        };
        let result = copy.stream();
        (result, copy.to)
    }

    #[test]
    fn stops_behind_the_last_record() {
        let whole = stream();
        let mut more = whole.clone();
        more.extend(b"what is never sent");
        let (result, copied) = copy(&more);
        result.unwrap();
        assert_eq!(copied, whole);
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let whole = stream();
        for len in 0..whole.len() {
            assert!(copy(&whole[..len]).0.is_err(), "{len}");
        }
    }
}
