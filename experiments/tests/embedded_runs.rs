//! The harness's runs on the embedded guest: each method gives whole figures and leaves nothing.
//!
//! Nothing here depends on how fast the machine is: one that stands still makes a run the machine's
//! fault, with its figures.

use std::path::Path;

use experiments::harness::case::{Backend, Case, GuestKind, Load, Method, Planned};
use experiments::harness::embedded::Embedded;
use experiments::harness::record::{Measured, Outcome};
use experiments::harness::sweep::Runner;

const PROGRAM: &str = env!("CARGO_BIN_EXE_throughput");
const PAGES: u64 = 32 << 8;

fn planned(pattern: &str, rate: &str, method: Method) -> Planned {
    Planned {
        case: Case {
            study: "test".into(),
            backend: Backend::Embedded,
            guest: GuestKind::Embedded,
            memory_mib: 32,
            vcpus: 1,
            cap: None,
            load: Load {
                pattern: pattern.into(),
                rate: rate.into(),
            },
            method,
            target_ms: None,
            dirty_percent: (method == Method::Increment).then_some(10),
        },
        repeat: 0,
    }
}

fn measured(runs: &mut Embedded, planned: &Planned) -> Measured {
    let (outcome, measured) = runs.measure(planned).expect("a run");
    assert!(!matches!(outcome, Outcome::Method(_)), "{outcome:?}");
    measured.unwrap_or_else(|| panic!("{outcome:?}"))
}

#[test]
fn each_method_gives_whole_figures() {
    let mut runs = Embedded::with_program(Path::new(PROGRAM)).expect("a directory");
    for (pattern, rate) in [("ring", "2000"), ("idle", "0")] {
        for method in [
            Method::Plain,
            Method::Live,
            Method::Improved,
            Method::Increment,
        ] {
            let run = measured(&mut runs, &planned(pattern, rate, method));
            let what = format!("{pattern} {method}: {run:?}");
            assert!(run.gap_s > 0.0, "{what}");
            assert!(run.suspended_s.expect("seen") <= run.window_s.expect("seen"));
            assert!(run.window_s.expect("seen") <= run.total_s, "{what}");
            assert!(run.host_cpu_s > 0.0 && run.peak_memory > 0, "{what}");
            assert_eq!(run.rounds.is_empty(), method == Method::Plain, "{what}");
            assert_eq!(run.predicted_s.is_none(), method == Method::Plain, "{what}");
            assert_eq!(run.writes_per_s > 0.0, pattern == "ring", "{what}");
            assert!(run.allocated_bytes > 0 && run.network_bytes == 0);
            if method == Method::Increment {
                assert!(run.pages_sent >= PAGES / 10 - 1, "{what}");
                assert!(run.image_bytes < 32 << 20, "{what}");
            } else {
                assert!(run.pages_sent >= PAGES, "{what}");
                assert!(run.image_bytes > 32 << 20, "{what}");
            }
        }
    }
}

#[test]
fn a_capped_guest_is_measured_with_its_cap() {
    let mut runs = Embedded::with_program(Path::new(PROGRAM)).expect("a directory");
    let mut capped = planned("random", "max", Method::Improved);
    capped.case.cap = Some(20);
    capped.case.target_ms = Some(1000);
    let run = measured(&mut runs, &capped);
    assert!(run.writes_per_s > 0.0);
    assert!(run.target_met.is_some());
}

#[test]
fn what_does_not_fit_is_the_machines_fault_and_harms_nothing() {
    let mut runs = Embedded::with_program(Path::new(PROGRAM)).expect("a directory");
    let mut huge = planned("idle", "0", Method::Plain);
    huge.case.memory_mib = 1 << 20;
    let (outcome, none) = runs.measure(&huge).expect("refused, not failed");
    let Outcome::Machine(why) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(why.contains("GiB"), "{why}");
    assert!(none.is_none());
    measured(&mut runs, &planned("idle", "0", Method::Plain));
}

#[test]
fn a_guest_that_does_not_start_is_the_machines_fault() {
    let mut runs = Embedded::with_program(Path::new("/bin/false")).expect("a directory");
    let (outcome, _) = runs
        .measure(&planned("idle", "0", Method::Plain))
        .expect("tried");
    assert!(matches!(outcome, Outcome::Machine(_)), "{outcome:?}");
}

#[test]
fn a_run_that_is_not_its_own_is_an_error() {
    let mut runs = Embedded::with_program(Path::new(PROGRAM)).expect("a directory");
    let mut xen = planned("ring", "100", Method::Live);
    xen.case.backend = Backend::Xen;
    assert!(runs.measure(&xen).is_err());
    assert!(
        runs.measure(&planned("ring", "100", Method::Migration))
            .is_err()
    );
}
