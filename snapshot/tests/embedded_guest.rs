//! The embedded guest as its parent sees it: dirty tracking, pause, cap, restore, death.
//!
//! Every test that needs dirty tracking runs with each tracker. Where the machine forbids
//! userfaultfd, or its kernel is older than 6.7, the test of that tracker says so and is skipped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use snapshot::embedded::{
    EmbeddedGuest, Fault, GuestError, GuestSpec, GuestState, GuestStats, Pattern, TrackerChoice,
    TrackerKind, Workload, page_hash_of,
};
use snapshot::page::PageBytes;
use snapshot::ports::Cancel;
use snapshot::{Bytes, PageCount, PageSet, Pfn};

const PATIENCE: Duration = Duration::from_secs(10);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_embedded-guest"))
}

fn start(spec: GuestSpec) -> EmbeddedGuest {
    EmbeddedGuest::spawn(program(), &[], spec).expect("a guest")
}

fn suspend(guest: &EmbeddedGuest) {
    guest.suspend(PATIENCE, &Cancel::new()).expect("suspended");
}

fn stats(guest: &EmbeddedGuest) -> GuestStats {
    guest.stats().expect("counters")
}

fn fetch(guest: &EmbeddedGuest) -> Vec<u64> {
    let mut dirty = PageSet::new(guest.layout().span());
    guest.fetch_dirty(&mut dirty).expect("fetched");
    dirty.iter().map(|pfn| pfn.0).collect()
}

fn peek(guest: &EmbeddedGuest) -> Vec<u64> {
    let mut dirty = PageSet::new(guest.layout().span());
    guest.peek_dirty(&mut dirty).expect("looked at");
    dirty.iter().map(|pfn| pfn.0).collect()
}

fn touch(guest: &EmbeddedGuest, pfns: &[u64]) {
    let pfns: Vec<_> = pfns.iter().copied().map(Pfn).collect();
    guest.touch(&pfns).expect("touched");
}

/// Runs a test with each tracker that works here.
fn with_each_tracker(spec: &GuestSpec, test: impl Fn(EmbeddedGuest)) {
    for (choice, kind) in [
        (TrackerChoice::PagemapScan, TrackerKind::PagemapScan),
        (TrackerChoice::Mprotect, TrackerKind::Mprotect),
    ] {
        let mut spec = spec.clone();
        spec.tracker = choice;
        match EmbeddedGuest::spawn(program(), &[], spec) {
            Ok(guest) => {
                assert_eq!(guest.tracker(), kind);
                test(guest);
            }
            Err(error @ GuestError::NoTracker(..)) if kind == TrackerKind::PagemapScan => {
                eprintln!("SKIPPED with {kind}: {error}");
            }
            Err(error) => panic!("{kind}: {error}"),
        }
    }
}

/// A guest whose pages are populated at the first touch only, with two holes.
fn sparse(memory: Bytes) -> GuestSpec {
    let mut spec = GuestSpec::new("sparse", memory);
    spec.content.populated = false;
    spec.content.zero_percent = 100;
    spec.content.text_percent = 0;
    spec.absent = vec![300..1000, spec.span.0 - 7..spec.span.0];
    spec
}

#[test]
fn a_tracker_is_found_on_every_machine() {
    let guest = start(GuestSpec::new("g", Bytes::from_mib(8)));
    eprintln!("tracker: {}", guest.tracker());
    guest.track().expect("on");
    assert!(
        matches!(guest.track(), Err(GuestError::Refused { .. })),
        "it is on already"
    );
    guest.untrack().expect("off");
    assert!(
        matches!(guest.untrack(), Err(GuestError::Refused { .. })),
        "it is off already"
    );
    let mut dirty = PageSet::new(guest.layout().span());
    assert!(
        guest.fetch_dirty(&mut dirty).is_err(),
        "nothing can be known while it is off"
    );
}

