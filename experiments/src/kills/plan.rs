//! What is done to the next save, and when.

use super::rng::Rng;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The save.
    Worker,
    /// All processes of its group.
    Group,
    /// Its guardian; the save goes on.
    Guardian,
    /// The save, then its guardian.
    WorkerThenGuardian,
    /// The guardian, then the save.
    GuardianThenWorker,
}

/// At which instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Any, from the start of its process to its end.
    Any,
    /// In the pause window or shortly after.
    Window,
    /// After it, while the image is finished.
    End,
}

/// A kind of harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// Somebody is killed.
    Kill(Victim, When),
    /// The save stands still with the guest held up.
    Hang,
    /// The image's file system becomes full.
    DiskFull,
    /// A file may not become as large as the image.
    FileLimit,
    /// The guest's process is killed.
    GuestCrash,
    /// Nothing: the save must succeed.
    None,
    /// At a named point of the code, for the nth time it is passed.
    Point(&'static str, Deed, u32),
}

/// What is done at a named point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// The save is killed.
    Kill,
    /// Its guardian and it.
    KillBoth,
    /// Its guardian only.
    KillGuardian,
    /// It panics.
    Panic,
}

impl Deed {
    /// As it stands in `LIVESAVE_FAULT`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillBoth => "kill-both",
            Self::KillGuardian => "kill-guardian",
            Self::Panic => "panic",
        }
    }
}

/// The next save and what is done to it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What is done to it.
    pub harm: Harm,
    /// A plain save rather than a live one.
    pub plain: bool,
    /// An image stands there already, to be replaced.
    pub replace: bool,
    /// The guest is capped while it is copied.
    pub squeeze: bool,
    /// The file system cannot hold files without a name (in a build with fault points only).
    pub named: bool,
}

impl Plan {
    /// A live save that nothing is done to.
    pub const PEACEFUL: Self = Self {
        harm: Harm::None,
        plain: false,
        replace: false,
        squeeze: false,
        named: false,
    };
}

impl Harm {
    /// Its class in the table.
    #[must_use]
    pub fn class(self) -> String {
        match self {
            Self::Kill(victim, when) => {
                let victim = match victim {
                    Victim::Worker => "save",
                    Victim::Group => "save and its group",
                    Victim::Guardian => "guardian",
                    Victim::WorkerThenGuardian => "save, guardian",
                    Victim::GuardianThenWorker => "guardian, save",
                };
                let when = match when {
                    When::Any => "any instant",
                    When::Window => "pause window",
                    When::End => "end",
                };
                format!("kill {victim}: {when}")
            }
            Self::Hang => "save stands still in the window".to_owned(),
            Self::DiskFull => "disk full (ENOSPC)".to_owned(),
            Self::FileLimit => "file size limit (SIGXFSZ)".to_owned(),
            Self::GuestCrash => "guest crashes".to_owned(),
            Self::None => "nothing".to_owned(),
            Self::Point(_, deed, _) => format!("{} at each named point", deed.name()),
        }
    }

    /// Whether it counts as a kill at a random instant.
    #[must_use]
    pub fn is_random_kill(self) -> bool {
        matches!(self, Self::Kill(..))
    }

    /// Whether it leaves a guardian that must put the guest right.
    #[must_use]
    pub fn spares_the_guardian(self) -> bool {
        match self {
            Self::Kill(victim, _) => matches!(victim, Victim::Worker | Victim::Group),
            Self::Point(_, deed, _) => matches!(deed, Deed::Kill | Deed::Panic),
            _ => true,
        }
    }
}

/// The points that a live save of an embedded guest which replaces an image passes, and for how
/// many passings each is struck; only the first is sure to come.
const POINTS: [(&str, u32); 18] = [
    ("guarded", 1),
    ("arming", 1),
    ("armed", 1),
    ("round", 2),
    ("throttled", 1),
    ("unthrottled", 1),
    ("cap-lifted", 1),
    ("requesting", 1),
    ("suspended", 1),
    ("in-window", 1),
    ("fetched", 1),
    ("captured", 1),
    ("resumed", 1),
    ("off", 1),
    ("fsync", 1),
    ("link", 1),
    ("rename", 1),
    ("fsync-directory", 1),
];

/// Points that are passed only where the policy finds the guest too busy, or where it has a cap.
pub const PERHAPS: [&str; 3] = ["throttled", "unthrottled", "cap-lifted"];

/// The points of an image that has a temporary name from the start.
const NAMED_POINTS: [&str; 6] = [
    "name",
    "round",
    "in-window",
    "fsync",
    "rename",
    "fsync-directory",
];

/// Everything at every named point.
#[must_use]
pub fn at_the_points() -> Vec<Plan> {
    let mut plans = vec![];
    for deed in [Deed::Kill, Deed::KillBoth, Deed::KillGuardian, Deed::Panic] {
        for (point, times) in POINTS {
            plans.extend((1..=times).map(|nth| at(point, deed, nth, true, false)));
        }
        for point in NAMED_POINTS {
            plans.extend([false, true].map(|replace| at(point, deed, 1, replace, true)));
        }
    }
    plans
}

fn at(point: &'static str, deed: Deed, nth: u32, replace: bool, named: bool) -> Plan {
    Plan {
        harm: Harm::Point(point, deed, nth),
        replace,
        named,
        ..Plan::PEACEFUL
    }
}

/// Throws the dice for the next save.
pub fn throw(rng: &mut Rng) -> Plan {
    let harm = rng.one_of(&[
        (86, None),
        (2, Some(Harm::Hang)),
        (3, Some(Harm::DiskFull)),
        (2, Some(Harm::FileLimit)),
        (3, Some(Harm::GuestCrash)),
        (3, Some(Harm::None)),
    ]);
    let harm = harm.unwrap_or_else(|| {
        let victim = rng.one_of(&[
            (40, Victim::Worker),
            (14, Victim::Group),
            (14, Victim::Guardian),
            (16, Victim::WorkerThenGuardian),
            (16, Victim::GuardianThenWorker),
        ]);
        let when = rng.one_of(&[(60, When::Any), (22, When::Window), (18, When::End)]);
        Harm::Kill(victim, when)
    });
    // Their windows are long.
    let aimed = matches!(harm, Harm::Hang | Harm::Kill(_, When::Window));
    let plain = rng.percent(if aimed { 40 } else { 12 });
    // A save that fails by itself gives its cap back late: see the worker.
    let fails = matches!(harm, Harm::DiskFull | Harm::FileLimit);
    Plan {
        harm,
        plain,
        replace: rng.percent(20) && !fails,
        squeeze: !plain && !fails && rng.percent(50),
        named: cfg!(feature = "fault-points") && rng.percent(50),
    }
}
