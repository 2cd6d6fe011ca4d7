//! The note that dirty tracking was left on for an increment, and whether it can be believed.
//!
//! The hypervisor keeps tracking on whoever comes and goes, and cannot tell whose it is or whether
//! somebody has fetched dirty pages. So an increment is made only where all of this holds:
//!
//! - the note is there: it is taken away before dirty pages are fetched, and written last of all,
//!   once the image that it names is complete;
//! - tracking is on (`xl save` and `xl migrate` switch it off at their end);
//! - the marks are dirty, before the next save and in its first fetch: sixteen pages that the guest
//!   had not written, marked as written right after the cut. Whoever fetches or switches tracking off
//!   and on again takes them away, and the guest would have to write every one of them to bring them
//!   back;
//! - the guest's memory is as large as it was: up to Xen 4.18 a page that is added (a balloon is
//!   deflated) is not tracked.

use std::fmt;

use super::guest::{Guest, call};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::DomainError;
use crate::units::Pfn;

/// How many pages are marked.
pub(super) const MARKS: usize = 16;
const VERSION: &str = "1";

/// What the note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// What was written since this image's cut is dirty.
    pub image: ImageId,
    /// How many pages the guest had.
    pub pages: u64,
    /// What its memory target was.
    pub target: String,
    /// Pages that are dirty.
    pub marks: Vec<Pfn>,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} {} {} {}", self.image, self.pages, self.target)?;
        self.marks
            .iter()
            .try_for_each(|pfn| write!(f, " {}", pfn.0))
    }
}

impl Stamp {
    /// Reads a note; `None` if it is not one that this livesave writes.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next() != Some(VERSION) {
            return None;
        }
        let image = ImageId::try_from(words.next()?.to_owned()).ok()?;
        let pages = words.next()?.parse().ok()?;
        let target = words.next()?.to_owned();
        let marks: Result<Vec<_>, _> = words.map(|word| word.parse().map(Pfn)).collect();
        Some(Self {
            image,
            pages,
            target,
            marks: marks.ok().filter(|marks| !marks.is_empty())?,
        })
    }
}

/// The note of a guest, if there is one that can be read.
pub(super) fn read(guest: &Guest) -> Result<Option<Stamp>, DomainError> {
    let text = guest
        .store
        .read(&guest.stamp_node)
        .map_err(|error| guest.failed("read the note on the dirty tracking of", error))?;
    Ok(text.as_deref().and_then(Stamp::parse))
}

/// Whether there is one, that can be read or not.
pub(super) fn is_there(guest: &Guest) -> Result<bool, DomainError> {
    let text = guest.store.read(&guest.stamp_node);
    let text =
        text.map_err(|error| guest.failed("read the note on the dirty tracking of", error))?;
    Ok(text.is_some())
}

/// Takes the note away, if there is one.
pub(super) fn remove(guest: &Guest) -> Result<(), DomainError> {
    guest
        .store
        .remove(&guest.stamp_node)
        .map_err(|error| guest.failed("take away the note on the dirty tracking of", error))
}

/// Writes the note.
pub(super) fn write(guest: &Guest, stamp: &Stamp) -> Result<(), DomainError> {
    call("xs-stamp", guest.id, || {
        guest.store.write(&guest.stamp_node, &stamp.to_string())
    })
    .map_err(|error| guest.failed("note the dirty tracking of", error))
}

/// Why a note that was read is not to be believed, looked at without the dirty pages.
pub(super) fn doubt(stamp: &Stamp, pages: u64, target: Option<&str>) -> Option<String> {
    if stamp.pages != pages || Some(stamp.target.as_str()) != target {
        return Some("the guest's memory has been resized since".into());
    }
    None
}

/// Whether all pages that were marked are dirty still.
pub(super) fn marks_hold(stamp: &Stamp, dirty: &PageSet) -> bool {
    stamp.marks.iter().all(|&pfn| dirty.contains(pfn))
}

/// Pages to mark: of those that are not dirty now, spread over all of them.
pub(super) fn choose_marks(pages: &PageSet, dirty: &PageSet) -> Vec<Pfn> {
    let clean = || pages.iter().filter(|&pfn| !dirty.contains(pfn));
    let step = (clean().count() / MARKS).max(1);
    // From the middle of each part: what lies at the edges is the hypervisor's and the tables'.
    clean().skip(step / 2).step_by(step).take(MARKS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PageCount;

    fn stamp() -> Stamp {
        Stamp {
            image: ImageId::random().expect("random"),
            pages: 131_072,
            target: "524288".into(),
            marks: vec![Pfn(7), Pfn(1_048_000)],
        }
    }

    #[test]
    fn what_is_written_is_read_and_nonsense_is_no_note() {
        let stamp = stamp();
        let text = stamp.to_string();
        assert_eq!(Stamp::parse(&text), Some(stamp));
        let unmarked = text.rsplitn(3, ' ').last().expect("words").to_owned();
        for bad in [
            "",
            "1",
            "2 x",
            &format!("2{}", &text[1..]),
            &unmarked,
            &format!("{text} x"),
        ] {
            assert_eq!(Stamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_resize_and_a_mark_that_is_gone_are_doubts() {
        let stamp = stamp();
        assert_eq!(doubt(&stamp, 131_072, Some("524288")), None);
        assert!(doubt(&stamp, 131_071, Some("524288")).is_some());
        assert!(doubt(&stamp, 131_072, Some("1")).is_some());
        assert!(doubt(&stamp, 131_072, None).is_some());
        let mut dirty = PageSet::new(PageCount(1_048_576));
        dirty.insert(Pfn(7));
        assert!(!marks_hold(&stamp, &dirty));
        dirty.insert(Pfn(1_048_000));
        assert!(marks_hold(&stamp, &dirty));
    }

    #[test]
    fn marks_are_clean_pages_from_all_over() {
        let mut pages = PageSet::new(PageCount(10_000));
        pages.insert_range(0..4000);
        pages.insert_range(9000..10_000);
        let mut dirty = PageSet::new(PageCount(10_000));
        dirty.insert_range(0..2000);
        let marks = choose_marks(&pages, &dirty);
        assert_eq!(marks.len(), MARKS);
        assert!(
            marks
                .iter()
                .all(|&pfn| pages.contains(pfn) && !dirty.contains(pfn))
        );
        assert!(marks.iter().any(|pfn| pfn.0 > 9000) && marks.iter().any(|pfn| pfn.0 < 3000));
        dirty.insert_range(0..10_000);
        assert!(choose_marks(&pages, &dirty).is_empty());
    }
}
