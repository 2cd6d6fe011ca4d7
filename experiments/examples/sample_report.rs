//! Writes a report of made-up runs, to look at what reports look like:
//! `cargo run -p experiments --example sample_report -- DIRECTORY`

use anyhow::{Context, Result};
use experiments::harness::report::{sample, write};
use std::path::PathBuf;

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).context("name a directory")?;
    let text = write(&sample::runs(), &[sample::manifest()], &PathBuf::from(out))?;
    print!("{text}");
    Ok(())
}
