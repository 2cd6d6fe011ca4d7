//! Everything about an image's structure that reading it does not need, but docs/format.md says.

use serde::de::IgnoredAny;

use super::pages::{self, PfnSet};
use crate::image::layout::ENTRIES;
use crate::image::libxc::record;
use crate::image::reader::RecordAt;
use crate::image::{GuestType, ImageError, RECORD_HEADER, Reader, libxl, xl_header};
use crate::page::PAGE_SIZE;

/// Stock tools put no more pages into a record.
const STOCK_ENTRIES: u32 = 1024;

/// Looks at the records one by one; `seen` takes the pages of a raw image (those of a zstd image
/// are in it already).
pub fn check(reader: &Reader, seen: &mut PfnSet) -> Result<(), ImageError> {
    header(reader)?;
    order(reader)?;
    for at in reader.libxc_records().iter().chain(reader.libxl_records()) {
        padding(reader, at)?;
    }
    if reader.is_compressed() {
        frames_hold_whole_records(reader)?;
    } else {
        raw_pages(reader, seen)?;
    }
    counts(reader, seen)
}

/// As many pages as livesave says; of an increment none that the guest did not have.
fn counts(reader: &Reader, seen: &PfnSet) -> Result<(), ImageError> {
    let Some(facts) = reader.facts() else {
        return Ok(());
    };
    let wrong = |what| Err(reader.damaged(reader.stream_len(), what));
    let want = if reader.is_increment() {
        facts.held_pages
    } else {
        Some(facts.memory_pages)
    };
    if want != Some(seen.count()) {
        return wrong("it does not hold as many pages as livesave says");
    }
    if let Some(existing) = reader.existing()
        && !seen.all_in(existing)
    {
        return wrong("it holds a page that the guest does not have");
    }
    Ok(())
}

fn header(reader: &Reader) -> Result<(), ImageError> {
    // The optional flags.
    if reader.bytes(40, 4)? != [0; 4] {
        return Err(reader.damaged(40, "the optional flags are not 0"));
    }
    let config = reader.config();
    if serde_json::from_slice::<IgnoredAny>(config).is_err() {
        return Err(reader.damaged(xl_header::FIXED, "the configuration is not JSON"));
    }
    Ok(())
}

/// The order that readers of version 3 ask for, and no record of an unknown type.
fn order(reader: &Reader) -> Result<(), ImageError> {
    let (mut static_end, mut memory, mut contexts) = (false, false, 0);
    let mut pv = PvOrder::default();
    for at in reader.libxc_records() {
        let wrong = |what| Err(reader.damaged(at.offset - RECORD_HEADER, what));
        match at.kind {
            record::STATIC_DATA_END if static_end => {
                return wrong("the static data end twice");
            }
            record::STATIC_DATA_END => static_end = true,
            record::X86_CPUID_POLICY | record::X86_MSR_POLICY if static_end => {
                return wrong("a policy record stands behind the static data");
            }
            record::PAGE_DATA if !static_end => {
                return wrong("pages stand before the end of the static data");
            }
            record::PAGE_DATA => memory = true,
            record::HVM_CONTEXT => contexts += 1,
            kind if record::name(kind) == "unknown" => {
                return wrong("a record is of no known type");
            }
            _ => {}
        }
        if reader.guest() == GuestType::Pv {
            pv.next(at).or_else(wrong)?;
        }
    }
    let end = reader.stream_len();
    if !static_end || !memory && !reader.is_increment() {
        return Err(reader.damaged(end, "the image holds no memory"));
    }
    if reader.guest() == GuestType::Hvm && contexts != 1 {
        return Err(reader.damaged(end, "the image does not hold the guest's state once"));
    }
    if reader.guest() == GuestType::Pv && !pv.is_complete() {
        return Err(reader.damaged(end, "the image does not hold a PV guest's state"));
    }
    let emulators = reader.libxl_records().iter();
    let emulators = emulators.filter(|at| at.kind == libxl::record::EMULATOR_CONTEXT);
    if emulators.count() != usize::from(is_emulated(reader)) {
        let what = "the image does not hold the state of the guest's emulated devices as it should";
        return Err(reader.damaged(end, what));
    }
    for at in reader.libxl_records() {
        use libxl::record::{EMULATOR_CONTEXT, EMULATOR_XENSTORE_DATA};
        if ![EMULATOR_XENSTORE_DATA, EMULATOR_CONTEXT].contains(&at.kind) {
            let what = "a record of the libxl stream is of no known type";
            return Err(reader.damaged(at.offset - RECORD_HEADER, what));
        }
    }
    Ok(())
}