#[test]
fn first_touches_rewrites_and_scattered_writes_are_seen_once_each() {
    with_each_tracker(&sparse(Bytes::from_mib(64)), |guest| {
        touch(&guest, &[8]);
        guest.track().expect("on");
        assert_eq!(
            fetch(&guest),
            [0u64; 0],
            "what was written before does not count"
        );
        // A page touched before, and pages that never were, at the edges of words and holes.
        let pages = [0, 8, 63, 64, 65, 299, 1000, 8191, 16_376];
        touch(&guest, &pages);
        assert_eq!(peek(&guest), pages);
        assert_eq!(peek(&guest), pages, "looking forgets nothing");
        assert_eq!(fetch(&guest), pages);
        assert_eq!(fetch(&guest), [0u64; 0], "a fetch forgets");
        touch(&guest, &pages[3..6]);
        touch(&guest, &pages[3..6]);
        touch(&guest, &[1001]);
        assert_eq!(fetch(&guest), [64, 65, 299, 1001]);
        let scattered: Vec<u64> = (1000..16_000).step_by(37).collect();
        touch(&guest, &scattered);
        assert_eq!(fetch(&guest), scattered);
        guest.untrack().expect("off");
        touch(&guest, &pages);
        guest.track().expect("on again");
        assert_eq!(
            fetch(&guest),
            [0u64; 0],
            "what was written while it was off does not count"
        );
        touch(&guest, &pages);
        assert_eq!(fetch(&guest), pages);
    });
}

#[test]
fn more_scattered_pages_than_the_kernel_has_mappings_are_seen() {
    // Every other page, more often than vm.max_map_count (65530 by default) allows `mprotect` to
    // tell neighbours apart. Pages too many may be reported then, never one too few.
    let spec = sparse(Bytes::from_mib(600));
    with_each_tracker(&spec, |guest| {
        guest.track().expect("on");
        let mut want = PageSet::new(guest.layout().span());
        let every_other: Vec<_> = (2000..150_000).step_by(2).map(Pfn).collect();
        every_other.iter().for_each(|&pfn| want.insert(pfn));
        guest.touch(&every_other).expect("touched");
        let mut found = PageSet::new(guest.layout().span());
        guest.fetch_dirty(&mut found).expect("fetched");
        let mut missed = want.clone();
        missed.subtract(&found);
        assert_eq!(missed.count(), PageCount(0));
        if guest.tracker() == TrackerKind::PagemapScan {
            assert_eq!(found, want);
        }
        touch(&guest, &[1000, 200_000 % 150_000]);
        assert_eq!(
            fetch(&guest),
            [1000, 50_000],
            "the next round is exact again"
        );
    });
}

#[test]
fn a_page_that_does_not_exist_cannot_be_touched_or_read() {
    let guest = start(sparse(Bytes::from_mib(64)));
    assert!(matches!(
        guest.touch(&[Pfn(300)]),
        Err(GuestError::Refused { .. })
    ));
    assert!(matches!(
        guest.touch(&[Pfn(u64::MAX)]),
        Err(GuestError::Refused { .. })
    ));
    assert!(
        guest
            .memory()
            .read(&[Pfn(999)], &mut [PageBytes::ZERO])
            .is_err()
    );
    guest
        .touch(&[Pfn(1000)])
        .expect("the guest is none the worse");
}

/// Copies pages as a saver would: whatever the guest writes meanwhile.
fn copy(guest: &EmbeddedGuest, pages: &PageSet, copies: &mut BTreeMap<u64, PageBytes>) {
    let pfns: Vec<_> = pages.iter().collect();
    for batch in pfns.chunks(256) {
        let mut read = vec![PageBytes::ZERO; batch.len()];
        guest.memory().read(batch, &mut read).expect("read");
        copies.extend(batch.iter().map(|pfn| pfn.0).zip(read));
    }
}

