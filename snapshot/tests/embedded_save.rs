//! Whole saves of an embedded guest by the engine into an image, proven by a restore; and saves
//! whose guest fails.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use snapshot::embedded::{
    EmbeddedDomain, EmbeddedGuest, Fault, GuestSpec, Pattern, TrackerChoice, Verdict, Workload,
};
use snapshot::image::file::Existing;
use snapshot::image::verify::{Course, Kind, verify};
use snapshot::image::{AnyImage, Compression, ImageError, Reader, libxc};
use snapshot::policy::Limits;
use snapshot::ports::{Cancel, DomainError, Event, MemoryOnly, Observer};
use snapshot::{Bytes, Mode, Options, PageCount, Report, Save, SaveError};

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_embedded-guest")).to_owned()
}

/// Does something at the end of each round.
struct AfterRound<F>(F);

impl<F: FnMut(u32)> Observer for AfterRound<F> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::RoundEnded { round, .. } = event {
            (self.0)(round.round);
        }
    }
}

fn options(mode: Mode) -> Options {
    let limits = Limits {
        room: PageCount(0),
        max_rounds: 6,
        small_enough: PageCount(0),
        small_share: 0.0,
        worthwhile: 10.0,
    };
    Options {
        mode,
        limits,
        suspend_timeout: Duration::from_millis(2000),
        // Less than is left to capture under a fast writer, so that both ways are gone.
        capture_memory: Bytes::from_mib(1),
        threads: 2,
        backend: "embedded",
        ..Options::default()
    }
}

fn save(
    guest: &Arc<EmbeddedGuest>,
    image: &Path,
    mode: Mode,
    after_round: impl FnMut(u32),
) -> Result<Report, SaveError> {
    save_as(guest, image, None, mode, &Cancel::new(), after_round)
}

