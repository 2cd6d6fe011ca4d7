//! `livesave inspect`: what an image holds.

use anyhow::Result;
use serde_json::{Value, json};
use snapshot::disks::{DiskKept, Kept, SnapshotKept};
use snapshot::image::libxc::record;
use snapshot::image::{GuestType, Reader};
use snapshot::units::{Bytes, PageCount};

use crate::args::InspectArgs;
use crate::out::{line, span};

/// Opens the image, walks its structure and tells what it is.
pub fn run(args: &InspectArgs) -> Result<()> {
    let reader = Reader::open(&args.image)?;
    let pages = page_count(&reader)?;
    if args.json {
        line(&json_of(&reader, pages)?.to_string());
    } else {
        describe(&reader, pages);
    }
    Ok(())
}

fn page_count(reader: &Reader) -> Result<PageCount> {
    let mut pages = 0;
    for at in reader
        .libxc_records()
        .iter()
        .filter(|r| r.kind == record::PAGE_DATA)
    {
        pages += reader.page_entries(at)?.0.len() as u64;
    }
    Ok(PageCount(pages))
}

fn guest_type(reader: &Reader) -> &'static str {
    let config = serde_json::from_slice::<Value>(reader.config()).unwrap_or(Value::Null);
    match (reader.guest(), config["c_info"]["type"].as_str()) {
        (GuestType::Pv, _) => "PV",
        (GuestType::Hvm, Some("hvm")) => "HVM",
        (GuestType::Hvm, Some("pvh")) => "PVH",
        (GuestType::Hvm, _) => "HVM or PVH",
    }
}

fn json_of(reader: &Reader, pages: PageCount) -> Result<Value> {
    let (major, minor) = reader.xen_version();
    Ok(json!({
        "guest_type": guest_type(reader),
        "xen_version": format!("{major}.{minor}"),
        "image_bytes": reader.size(),
        "compressed": reader.is_compressed(),
        "stream_bytes": reader.stream_len(),
        "page_copies": pages,
        "facts": reader.facts(),
        "config": serde_json::from_slice::<Value>(reader.config()).unwrap_or(Value::Null),
    }))
}

fn describe(reader: &Reader, pages: PageCount) {
    let (major, minor) = reader.xen_version();
    let field = |name: &str, value: &str| line(&format!("{name:<14}{value}"));
    if let Some(facts) = reader.facts() {
        let domain = &facts.domain;
        field(
            "domain",
            // From the file: not for a terminal as it is.
            &format!(
                "{} (number {}, {})",
                domain.name.escape_debug(),
                domain.domid,
                domain.uuid.escape_debug()
            ),
        );
        field("cut at", &facts.cut.escape_debug().to_string());
    } else {
        field("written by", "another tool than livesave");
    }
    field(
        "guest",
        &format!("{}, Xen {major}.{minor}", guest_type(reader)),
    );
    if let Some(parent) = reader.facts().and_then(|facts| facts.parent.as_ref()) {
        let (file, cut) = (parent.file.escape_debug(), parent.cut.escape_debug());
        field(
            "increment",
            &format!("number {}, on {file} of {cut}", parent.depth),
        );
    }
    let size = Bytes(reader.size());
    if reader.is_compressed() {
        let stream = Bytes(reader.stream_len());
        field("size", &format!("{size}, zstd of a stream of {stream}"));
    } else {
        field("size", &size.to_string());
    }
    field("pages", &format!("{} ({})", pages.0, pages.bytes()));
    if let Some(facts) = reader.facts() {
        field(
            "zero pages",
            &format!("{} ({})", facts.zero_pages.0, facts.zero_pages.bytes()),
        );
        field(
            "saved by",
            &format!(
                "livesave {}, mode {}",
                facts.livesave.escape_debug(),
                facts.mode.escape_debug()
            ),
        );
        field("rounds", &facts.rounds.len().to_string());
        let window = &facts.window;
        field(
            "pause",
            &format!(
                "{}, of it suspended {}; {} captured in it",
                span(window.total_s),
                span(window.suspended_s),
                window.pages
            ),
        );
        match &facts.disks {
            Some(disks) => {
                for disk in &disks.disks {
                    let vdev = disk.vdev.escape_debug().to_string();
                    field("disk", &format!("{vdev}: {}", kept(disk)));
                }
            }
            None => field("disks", "none belong to it"),
        }
    }
}

fn kept(disk: &DiskKept) -> String {
    let text = match &disk.kept {
        Kept::Snapshot(at) => {
            let kind = if at.pool.is_some() { "thin" } else { "thick" };
            let SnapshotKept {
                vg,
                name,
                origin,
                size,
                ..
            } = at;
            format!("{kind} snapshot {vg}/{name} of {vg}/{origin}, {size}")
        }
        Kept::Copy(copy) => format!("copied to {}, {}", copy.file.display(), copy.size),
        Kept::Unchanged => format!("on {:?}, which the guest cannot write to", disk.path),
    };
    // From the file: not for a terminal as it is.
    text.escape_debug().to_string()
}
