//! What an embedded guest is like: its memory, its content, its work.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::units::{Bytes, PageCount};

/// The most memory that an embedded guest can have, holes included.
pub const MAX_SPAN: Bytes = Bytes(1 << 40);

/// The most threads that can work in an embedded guest.
pub const MAX_THREADS: u32 = 64;

/// Describes an embedded guest. Part of its state record, so that a restored guest works on as the
/// saved one would have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Its name.
    pub name: String,
    /// How many pfns it has, holes included.
    pub span: PageCount,
    /// The holes: pfns with no page behind them, as ranges in any order.
    pub absent: Vec<Range<u64>>,
    /// What the pages hold before the first write.
    pub content: Content,
    /// What its threads do.
    pub workload: Workload,
    /// Which dirty tracker to use.
    pub tracker: TrackerChoice,
    /// What it does wrong, for tests of failures.
    pub fault: Option<Fault>,
}

impl GuestSpec {
    /// An idle guest of that much memory without holes, half of it zero pages.
    #[must_use]
    pub fn new(name: &str, memory: Bytes) -> Self {
        Self {
            name: name.to_owned(),
            span: memory.whole_pages(),
            absent: Vec::new(),
            content: Content::default(),
            workload: Workload::IDLE,
            tracker: TrackerChoice::Auto,
            fault: None,
        }
    }

    /// Checks the description and computes which pages exist.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn layout(&self) -> Result<Layout, SpecError> {
        if self.span.0 > MAX_SPAN.whole_pages().0 {
            return Err(SpecError::TooLarge(self.span));
        }
        let layout = Layout::new(self.span, &self.absent)?;
        let Content {
            zero_percent,
            text_percent,
            ..
        } = self.content;
        if u32::from(zero_percent) + u32::from(text_percent) > 100 {
            return Err(SpecError::Content {
                zero_percent,
                text_percent,
            });
        }
        let Workload {
            threads,
            region,
            rate,
            ..
        } = self.workload;
        if rate == Some(0) {
            return Err(SpecError::Rate);
        }
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(SpecError::Threads(threads));
        }
        let region = region.unwrap_or(layout.pages());
        if region > layout.pages() || region.0 < u64::from(threads) {
            return Err(SpecError::Region {
                region,
                pages: layout.pages(),
                threads,
            });
        }
        Ok(layout)
    }
}

/// What the pages hold before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The share of pages that are all zero.
    pub zero_percent: u8,
    /// The share of pages that hold text, which compresses well. The rest is noise.
    pub text_percent: u8,
    /// Whether the zero pages are populated, as those of a booted machine are. Otherwise they
    /// come into being at the first touch.
    pub populated: bool,
    /// Tells the contents of one guest from those of another.
    pub seed: u64,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            zero_percent: 50,
            text_percent: 25,
            populated: true,
            seed: 1,
        }
    }
}

/// What a guest's threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Which pages they write, in which order.
    pub pattern: Pattern,
    /// How many pages they write per second, all together; as fast as they can if `None`.
    pub rate: Option<u64>,
    /// How many of the existing pages, from the lowest, they write in; all if `None`.
    pub region: Option<PageCount>,
    /// How many threads share the region, each with its own part.
    pub threads: u32,
}

impl Workload {
    /// Nothing is written.
    pub const IDLE: Self = Self {
        pattern: Pattern::Idle,
        rate: None,
        region: None,
        threads: 1,
    };

    /// One thread with a pattern over all memory, as fast as it can.
    #[must_use]
    pub const fn full_speed(pattern: Pattern) -> Self {
        Self {
            pattern,
            rate: None,
            region: None,
            threads: 1,
        }
    }
}

/// Which pages are written, in which order. Every write changes the whole page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// None.
    Idle,
    /// One after the other, round and round.
    Ring,
    /// Nine writes in ten fall on a tenth of the pages, the others anywhere.
    Hot,
    /// Anywhere.
    Random,
}

/// Which dirty tracker to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrackerChoice {
    /// The best that works here, as found by a probe.
    Auto,
    /// userfaultfd and `PAGEMAP_SCAN` or nothing.
    PagemapScan,
    /// `mprotect` or nothing.
    Mprotect,
}

/// What a guest does wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It does not even acknowledge a suspend request.
    IgnoresSuspend,
    /// It acknowledges a suspend request and works on.
    AcknowledgesOnly,
}

/// A description that no guest can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// More memory than an embedded guest can have.
    #[error("A guest of {0} is too large: {max} at most", max = MAX_SPAN.whole_pages())]
    TooLarge(PageCount),
    /// No page exists.
    #[error("The guest has no memory")]
    Empty,
    /// A hole does not lie within the span.
    #[error("The hole {0:?} is not a range of the guest's pfns")]
    Hole(Range<u64>),
    /// The shares of content exceed the whole.
    #[error("{zero_percent} % zero pages and {text_percent} % text are more than the whole")]
    Content {
        /// The share of zero pages.
        zero_percent: u8,
        /// The share of text.
        text_percent: u8,
    },
    /// A rate of nothing; that is what [`Pattern::Idle`] is for.
    #[error("A workload of 0 pages per second is none: make it idle")]
    Rate,
    /// No threads or too many.
    #[error("{0} threads are not between 1 and {MAX_THREADS}")]
    Threads(u32),
    /// The region is larger than the memory or too small for the threads.
    #[error("{threads} threads cannot work in {region} of {pages}")]
    Region {
        /// The region asked for.
        region: PageCount,
        /// Pages that exist.
        pages: PageCount,
        /// The threads.
        threads: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_guests_are_refused() {
        type Change = fn(&mut GuestSpec);
        let cases: [(Change, SpecError); 7] = [
            (|s| s.workload.rate = Some(0), SpecError::Rate),
            (
                |s| s.span = PageCount(1 << 40),
                SpecError::TooLarge(PageCount(1 << 40)),
            ),
            (|s| s.absent = vec![0..256], SpecError::Empty),
            (|s| s.absent = vec![200..257], SpecError::Hole(200..257)),
            (
                |s| s.content.zero_percent = 99,
                SpecError::Content {
                    zero_percent: 99,
                    text_percent: 25,
                },
            ),
            (|s| s.workload.threads = 0, SpecError::Threads(0)),
            (
                |s| s.workload.region = Some(PageCount(257)),
                SpecError::Region {
                    region: PageCount(257),
                    pages: PageCount(256),
                    threads: 1,
                },
            ),
        ];
        for (change, error) in cases {
            let mut spec = GuestSpec::new("g", Bytes::from_mib(1));
            assert!(spec.layout().is_ok());
            change(&mut spec);
            assert_eq!(spec.layout().err(), Some(error));
        }
    }
}
