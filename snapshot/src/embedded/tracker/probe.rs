//! Which tracker works here, found by trying each on the guest's memory before it is filled.
//!
//! A kernel may know a call and not do it (not compiled in, not for shared memory, forbidden by a
//! container), so that only a page seen dirty, cleared, and seen dirty again counts.

use super::super::error::GuestError;
use super::super::layout::Layout;
use super::super::link::Link;
use super::super::protocol::Request;
use super::super::spec::TrackerChoice;
use super::{Tracker, TrackerKind};
use crate::page_set::PageSet;
use crate::units::Pfn;

/// Picks the first of the trackers allowed by `choice` that passes. `make` makes one.
pub fn choose(
    choice: TrackerChoice,
    link: &Link,
    layout: &Layout,
    make: impl Fn(TrackerKind) -> Result<Tracker, GuestError>,
) -> Result<Tracker, GuestError> {
    let candidates: &[_] = match choice {
        TrackerChoice::Auto => &[TrackerKind::PagemapScan, TrackerKind::Mprotect],
        TrackerChoice::PagemapScan => &[TrackerKind::PagemapScan],
        TrackerChoice::Mprotect => &[TrackerKind::Mprotect],
    };
    let mut last = None;
    for &kind in candidates {
        match make(kind).and_then(|tracker| probed(tracker, link, layout)) {
            Ok(tracker) => return Ok(tracker),
            Err(GuestError::Gone(name)) => return Err(GuestError::Gone(name)),
            Err(error) => last = Some(error),
        }
    }
    Err(GuestError::NoTracker(choice, last.map(Box::new)))
}

/// The tracker, if it works.
fn probed(mut tracker: Tracker, link: &Link, layout: &Layout) -> Result<Tracker, GuestError> {
    let seen = tracker
        .enable(link)
        .and_then(|()| round_trip(&mut tracker, link, layout));
    // Also after a failure, and first: it must be off for the next candidate.
    tracker.disable(link)?;
    if seen? {
        Ok(tracker)
    } else {
        Err(link.refused(
            "track",
            format!("{} reports other pages than were written", tracker.kind()),
        ))
    }
}

/// Writes a page never touched before and sees it, sees nothing, writes it again and sees it.
fn round_trip(tracker: &mut Tracker, link: &Link, layout: &Layout) -> Result<bool, GuestError> {
    let Some(pfn) = layout.nth(layout.pages().0 / 2) else {
        return Ok(false);
    };
    for write in [false, true, true, false] {
        let mut want = PageSet::new(layout.span());
        if write {
            want.insert(pfn);
            touch(link, &[pfn])?;
        }
        for clear in [false, true] {
            let mut found = PageSet::new(layout.span());
            if clear {
                tracker.fetch(link, &mut found)?;
            } else {
                tracker.peek(link, &mut found)?;
            }
            if found != want {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Makes the guest write to pages.
pub fn touch(link: &Link, pages: &[Pfn]) -> Result<(), GuestError> {
    link.call(
        "touch pages of",
        Request::Touch(pages.iter().map(|pfn| pfn.0).collect()),
    )?;
    Ok(())
}
