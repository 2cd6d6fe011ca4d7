//! `livesave extract`: pages of an image as they are.

use std::io::{BufWriter, Write};
use std::ops::Range;

use anyhow::{Context, Result, bail};
use snapshot::image::file::{Existing, PendingFile};
use snapshot::image::{Chain, ImageError};
use snapshot::units::PageCount;

use crate::args::ExtractArgs;
use crate::out::note;

/// Writing may fail as reading may.
#[derive(Debug, thiserror::Error)]
enum ExtractError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("Failed to write the pages")]
    Output(#[from] std::io::Error),
}

/// Writes the pages of a range one after the other to a new file.
pub fn run(args: &ExtractArgs) -> Result<()> {
    let chain = Chain::open(&args.image)?;
    let index = chain.index()?;
    let wanted = args.pfn.end - args.pfn.start;
    let missing = wanted - index.count_in(&args.pfn);
    if missing > 0 {
        bail!(
            "{missing} of the {wanted} pages {} do not exist in {}; `livesave inspect` tells how \
             many there are",
            name(&args.pfn),
            args.image.display()
        );
    }
    let path = args.output.display();
    let mut pending = PendingFile::create(&args.output, Existing::Keep)
        .with_context(|| format!("Failed to create {path}"))?;
    let mut output = BufWriter::new(pending.file());
    index.for_each_in(args.pfn.clone(), |_, page| {
        output.write_all(page)?;
        Ok::<_, ExtractError>(())
    })?;
    output.flush().map_err(ExtractError::Output)?;
    drop(output);
    let written = pending.sync().and_then(|()| pending.publish());
    written.with_context(|| format!("Failed to write {path}"))?;
    note(&format!("Wrote {} to {path}", PageCount(wanted)));
    Ok(())
}

fn name(range: &Range<u64>) -> String {
    format!("{:#x}-{:#x}", range.start, range.end - 1)
}
