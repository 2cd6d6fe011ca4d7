//! Increments: what is in them, and what becomes of the tracking that they live by.

use super::*;
use crate::image::{AnyImage, Chain, Compression};
use crate::lineage::ImageId;
use crate::page::PageBytes;

/// A directory of images of one guest.
struct Series {
    bench: Bench,
    saves: u32,
}

impl Series {
    fn new() -> Self {
        let mut bench = Bench::new(busy());
        bench.options.keep_tracking = true;
        Self { bench, saves: 0 }
    }

    fn path(&self, save: u32) -> PathBuf {
        self.bench.dir.path().join(format!("{save}.xl"))
    }

    /// The next image, an increment on the one before if there is one.
    fn save(&mut self) -> Result<Report, SaveError> {
        let before =
            (self.saves > 0).then(|| Chain::open(&self.path(self.saves)).expect("a chain"));
        self.bench.options.base = before.and_then(|chain| chain.base().expect("readable"));
        self.save_as_told()
    }

    fn save_as_told(&mut self) -> Result<Report, SaveError> {
        let path = self.path(self.saves + 1);
        let bench = &mut self.bench;
        bench.options.id = ImageId::random().ok();
        let how = bench.options.base.is_some().then_some(Compression {
            level: 1,
            threads: 1,
        });
        let mut sink = AnyImage::create(&path, Existing::Keep, how, &bench.cancel)?;
        let report = bench.save_to(&mut sink)?;
        self.saves += 1;
        Ok(report)
    }

    /// The latest image and what it is built on hold the memory of the cut.
    fn assert_chain_is_the_cut(&self) {
        let chain = Chain::open(&self.path(self.saves)).expect("a chain");
        assert_eq!(chain.images().len(), self.saves as usize);
        assert_holds(&chain, &self.bench.domain.at_cut);
    }
}

fn assert_holds(chain: &Chain, memory: &[PageBytes]) {
    let index = chain.index().expect("an index");
    assert_eq!(index.count(), PAGES);
    index
        .for_each_in(0..PAGES, |pfn, page| {
            assert!(*page == memory[pfn.0 as usize].0, "{pfn} differs");
            Ok::<_, crate::image::ImageError>(())
        })
        .expect("pages");
}

#[test]
fn increments_hold_what_was_written_and_each_cut_stays() {
    let mut series = Series::new();
    series.save().expect("saved");
    let mut cuts = vec![series.bench.domain.at_cut.clone()];
    for round in 0..4u64 {
        // What the resumed guest writes at once is all of its memory; later a few pages.
        if round > 0 {
            series.bench.domain.writes = vec![vec![1, 2], vec![2, 4000 + round], vec![4999]];
        }
        let report = series.save().expect("saved");
        series.assert_chain_is_the_cut();
        cuts.push(series.bench.domain.at_cut.clone());
        assert_eq!(report.facts.memory_pages, PageCount(PAGES));
        assert_eq!(
            report.facts.parent.map(|parent| parent.depth),
            Some(round as u32 + 1)
        );
    }
    for (number, memory) in (1..).zip(&cuts) {
        let chain = Chain::open(&series.path(number)).expect("a chain");
        assert_holds(&chain, memory);
    }
    let log = series.bench.domain.faults.log();
    let count = |name: &str| log.iter().filter(|call| **call == name).count();
    assert_eq!(
        (
            count("log_dirty_on"),
            count("log_dirty_continue"),
            count("log_dirty_off")
        ),
        (1, 4, 0)
    );
    assert!(series.bench.domain.log_dirty && series.bench.domain.kept_for.is_some());
}

#[test]
fn an_increment_holds_no_more_than_what_was_written() {
    let mut series = Series::new();
    series.save().expect("saved");
    // The fake guest writes all its memory after each resume; as if it had not.
    series.bench.domain.forget_dirty();
    series.bench.domain.at_cut.clear();
    series.bench.domain.writes = vec![vec![7, 8], vec![8, 9], vec![]];
    let chain = Chain::open(&series.path(1)).expect("a chain");
    series.bench.options.base = chain.base().expect("readable");
    let report = series.save_as_told().expect("saved");
    assert_eq!(report.facts.held_pages, Some(PageCount(3)));
    assert!(report.image_bytes.0 < 40_000, "{}", report.image_bytes);
}

#[test]
fn a_save_that_fails_ends_the_tracking_and_the_next_is_no_increment() {
    let full = |series: &mut Series| {
        series.save().expect("saved");
        series.bench.domain.faults.log().len() as u32
    };
    let mut failures = vec![];
    for call in 0.. {
        let mut series = Series::new();
        let before = full(&mut series);
        let faults = series.bench.domain.faults.clone();
        faults.fail_at(before + call);
        let outcome = series.save();
        let log = faults.log();
        let Some(failed) = log.get((before + call) as usize).copied() else {
            assert!(outcome.is_ok());
            break;
        };
        failures.push(failed);
        let domain = &series.bench.domain;
        assert!(!domain.suspended && domain.throttled.is_none());
        match failed {
            // The image stands, and nothing is to be built on it.
            "log_dirty_keep" => {
                assert!(outcome.is_ok());
                assert!(!domain.log_dirty && domain.kept_for.is_none());
            }
            "cpu" => assert!(outcome.is_ok()),
            // Before it was taken over nothing was done.
            "mapper" | "log_dirty_continue" => {
                assert!(outcome.is_err() && domain.log_dirty && domain.kept_for.is_some());
            }
            _ => {
                assert!(outcome.is_err(), "{failed} failed unnoticed");
                assert!(!domain.log_dirty && domain.kept_for.is_none(), "{failed}");
                assert!(!series.path(2).exists(), "{failed}");
            }
        }
        // The one before is as it was.
        assert!(Chain::open(&series.path(1)).is_ok());
    }
    for step in [
        "log_dirty_continue",
        "log_dirty_holds",
        "log_dirty_keep",
        "suspend",
    ] {
        assert!(failures.contains(&step), "{step} was never made to fail");
    }
}

#[test]
fn a_guest_that_was_resized_is_no_base() {
    let mut series = Series::new();
    series.save().expect("saved");
    series.bench.domain.pages.remove(Pfn(17));
    let error = series.save().expect_err("refused");
    assert!(matches!(error, SaveError::BaseLost(_)), "{error}");
    series.bench.assert_guest_is_right();
    // In mid-save.
    let mut series = Series::new();
    series.save().expect("saved");
    let mut smaller = first_pages(PAGES);
    smaller.remove(Pfn(17));
    series.bench.domain.resize_at_next_fetch(smaller);
    let error = series.save().expect_err("refused");
    assert!(matches!(error, SaveError::BaseLost(_)), "{error}");
    series.bench.assert_guest_is_right();
    series.bench.options.base = None;
    series.save_as_told().expect("a full one");
}
