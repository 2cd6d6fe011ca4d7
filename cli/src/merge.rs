//! `livesave merge`: one full image of an increment and what it is built on.

use anyhow::Result;
use serde_json::json;
use snapshot::image::AnyImage;
use snapshot::image::chain::{Chain, merge};
use snapshot::image::file::Existing;

use crate::args::MergeArgs;
use crate::out::line;
use crate::save::compression;
use crate::{progress, signals};

/// Writes the image.
pub fn run(args: &MergeArgs) -> Result<()> {
    let cancel = signals::cancel_on_signals()?;
    let chain = Chain::open(&args.image)?;
    let compression = compression(args.compress, args.threads);
    let mut sink = AnyImage::create(&args.output, Existing::Keep, compression, &cancel)?;
    let bar = progress::bytes(0);
    let finished = merge(&chain, &mut sink, &cancel, |done, total| {
        bar.set_length(total.bytes().0);
        bar.set_position(done.bytes().0);
    })?;
    bar.finish_and_clear();
    let images = chain.images().len();
    if args.json {
        line(
            &json!({
                "image": args.output,
                "image_bytes": finished.size,
                "allocated_bytes": finished.allocated,
                "merged_images": images,
            })
            .to_string(),
        );
    } else {
        line(&format!(
            "Merged {images} {} into {}: {} ({} on disk)",
            if images == 1 { "image" } else { "images" },
            args.output.display(),
            finished.size,
            finished.allocated
        ));
    }
    Ok(())
}
