//! `livesave list --orphans`: disk snapshots whose image is not where it was.

use anyhow::Result;
use lvm::care::{Orphan, orphans};
use lvm::run::Host;
use serde_json::{Value, json};

use crate::out::line;

/// Prints them, with what can be done about each.
pub fn run(json: bool) -> Result<()> {
    let found = orphans(&mut Host)?;
    if json {
        line(&json!({ "orphans": found.iter().map(json_of).collect::<Vec<_>>() }).to_string());
        return Ok(());
    }
    if found.is_empty() {
        line("Every disk snapshot of livesave's has its image");
    }
    for orphan in &found {
        line(&about(orphan));
    }
    Ok(())
}

fn about(orphan: &Orphan) -> String {
    let name = orphan.volume.full_name();
    let image = orphan.tagged.image.as_ref();
    let image = image.map_or_else(String::new, |path| path.display().to_string());
    let image = image.escape_debug();
    if orphan.tagged.unfinished.is_some() {
        return format!("{name}: of a killed save ({image}); `livesave recover` removes it");
    }
    format!("{name}: its image is not at {image}; if it is nowhere else: `lvremove {name}`")
}

fn json_of(orphan: &Orphan) -> Value {
    json!({
        "volume": orphan.volume.full_name(),
        "uuid": orphan.volume.uuid,
        "origin": orphan.volume.origin,
        "image": orphan.tagged.image,
        "id": orphan.tagged.id,
        "unfinished": orphan.tagged.unfinished.is_some(),
    })
}
