use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a time zone")
}

fn times(texts: &[&str]) -> Vec<Timestamp> {
    texts
        .iter()
        .map(|text| text.parse().expect("a time"))
        .collect()
}

/// What is kept, as `time why, why`.
fn kept(texts: &[&str], rules: Rules, zone: &TimeZone) -> Vec<String> {
    let reasons = decide(&times(texts), &rules, zone);
    texts
        .iter()
        .zip(reasons)
        .filter(|(_, reasons)| !reasons.is_empty())
        .map(|(text, reasons)| {
            let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
            format!("{text} {}", reasons.join(", "))
        })
        .collect()
}

#[test]
fn each_rule_keeps_the_latest_of_its_time() {
    let images = [
        "2026-01-01T00:30:00Z",
        "2026-01-01T23:30:00Z",
        "2026-01-04T12:00:00Z",
        "2026-01-05T12:00:00Z",
        "2026-02-01T12:00:00Z",
        "2026-02-01T12:59:00Z",
        "2026-02-01T13:00:00Z",
    ];
    let none = Rules::default();
    let table: [(Rules, &[&str]); 6] = [
        (
            Rules { last: 2, ..none },
            &["2026-02-01T12:59:00Z last", "2026-02-01T13:00:00Z last"],
        ),
        (
            Rules { hourly: 2, ..none },
            &["2026-02-01T12:59:00Z hourly", "2026-02-01T13:00:00Z hourly"],
        ),
        (
            Rules { daily: 3, ..none },
            &[
                "2026-01-04T12:00:00Z daily",
                "2026-01-05T12:00:00Z daily",
                "2026-02-01T13:00:00Z daily",
            ],
        ),
        // 4 January 2026 is a Sunday: it ends the first week of the year, 5 January begins another.
        (
            Rules { weekly: 3, ..none },
            &[
                "2026-01-04T12:00:00Z weekly",
                "2026-01-05T12:00:00Z weekly",
                "2026-02-01T13:00:00Z weekly",
            ],
        ),
        (
            Rules { monthly: 2, ..none },
            &[
                "2026-01-05T12:00:00Z monthly",
                "2026-02-01T13:00:00Z monthly",
            ],
        ),
        (
            Rules { monthly: 3, ..none },
            &[
                "2026-01-01T00:30:00Z monthly (the oldest)",
                "2026-01-05T12:00:00Z monthly",
                "2026-02-01T13:00:00Z monthly",
            ],
        ),
    ];
    for (rules, want) in table {
        assert_eq!(kept(&images, rules, &TimeZone::UTC), want, "{rules:?}");
    }
}

#[test]
fn what_any_rule_keeps_stays_and_every_reason_is_told() {
    let rules = Rules {
        last: 1,
        daily: 2,
        ..Rules::default()
    };
    let images = [
        "2026-01-01T01:00:00Z",
        "2026-01-02T01:00:00Z",
        "2026-01-02T02:00:00Z",
        "2026-01-03T01:00:00Z",
    ];
    assert_eq!(
        kept(&images, rules, &TimeZone::UTC),
        [
            "2026-01-02T02:00:00Z daily",
            "2026-01-03T01:00:00Z last, daily"
        ]
    );
}

#[test]
fn a_day_is_one_of_the_time_zone() {
    let rules = Rules {
        daily: 2,
        ..Rules::default()
    };
    // 23:30 UTC is the next day already in Berlin.
    let images = [
        "2026-01-01T12:00:00Z",
        "2026-01-01T23:30:00Z",
        "2026-01-02T12:00:00Z",
    ];
    assert_eq!(
        kept(&images, rules, &TimeZone::UTC),
        ["2026-01-01T23:30:00Z daily", "2026-01-02T12:00:00Z daily"]
    );
    assert_eq!(
        kept(&images, rules, &berlin()),
        ["2026-01-01T12:00:00Z daily", "2026-01-02T12:00:00Z daily"]
    );
}

#[test]
fn the_hour_that_comes_twice_is_two_hours() {
    let rules = Rules {
        hourly: 3,
        ..Rules::default()
    };
    // 02:30 summer time, 02:30 winter time, 03:30.
    let images = [
        "2026-10-25T00:30:00Z",
        "2026-10-25T01:30:00Z",
        "2026-10-25T02:30:00Z",
    ];
    assert_eq!(kept(&images, rules, &berlin()).len(), 3);
}

#[test]
fn without_rules_the_latest_is_kept() {
    let images = ["2026-01-02T01:00:00Z", "2026-01-01T01:00:00Z"];
    assert_eq!(
        kept(&images, Rules::default(), &TimeZone::UTC),
        ["2026-01-02T01:00:00Z the last good image"]
    );
    assert!(decide(&[], &Rules::default(), &TimeZone::UTC).is_empty());
}

