//! What runs are compared along, and where they stand on it.

use super::super::case::Case;
use std::collections::BTreeSet;

/// What the runs of a study are compared along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// How fast the guest writes.
    Load,
    /// The limit of its CPU time.
    Cap,
    /// Its memory.
    Memory,
    /// Its virtual CPUs.
    Vcpus,
    /// The order in which it writes.
    Pattern,
    /// The longest pause asked for.
    Target,
    /// How much of its memory was written since the image before.
    Dirty,
    /// What it is to Xen.
    Guest,
}

impl Axis {
    const ALL: [Self; 8] = [
        Self::Load,
        Self::Cap,
        Self::Memory,
        Self::Vcpus,
        Self::Target,
        Self::Dirty,
        Self::Pattern,
        Self::Guest,
    ];

    /// In the heads of tables.
    #[must_use]
    pub const fn header(self) -> &'static str {
        match self {
            Self::Load => "load (pages/s)",
            Self::Cap => "cap",
            Self::Memory => "memory (MiB)",
            Self::Vcpus => "vCPUs",
            Self::Pattern => "pattern",
            Self::Target => "target (ms)",
            Self::Dirty => "dirty share",
            Self::Guest => "guest",
        }
    }

    /// Below plots.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Load => "pages written per second, as asked for",
            Self::Cap => "limit of the guest's CPU time (% of one CPU)",
            Self::Memory => "memory of the guest (MiB)",
            Self::Vcpus => "virtual CPUs of the guest",
            Self::Pattern => "order in which pages are written",
            Self::Target => "longest pause asked for (ms)",
            Self::Dirty => "pages written since the image before (% of the memory)",
            Self::Guest => "type of the guest",
        }
    }

    /// In the titles of plots.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "dirty rate",
            Self::Cap => "CPU cap",
            Self::Memory => "memory size",
            Self::Vcpus => "vCPUs",
            Self::Pattern => "pattern",
            Self::Target => "target",
            Self::Dirty => "dirty share",
            Self::Guest => "guest type",
        }
    }

    /// Whether its places are names, between which there is nothing.
    #[must_use]
    pub const fn is_of_names(self) -> bool {
        matches!(self, Self::Pattern | Self::Guest)
    }

    /// From which ratio of its ends on it is logarithmic. Shares of one CPU never are.
    #[must_use]
    pub const fn log_from(self) -> f64 {
        match self {
            Self::Cap | Self::Pattern | Self::Guest => f64::INFINITY,
            Self::Memory | Self::Vcpus => 4.0,
            Self::Load | Self::Target | Self::Dirty => 10.0,
        }
    }

    /// Where a case stands on it.
    #[must_use]
    pub fn place(self, case: &Case) -> X {
        let or_last = |value: Option<u32>, unit: &str, last: &str| match value {
            Some(value) => X::on(u64::from(value), unit),
            None => X::last(last),
        };
        match self {
            Self::Load if case.load.is_idle() => X::first("idle"),
            Self::Load => match case.load.pages_per_second() {
                Some(rate) => X::on(rate, ""),
                None => X::last(&case.load.rate),
            },
            // An idle guest that is not capped is the other end of what caps do: nothing is dirtied.
            Self::Cap if case.cap.is_none() && case.load.is_idle() => X::first("idle"),
            Self::Cap => or_last(case.cap, "\u{a0}%", "no cap"),
            Self::Memory => X::on(case.memory_mib, ""),
            Self::Vcpus => X::on(u64::from(case.vcpus), ""),
            Self::Pattern => X::last(&case.load.pattern),
            Self::Target => or_last(case.target_ms, "", "default"),
            Self::Dirty => or_last(case.dirty_percent, "\u{a0}%", "full save"),
            Self::Guest => X {
                // In the order in which the kinds are listed.
                value: case.guest as u64,
                ..X::last(&case.guest.to_string())
            },
        }
    }

    /// The axis of a study: a known one's is fixed, another's is what varies most.
    #[must_use]
    pub fn of(study: &str, cases: &BTreeSet<&Case>) -> Self {
        match study {
            "rates" => Self::Load,
            "caps" => Self::Cap,
            "targets" => Self::Target,
            "memory" => Self::Memory,
            "vcpus" => Self::Vcpus,
            "increments" => Self::Dirty,
            "types" => Self::Guest,
            _ => {
                let places = |axis: Self| {
                    let places = cases.iter().map(|case| axis.place(case));
                    places.collect::<BTreeSet<_>>().len()
                };
                // The first of those that vary equally.
                let axes = Self::ALL.into_iter().rev();
                axes.max_by_key(|axis| places(*axis)).unwrap_or(Self::Load)
            }
        }
    }
}

/// The part of an axis: what has no number stands before the numbers or after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Before the numbers.
    First,
    /// Among them.
    On,
    /// After them.
    Last,
}

/// A place on an axis.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct X {
    /// The part.
    pub part: Part,
    /// The number; where there is none, 0 or what orders the names.
    pub value: u64,
    /// In tables and below plots.
    pub label: String,
}

impl X {
    fn first(label: &str) -> Self {
        Self {
            part: Part::First,
            value: 0,
            label: label.to_owned(),
        }
    }

    fn on(value: u64, unit: &str) -> Self {
        Self {
            part: Part::On,
            value,
            label: format!("{value}{unit}"),
        }
    }

    fn last(label: &str) -> Self {
        Self {
            part: Part::Last,
            value: 0,
            label: label.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::case::Method;
    use super::super::super::record::tests::run;
    use super::*;

    fn place(axis: Axis, change: impl FnOnce(&mut Case)) -> X {
        let mut case = run(Method::Live, "1000", 0, 0.1).planned.case;
        change(&mut case);
        axis.place(&case)
    }

    #[test]
    fn caps_stand_between_the_idle_guest_and_no_cap() {
        let idle = place(Axis::Cap, |case| case.load.pattern = "idle".into());
        let low = place(Axis::Cap, |case| case.cap = Some(9));
        let high = place(Axis::Cap, |case| case.cap = Some(50));
        let none = place(Axis::Cap, |_| ());
        assert!(idle < low && low < high && high < none);
        assert_eq!(idle.label, "idle");
        assert_eq!(none.label, "no cap");
    }

    #[test]
    fn a_capped_idle_guest_stands_at_its_cap() {
        let capped = place(Axis::Cap, |case| {
            case.load.pattern = "idle".into();
            case.cap = Some(50);
        });
        assert_eq!((capped.part, capped.value), (Part::On, 50));
    }

    #[test]
    fn what_has_no_number_stands_last() {
        let max = place(Axis::Load, |case| case.load.rate = "max".into());
        assert_eq!((max.part, &*max.label), (Part::Last, "max"));
        assert_eq!(place(Axis::Target, |_| ()).label, "default");
        assert_eq!(place(Axis::Dirty, |_| ()).label, "full save");
        assert_eq!(place(Axis::Memory, |_| ()).value, 256);
    }
}