fn save_as(
    guest: &Arc<EmbeddedGuest>,
    image: &Path,
    compression: Option<Compression>,
    mode: Mode,
    cancel: &Cancel,
    after_round: impl FnMut(u32),
) -> Result<Report, SaveError> {
    let mut domain = EmbeddedDomain::new(Arc::clone(guest));
    let sink = AnyImage::create(image, Existing::Keep, compression, cancel);
    let mut sink = sink.expect("an image");
    let mut observer = AfterRound(after_round);
    let mut disks = MemoryOnly;
    Save::new(
        &mut domain,
        &mut sink,
        &mut disks,
        &mut observer,
        cancel,
        options(mode),
    )
    .run()
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Memory(#[from] io::Error),
}

fn restore(image: &Path) -> (EmbeddedGuest, Verdict) {
    let reader = Reader::open(image).expect("an image");
    let mut records = reader.libxc_records().iter();
    let context = records.find(|record| record.kind == libxc::record::HVM_CONTEXT);
    let state = reader.read(context.expect("a state")).expect("read").body;
    let guest = EmbeddedGuest::spawn_restored(&program(), &[], &state).expect("a guest");
    let write = |pfn, page: &snapshot::page::PageBytes| {
        guest.memory().write(pfn, &page.0)?;
        Ok::<_, Unreadable>(())
    };
    reader.for_each_page(write).expect("restored");
    let verdict = guest.verify().expect("verified");
    (guest, verdict)
}

fn busy() -> GuestSpec {
    let mut spec = GuestSpec::new("busy", Bytes::from_mib(48));
    spec.absent = vec![3000..3500, 12_000..12_288];
    spec.workload = Workload {
        pattern: Pattern::Random,
        rate: Some(30_000),
        region: None,
        threads: 2,
    };
    spec
}

#[test]
fn the_restored_memory_is_that_of_the_cut() {
    for tracker in [TrackerChoice::Auto, TrackerChoice::Mprotect] {
        let mut spec = busy();
        spec.tracker = tracker;
        let guest = EmbeddedGuest::spawn(&program(), &[], spec).expect("a guest");
        let guest = Arc::new(guest);
        let directory = tempfile::tempdir().expect("a directory");
        for mode in [Mode::Plain, Mode::Live, Mode::Live] {
            let image = directory.path().join("image.xl");
            let before = guest.stats().expect("counters").written;
            while guest.stats().expect("counters").written <= before {
                std::thread::sleep(Duration::from_millis(1));
            }
            let report = save(&guest, &image, mode, |_| {}).expect("saved");
            assert_eq!(report.facts.memory_pages, guest.layout().pages());
            let (restored, verdict) = restore(&image);
            assert!(verdict.matches(), "{tracker:?} {}", mode.name());
            let cut = restored.stats().expect("counters").written;
            assert!(cut > before && cut <= guest.stats().expect("counters").written);
            restored.resume().expect("it goes on");
            std::fs::remove_file(&image).expect("removed");
        }
        // The source is unharmed, runs, and can be saved again.
        guest.track().expect("tracking was off");
        guest
            .suspend(Duration::from_secs(10), &Cancel::new())
            .expect("it ran");
        assert!(guest.verify().expect("verified").matches());
    }
}

const ZSTD: Option<Compression> = Some(Compression {
    level: 1,
    threads: 2,
});

fn must_be_whole(image: &Path, kind: Kind) {
    let cancel = Cancel::new();
    let course = Course {
        threads: 2,
        progress: &|_| {},
        cancel: &cancel,
    };
    let verified = verify(image, &course).expect("looked at");
    assert_eq!((verified.kind, verified.problems), (Some(kind), vec![]));
}

#[test]
fn a_compressed_image_of_a_busy_guest_is_the_cut_too() {
    let guest = EmbeddedGuest::spawn(&program(), &[], busy()).expect("a guest");
    let guest = Arc::new(guest);
    let directory = tempfile::tempdir().expect("a directory");
    for mode in [Mode::Plain, Mode::Live, Mode::Live] {
        for (compression, kind) in [(ZSTD, Kind::Zstd), (None, Kind::Raw)] {
            let image = directory.path().join("image.xl.zst");
            let cancel = Cancel::new();
            let report = save_as(&guest, &image, compression, mode, &cancel, |_| {});
            let report = report.expect("saved");
            assert_eq!(report.image_bytes.0, image.metadata().expect("there").len());
            // A plain save holds nothing back: all is written while the guest stands still.
            let in_window = report.facts.window.written_in_window_bytes.0;
            assert!(mode != Mode::Plain || in_window > 0);
            must_be_whole(&image, kind);
            let (_restored, verdict) = restore(&image);
            assert!(verdict.matches(), "{kind:?} {}", mode.name());
            std::fs::remove_file(&image).expect("removed");
        }
    }
}

#[test]
fn a_compressed_save_that_is_stopped_leaves_no_image_and_the_guest_runs() {
    let guest = EmbeddedGuest::spawn(&program(), &[], busy()).expect("a guest");
    let guest = Arc::new(guest);
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image.xl.zst");
    for round in [0, 2] {
        let cancel = Cancel::new();
        let error = save_as(&guest, &image, ZSTD, Mode::Live, &cancel, |done| {
            if done == round {
                cancel.raise(15);
            }
        });
        let error = error.expect_err("it was stopped");
        assert_eq!(error.signal(), Some(15), "{error}");
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("read").collect();
        assert!(left.is_empty(), "{left:?}");
        let before = guest.stats().expect("counters").written;
        std::thread::sleep(Duration::from_millis(200));
        assert!(guest.stats().expect("counters").written > before);
    }
}

#[test]
fn a_guest_killed_in_mid_save_leaves_no_image() {
    let guest = EmbeddedGuest::spawn(&program(), &[], busy()).expect("a guest");
    let guest = Arc::new(guest);
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image.xl");
    let pid = guest.pid().to_string();
    let error = save(&guest, &image, Mode::Live, |round| {
        if round == 1 {
            Command::new("kill")
                .args(["-9", &pid])
                .status()
                .expect("kill runs");
        }
    });
    let error = error.expect_err("the guest is gone");
    assert!(
        matches!(error, SaveError::Domain(DomainError::Gone(_))),
        "{error}"
    );
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("read").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_guest_that_does_not_suspend_leaves_no_image_and_runs_on() {
    let mut spec = busy();
    spec.fault = Some(Fault::IgnoresSuspend);
    let guest = EmbeddedGuest::spawn(&program(), &[], spec).expect("a guest");
    let guest = Arc::new(guest);
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image.xl");
    let error = save(&guest, &image, Mode::Live, |_| {}).expect_err("it does not suspend");
    assert!(
        matches!(error, SaveError::Domain(DomainError::NotSuspended(_))),
        "{error}"
    );
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("read").collect();
    assert!(left.is_empty(), "{left:?}");
    guest.track().expect("tracking is off again");
    let before = guest.stats().expect("counters").written;
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        guest.stats().expect("counters").written > before,
        "it runs on"
    );
}
