use proptest::prelude::*;

use super::*;

fn past(rate: f64, left: u64, pages: u64) -> PastWindow {
    PastWindow {
        rate,
        left: PageCount(left),
        pages: PageCount(pages),
        copy_s: pages as f64 * 5e-6,
        fixed_s: 0.06,
        suspend_s: 0.05,
        ..PastWindow::default()
    }
}

/// Of a guest about which nothing is known.
fn learn(past: &[PastWindow], rate: f64, page_s: Option<f64>) -> Costs {
    Costs::learn(past, &Circumstances::default(), rate, page_s)
}

fn of_kind(kind: GuestKind) -> Circumstances {
    Circumstances {
        kind: Some(kind),
        vcpus: 1,
        ..Circumstances::default()
    }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6 * b.abs().max(1e-6)
}

#[test]
fn with_nothing_known_the_guess_is_on_the_safe_side() {
    let costs = learn(&[], 10_000.0, None);
    assert_eq!(costs.doubt(PageCount(0)), Some(Doubt::Guess));
    assert!(near(costs.extra, FREEZE_PAGES + 10_000.0 * TAIL_S));
    assert!(costs.window_s(PageCount(0)) > FIXED_S);
    // What was measured wins over the constant.
    assert!(near(learn(&[], 0.0, Some(2e-6)).page_s, 2e-6));
}

#[test]
fn one_earlier_window_tells_the_next_like_it() {
    let costs = learn(&[past(5000.0, 60, 460)], 5000.0, Some(99.0));
    assert_eq!(
        (costs.basis, costs.doubt(PageCount(0))),
        (Basis::Like, None)
    );
    assert!(near(costs.extra, 400.0) && near(costs.page_s, 5e-6));
    assert!(near(costs.window_s(PageCount(100)), 0.06 + 500.0 * 5e-6));
    // At another pace the guess of its tail is used.
    let busy = learn(&[past(5000.0, 60, 460)], 65_000.0, None);
    assert!(near(busy.extra, 400.0 + 60_000.0 * TAIL_S));
}

#[test]
fn how_long_the_guest_works_on_is_read_from_windows_at_other_rates() {
    let past: Vec<_> = [0.0, 10_000.0, 40_000.0]
        .iter()
        .map(|&rate| past(rate, 100, 500 + (rate * 0.02) as u64))
        .collect();
    let costs = learn(&past, 20_000.0, None);
    assert!(near(costs.extra, 800.0), "{}", costs.extra);
}

#[test]
fn pages_within_a_window_are_its_inverse() {
    let costs = learn(&[past(0.0, 0, 400)], 0.0, None);
    assert_eq!(costs.pages_within(0.01), None);
    let pages = costs.pages_within(0.1).expect("room");
    assert!(near(costs.window_s(PageCount(pages as u64)), 0.1));
}

#[test]
fn what_is_guessed_of_an_hvm_guest_is_no_reason_to_refuse_it() {
    let hvm = of_kind(GuestKind::Hvm);
    let at = |fixed_s| PastWindow {
        fixed_s,
        suspend_s: fixed_s / 2.0,
        when: hvm,
        ..past(0.0, 0, 400)
    };
    let nothing = Costs::learn(&[], &hvm, 0.0, None);
    assert!(near(nothing.fixed_s, FIXED_HVM_S) && nothing.basis == Basis::Guess);
    // It is not refused for what is guessed.
    assert!(near(
        nothing.known_s(PageCount(0)),
        nothing.floor_s() - FIXED_HVM_S + FIXED_S
    ));
    let known = Costs::learn(&[at(0.3)], &hvm, 0.0, None);
    assert!(near(known.fixed_s, 0.3) && near(known.suspend_s, 0.15));
    assert_eq!(known.basis, Basis::Like);
    assert!(near(
        known.known_s(PageCount(9)),
        known.window_s(PageCount(9))
    ));
}