/// What of a PV guest's records has come.
#[derive(Default)]
struct PvOrder {
    info: bool,
    p2m_frames: bool,
    shared_info: bool,
    vcpus: bool,
}

impl PvOrder {
    /// Looks at the next record: the width of the guest, its own table of its memory, its memory, the
    /// state of its vCPUs.
    fn next(&mut self, at: &RecordAt) -> Result<(), &'static str> {
        match at.kind {
            record::X86_PV_INFO if self.info => return Err("a PV guest is described twice"),
            record::X86_PV_INFO => self.info = true,
            _ if !self.info => return Err("a PV guest is not described first"),
            record::X86_PV_P2M_FRAMES => self.p2m_frames = true,
            record::PAGE_DATA if !self.p2m_frames => {
                return Err("pages stand before the list of a PV guest's table of them");
            }
            record::SHARED_INFO if at.length != PAGE_SIZE as u64 => {
                return Err("a PV guest's shared page is not as long as a page");
            }
            record::SHARED_INFO => self.shared_info = true,
            record::X86_PV_VCPU_BASIC => self.vcpus = true,
            record::HVM_CONTEXT | record::HVM_PARAMS => {
                return Err("a PV guest has a record of other guests");
            }
            _ => {}
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.shared_info && self.vcpus
    }
}

/// Whether it is an HVM guest, by its configuration: the libxc image does not tell it from a PVH one.
fn is_emulated(reader: &Reader) -> bool {
    let config = serde_json::from_slice::<serde_json::Value>(reader.config());
    config.is_ok_and(|config| config["c_info"]["type"] == "hvm")
}

fn padding(reader: &Reader, at: &RecordAt) -> Result<(), ImageError> {
    let end = at.offset + at.length;
    let padding = reader.bytes(end, at.length.next_multiple_of(8) - at.length)?;
    if padding.iter().any(|&byte| byte != 0) {
        return Err(reader.damaged(end, "the padding of a record is not 0"));
    }
    Ok(())
}

/// Frames begin where records do.
fn frames_hold_whole_records(reader: &Reader) -> Result<(), ImageError> {
    let Some(packed) = reader.source().packed() else {
        return Ok(());
    };
    let records = reader.libxc_records().iter().chain(reader.libxl_records());
    let mut starts = records.map(|at| at.offset - RECORD_HEADER).peekable();
    for span in packed.spans().iter().skip(1) {
        while starts.next_if(|start| *start < span.start).is_some() {}
        // Behind the last record are the two END records.
        let fits = match starts.peek() {
            Some(start) => *start == span.start,
            None => span.start + 2 * RECORD_HEADER == reader.stream_len(),
        };
        if !fits {
            return Err(reader.damaged(span.start, "a frame does not hold whole records"));
        }
    }
    Ok(())
}

fn raw_pages(reader: &Reader, seen: &mut PfnSet) -> Result<(), ImageError> {
    let hvm = reader.guest() == GuestType::Hvm;
    let ours = reader.trailer().is_some();
    let mut last = None;
    for at in reader.libxc_records() {
        if at.kind != record::PAGE_DATA {
            continue;
        }
        let wrong = |what| reader.damaged(at.offset, what);
        let count = reader.bytes(at.offset, at.length.min(4))?;
        let count = count
            .first_chunk()
            .map_or(0, |count| u32::from_le_bytes(*count));
        if !ours && count > STOCK_ENTRIES {
            return Err(wrong(
                "this page record is livesave's, and livesave's trailer is missing: the file is \
                 cut off",
            ));
        }
        if ours && u64::from(count) != ENTRIES {
            return Err(wrong(
                "a page record has not as many entries as livesave's have",
            ));
        }
        let length = at.length.min(8 + 8 * u64::from(count));
        let head = reader.bytes(at.offset, length)?;
        let pfns = pages::of_record(&head, at.length, hvm).map_err(wrong)?;
        if ours {
            for &pfn in &pfns {
                if last.is_some_and(|last| last >= pfn) {
                    return Err(wrong("the pages are not in order"));
                }
                last = Some(pfn);
            }
        }
        seen.insert_all(&pfns).map_err(wrong)?;
    }
    Ok(())
}
