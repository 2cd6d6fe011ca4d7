//! The engine against a scripted guest: what is in the image, and what is left when it fails.

mod incremental;

use std::path::{Path, PathBuf};

use super::*;
use crate::image::RawImage;
use crate::image::file::Existing;
use crate::policy::StopReason;
use crate::ports::Silent;
use crate::testing::{FakeDisks, FakeDomain, Faults, entries, first_pages, read_image};
use crate::units::{CpuPercent, Pfn};

const PAGES: u64 = 5000;

/// In earlier windows a page cost a millisecond, so that each is worth a round, and the guest wrote
/// no more once it was asked to suspend.
fn dear_pages() -> Vec<PastWindow> {
    let at = |rate| PastWindow {
        rate,
        left: PageCount(10),
        pages: PageCount(10),
        copy_s: 0.01,
        fixed_s: 0.01,
        suspend_s: 0.01,
        ..PastWindow::default()
    };
    vec![at(0.0), at(1e9)]
}

struct Bench {
    dir: tempfile::TempDir,
    domain: FakeDomain,
    disks: FakeDisks,
    cancel: Cancel,
    options: Options,
}

impl Bench {
    fn new(writes: Vec<Vec<u64>>) -> Self {
        Self {
            dir: tempfile::tempdir().expect("directory"),
            domain: FakeDomain::new(first_pages(PAGES), writes),
            disks: FakeDisks::default(),
            cancel: Cancel::new(),
            options: Options {
                mode: Mode::Live,
                suspend_timeout: Duration::from_secs(1),
                capture_memory: Bytes::from_mib(64),
                threads: 2,
                backend: "fake",
                past: dear_pages(),
                ..Options::default()
            },
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image.xl")
    }

    fn save(&mut self) -> Result<Report, SaveError> {
        let mut sink = RawImage::create(&self.path(), Existing::Keep)?;
        self.save_to(&mut sink)
    }

    fn save_to(&mut self, sink: &mut impl ImageSink) -> Result<Report, SaveError> {
        let mut observer = Silent;
        Save::new(
            &mut self.domain,
            sink,
            &mut self.disks,
            &mut observer,
            &self.cancel,
            self.options.clone(),
        )
        .run()
    }

    /// The image holds the memory of the cut, page by page, and nothing else.
    fn assert_image_is_the_cut(&self) {
        let image = read_image(&self.path());
        let want: Vec<u64> = self.domain.pages.iter().map(|pfn| pfn.0).collect();
        assert_eq!(image.iter().map(|(pfn, _)| *pfn).collect::<Vec<_>>(), want);
        for (pfn, page) in image {
            assert!(
                page == self.domain.at_cut[pfn as usize],
                "{} differs",
                Pfn(pfn)
            );
        }
    }

    fn assert_guest_is_right(&self) {
        assert!(!self.domain.suspended, "the guest was left suspended");
        assert!(!self.domain.log_dirty, "log-dirty was left on");
        assert_eq!(self.domain.throttled, None, "the guest was left throttled");
        assert!(
            !self.domain.uncapped,
            "the guest was left without its own cap"
        );
        assert!(!self.disks.open, "the disk snapshot was left");
        assert!(!self.disks.held, "the disks are held");
    }
}

fn busy() -> Vec<Vec<u64>> {
    vec![
        (0..2000).collect(),
        (500..1200).chain(4000..4100).collect(),
        (4000..4100).collect(),
        (3000..3040).collect(),
        vec![0, 2, 4, 1023, 1024, 4999],
    ]
}

#[test]
fn a_live_save_holds_the_memory_of_the_cut() {
    let mut bench = Bench::new(busy());
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    bench.assert_guest_is_right();
    let rounds: Vec<_> = report
        .facts
        .rounds
        .iter()
        .map(|r| (r.pages.0, r.dirty_pages.0))
        .collect();
    assert_eq!(rounds, [(5000, 2000), (2000, 800), (800, 100), (100, 40)]);
    assert_eq!(report.facts.stop, StopReason::SmallEnough);
    assert_eq!(report.facts.window.pages, PageCount(46));
    assert_eq!(report.facts.window.written_in_window_bytes, Bytes(0));
}

#[test]
fn a_guest_is_free_of_its_own_cap_in_the_pause_only() {
    for (mode, lift, lifts) in [
        (Mode::Live, true, 1),
        (Mode::Live, false, 0),
        (Mode::Plain, true, 0),
    ] {
        let mut bench = Bench::new(busy());
        bench.domain.own_cap = Some(CpuPercent(10));
        bench.options.mode = mode;
        bench.options.lift_own_cap = lift;
        let report = bench.save().expect("saved");
        bench.assert_guest_is_right();
        assert_eq!(bench.domain.lifts, lifts);
        let window = report.facts.window;
        assert_eq!(window.uncapped_s > window.total_s, lifts > 0);
    }
}

#[test]
fn a_guest_with_an_emulator_is_left_alone_while_it_thaws() {
    for mode in [Mode::Live, Mode::Plain] {
        let mut bench = Bench::new(busy());
        bench.options.mode = mode;
        bench.domain.emulator = true;
        bench.save().expect("saved");
        bench.assert_image_is_the_cut();
        bench.assert_guest_is_right();
        // (Plain saves track nothing.)
        let least = Duration::from_millis(20);
        assert_eq!(bench.domain.left_alone >= least, mode == Mode::Live);
    }
}

#[test]
fn a_plain_save_writes_all_in_the_window() {
    let mut bench = Bench::new(vec![vec![1, 2, 3]]);
    bench.options.mode = Mode::Plain;
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    bench.assert_guest_is_right();
    assert_eq!(report.facts.window.pages, PageCount(PAGES));
    assert_eq!(report.facts.window.captured_bytes, Bytes(0));
    assert!(!bench.domain.faults.log().contains(&"log_dirty_on"));
}

#[test]
fn what_exceeds_the_capture_budget_is_written_in_the_window() {
    let mut bench = Bench::new(busy());
    bench.options.capture_memory = PageCount(10).bytes();
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    assert_eq!(report.facts.window.captured_bytes, PageCount(10).bytes());
    assert!(report.facts.window.written_in_window_bytes > Bytes(0));
}

#[test]
fn pages_that_cannot_be_mapped_for_a_while_are_copied_later() {
    let mut bench = Bench::new(busy());
    *bench.domain.unmappable.lock().expect("list") = vec![17, 2047, 4999];
    bench.save().expect("saved");
    bench.assert_image_is_the_cut();
}

#[test]
fn a_guest_resized_in_mid_save_is_saved_from_the_start() {
    let mut smaller = first_pages(PAGES);
    for pfn in 3000..3100 {
        smaller.remove(Pfn(pfn));
    }
    let mut bench = Bench::new(vec![(0..2000).collect(), (0..900).collect(), vec![1]]);
    bench.domain.resize = Some((2, smaller));
    bench.domain.moving = 1;
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    bench.assert_guest_is_right();
    assert_eq!(report.facts.memory_pages, PageCount(PAGES - 100));
    assert_eq!(
        bench
            .domain
            .faults
            .log()
            .iter()
            .filter(|c| **c == "memory_map")
            .count(),
        3
    );
}

/// A guest that dirties the same 900 pages in every round: too many for 300 ms.
fn never_quiet() -> Vec<Vec<u64>> {
    vec![(0..900).collect(); 40]
}

#[test]
fn a_guest_too_busy_is_throttled_and_let_go_before_it_is_suspended() {
    let mut writes = never_quiet();
    // Under a limit it writes less and less.
    writes[4] = (0..500).collect();
    writes[5] = (0..100).collect();
    let mut bench = Bench::new(writes);
    bench.options.mode = Mode::Improved;
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    bench.assert_guest_is_right();
    assert_eq!(report.facts.stop, StopReason::OnTarget);
    assert!(!bench.domain.limits.is_empty());
    let brownout = report.facts.brownout.expect("a brownout");
    assert_eq!(brownout.means, "cap");
    let caps: Vec<_> = brownout.caps.iter().map(|step| step.cap).collect();
    assert_eq!(caps, bench.domain.limits);
    // The fake guest's suspension lets it write 900 pages once more.
    assert!(report.facts.target.is_some());
    assert_eq!(report.facts.window.left_pages, PageCount(100));
}

#[test]
fn a_target_that_cannot_be_met_is_missed_or_nothing_is_saved() {
    for (mode, limits) in [(Mode::Live, false), (Mode::Improved, true)] {
        let mut bench = Bench::new(never_quiet());
        bench.options.mode = mode;
        let report = bench.save().expect("saved all the same");
        bench.assert_image_is_the_cut();
        assert_eq!(!bench.domain.limits.is_empty(), limits);
        assert!(report.facts.window.predicted_s > 0.3);

        let mut bench = Bench::new(never_quiet());
        bench.options.mode = mode;
        bench.options.on_miss = OnMiss::Abort;
        let error = bench.save().expect_err("given up");
        assert!(matches!(error, SaveError::TargetMissed { .. }), "{error}");
        bench.assert_guest_is_right();
        assert!(!bench.domain.faults.log().contains(&"suspend"));
        assert_eq!(entries(bench.dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_guest_that_cannot_be_throttled_is_saved_as_it_is() {
    let mut probe = Bench::new(never_quiet());
    probe.options.mode = Mode::Improved;
    probe.save().expect("saved");
    let log = probe.domain.faults.log();
    let throttle = log.iter().position(|call| *call == "throttle");
    for call in [log.iter().position(|call| *call == "cpu"), throttle] {
        let mut bench = Bench::new(never_quiet());
        bench.options.mode = Mode::Improved;
        bench.domain.faults = Faults::at(call.expect("it is called") as u32);
        let report = bench.save().expect("saved all the same");
        assert_eq!(report.facts.stop, StopReason::NoGain);
        bench.assert_image_is_the_cut();
        bench.assert_guest_is_right();
    }
}

#[test]
fn pages_dirtied_in_every_round_are_left_for_the_window() {
    // 300 hot pages, and others that come to rest.
    let round = |others: std::ops::Range<u64>| (0..300).chain(others).collect();
    let mut bench = Bench::new(vec![
        round(1000..4000),
        round(1000..3000),
        round(1000..2000),
        round(1000..1500),
        round(1000..1020),
        vec![],
    ]);
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    let rounds: Vec<_> = report
        .facts
        .rounds
        .iter()
        .map(|r| (r.pages.0, r.left_pages.0, r.hot_pages.0))
        .collect();
    // The pages that come to rest were dirtied in three rounds in a row too, and are copied when
    // one has passed without them.
    assert_eq!(
        rounds[..3],
        [(5000, 3300, 0), (3300, 2300, 0), (2300, 1300, 1300)]
    );
    assert!(report.facts.window.pages.0 >= 300);
}

/// Copying to memory is as quick as nothing, so that the rounds go there as soon as they fit.
fn quick_memory(bench: &mut Bench) {
    for window in &mut bench.options.past {
        window.copy_s = 1e-8;
    }
    bench.options.limits.small_share = 0.0;
}

#[test]
fn rounds_held_in_memory_are_in_the_image_in_their_newest_copy() {
    let mut bench = Bench::new(busy());
    quick_memory(&mut bench);
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    bench.assert_guest_is_right();
    let rounds: Vec<_> = report
        .facts
        .rounds
        .iter()
        .map(|r| (r.pages.0, r.held, r.bytes.0 > 0))
        .collect();
    let want = [
        (5000, false, true),
        (2000, true, false),
        (800, true, false),
        (100, true, false),
    ];
    assert_eq!(rounds, want);
    // 0 to 2000, 4000 to 4100, 3000 to 3040 and one page more, each once.
    let window = &report.facts.window;
    assert_eq!(window.captured_bytes, PageCount(2141).bytes());
    assert_eq!(
        (window.pages, window.written_in_window_bytes),
        (PageCount(46), Bytes(0))
    );
}

#[test]
fn rounds_that_do_not_fit_go_to_the_image() {
    // Room for the first set, not for what comes to it.
    let mut bench = Bench::new(busy());
    quick_memory(&mut bench);
    bench.options.capture_memory = PageCount(2010).bytes();
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    assert!(report.facts.rounds[1].held);
    assert_eq!(report.facts.window.captured_bytes, PageCount(2010).bytes());
    assert!(report.facts.rounds[2].bytes > Bytes(0));

    let mut bench = Bench::new(busy());
    quick_memory(&mut bench);
    bench.options.capture_memory = PageCount(1990).bytes();
    let report = bench.save().expect("saved");
    bench.assert_image_is_the_cut();
    assert!(!report.facts.rounds[1].held && report.facts.rounds[2].held);
}

#[test]
fn what_was_held_of_a_guest_that_is_resized_is_forgotten() {
    let mut smaller = first_pages(PAGES);
    for pfn in 0..100 {
        smaller.remove(Pfn(pfn));
    }
    let mut bench = Bench::new(vec![
        (0..2000).collect(),
        (0..900).collect(),
        (0..700).collect(),
        vec![1],
    ]);
    quick_memory(&mut bench);
    bench.domain.resize = Some((3, smaller));
    bench.save().expect("saved");
    bench.assert_image_is_the_cut();
}

#[test]
fn disks_of_a_cut_that_is_not_used_are_let_go() {
    let mut smaller = first_pages(PAGES);
    smaller.remove(Pfn(5));
    let mut bench = Bench::new(busy());
    bench.domain.resize = Some((0, smaller));
    bench.save().expect("saved");
    bench.assert_guest_is_right();
    bench.assert_image_is_the_cut();
    assert_eq!(bench.disks.let_go, 1);
}

/// Page 3007 is left by the rounds and mapped when the guest is asked to suspend; pages from 4500 on
/// have long been copied.
fn ballooning(steps: &[(u64, &[u64], &[u64])]) -> FakeDisks {
    let mut bench = Bench::new(busy());
    let steps = steps.iter();
    bench.domain.balloon = steps
        .map(|&(at, out, back)| (at, out.to_vec(), back.to_vec()))
        .collect();
    bench.save().expect("saved");
    bench.assert_guest_is_right();
    bench.assert_image_is_the_cut();
    bench.disks
}

#[test]
fn a_mapped_page_that_goes_and_comes_back_is_not_copied_as_it_was() {
    let disks = ballooning(&[(30, &[3007], &[]), (60, &[], &[3007])]);
    assert_eq!(disks.let_go, 1);
    // Before it was mapped it may.
    let disks = ballooning(&[(0, &[3007], &[3007])]);
    assert_eq!(disks.let_go, 0);
}

#[test]
fn nor_where_the_number_of_pages_is_right_because_another_is_out() {
    for other in [40, 70] {
        let (back, out) = ((60, &[][..], &[3007][..]), (other, &[4600][..], &[][..]));
        let disks = ballooning(&[(30, &[3007], &[]), back, out]);
        assert_eq!(disks.let_go, 1, "another goes at {other}");
    }
}

#[test]
fn many_pages_are_captured_by_several_threads() {
    for budget in [PAGES, 3000] {
        let half = (0..PAGES).step_by(2).collect();
        let mut bench = Bench::new(vec![(0..4500).collect(), half]);
        quick_memory(&mut bench);
        bench.options.threads = 3;
        bench.options.capture_memory = PageCount(budget).bytes();
        bench.options.limits.max_rounds = 1;
        let report = bench.save().expect("saved");
        bench.assert_image_is_the_cut();
        let window = &report.facts.window;
        assert_eq!(window.pages, PageCount(4750));
        assert_eq!(window.captured_bytes, PageCount(budget.min(4750)).bytes());
        assert_eq!(
            window.written_in_window_bytes > Bytes(0),
            budget < window.pages.0
        );
    }
}

/// Every call that can fail is made to fail, one after the other.
#[test]
fn whatever_fails_the_guest_is_put_right_and_no_image_appears() {
    let failures = fail_each(Mode::Live, busy);
    for step in [
        "preamble",
        "memory_map",
        "fetch_dirty",
        "make_ready",
        "lift_own_cap",
        "suspend",
        "final_state",
        "resume",
        "announce",
        "disks.prepare",
        "disks.cut",
        "disks.commit",
        "disks.keep",
        "log_dirty_off",
    ] {
        assert!(failures.contains(&step), "{step} was never made to fail");
    }
    let throttled = fail_each(Mode::Improved, || {
        let mut writes = never_quiet();
        writes[4] = (0..100).collect();
        writes
    });
    for step in ["throttle", "unthrottle"] {
        assert!(throttled.contains(&step), "{step} was never made to fail");
    }
}

fn fail_each(mode: Mode, writes: impl Fn() -> Vec<Vec<u64>>) -> Vec<&'static str> {
    let mut failures = vec![];
    for call in 0.. {
        let mut bench = Bench::new(writes());
        bench.options.mode = mode;
        bench.domain.own_cap = Some(CpuPercent(50));
        bench.domain.faults = Faults::at(call);
        bench.disks.faults = bench.domain.faults.clone();
        let outcome = bench.save();
        let log = bench.domain.faults.log();
        let Some(failed) = log.get(call as usize) else {
            break;
        };
        failures.push(*failed);
        bench.assert_guest_is_right();
        // Switching tracking off is tried again, and a guest need be neither throttled nor freed of
        // its cap; none of it spoils the image.
        if ["log_dirty_off", "cpu", "throttle", "lift_own_cap"].contains(failed) {
            assert!(outcome.is_ok(), "{failed}");
        } else {
            assert!(outcome.is_err(), "{failed} failed unnoticed");
            assert_eq!(entries(bench.dir.path()), Vec::<PathBuf>::new(), "{failed}");
        }
        if *failed == "resume" {
            assert_eq!(bench.disks.let_go, 1, "resumed again with its disks held");
        }
    }
    failures
}

#[test]
fn an_interrupt_ends_the_save_and_leaves_nothing() {
    for mode in [Mode::Live, Mode::Plain] {
        let mut bench = Bench::new(busy());
        bench.options.mode = mode;
        bench.cancel.raise(15);
        assert_eq!(bench.save().expect_err("interrupted").signal(), Some(15));
        bench.assert_guest_is_right();
        assert_eq!(entries(bench.dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_image_that_cannot_be_finished_spoils_nothing() {
    // A name taken in mid-save: the latest failure there is.
    let mut bench = Bench::new(busy());
    let path = bench.path();
    let mut sink = RawImage::create(&path, Existing::Keep).expect("created");
    std::fs::write(&path, b"somebody else's").expect("written");
    let outcome = bench.save_to(&mut sink);
    assert!(outcome.is_err());
    bench.assert_guest_is_right();
    assert_eq!(
        std::fs::read(Path::new(&path)).expect("read"),
        b"somebody else's"
    );
}
