//! `livesave list`: the images of a directory.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::directory::{Image, Listing, Other, SaveState, Unfinished, scan};
use super::orphans;
use crate::args::ListArgs;
use crate::out::{line, span};

/// Prints them.
pub fn run(args: &ListArgs) -> Result<()> {
    let Some(dir) = &args.dir else {
        return orphans::run(args.json);
    };
    let listing = scan(dir)?;
    if args.json {
        line(&json_of(dir, &listing).to_string());
        return Ok(());
    }
    if listing.images.is_empty() {
        line(&format!("No images of livesave's in {}", dir.display()));
    } else {
        table(&listing.images).iter().for_each(|row| line(row));
    }
    for Other { path, what } in &listing.damaged {
        line(&format!(
            "damaged: {}: {}",
            name_of(path),
            what.escape_debug()
        ));
    }
    for Other { path, what } in &listing.foreign {
        line(&format!("not livesave's: {}: {what}", name_of(path)));
    }
    for unfinished in &listing.unfinished {
        line(&format!("unfinished: {}", about(unfinished)));
    }
    Ok(())
}

/// What an unfinished image is.
pub fn about(unfinished: &Unfinished) -> String {
    let what = match unfinished.save {
        SaveState::Runs => "a save is under way",
        SaveState::Dead => "left by a killed save; `livesave prune` removes it",
        SaveState::Unknown => "the file system does not tell whether its save still runs",
    };
    format!(
        "{}: {what} (process {})",
        name_of(&unfinished.path),
        unfinished.pid
    )
}

/// A file's name, fit for a terminal.
pub fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.escape_debug().to_string()
}

/// A guest's name, with its UUID where another has the same name.
pub fn guest_of(image: &Image, all: &[Image]) -> String {
    let name = image.guest.name.escape_debug();
    let uuid = &image.guest.uuid;
    let twice = all
        .iter()
        .any(|other| other.guest.name == image.guest.name && other.guest.uuid != *uuid);
    if twice {
        format!("{name} ({})", uuid.escape_debug())
    } else {
        name.to_string()
    }
}

fn table(images: &[Image]) -> Vec<String> {
    let head = ["GUEST", "CUT", "SIZE", "ON DISK", "KIND", "PAUSE", "FILE"].map(str::to_owned);
    let rows = images.iter().map(|image| {
        [
            guest_of(image, images),
            image.cut.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            image.bytes.to_string(),
            image.allocated.to_string(),
            kind_of(image),
            span(image.pause_s),
            name_of(&image.path),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    aligned(&rows, [2, 3, 5])
}

/// `full`, or which increment since the last full image it is.
fn kind_of(image: &Image) -> String {
    match &image.parent {
        Some(parent) => format!("increment {}", parent.depth),
        None => "full".into(),
    }
}

/// Columns as wide as their widest cell; those named in `right` begin with the blanks.
fn aligned<const N: usize>(rows: &[[String; N]], right: [usize; 3]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let cell = |row: &[String; N], column: usize| {
        let (text, width) = (&row[column], widths[column]);
        if right.contains(&column) {
            format!("{text:>width$}")
        } else {
            format!("{text:<width$}")
        }
    };
    let text = |row: &[String; N]| {
        let cells: Vec<_> = (0..N).map(|column| cell(row, column)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(text).collect()
}

fn json_of(dir: &Path, listing: &Listing) -> Value {
    let others = |others: &[Other]| -> Vec<Value> {
        let one = |other: &Other| json!({ "file": other.path, "what": other.what });
        others.iter().map(one).collect()
    };
    let unfinished = listing.unfinished.iter().map(|file| {
        let runs = match file.save {
            SaveState::Runs => Some(true),
            SaveState::Dead => Some(false),
            SaveState::Unknown => None,
        };
        json!({ "file": file.path, "pid": file.pid, "save_runs": runs })
    });
    json!({
        "directory": dir,
        "images": listing.images.iter().map(image_json).collect::<Vec<_>>(),
        "damaged": others(&listing.damaged),
        "foreign": others(&listing.foreign),
        "unfinished": unfinished.collect::<Vec<_>>(),
    })
}

/// What is told of an image.
pub fn image_json(image: &Image) -> Value {
    json!({
        "file": image.path,
        "domain": image.guest,
        "cut": image.cut.to_string(),
        "image_bytes": image.bytes,
        "allocated_bytes": image.allocated,
        "mode": image.mode,
        "id": image.id,
        "parent": image.parent,
        "disks": image.disks,
        "pause_s": image.pause_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        let rows = [
            row(["GUEST", "CUT", "SIZE", "FILE"]),
            row(["größe", "x", "1.0 MiB", "f"]),
        ];
        let rows = aligned(&rows, [2; 3]);
        assert_eq!(
            rows,
            ["GUEST  CUT     SIZE  FILE", "größe  x    1.0 MiB  f"]
        );
    }
}
