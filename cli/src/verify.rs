//! `livesave verify`: whether an image is whole.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use snapshot::image::verify::{Course, Kind, Verified, verify};

use crate::args::VerifyArgs;
use crate::out::{line, note};
use crate::save::copy_threads;
use crate::{exit, progress, signals};

/// Looks at every byte of the image and says what is wrong.
pub fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signals()?;
    let bar = progress::bytes(args.image.metadata().map_or(0, |found| found.len()));
    let verified = verify(
        &args.image,
        &Course {
            threads: args.threads.unwrap_or_else(copy_threads),
            progress: &|bytes| bar.inc(bytes),
            cancel: &cancel,
        },
    )?;
    bar.finish_and_clear();
    if let Some(signal) = cancel.raised() {
        return Ok(ExitCode::from(exit::SIGNALLED + signal as u8));
    }
    tell(args, &verified);
    Ok(if verified.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::BAD_IMAGE)
    })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Raw => "raw",
        Kind::RawUnchecked => "raw, without checksums",
        Kind::Zstd => "zstd",
        Kind::Stock => "stock",
    }
}

fn tell(args: &VerifyArgs, verified: &Verified) {
    let path = args.image.display();
    if args.json {
        let problems: Vec<_> = verified
            .problems
            .iter()
            .map(|problem| json!({ "offset": problem.offset, "what": problem.what }))
            .collect();
        let object = json!({
            "image": path.to_string(),
            "whole": problems.is_empty(),
            "kind": verified.kind.map(kind_name),
            "image_bytes": verified.size,
            "pages": verified.pages,
            "page_copies": verified.copies,
            "checksums": verified.checksums,
            "problems": problems,
        });
        line(&object.to_string());
        return;
    }
    for problem in &verified.problems {
        note(&format!(
            "{path}: {} (at byte {})",
            problem.what, problem.offset
        ));
    }
    if !verified.problems.is_empty() {
        note(&format!(
            "livesave: image {path} is damaged; do not rely on it"
        ));
        return;
    }
    let pages = verified.pages;
    line(&match verified.kind {
        Some(Kind::Raw | Kind::Zstd) => format!(
            "{path} is whole: {pages} ({}), {} checksums",
            pages.bytes(),
            verified.checksums
        ),
        _ => format!(
            "{path}: the structure is right, {pages} ({}); it has no checksums, so nothing can be \
             said of their content",
            pages.bytes()
        ),
    });
}