#[test]
fn the_fixed_part_goes_by_circumstances_and_age_and_not_by_the_rate() {
    let at = |rate, fixed_s, vcpus| PastWindow {
        fixed_s,
        when: Circumstances {
            vcpus,
            ..of_kind(GuestKind::Pvh)
        },
        ..past(rate, 0, 400)
    };
    let now = of_kind(GuestKind::Pvh);
    let fixed = |past: &[PastWindow]| Costs::learn(past, &now, 5000.0, None).fixed_s;
    // One save at the very rate, long ago.
    let mut seen = vec![at(5000.0, 0.9, 1)];
    seen.extend([at(0.0, 0.1, 1); 6]);
    assert!(near(fixed(&seen), 0.1));
    // One with a vCPU says more than two with four.
    assert!(near(
        fixed(&[at(5000.0, 0.1, 1), at(0.0, 3.0, 4), at(0.0, 3.0, 4)]),
        0.1
    ));
    let unlike = Costs::learn(&[at(0.0, 3.0, 4)], &now, 0.0, Some(2e-6));
    assert_eq!(unlike.doubt(PageCount(0)), Some(Doubt::Unlike));
    // What a page costs was measured then, too.
    assert!(near(unlike.page_s, 2e-6));
    // One like it among many that are not.
    let mut few = vec![at(0.0, 3.0, 2); 12];
    few.insert(0, at(0.0, 0.1, 1));
    assert_eq!(Costs::learn(&few, &now, 0.0, None).basis, Basis::Unlike);
    // The host has slowed down: the later ones are believed, though they are fewer.
    let slower: Vec<_> = (0..12)
        .map(|n| at(0.0, if n < 7 { 0.1 } else { 0.2 }, 1))
        .collect();
    assert!(near(fixed(&slower), 0.2));
}

#[test]
fn what_is_dirtied_on_the_way_is_read_from_the_most_like_only() {
    let at = |vcpus, rate, pages| PastWindow {
        when: Circumstances {
            vcpus,
            ..of_kind(GuestKind::Pvh)
        },
        ..past(rate, 0, pages)
    };
    // Guests with four vCPUs, at the very rate, dirtied many times as much.
    let mut seen = vec![at(4, 5000.0, 20_000); 5];
    seen.push(at(1, 4000.0, 400));
    let now = of_kind(GuestKind::Pvh);
    let costs = Costs::learn(&seen, &now, 5000.0, None);
    assert!(near(costs.extra, 400.0 + 1000.0 * TAIL_S));
}

#[test]
fn where_like_saves_differ_it_is_said() {
    let at = |fixed_s| PastWindow {
        fixed_s,
        ..past(0.0, 0, 400)
    };
    let doubt = |seen: &[f64], left| {
        let seen: Vec<_> = seen.iter().map(|s| at(*s)).collect();
        learn(&seen, 0.0, None).doubt(PageCount(left))
    };
    assert_eq!(doubt(&[0.1, 0.11, 0.12, 0.1], 0), None);
    let apart = doubt(&[0.1, 0.3, 0.1, 0.3], 0).expect("doubt");
    assert_eq!(apart.to_string(), "by earlier saves it is 102ms to 302ms");
    // Beside a second of copying nobody minds.
    assert_eq!(doubt(&[0.1, 0.3, 0.1, 0.3], 200_000), None);
}

proptest! {
    /// Whatever was seen, a forecast is a length of time that grows with what is left.
    #[test]
    fn forecasts_are_sane(
        seen in prop::collection::vec((0.0..1e6f64, 0u64..1_000_000, 0u64..1_000_000), 0..20),
        rate in 0.0..1e6f64,
        left in 0u64..1_000_000,
    ) {
        let seen: Vec<_> = seen.into_iter().map(|(r, l, p)| past(r, l, p)).collect();
        let costs = learn(&seen, rate, None);
        let window = costs.window_s(PageCount(left));
        prop_assert!(window.is_finite() && window >= costs.floor_s());
        prop_assert!(costs.window_s(PageCount(left + 1000)) >= window);
    }
}
