//! Runs sorted into studies, panels and cells.
//!
//! A study has an axis, along which its runs are compared (the cap, say). All else that varies, but for
//! the method, makes panels: one table and one plot each. In a panel, a place on the axis and a method
//! make a cell, and the runs of a cell are repeats of each other.

use super::super::case::{Case, Method};
use super::super::record::{Measured, Outcome, Run};
use super::axis::{Axis, Part, X};
use super::options::Options;
use std::collections::{BTreeMap, BTreeSet};

/// The studies that are known, in the order of the report.
pub const KNOWN: [&str; 7] = [
    "rates",
    "caps",
    "targets",
    "memory",
    "vcpus",
    "types",
    "increments",
];

/// The runs of a method at a place.
#[derive(Debug, Default)]
pub struct Cell<'a> {
    /// What the good ones gave.
    pub good: Vec<&'a Measured>,
    /// How many failed by their method.
    pub failed: usize,
    /// How many livesave refused, for their kind of guest.
    pub refused: usize,
    /// How many the machine spoilt.
    pub spoilt: usize,
}

impl<'a> Cell<'a> {
    fn add(&mut self, run: &'a Run) {
        match (&run.outcome, run.good()) {
            (Outcome::Machine(_), _) => self.spoilt += 1,
            (Outcome::Refused(_), _) => self.refused += 1,
            (Outcome::Good, Some(measured)) => self.good.push(measured),
            // A good run without a measurement is not what the record promises; it must not vanish.
            (Outcome::Method(_) | Outcome::Good, _) => self.failed += 1,
        }
    }
}

/// Runs that differ by method and along the axis only.
#[derive(Debug)]
pub struct Panel<'a> {
    /// What is the same in it and not in the study's other panels; empty of an only panel.
    pub title: String,
    cells: BTreeMap<(X, Method), Cell<'a>>,
}

impl<'a> Panel<'a> {
    /// The places that have runs, in their order.
    #[must_use]
    pub fn places(&self) -> Vec<&X> {
        let places: BTreeSet<_> = self.cells.keys().map(|(x, _)| x).collect();
        places.into_iter().collect()
    }

    /// The methods that have runs, in their order.
    #[must_use]
    pub fn methods(&self) -> Vec<Method> {
        let methods: BTreeSet<_> = self.cells.keys().map(|(_, method)| *method).collect();
        methods.into_iter().collect()
    }

    /// The runs of a method at a place.
    #[must_use]
    pub fn cell(&self, x: &X, method: Method) -> Option<&Cell<'a>> {
        self.cells.get(&(x.clone(), method))
    }

    /// All cells, along the axis and by method.
    pub fn cells(&self) -> impl Iterator<Item = (&X, Method, &Cell<'a>)> {
        self.cells.iter().map(|((x, m), cell)| (x, *m, cell))
    }
}

/// The runs of a study.
#[derive(Debug)]
pub struct Study<'a> {
    /// Its name in the plan.
    pub name: &'a str,
    /// What its runs are compared along.
    pub axis: Axis,
    /// What is the same in all of them.
    pub common: String,
    /// At least one.
    pub panels: Vec<Panel<'a>>,
}

/// All studies that have runs: the known ones first.
#[must_use]
pub fn studies(runs: &[Run]) -> Vec<Study<'_>> {
    let mut names: Vec<_> = runs.iter().map(|run| &*run.planned.case.study).collect();
    // A plan cannot have an idle guest without caps in a study of caps, so it is a study beside it. It
    // is the end of their axis.
    if names.contains(&"caps") {
        names.retain(|name| *name != "idle");
    }
    let rank = |name: &str| KNOWN.iter().position(|known| *known == name);
    names.sort_by_key(|name| (rank(name).unwrap_or(KNOWN.len()), *name));
    names.dedup();
    names.into_iter().map(|name| study(name, runs)).collect()
}

