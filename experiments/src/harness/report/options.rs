//! Which of a case's words make panels, and how they are worded.

use super::super::case::{Backend, Case, GuestKind, Load, Method};
use super::axis::Axis;
use std::collections::BTreeSet;

/// Which of a case's words make panels.
pub(super) struct Options {
    axis: Axis,
    target: bool,
    dirty: bool,
}

impl Options {
    /// Target and dirty share are there for some methods only. They make panels if one method has
    /// several of them, else methods that belong side by side would be torn apart.
    pub(super) fn of(cases: &BTreeSet<&Case>, axis: Axis) -> Self {
        let several = |of: fn(&Case) -> Option<u32>| {
            Method::ALL.into_iter().any(|method| {
                let cases = cases.iter().filter(|case| case.method == method);
                cases.map(|case| of(case)).collect::<BTreeSet<_>>().len() > 1
            })
        };
        Self {
            axis,
            target: axis != Axis::Target && several(|case| case.target_ms),
            dirty: axis != Axis::Dirty && several(|case| case.dirty_percent),
        }
    }

    /// The case without method and place on the axis: the same for all runs of a panel.
    pub(super) fn strip(&self, case: &Case) -> Case {
        let mut case = case.clone();
        case.method = Method::Plain;
        case.study.clear();
        match self.axis {
            Axis::Load => case.load.rate.clear(),
            Axis::Pattern => case.load.pattern.clear(),
            Axis::Cap => case.cap = None,
            Axis::Memory => case.memory_mib = 0,
            Axis::Vcpus => case.vcpus = 0,
            Axis::Guest => case.guest = GuestKind::Pvh,
            Axis::Target | Axis::Dirty => {}
        }
        // The rate of an idle guest says nothing.
        if case.load.is_idle() {
            case.load.rate.clear();
        }
        case.target_ms = case.target_ms.filter(|_| self.target);
        case.dirty_percent = case.dirty_percent.filter(|_| self.dirty);
        case
    }

    /// What a stripped case says; as many words for each, some of them empty.
    pub(super) fn words(&self, case: &Case) -> [String; 8] {
        let unless = |axis: Axis, word: String| {
            if self.axis == axis {
                String::new()
            } else {
                word
            }
        };
        let backend = match case.backend {
            Backend::Xen => "on Xen",
            Backend::Embedded => "embedded",
        };
        let guest = format!("{} guest", case.guest);
        let cap = match case.cap {
            Some(cap) => format!("cap {cap}\u{a0}%"),
            None => "no cap".into(),
        };
        let vcpus = match case.vcpus {
            1 => "1 vCPU".into(),
            vcpus => format!("{vcpus} vCPUs"),
        };
        let target = case.target_ms.filter(|_| self.target);
        let dirty = case.dirty_percent.filter(|_| self.dirty);
        [
            backend.into(),
            if case.backend == Backend::Embedded {
                String::new()
            } else {
                unless(Axis::Guest, guest)
            },
            unless(Axis::Memory, format!("{}\u{a0}MiB", case.memory_mib)),
            unless(Axis::Vcpus, vcpus),
            unless(Axis::Cap, cap),
            load_words(&case.load, self.axis),
            target.map_or_else(String::new, |ms| format!("target {ms} ms")),
            dirty.map_or_else(String::new, |share| format!("{share}\u{a0}% dirty")),
        ]
    }
}

fn load_words(load: &Load, axis: Axis) -> String {
    if load.is_idle() {
        return "idle".into();
    }
    if axis == Axis::Pattern {
        return format!("{} pages/s", load.rate);
    }
    let pattern = match load.pattern.split_once(':') {
        Some(("hot", mib)) => format!("written in a hot area of {mib} MiB"),
        _ => match load.pattern.as_str() {
            "ring" => "written in a ring".into(),
            "random" => "written at random".into(),
            other => format!("written as {other}"),
        },
    };
    match (axis, load.pages_per_second()) {
        (Axis::Load, _) => format!("pages {pattern}"),
        (_, Some(rate)) => format!("{rate} pages/s {pattern}"),
        (_, None) => format!("as many pages as it can, {pattern}"),
    }
}
