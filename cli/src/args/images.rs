//! What is done with images alone.

use std::ops::Range;
use std::path::PathBuf;

use clap::Args;

use super::save::{CompressArg, compression, threads};

/// What to tell of an image.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The image.
    pub image: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to look at.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The image.
    pub image: PathBuf,
    /// Threads that work [default: one for each CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to take out of an image.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The image.
    pub image: PathBuf,
    /// The page's number, or those of the first and the last (0x100-0x1ff); decimal or 0x….
    #[arg(long, value_name = "A[-B]", value_parser = pages)]
    pub pfn: Range<u64>,
    /// The file to write, which must not exist.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// What to merge.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The increment; what it is built on is in the same directory.
    pub image: PathBuf,
    /// The full image to write, which must not exist; increments on IMAGE find it in its place if
    /// it is in their directory and IMAGE is not.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Compress the image: none, or zstd with a level from 1 (the default) to 19.
    #[arg(long, value_name = "zstd[:LEVEL]", default_value = "none", value_parser = compression)]
    pub compress: CompressArg,
    /// Threads that compress [default: one for each CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to compare.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// One image.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn pages(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let range = number(first).zip(number(last)).and_then(|(first, last)| {
        let end = last.checked_add(1)?;
        (first < end).then_some(first..end)
    });
    range.ok_or_else(|| "a page number, or two with the lower first, is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_numbers_are_read() {
        assert_eq!(pages("16"), Ok(16..17));
        assert_eq!(pages("0x10-0x1f"), Ok(16..32));
    }
}
