//! `livesave verify`: whether an image is whole, and of an increment all that it is built on.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use snapshot::image::verify::{Course, Kind, Verified, verify};
use snapshot::image::{Chain, ImageError, Reader};
use snapshot::ports::Cancel;

use crate::args::VerifyArgs;
use crate::out::{line, note};
use crate::save::copy_threads;
use crate::{exit, progress, signals};

/// A file that was looked at.
struct Looked {
    path: PathBuf,
    verified: Verified,
}

/// Looks at every byte of the image, and of what it is built on, and says what is wrong.
pub fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let cancel = signals::cancel_on_signals()?;
    let chain = Chain::open(&args.image);
    let images = chain.as_ref().map_or(&[][..], Chain::images);
    let bases = images.iter().rev().skip(1).map(Reader::path);
    // What was asked for comes first.
    let mut looked = vec![];
    for path in std::iter::once(args.image.as_path()).chain(bases) {
        looked.push(look(path, args, &cancel)?);
        if let Some(signal) = cancel.raised() {
            return Ok(ExitCode::from(exit::SIGNALLED + signal as u8));
        }
    }
    let whole = looked.iter().all(|one| one.verified.problems.is_empty());
    let missing = missing(&chain, whole);
    if args.json {
        line(&json_of(&looked, missing.as_ref()).to_string());
    } else {
        tell(&looked, missing.as_ref());
    }
    Ok(if whole && missing.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::BAD_IMAGE)
    })
}

fn look(path: &Path, args: &VerifyArgs, cancel: &Cancel) -> Result<Looked> {
    let bar = progress::bytes(path.metadata().map_or(0, |found| found.len()));
    let verified = verify(
        path,
        &Course {
            threads: args.threads.unwrap_or_else(copy_threads),
            progress: &|bytes| bar.inc(bytes),
            cancel,
        },
    )?;
    bar.finish_and_clear();
    Ok(Looked {
        path: path.to_owned(),
        verified,
    })
}

/// What the files that were looked at do not tell: a part of the chain, or a page, is missing.
fn missing(chain: &Result<Chain, ImageError>, whole: bool) -> Option<String> {
    match chain {
        Err(error @ ImageError::Incomplete { .. }) => Some(error.to_string()),
        // The file itself is damaged, and that was told.
        Err(_) if !whole => None,
        Err(error) => Some(error.to_string()),
        Ok(chain) if whole && chain.newest().is_increment() => {
            chain.index().err().map(|error| error.to_string())
        }
        Ok(_) => None,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Raw => "raw",
        Kind::RawUnchecked => "raw, without checksums",
        Kind::Zstd => "zstd",
        Kind::Stock => "stock",
    }
}

fn json_of(looked: &[Looked], missing: Option<&String>) -> Value {
    let of = |Looked { path, verified }: &Looked| {
        let problems: Vec<_> = verified
            .problems
            .iter()
            .map(|problem| json!({ "offset": problem.offset, "what": problem.what }))
            .collect();
        json!({
            "image": path.display().to_string(),
            "whole": problems.is_empty(),
            "kind": verified.kind.map(kind_name),
            "image_bytes": verified.size,
            "pages": verified.pages,
            "page_copies": verified.copies,
            "checksums": verified.checksums,
            "problems": problems,
        })
    };
    let mut object = looked.first().map_or(Value::Null, of);
    let bases: Vec<_> = looked.iter().skip(1).map(of).collect();
    let good = bases.iter().all(|base| base["whole"] == true) && missing.is_none();
    object["whole"] = json!(object["whole"] == true && good);
    object["built_on"] = json!(bases);
    object["missing"] = json!(missing);
    object
}

fn tell(looked: &[Looked], missing: Option<&String>) {
    for Looked { path, verified } in looked {
        tell_of(path, verified);
    }
    if let Some(missing) = missing {
        note(&format!("livesave: {missing}; it cannot be restored"));
    }
}

fn tell_of(path: &Path, verified: &Verified) {
    let path = path.display();
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
