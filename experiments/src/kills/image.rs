//! Whether an image is whole: every page of it is read, and compared with what the guest said at
//! the cut.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snapshot::embedded::{EmbeddedGuest, GuestState, page_hash_of};
use snapshot::image::{ImageError, Reader, libxc};
use snapshot::page::PageBytes;
use snapshot::ports::Cancel;

use super::lane::GUEST;

/// Reads all of an image.
///
/// # Errors
/// What is wrong with it.
pub fn must_be_whole(path: &Path) -> Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "its mode is {mode:o}");
    let reader = Reader::open(path)?;
    ensure!(reader.facts().is_some(), "it has no trailer");
    let state = GuestState::decode(&state_record(&reader)?)?;
    let (mut pages, mut sum) = (0u64, 0u64);
    reader.for_each_page(|pfn, page| {
        pages += 1;
        sum = sum.wrapping_add(page_hash_of(pfn, &page.0));
        Ok::<_, ImageError>(())
    })?;
    let expected = state.spec.layout()?.pages().0;
    ensure!(pages == expected, "it has {pages} pages of {expected}");
    ensure!(
        sum == state.checksum,
        "its memory has checksum {sum:016x}, the guest's at the cut had {:016x}",
        state.checksum
    );
    Ok(())
}

/// Restores an image into a fresh guest, which compares its memory itself and works on.
///
/// # Errors
/// What is wrong.
pub fn must_restore(path: &Path, program: &Path) -> Result<()> {
    let reader = Reader::open(path)?;
    let guest = EmbeddedGuest::spawn_restored(program, &[GUEST], &state_record(&reader)?)?;
    let zero = PageBytes::ZERO;
    reader.for_each_page(|pfn, page| {
        if *page != zero {
            guest.memory().write(pfn, &page.0)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    ensure!(
        guest.verify()?.matches(),
        "the restored guest's memory is not that of the cut"
    );
    guest.resume()?;
    guest.suspend(std::time::Duration::from_secs(10), &Cancel::new())?;
    ensure!(
        guest.verify()?.matches(),
        "the restored guest broke its memory"
    );
    Ok(())
}

fn state_record(reader: &Reader) -> Result<Vec<u8>> {
    let context = libxc::record::HVM_CONTEXT;
    let mut records = reader.libxc_records().iter();
    let record = records.find(|record| record.kind == context);
    Ok(reader.read(record.context("it has no state")?)?.body)
}
