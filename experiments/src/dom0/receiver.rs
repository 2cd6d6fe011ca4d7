//! The receiving end of the VNsnap-style save: takes a migration stream up to
//! its last record, stores it, and goes without taking the guest over.
//!
//! The stream never ends by itself (the sender waits for an answer), so its
//! records are followed to find the last.

use super::stream::{Sink, walk};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// What the sender waits for before it sends anything.
const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";

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
    walk(&mut copy)?;
    copy.to.flush()?;
    Ok(())
}

struct Copy<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Sink for Copy<R, W> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from.read_exact(bytes)?;
        self.to.write_all(bytes)?;
        Ok(())
    }

    fn pass(&mut self, len: u64) -> Result<()> {
        let copied = std::io::copy(&mut self.from.by_ref().take(len), &mut self.to)?;
        if copied != len {
            bail!("the stream broke off");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::stream::{PAGE_DATA, tests::stream};

    fn copy(bytes: &[u8]) -> (Result<()>, Vec<u8>) {
        let mut copy = Copy {
            from: bytes,
            to: Vec::new(),
        };
        let result = walk(&mut copy);
        (result, copy.to)
    }

    #[test]
    fn stops_behind_the_last_record() {
        let whole = stream(&[(PAGE_DATA, &[1; 13])]);
        let mut more = whole.clone();
        more.extend(b"what is never sent");
        let (result, copied) = copy(&more);
        result.unwrap();
        assert_eq!(copied, whole);
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let whole = stream(&[(PAGE_DATA, &[1; 13])]);
        for len in 0..whole.len() {
            assert!(copy(&whole[..len]).0.is_err(), "{len}");
        }
    }
}