fn study<'a>(name: &'a str, runs: &'a [Run]) -> Study<'a> {
    let runs: Vec<_> = runs
        .iter()
        .filter(|run| {
            let of = &*run.planned.case.study;
            of == name || (name == "caps" && of == "idle")
        })
        .collect();
    let cases: BTreeSet<_> = runs.iter().map(|run| &run.planned.case).collect();
    let axis = Axis::of(name, &cases);
    let options = Options::of(&cases, axis);
    let mut groups: BTreeMap<Case, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        let group = groups.entry(options.strip(&run.planned.case)).or_default();
        group.push(run);
    }
    share_idle(&mut groups, axis);
    let mut groups: Vec<_> = groups.into_iter().collect();
    // By number: "1000" is before "200" as text.
    groups.sort_by_key(|(case, _)| (case.memory_mib, case.load.pages_per_second()));
    let words: Vec<_> = groups.iter().map(|(case, _)| options.words(case)).collect();
    let same = |at: usize| words.iter().all(|panel| panel[at] == words[0][at]);
    let join = |panel: &[String], common: bool| {
        let words = panel.iter().enumerate();
        let words = words.filter(|(at, word)| same(*at) == common && !word.is_empty());
        let words: Vec<_> = words.map(|(_, word)| word.as_str()).collect();
        words.join(", ")
    };
    let panel = |(index, (_, runs)): (usize, (Case, Vec<&'a Run>))| {
        let mut cells: BTreeMap<_, Cell<'_>> = BTreeMap::new();
        for run in runs {
            let case = &run.planned.case;
            let cell = cells.entry((axis.place(case), case.method)).or_default();
            cell.add(run);
        }
        Panel {
            title: join(&words[index], false),
            cells,
        }
    };
    Study {
        name,
        axis,
        common: capital(&words.first().map(|w| join(w, true)).unwrap_or_default()),
        panels: groups.into_iter().enumerate().map(panel).collect(),
    }
}

