//! Memory that is written once and must never change again.

use super::output::Output;
use super::pattern::{Page, Stamp};
use super::writer::{Verdict, area_seed, report_mismatch};

/// The static area.
pub struct StaticArea {
    seed: u64,
    pages: Vec<Page>,
}

impl StaticArea {
    /// Fills so many pages.
    #[must_use]
    pub fn new(seed: u64, pages: u64) -> Self {
        let mut area = Self {
            seed: area_seed(seed, 0),
            pages: vec![Page::zero(); pages as usize],
        };
        for index in 0..area.pages.len() {
            let stamp = area.stamp(index);
            area.pages[index].fill(stamp);
        }
        area
    }

    /// Checks every page.
    #[must_use]
    pub fn verify(&self, out: &Output) -> Verdict {
        let mut verdict = Verdict::default();
        for (index, page) in self.pages.iter().enumerate() {
            verdict.pages += 1;
            if let Err(mismatch) = page.check(self.stamp(index)) {
                report_mismatch(out, verdict.bad, self.stamp(index), mismatch);
                verdict.bad += 1;
            }
        }
        verdict
    }

    fn stamp(&self, index: usize) -> Stamp {
        Stamp {
            seed: self.seed,
            page: index as u64,
            seq: 0,
            body: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_page_is_one_bad_page() {
        let mut area = StaticArea::new(3, 20);
        assert_eq!(area.verify(&Output::to_stdout()).bad, 0);
        area.pages[11].0[500] = 0;
        let verdict = area.verify(&Output::to_stdout());
        assert_eq!((verdict.pages, verdict.bad), (20, 1));
    }
}
