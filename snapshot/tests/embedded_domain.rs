//! The embedded guest behind the engine's port: the contract, method by method.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapshot::embedded::{
    EmbeddedDomain, EmbeddedGuest, Fault, GuestSpec, Pattern, TrackerChoice, Workload,
};
use snapshot::ports::{Cancel, Domain, DomainError, Idle, MappedPages, Mapper};
use snapshot::{Bytes, PageCount, PageSet, Pfn};

const PATIENCE: Duration = Duration::from_secs(10);

fn program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_embedded-guest")).to_owned()
}

fn domain(spec: GuestSpec) -> EmbeddedDomain {
    let guest = EmbeddedGuest::spawn(&program(), &[], spec).expect("a guest");
    EmbeddedDomain::new(Arc::new(guest))
}

fn with_holes() -> GuestSpec {
    let mut spec = GuestSpec::new("holes", Bytes::from_mib(8));
    spec.content.zero_percent = 0;
    spec.absent = vec![0..3, 100..164, 2047..2048];
    spec
}

#[test]
fn the_memory_map_leaves_the_holes_out_and_a_batch_has_nothing_there() {
    let mut domain = domain(with_holes());
    let pages = domain.memory_map().expect("asked").expect("a map");
    assert_eq!(pages.span(), PageCount(2048));
    assert_eq!(pages.count(), PageCount(2048 - 3 - 64 - 1));
    assert!(
        domain
            .map_holds(&PageSet::new(pages.span()))
            .expect("known")
    );
    let mut mapper = domain.mapper().expect("a mapper");
    let pfns: Vec<_> = [2, 3, 4, 99, 100, 163, 164, 2046, 2047, 9999]
        .map(Pfn)
        .into();
    let batch = mapper.map(&pfns).expect("a batch");
    let exists: Vec<_> = (0..=pfns.len()).map(|i| batch.page(i).is_some()).collect();
    let want = [
        false, true, true, true, false, false, true, true, false, false, false,
    ];
    assert_eq!(exists, want);
    let address = |index: usize| batch.page(index).expect("a page").address();
    assert_eq!(address(2), address(1) + 4096, "neighbours lie side by side");
    assert!(!batch.page(1).expect("a page").is_zero());
    // A smaller batch later is not mistaken for the larger one before.
    let batch = mapper.map(&[Pfn(5)]).expect("a batch");
    assert!(batch.page(0).is_some() && batch.page(1).is_none());
}

#[test]
fn tracking_somebody_else_has_on_is_refused_and_left_on() {
    let mut first = domain(with_holes());
    let mut second = EmbeddedDomain::new(first.guest().clone());
    first.log_dirty_on().expect("on");
    assert!(matches!(
        second.log_dirty_on(),
        Err(DomainError::Call { .. })
    ));
    first.guest().touch(&[Pfn(50)]).expect("touched");
    let mut dirty = PageSet::new(PageCount(2048));
    first.fetch_dirty(&mut dirty, false).expect("fetched");
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Pfn(50)]);
    first.log_dirty_off().expect("off");
    second.log_dirty_on().expect("on, as it is off now");
}

#[test]
fn the_last_fetch_is_complete_and_the_state_is_to_be_had_while_suspended_only() {
    let mut spec = with_holes();
    spec.workload = Workload::full_speed(Pattern::Hot);
    for tracker in [TrackerChoice::Auto, TrackerChoice::Mprotect] {
        spec.tracker = tracker;
        let mut domain = domain(spec.clone());
        domain.log_dirty_on().expect("on");
        assert!(domain.final_state().is_err(), "it runs");
        domain
            .suspend(PATIENCE, &Cancel::new(), &mut Idle)
            .expect("suspended");
        let (mut dirty, mut again) = (PageSet::new(PageCount(2048)), PageSet::new(PageCount(2048)));
        domain.fetch_dirty(&mut dirty, true).expect("fetched");
        domain.fetch_dirty(&mut again, true).expect("fetched");
        assert_eq!(dirty, again, "nothing writes while it is suspended");
        let tail = domain.final_state().expect("a state");
        assert_eq!((tail.libxc.len(), tail.libxl.len()), (1, 0));
        let state = snapshot::embedded::GuestState::decode(&tail.libxc[0].body).expect("a state");
        assert_eq!(state.spec, spec);
        domain.resume().expect("resumed");
        domain.log_dirty_off().expect("off");
    }
}

#[test]
fn a_guest_that_does_not_suspend_runs_on() {
    let mut spec = with_holes();
    spec.workload = Workload::full_speed(Pattern::Ring);
    spec.fault = Some(Fault::AcknowledgesOnly);
    let mut domain = domain(spec);
    let error = domain.suspend(Duration::from_millis(50), &Cancel::new(), &mut Idle);
    assert!(
        matches!(error, Err(DomainError::NotSuspended(_))),
        "{error:?}"
    );
    let cancel = Cancel::new();
    cancel.raise(2);
    let error = domain.suspend(PATIENCE, &cancel, &mut Idle);
    assert!(
        matches!(error, Err(DomainError::Interrupted(2))),
        "{error:?}"
    );
    assert!(domain.resume().is_err(), "it was never suspended");
    assert!(domain.guest().stats().expect("counters").written > 0);
}