/// Saves the memory by rounds of fetch and copy, with a final one while the guest is suspended.
fn save(guest: &EmbeddedGuest, rounds: u32) -> (BTreeMap<u64, PageBytes>, GuestState) {
    let mut copies = BTreeMap::new();
    guest.track().expect("on");
    let mut dirty = guest.layout().present().clone();
    for _ in 0..rounds {
        copy(guest, &dirty, &mut copies);
        dirty.clear();
        guest.fetch_dirty(&mut dirty).expect("fetched");
        let before = stats(guest).written;
        wait_until("it works", || stats(guest).written > before + 30);
    }
    suspend(guest);
    guest.peek_dirty(&mut dirty).expect("looked at");
    copy(guest, &dirty, &mut copies);
    let state = guest.state().expect("a state");
    guest.resume().expect("resumed");
    guest.untrack().expect("off");
    (copies, state)
}

fn checksum(pages: &BTreeMap<u64, PageBytes>) -> u64 {
    pages
        .iter()
        .map(|(&pfn, page)| page_hash_of(Pfn(pfn), &page.0))
        .fold(0, u64::wrapping_add)
}

fn busy(memory: Bytes, pattern: Pattern, threads: u32, rate: Option<u64>) -> GuestSpec {
    let mut spec = GuestSpec::new("busy", memory);
    spec.workload = Workload {
        pattern,
        rate,
        region: None,
        threads,
    };
    spec
}

#[test]
fn nothing_is_missed_under_racing_writers() {
    for (pattern, rate) in [
        (Pattern::Ring, None),
        (Pattern::Hot, None),
        (Pattern::Random, Some(20_000)),
    ] {
        let mut spec = busy(Bytes::from_mib(32), pattern, 3, rate);
        spec.absent = vec![1000..2000];
        with_each_tracker(&spec, |guest| {
            for rounds in [1, 4, 8] {
                let (copies, state) = save(&guest, rounds);
                assert_eq!(copies.len() as u64, guest.layout().pages().0);
                assert_eq!(
                    checksum(&copies),
                    state.checksum,
                    "{pattern:?} {}",
                    guest.tracker()
                );
            }
            suspend(&guest);
            assert!(guest.verify().expect("verified").matches());
        });
    }
}

#[test]
fn a_restored_guest_has_the_memory_and_goes_on_from_the_cut() {
    let mut spec = busy(Bytes::from_mib(16), Pattern::Random, 2, None);
    spec.absent = vec![100..200];
    let guest = start(spec);
    let (copies, state) = save(&guest, 3);
    drop(guest);
    let record = state.encode();
    let restored = EmbeddedGuest::spawn_restored(program(), &[], &record).expect("a guest");
    let verdict = restored.verify().expect("verified");
    assert!(!verdict.matches(), "empty memory is not the one saved");
    for (&pfn, page) in &copies {
        restored.memory().write(Pfn(pfn), &page.0).expect("written");
    }
    assert!(restored.verify().expect("verified").matches());
    assert_eq!(restored.state().expect("a state"), state);
    // One wrong byte.
    let (&pfn, page) = copies.iter().nth(77).expect("a page");
    let mut wrong = page.clone();
    wrong.0[4095] ^= 1;
    restored
        .memory()
        .write(Pfn(pfn), &wrong.0)
        .expect("written");
    assert!(!restored.verify().expect("verified").matches());
    restored.memory().write(Pfn(pfn), &page.0).expect("written");
    let before: u64 = state.threads.iter().map(|thread| thread.written).sum();
    assert_eq!(stats(&restored).written, before);
    restored.resume().expect("resumed");
    wait_until("it works on", || stats(&restored).written > before + 1000);
    suspend(&restored);
    assert!(restored.verify().expect("verified").matches());
}

