//! What is left of a save: looked at by the guest's counters, by the kernel, by reading the image.

use std::path::Path;
use std::time::{Duration, Instant};

use snapshot::PageSet;

use super::evidence;
use super::image;
use super::lane::Lane;
use super::plan::{Harm, Plan};
use super::strike::Struck;

/// How long the guest's counters are watched at a time, and at most.
const STRETCH: Duration = Duration::from_millis(40);
const AT_MOST: Duration = Duration::from_secs(5);
/// The share of its rate that a guest which nothing holds up must reach.
const FULL: f64 = 0.75;
/// More descriptors than a guest ever needs.
const DESCRIPTORS: usize = 60;

/// What a save left wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// The guest stands still.
    Paused,
    /// The guest is slowed.
    Capped,
    /// The guest's writes are still tracked.
    Tracked,
    /// Something in the directory has no business there.
    Partial,
    /// An image is not whole.
    Image,
    /// There was something left to recover that should not have been, or it failed.
    Recovery,
    /// The save itself did other than it must.
    Save,
}

impl Wrong {
    /// All of them, and what they are called in the verdict.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Paused, "guests left paused"),
        (Self::Capped, "guests left capped"),
        (Self::Tracked, "guests left in log-dirty"),
        (Self::Partial, "partial files left"),
        (Self::Image, "images that fail verification"),
        (Self::Recovery, "recoveries that went wrong"),
        (Self::Save, "saves that did other than they must"),
    ];
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What is wrong, and the evidence.
    pub wrong: Vec<(Wrong, String)>,
    /// There is an image.
    pub image: bool,
    /// The guardian had something to put right.
    pub by_guardian: bool,
    /// The recovery had.
    pub by_recovery: bool,
}

/// What is said where there was nothing to put right.
const NOTHING: [&str; 2] = ["nothing was to be put right", "the guest needs nothing"];

impl Found {
    fn add(&mut self, wrong: Wrong, what: impl Into<String>) {
        self.wrong.push((wrong, what.into()));
    }
}

/// Looks at everything after a save was struck; has `recover` run, twice.
#[must_use]
pub fn check(lane: &Lane, plan: &Plan, struck: &Struck, restore: bool) -> Found {
    let mut found = Found::default();
    if let Err(error) = lane.wait_until_free() {
        found.add(Wrong::Recovery, error.to_string());
        return found;
    }
    let guest_lives = plan.harm != Harm::GuestCrash;
    if plan.harm.spares_the_guardian() && guest_lives {
        // The guardian alone must have done it.
        look(lane, "after the guardian", &mut found);
    }
    let said = lane.said();
    let mut guardians = said
        .lines()
        .filter(|line| line.contains("the save (process"));
    found.by_guardian =
        guardians.any(|line| !NOTHING.iter().any(|nothing| line.ends_with(nothing)));
    for turn in ["first", "second"] {
        match lane.recover() {
            Err(error) => found.add(Wrong::Recovery, error.to_string()),
            Ok(all) => {
                for one in all {
                    match one.what {
                        Err(why) => found.add(Wrong::Recovery, format!("{turn} recovery: {why}")),
                        Ok(done) if turn == "second" => found.add(
                            Wrong::Recovery,
                            format!("a second recovery found {}", done.join(", ")),
                        ),
                        Ok(done) => {
                            let did = |what: &String| !NOTHING.contains(&what.as_str());
                            found.by_recovery |= done.iter().any(did);
                        }
                    }
                }
            }
        }
    }
    if guest_lives {
        look(lane, "after recovery", &mut found);
        counters(lane, &mut found);
        fresh_tracking(lane, &mut found);
    }
    directory(lane, plan, struck, restore, &mut found);
    save_itself(lane, plan, struck, &mut found);
    found
}

/// What guest and kernel say at once.
fn look(lane: &Lane, when: &str, found: &mut Found) {
    match lane.guest.status() {
        Err(error) => found.add(Wrong::Paused, format!("{when}: {error}")),
        Ok(status) => {
            if status.suspended {
                found.add(Wrong::Paused, format!("{when}: it is suspended"));
            }
            if status.cap != lane.own_cap.unwrap_or(0) {
                found.add(Wrong::Capped, format!("{when}: at {} %", status.cap));
            }
            if status.tracked {
                found.add(Wrong::Tracked, format!("{when}: by its own account"));
            }
        }
    }
    match evidence::tracking_left(lane.guest.pid()) {
        Err(error) => found.add(Wrong::Tracked, format!("{when}: {error:#}")),
        Ok(left) => {
            for what in left {
                found.add(Wrong::Tracked, format!("{when}: {what}"));
            }
        }
    }
    match evidence::descriptors(lane.guest.pid()) {
        Ok(count) if count <= DESCRIPTORS => {}
        other => found.add(
            Wrong::Recovery,
            format!("the guest's descriptors: {other:?}"),
        ),
    }
}