/// As a sentence begins.
fn capital(words: &str) -> String {
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// Gives the runs of an idle guest to every panel that differs from theirs by the load only: they are
/// one end of each.
fn share_idle(groups: &mut BTreeMap<Case, Vec<&Run>>, axis: Axis) {
    let at_the_end = |run: &&Run| axis.place(&run.planned.case).part == Part::First;
    let idle: Vec<_> = groups
        .iter()
        .filter(|(case, runs)| case.load.is_idle() && runs.iter().all(at_the_end))
        .map(|(case, _)| case.clone())
        .collect();
    for idle in idle {
        let same = |case: &Case| {
            let mut case = case.clone();
            case.load.clone_from(&idle.load);
            case == idle
        };
        let others: Vec<_> = groups
            .keys()
            .filter(|case| !case.load.is_idle() && same(case))
            .cloned()
            .collect();
        if others.is_empty() {
            continue;
        }
        let runs = groups.remove(&idle).unwrap_or_default();
        for other in others {
            groups.entry(other).or_default().extend(&runs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::case::GuestKind;
    use super::super::super::record::tests::run;
    use super::*;

    fn changed(study: &str, change: impl FnOnce(&mut Case)) -> Run {
        let mut run = run(Method::Live, "1000", 0, 0.1);
        run.planned.case.study = study.into();
        change(&mut run.planned.case);
        run
    }

    fn labels(panel: &Panel<'_>) -> Vec<String> {
        panel.places().iter().map(|x| x.label.clone()).collect()
    }

    #[test]
    fn rates_stand_in_the_order_of_their_numbers() {
        let idle = |case: &mut Case| case.load.pattern = "idle".into();
        let rate = |rate: &'static str| move |case: &mut Case| case.load.rate = rate.into();
        let runs = [
            changed("rates", rate("max")),
            changed("rates", rate("5000")),
            changed("rates", rate("20000")),
            changed("rates", rate("100")),
            changed("rates", idle),
        ];
        let studies = studies(&runs);
        assert_eq!(studies.len(), 1);
        assert_eq!(studies[0].panels.len(), 1);
        let labels = labels(&studies[0].panels[0]);
        assert_eq!(labels, ["idle", "100", "5000", "20000", "max"]);
        assert!(studies[0].common.contains("256\u{a0}MiB"));
        assert!(studies[0].common.contains("pages written in a ring"));
    }

    #[test]
    fn an_idle_guest_is_an_end_of_the_caps_of_its_memory_size() {
        let mut runs = Vec::new();
        for memory_mib in [1024, 256] {
            for cap in [None, Some(50), Some(20)] {
                runs.push(changed("caps", |case| {
                    (case.memory_mib, case.cap) = (memory_mib, cap);
                }));
            }
            runs.push(changed("caps", |case| {
                case.memory_mib = memory_mib;
                case.load.pattern = "idle".into();
                case.load.rate = "0".into();
            }));
        }
        let studies = studies(&runs);
        let panels = &studies[0].panels;
        assert_eq!(panels.len(), 2);
        assert_eq!(panels[0].title, "256\u{a0}MiB");
        assert_eq!(panels[1].title, "1024\u{a0}MiB");
        let caps = ["idle", "20\u{a0}%", "50\u{a0}%", "no cap"];
        assert_eq!(labels(&panels[1]), caps);
        assert!(!studies[0].common.contains("cap"));
    }

    #[test]
    fn the_idle_study_is_an_end_of_the_caps_and_stands_alone_without_them() {
        let idle = changed("idle", |case| {
            case.load.pattern = "idle".into();
            case.load.rate = "0".into();
        });
        let capped = changed("caps", |case| case.cap = Some(20));
        let both = [idle.clone(), capped];
        let joined = studies(&both);
        assert_eq!(joined.len(), 1);
        let places = labels(&joined[0].panels[0]);
        assert_eq!((joined[0].name, places.len()), ("caps", 2));
        assert_eq!(studies(&[idle])[0].name, "idle");
    }

    #[test]
    fn an_unknown_study_is_compared_along_what_varies_most() {
        let mut runs = Vec::new();
        for vcpus in 1..4 {
            for target_ms in [Some(100), Some(300)] {
                runs.push(changed("new", |case| {
                    (case.vcpus, case.target_ms) = (vcpus, target_ms);
                }));
            }
        }
        let studies = studies(&runs);
        assert_eq!(studies[0].axis, Axis::Vcpus);
        let titles: Vec<_> = studies[0].panels.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(titles, ["target 100 ms", "target 300 ms"]);
    }

    #[test]
    fn a_target_that_only_some_methods_have_does_not_tear_them_apart() {
        let runs = [
            changed("rates", |case| case.target_ms = Some(100)),
            changed("rates", |case| case.method = Method::Plain),
        ];
        assert_eq!(studies(&runs)[0].panels.len(), 1);
    }

    #[test]
    fn failed_and_spoilt_runs_are_counted_apart() {
        let mut runs = vec![run(Method::Live, "1000", 0, 0.1); 5];
        runs[4].outcome = Outcome::Refused("it is a PV guest".into());
        runs[1].outcome = Outcome::Method("the guest died".into());
        runs[2].outcome = Outcome::Machine("it stood still".into());
        runs[3].measured = None;
        let studies = studies(&runs);
        let (_, _, cell) = studies[0].panels[0].cells().next().unwrap();
        assert_eq!((cell.good.len(), cell.failed, cell.spoilt), (1, 2, 1));
        assert_eq!(cell.refused, 1);
    }

    #[test]
    fn kinds_of_guests_stand_side_by_side() {
        let runs = [GuestKind::Pv, GuestKind::Hvm, GuestKind::Pvh]
            .map(|kind| changed("types", |case| case.guest = kind));
        let studies = studies(&runs);
        assert_eq!(studies[0].panels.len(), 1);
        assert_eq!(labels(&studies[0].panels[0]), ["PVH", "HVM", "PV"]);
        assert!(!studies[0].common.contains("PVH"));
    }

    #[test]
    fn known_studies_come_first() {
        let runs = ["a", "increments", "rates"].map(|study| changed(study, |_| ()));
        let names: Vec<_> = studies(&runs).iter().map(|study| study.name).collect();
        assert_eq!(names, ["rates", "increments", "a"]);
    }
}
