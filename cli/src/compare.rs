//! `livesave diff`: in which pages two images differ.

use std::cell::Cell;
use std::ops::Range;

use anyhow::Result;
use serde_json::{Value, json};
use snapshot::image::Chain;
use snapshot::image::difference::{Difference, compare, pages_of};
use snapshot::units::PageCount;

use crate::args::DiffArgs;
use crate::out::line;
use crate::progress;

/// Compares two images page by page.
pub fn run(args: &DiffArgs) -> Result<()> {
    let (first, second) = (Chain::open(&args.first)?, Chain::open(&args.second)?);
    let (first, second) = (first.index()?, second.index()?);
    let total = PageCount(first.count().max(second.count())).bytes();
    let bar = progress::bytes(total.0);
    let done = Cell::new(0);
    let found = compare(&first, &second, |pages| {
        done.set(done.get() + pages);
        bar.set_position(PageCount(done.get()).bytes().0);
    })?;
    bar.finish_and_clear();
    if args.json {
        line(&json_of(&found).to_string());
    } else {
        describe(args, &found);
    }
    Ok(())
}

fn json_of(found: &Difference) -> Value {
    let list = |ranges: &[Range<u64>]| {
        let pairs: Vec<_> = ranges.iter().map(|r| json!([r.start, r.end - 1])).collect();
        json!({ "pages": pages_of(ranges), "ranges": pairs })
    };
    json!({
        "equal_pages": found.equal,
        "differ": list(&found.differ),
        "only_first": list(&found.only_first),
        "only_second": list(&found.only_second),
    })
}

fn describe(args: &DiffArgs, found: &Difference) {
    let (first, second) = (args.first.display(), args.second.display());
    for (ranges, what) in [
        (&found.differ, "differ".to_owned()),
        (&found.only_first, format!("only in {first}")),
        (&found.only_second, format!("only in {second}")),
    ] {
        for range in ranges {
            let pages = PageCount(range.end - range.start);
            line(&format!(
                "{:#x}-{:#x}: {pages} {what}",
                range.start,
                range.end - 1
            ));
        }
    }
    line(&format!(
        "{} equal, {} differ ({}), {} only in the first, {} only in the second",
        found.equal,
        pages_of(&found.differ),
        PageCount(pages_of(&found.differ)).bytes(),
        pages_of(&found.only_first),
        pages_of(&found.only_second),
    ));
}