/// One rule, said in another way than the code does.
fn expected(cuts: &[Timestamp], rule: Rule, count: u32, zone: &TimeZone) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..cuts.len()).collect();
    order.sort_by_key(|&index| (cuts[index], std::cmp::Reverse(index)));
    order.reverse();
    let same = |a: usize, b: usize| {
        let (a, b) = (
            cuts[a].to_zoned(zone.clone()),
            cuts[b].to_zoned(zone.clone()),
        );
        match rule {
            Rule::Last => false,
            Rule::Hourly => {
                a.strftime("%F %H %z").to_string() == b.strftime("%F %H %z").to_string()
            }
            Rule::Daily => a.date() == b.date(),
            Rule::Weekly => a.strftime("%G %V").to_string() == b.strftime("%G %V").to_string(),
            Rule::Monthly => (a.year(), a.month()) == (b.year(), b.month()),
        }
    };
    let firsts: Vec<usize> = (0..order.len())
        .filter(|&n| n == 0 || !same(order[n - 1], order[n]))
        .map(|n| order[n])
        .collect();
    let mut kept: BTreeSet<_> = firsts.iter().copied().take(count as usize).collect();
    if count > 0 && firsts.len() < count as usize {
        kept.extend(order.last());
    }
    kept
}

fn kept_indices(cuts: &[Timestamp], rules: &Rules, zone: &TimeZone) -> BTreeSet<usize> {
    let reasons = decide(cuts, rules, zone);
    (0..cuts.len())
        .filter(|&n| !reasons[n].is_empty())
        .collect()
}

fn only(rule: Rule, count: u32) -> Rules {
    let mut rules = Rules::default();
    *match rule {
        Rule::Last => &mut rules.last,
        Rule::Hourly => &mut rules.hourly,
        Rule::Daily => &mut rules.daily,
        Rule::Weekly => &mut rules.weekly,
        Rule::Monthly => &mut rules.monthly,
    } = count;
    rules
}

prop_compose! {
    /// Moments of about two months around a change of the clocks, or of some years, some alike.
    fn moments()(
        spread in prop::sample::select(vec![3600u32, 86_400, 5_000_000, 100_000_000]),
        seconds in prop::collection::vec(any::<u32>(), 0..60),
    ) -> Vec<Timestamp> {
        let start = 1_792_000_000i64;
        seconds
            .iter()
            .map(|s| Timestamp::from_second(start + i64::from(s % spread)).expect("a time"))
            .collect()
    }
}

prop_compose! {
    fn some_rules()(counts in [0u32..5, 0..5, 0..5, 0..5, 0..5]) -> Rules {
        let [last, hourly, daily, weekly, monthly] = counts;
        Rules { last, hourly, daily, weekly, monthly }
    }
}

fn zone() -> impl Strategy<Value = TimeZone> {
    prop::sample::select(vec![TimeZone::UTC, berlin()])
}

proptest! {
    #[test]
    fn the_rules_are_united(cuts in moments(), rules in some_rules(), zone in zone()) {
        let mut want = BTreeSet::new();
        for rule in Rule::ALL {
            want.extend(expected(&cuts, rule, rule.count(&rules), &zone));
        }
        want.extend(expected(&cuts, Rule::Last, 1, &zone));
        prop_assert_eq!(kept_indices(&cuts, &rules, &zone), want);
    }

    #[test]
    fn a_rule_keeps_no_more_than_its_number_and_more_keep_more(
        cuts in moments(), count in 1u32..6, zone in zone()
    ) {
        for rule in Rule::ALL {
            let fewer = kept_indices(&cuts, &only(rule, count), &zone);
            prop_assert!(fewer.len() <= count as usize);
            prop_assert!(fewer.is_subset(&kept_indices(&cuts, &only(rule, count + 1), &zone)));
        }
    }

    #[test]
    fn what_was_kept_is_kept_again(cuts in moments(), rules in some_rules(), zone in zone()) {
        let kept: Vec<_> = kept_indices(&cuts, &rules, &zone).iter().map(|&n| cuts[n]).collect();
        prop_assert_eq!(kept_indices(&kept, &rules, &zone).len(), kept.len());
    }

    #[test]
    fn the_order_of_the_images_does_not_matter(
        cuts in moments(), rules in some_rules(), zone in zone()
    ) {
        let mut sorted = cuts.clone();
        sorted.sort();
        let moments = |cuts: &[Timestamp]| -> Vec<Timestamp> {
            let mut kept: Vec<_> =
                kept_indices(cuts, &rules, &zone).iter().map(|&n| cuts[n]).collect();
            kept.sort();
            kept
        };
        prop_assert_eq!(moments(&cuts), moments(&sorted));
    }
}