/// The guest's counters advance at full rate. On a machine under load not at once.
fn counters(lane: &Lane, found: &mut Found) {
    let written = || lane.guest.stats().map(|stats| stats.written);
    let began = Instant::now();
    let (mut best, mut any) = (0f64, false);
    while began.elapsed() < AT_MOST {
        let at = Instant::now();
        let (Ok(before), ()) = (written(), std::thread::sleep(STRETCH)) else {
            break;
        };
        let Ok(after) = written() else { break };
        any |= after > before;
        let rate = (after - before) as f64 / at.elapsed().as_secs_f64();
        best = best.max(rate / lane.settings.rate as f64);
        if best >= FULL {
            return;
        }
    }
    if any {
        found.add(
            Wrong::Capped,
            format!("it works at {:.0} % of its rate", best * 100.0),
        );
    } else {
        found.add(Wrong::Paused, "its counters stand still");
    }
}

/// Tracking can be switched on afresh, shows what is written from then on, and not what was
/// before.
fn fresh_tracking(lane: &Lane, found: &mut Found) {
    let guest = &lane.guest;
    let mut first = PageSet::new(guest.layout().span());
    let mut later = first.clone();
    let began = Instant::now();
    let done = guest
        .track()
        .and_then(|()| guest.fetch_dirty(&mut first))
        .and_then(|()| {
            std::thread::sleep(Duration::from_millis(3));
            guest.peek_dirty(&mut later)
        });
    let allowed = lane.settings.rate as f64 * began.elapsed().as_secs_f64() * 2.0 + 1000.0;
    if let Err(error) = done.and_then(|()| guest.untrack()) {
        found.add(Wrong::Tracked, format!("tracked afresh: {error}"));
    } else if first.count().0 as f64 > allowed {
        let count = first.count();
        found.add(
            Wrong::Tracked,
            format!("tracked afresh, {count:?} are dirty at once"),
        );
    }
}

/// Nothing but a whole image stands in the directory.
fn directory(lane: &Lane, plan: &Plan, struck: &Struck, restore: bool, found: &mut Found) {
    let (directory, image) = (lane.images(plan.harm), lane.image(plan.harm));
    match names_in(&directory) {
        Err(error) => found.add(Wrong::Partial, error.to_string()),
        Ok(names) => {
            for name in names.iter().filter(|name| directory.join(name) != image) {
                found.add(Wrong::Partial, name.clone());
            }
        }
    }
    found.image = image.exists();
    if found.image {
        if let Err(error) = image::must_be_whole(&image) {
            found.add(Wrong::Image, format!("{error:#}"));
        } else if restore && let Err(error) = image::must_restore(&image, &lane.settings.program) {
            found.add(Wrong::Image, format!("restored: {error:#}"));
        }
    } else if struck.end.success() || plan.replace {
        found.add(Wrong::Image, "there is none");
    }
}

fn names_in(directory: &Path) -> std::io::Result<Vec<String>> {
    std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// A save that was not killed succeeds, but for what was to fail it.
fn save_itself(lane: &Lane, plan: &Plan, struck: &Struck, found: &mut Found) {
    use std::os::unix::process::ExitStatusExt;

    let may_fail = match plan.harm {
        Harm::GuestCrash | Harm::FileLimit => true,
        Harm::DiskFull => lane.said().contains("No space left"),
        // A guardian killed before it was ready.
        Harm::Kill(..) => lane.said().contains("guardian"),
        Harm::Point(_, super::plan::Deed::Panic, _) => true,
        _ => false,
    };
    let killed = struck.end.signal().is_some();
    let may_be_killed = struck.landed && plan.harm != Harm::None;
    if killed && !may_be_killed || !killed && !struck.end.success() && !may_fail {
        let said = lane.said();
        found.add(Wrong::Save, format!("{}: {}", struck.end, said.trim_end()));
    }
}