#[test]
fn a_record_of_something_else_is_refused() {
    for record in [&b"hvm"[..], b"{}", b""] {
        let refused = EmbeddedGuest::spawn_restored(program(), &[], record);
        assert!(matches!(refused, Err(GuestError::State(_))), "{record:?}");
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_pause_stops_all_writing_and_is_what_the_guest_notices() {
    let guest = start(busy(Bytes::from_mib(16), Pattern::Random, 2, None));
    for round in 0..3 {
        let running = stats(&guest);
        wait_until("it works and its clock goes", || {
            let now = stats(&guest);
            now.written > running.written + 100 && now.ticks > running.ticks
        });
        guest.reset_gap().expect("reset");
        suspend(&guest);
        let (still, memory) = (stats(&guest), all_pages(&guest));
        assert!(
            guest.suspend(PATIENCE, &Cancel::new()).is_err(),
            "it is suspended already"
        );
        thread::sleep(Duration::from_millis(60));
        let later = stats(&guest);
        assert_eq!(
            (later.written, later.ticks),
            (still.written, still.ticks),
            "round {round}"
        );
        assert_eq!(
            checksum(&all_pages(&guest)),
            checksum(&memory),
            "round {round}"
        );
        guest.resume().expect("resumed");
        assert!(guest.resume().is_err(), "it runs already");
        wait_until("its clock goes on", || {
            stats(&guest).ticks > still.ticks + 1
        });
        let gap = Duration::from_nanos(stats(&guest).largest_gap_ns);
        assert!(
            gap >= Duration::from_millis(60) && gap < PATIENCE,
            "{gap:?}"
        );
    }
}

fn all_pages(guest: &EmbeddedGuest) -> BTreeMap<u64, PageBytes> {
    let mut pages = BTreeMap::new();
    copy(guest, guest.layout().present(), &mut pages);
    pages
}

#[test]
fn a_cap_takes_work_and_cpu_time_away_and_gives_it_back() {
    let guest = start(busy(Bytes::from_mib(16), Pattern::Ring, 1, None));
    let measure = || {
        let (before, start) = (stats(&guest), Instant::now());
        thread::sleep(Duration::from_millis(600));
        let (after, seconds) = (stats(&guest), start.elapsed().as_secs_f64());
        let cpu = Duration::from_nanos(after.cpu_ns - before.cpu_ns).as_secs_f64() / seconds;
        ((after.written - before.written) as f64 / seconds, cpu)
    };
    let (free, free_cpu) = measure();
    guest.cap_cpu(2).expect("capped");
    let (capped, capped_cpu) = measure();
    guest.cap_cpu(0).expect("lifted");
    let (lifted, _) = measure();
    eprintln!(
        "{free:.0}/s with {free_cpu:.2} CPUs; {capped:.0}/s with {capped_cpu:.2}; {lifted:.0}/s"
    );
    // Bounds wide enough for a machine with other things to do.
    assert!(capped_cpu < 0.05, "{capped_cpu}");
    assert!(capped > 0.0 && capped < free * 0.5, "{capped} of {free}");
    assert!(lifted > capped * 1.5, "{lifted} after {capped}");
}

#[test]
fn the_workload_keeps_its_rate_and_region() {
    let mut spec = busy(Bytes::from_mib(16), Pattern::Random, 2, Some(2000));
    spec.workload.region = Some(PageCount(50));
    let guest = start(spec);
    guest.track().expect("on");
    let (before, start) = (stats(&guest).written, Instant::now());
    thread::sleep(Duration::from_millis(500));
    let rate = (stats(&guest).written - before) as f64 / start.elapsed().as_secs_f64();
    // A machine with other things to do may be slower, but nothing makes it faster (20 pages per
    // thread are made up for).
    assert!(rate > 500.0 && rate < 2200.0, "{rate}");
    let dirty = fetch(&guest);
    assert!(
        dirty.len() > 40 && dirty.iter().all(|&pfn| pfn < 50),
        "{dirty:?}"
    );
}

#[test]
fn a_guest_that_does_not_suspend_is_told_to_forget_it() {
    for (fault, acknowledges) in [
        (Fault::IgnoresSuspend, false),
        (Fault::AcknowledgesOnly, true),
    ] {
        let mut spec = busy(Bytes::from_mib(16), Pattern::Ring, 1, None);
        spec.fault = Some(fault);
        let guest = start(spec);
        let timeout = Duration::from_millis(100);
        let start = Instant::now();
        let error = guest
            .suspend(timeout, &Cancel::new())
            .expect_err("it does not suspend");
        assert!(start.elapsed() >= timeout && start.elapsed() < PATIENCE);
        let GuestError::NotSuspended { acknowledged, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(acknowledged, acknowledges, "{fault:?}");
        assert!(
            guest.state().is_err(),
            "a running guest has no state to give"
        );
        let before = stats(&guest).written;
        wait_until("it works on", || stats(&guest).written > before);

        let cancel = Cancel::new();
        let raiser = cancel.clone();
        let signal = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            raiser.raise(15);
        });
        let error = guest.suspend(PATIENCE * 6, &cancel).expect_err("cancelled");
        assert!(matches!(error, GuestError::Interrupted(15)), "{error}");
        signal.join().expect("raised");
    }
}

#[test]
fn a_killed_guest_is_gone_whatever_it_is_asked() {
    with_each_tracker(
        &busy(Bytes::from_mib(64), Pattern::Ring, 2, None),
        |guest| {
            guest.track().expect("on");
            let killed = Command::new("kill")
                .args(["-9", &guest.pid().to_string()])
                .status();
            assert!(killed.expect("kill runs").success());
            let mut dirty = PageSet::new(guest.layout().span());
            let gone = |what: &str, result: Result<(), GuestError>| {
                assert!(
                    matches!(result, Err(GuestError::Gone(_))),
                    "{what}: {result:?}"
                );
            };
            // First of all the fetch: a scan of the dead memory alone finds it clean.
            gone("fetch", guest.fetch_dirty(&mut dirty));
            gone("suspend", guest.suspend(PATIENCE, &Cancel::new()));
            gone("state", guest.state().map(|_| ()));
            gone("resume", guest.resume());
            gone("cap", guest.cap_cpu(5));
            gone("untrack", guest.untrack());
            // The memory outlives it, as the parent has it too.
            copy(&guest, guest.layout().present(), &mut BTreeMap::new());
        },
    );
}

/// Whether a process does not run any more; what is left of it may wait for its parent.
fn has_ended(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn a_guest_ends_with_its_handle() {
    let guest = start(busy(Bytes::from_mib(8), Pattern::Ring, 1, None));
    let pid = guest.pid().to_string();
    assert!(!has_ended(&pid));
    drop(guest);
    assert!(!Path::new("/proc").join(&pid).exists(), "ended and reaped");
}

#[test]
fn a_guest_ends_with_its_parent_even_if_that_is_killed() {
    let mut parent = Command::new(program())
        .arg("hold")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a parent");
    let mut pid = String::new();
    let stdout = parent.stdout.take().expect("its output");
    BufReader::new(stdout)
        .read_line(&mut pid)
        .expect("a process number");
    let pid = pid.trim();
    assert!(!pid.is_empty() && !has_ended(pid));
    parent.kill().expect("killed");
    parent.wait().expect("reaped");
    wait_until("the guest has ended", || has_ended(pid));
}

#[test]
fn a_program_that_is_no_guest_is_an_error() {
    let spec = GuestSpec::new("g", Bytes::from_mib(1));
    let missing = EmbeddedGuest::spawn(Path::new("/nonexistent"), &[], spec.clone());
    assert!(matches!(missing, Err(GuestError::Call { .. })));
    let other = EmbeddedGuest::spawn(Path::new("/bin/true"), &[], spec);
    assert!(matches!(other, Err(GuestError::Gone(_))), "{other:?}");
}
