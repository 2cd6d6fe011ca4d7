//! The records of a migration stream, followed to the last one; what becomes of them is a sink's.
//!
//! Layout: xen-tools' documents `libxl-migration-stream` and `libxc-migration-stream`.

use anyhow::{Context, Result, bail};

const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
const LIBXL_END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;
const LIBXC_END: u32 = 0;
/// The libxc record that holds pages.
pub(crate) const PAGE_DATA: u32 = 1;

/// Takes a stream's bytes in their order. It reads them itself, so that it can leap over those that
/// nobody wants.
pub(crate) trait Sink {
    /// Takes as many bytes as there is room for; they are looked at.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()>;

    /// Takes so many bytes that are not looked at.
    fn pass(&mut self, len: u64) -> Result<()>;

    /// Takes the body of a libxc record, with its padding.
    fn libxc_body(&mut self, _kind: u32, len: u64) -> Result<()> {
        self.pass(len)
    }

    /// The next bytes.
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Gives a whole stream to the sink, and nothing that stands behind it.
pub(crate) fn walk(sink: &mut impl Sink) -> Result<()> {
    let header: [u8; 48] = sink.array().context("xl header")?;
    if &header[..32] != XL_MAGIC {
        bail!("the stream does not start with xl's header");
    }
    sink.pass(u64::from(u32_at(&header, 44)))?;
    let header: [u8; 16] = sink.array().context("libxl header")?;
    if u64::from_be_bytes(header[..8].try_into()?) != LIBXL_IDENT {
        bail!("no libxl stream behind xl's header");
    }
    loop {
        let (kind, len) = record(sink)?;
        sink.pass(len)?;
        match kind {
            LIBXL_END => return Ok(()),
            LIBXC_CONTEXT => libxc(sink)?,
            _ => {}
        }
    }
}

fn libxc(sink: &mut impl Sink) -> Result<()> {
    let _headers: [u8; 40] = sink.array().context("libxc headers")?;
    loop {
        let (kind, len) = record(sink)?;
        sink.libxc_body(kind, len)?;
        if kind == LIBXC_END {
            return Ok(());
        }
    }
}

/// The head of a record, of either layer: its type, and the length of its body with the padding.
fn record(sink: &mut impl Sink) -> Result<(u32, u64)> {
    let head: [u8; 8] = sink.array().context("record header")?;
    let len = u64::from(u32_at(&head, 4));
    Ok((u32_at(&head, 0), len.next_multiple_of(8)))
}

/// A little-endian word of a header.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A stream with a configuration and these libxc records.
    pub(crate) fn stream(records: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = XL_MAGIC.to_vec();
        for word in [0x0102_0304_u32, 3, 0, 6] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"config");
        bytes.extend(LIBXL_IDENT.to_be_bytes());
        bytes.extend([0; 8]);
        put_record(&mut bytes, LIBXC_CONTEXT, &[]);
        bytes.extend([7; 40]);
        for (kind, body) in records {
            put_record(&mut bytes, *kind, body);
        }
        put_record(&mut bytes, LIBXC_END, &[]);
        // One of libxl's that says nothing of pages.
        put_record(&mut bytes, 2, &[1; 11]);
        put_record(&mut bytes, LIBXL_END, &[]);
        bytes
    }

    fn put_record(bytes: &mut Vec<u8>, kind: u32, body: &[u8]) {
        bytes.extend(kind.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        let padding = body.len().next_multiple_of(8) - body.len();
        bytes.extend(std::iter::repeat_n(0, padding));
    }

    /// Types and lengths.
    type Records = Vec<(u32, u64)>;

    /// Notes the libxc records that it is given.
    struct Notes<'a> {
        from: &'a [u8],
        libxc: Records,
    }

    impl Sink for Notes<'_> {
        fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
            let (taken, left) = self.from.split_at_checked(bytes.len()).context("end")?;
            bytes.copy_from_slice(taken);
            self.from = left;
            Ok(())
        }

        fn pass(&mut self, len: u64) -> Result<()> {
            self.fill(&mut vec![0; len as usize])
        }

        fn libxc_body(&mut self, kind: u32, len: u64) -> Result<()> {
            self.libxc.push((kind, len));
            self.pass(len)
        }
    }

    fn walked(from: &[u8]) -> Result<(&[u8], Records)> {
        let mut notes = Notes {
            from,
            libxc: vec![],
        };
        walk(&mut notes)?;
        Ok((notes.from, notes.libxc))
    }

    #[test]
    fn records_of_libxc_are_told_and_nothing_behind_the_last_is_taken() {
        let mut bytes = stream(&[(PAGE_DATA, &[1; 13]), (2, &[])]);
        bytes.extend(b"more");
        let (left, records) = walked(&bytes).unwrap();
        assert_eq!(left, b"more");
        assert_eq!(records, [(PAGE_DATA, 16), (2, 0), (LIBXC_END, 0)]);
    }

    #[test]
    fn what_is_no_stream_is_an_error() {
        let whole = stream(&[(PAGE_DATA, &[1; 13])]);
        for len in 0..whole.len() {
            assert!(walked(&whole[..len]).is_err(), "{len}");
        }
        // The two marks: xl's at the start, libxl's behind the configuration.
        for at in [0, 48 + 6] {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert!(walked(&other).is_err(), "{at}");
        }
    }
}
