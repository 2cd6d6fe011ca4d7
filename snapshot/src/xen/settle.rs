//! Puts right what a save that did not end in order left of a domU.

use xen_sys::{DomainId, Store, Xen};

use super::emulator::{Emulator, EmulatorError, REMEDY};
use super::guest::Guest;
use super::helper;
use super::open::uuid_text;
use super::stamp;
use super::suspend::{self, Handshake, RunState};
use super::throttle;
use super::types::Suspension;
use crate::guardian::{DiskState, Entry, Journal, Slowed, State, Stop};
use crate::ports::DomainError;

/// What stands under the domain's number now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// Nothing, or something being destroyed.
    Absent,
    /// Another domain than the one that was saved.
    Another,
    /// The domain that was saved.
    Ours {
        run: RunState,
        /// Somebody has paused it: we, or an administrator.
        paused: bool,
        /// An emulator has a part in it.
        emulated: bool,
    },
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// End the pause that we made to slow it.
    Unpause,
    /// Let the emulator of its devices run on if it is stopped.
    EmulatorOn,
    /// Take the suspend request back, or await the guest's suspension and resume it.
    TakeBack,
    /// Let the suspended guest run on.
    Resume,
    /// Tell xenstore that it runs: the save was killed between the two.
    Announce,
    /// Put its own CPU cap back, if the one that it has is ours.
    CapBack,
    /// Have the emulator note no writes.
    EmulatorForgets,
    /// Switch dirty tracking off.
    TrackingOff,
}

impl Action {
    /// Whether it would disturb another tool's save of the domain. To run at its own pace never
    /// does.
    fn disturbs(self) -> bool {
        !matches!(self, Self::Unpause | Self::CapBack)
    }

    /// Whether it is about the emulator. That it fails must not keep the guest from being put right.
    fn is_emulators(self) -> bool {
        matches!(self, Self::EmulatorOn | Self::EmulatorForgets)
    }
}

/// What is to be done for a domain: only what the save may have done is undone, and only to the
/// domain that it was done to.
fn actions(state: State, found: Found) -> Vec<Action> {
    let Found::Ours {
        run,
        paused,
        emulated,
    } = found
    else {
        return vec![];
    };
    // First of all: paused, it could not answer anything.
    let unpause = (state.slowed == Slowed::Pulsing && paused).then_some(Action::Unpause);
    // Before the guest is resumed, and however far that has come: it is stopped no later than the
    // guest, and may be found stopped with the guest running.
    let emulator = (emulated && state.stop != Stop::No).then_some(Action::EmulatorOn);
    let guest = match (state.stop, run) {
        (Stop::No, _) | (_, RunState::Ended(_)) => None,
        // By somebody else, after we had resumed it.
        (Stop::Resumed, RunState::Suspended) => None,
        (_, RunState::Suspended) => Some(Action::Resume),
        (Stop::Requested, RunState::Running) => Some(Action::TakeBack),
        (Stop::Suspended | Stop::Resumed, RunState::Running) => Some(Action::Announce),
    };
    let cap = (state.slowed == Slowed::Capped).then_some(Action::CapBack);
    let forgets = (emulated && state.tracking).then_some(Action::EmulatorForgets);
    let tracking = state.tracking.then_some(Action::TrackingOff);
    [unpause, emulator, guest, cap, forgets, tracking]
        .into_iter()
        .flatten()
        .collect()
}

/// A domain could not be put right.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettleError {
    #[error("Domain {domain} is being saved or migrated by another tool (process {pid})")]
    Busy { domain: String, pid: u32 },
    #[error("Failed to note what was put right")]
    Note(#[source] std::io::Error),
    #[error(transparent)]
    Domain(#[from] DomainError),
}

/// The connections to a domain, for putting it right.
pub(super) fn connect(domid: DomainId) -> Result<Guest, Box<dyn std::error::Error + Send + Sync>> {
    let (xen, store) = (Xen::open()?, Store::open()?);
    let path = store.domain_path(domid)?;
    let name = store.read(&format!("{path}/name"))?;
    let name = name.unwrap_or_else(|| domid.to_string());
    Ok(Guest::new(xen, store, domid, name)?)
}

/// Puts the domain right, as far as it is the one of `entry`; says what was done. May be called
/// again with what is noted then, after an error or not: a pause must not be ended twice, so that
/// it is noted in `journal` when it has been.
pub(super) fn settle(
    guest: &mut Guest,
    journal: &Journal,
    entry: &Entry,
    state: State,
) -> Result<Vec<String>, SettleError> {
    let guests = State {
        disks: DiskState::No,
        ..state
    };
    if guests == State::NONE {
        return Ok(vec![]);
    }
    let found = find(guest, &entry.uuid)?;
    let todo = actions(state, found);
    if todo.is_empty() {
        let text = match found {
            Found::Absent => "the domain is gone",
            Found::Another => "its number has been given to another domain, which was left alone",
            Found::Ours { .. } => "the guest needs nothing",
        };
        return Ok(vec![text.into()]);
    }
    let busy = helper::saving(guest.id.get());
    let mut done = vec![];
    let mut emulator = Ok(());
    for &action in &todo {
        if busy.is_some() && action.disturbs() {
            continue;
        }
        match act(guest, entry, action) {
            Ok(text) => done.push(text),
            // It needs nothing more; a crashed one still has its dirty tracking.
            Err(DomainError::Gone(what)) => done.push(format!("the guest {what}")),
            Err(error) if action.is_emulators() => emulator = Err(error),
            Err(error) => return Err(error.into()),
        }
        if matches!(action, Action::Unpause | Action::CapBack) {
            let unslowed = State {
                slowed: Slowed::No,
                ..journal.state().ok().flatten().unwrap_or(state)
            };
            journal.set(unslowed).map_err(SettleError::Note)?;
        }
    }
    // Tried again, with all else found to be right by then.
    emulator?;
    match busy {
        Some(pid) if todo.iter().any(|action| action.disturbs()) => Err(SettleError::Busy {
            domain: guest.name.clone(),
            pid,
        }),
        _ => Ok(done),
    }
}

fn find(guest: &mut Guest, uuid: &str) -> Result<Found, DomainError> {
    let info = guest
        .xen
        .domain_info(guest.id)
        .map_err(|error| guest.failed("read the state of", error))?;
    Ok(match info {
        Some(info) if !info.dying && uuid_text(&info.uuid) == uuid => Found::Ours {
            run: guest.state()?,
            paused: info.paused,
            emulated: Emulator::of(&info).is_some(),
        },
        Some(info) if !info.dying => Found::Another,
        _ => Found::Absent,
    })
}

fn act(guest: &mut Guest, entry: &Entry, action: Action) -> Result<String, DomainError> {
    let text = match action {
        Action::Unpause => {
            if throttle::unpause(guest)? {
                "the guest's pause ended"
            } else {
                "the guest is not paused"
            }
        }
        Action::EmulatorOn => {
            let emulator = Emulator::at(guest.id, &entry.uuid);
            let stopped = emulator.run_on(REMEDY);
            let failed = "let run on the emulator (QEMU) of";
            if stopped.map_err(|error| call_of(guest, failed, error))? {
                "its emulator let run on"
            } else {
                "its emulator runs"
            }
        }
        Action::EmulatorForgets => {
            let emulator = Emulator::at(guest.id, &entry.uuid);
            let failed = "stop tracking what the emulator (QEMU) writes of";
            emulator
                .forget_writes(REMEDY)
                .map_err(|error| call_of(guest, failed, error))?;
            "its emulator's dirty log switched off"
        }
        Action::TakeBack => {
            guest.begin_handshake(Suspension::Handshake);
            suspend::take_back(guest)?.deed()
        }
        Action::Resume => {
            guest.resume()?;
            "the suspended guest resumed"
        }
        Action::Announce => {
            guest.resume()?;
            "the guest runs"
        }
        Action::CapBack => {
            let remedy = throttle::put_back(&guest.xen, guest.id, entry.caps)
                .map_err(|error| guest.failed("put back the CPU cap of", error))?;
            return Ok(throttle::deed(remedy));
        }
        Action::TrackingOff => {
            guest
                .xen
                .log_dirty_disable(guest.id)
                .map_err(|error| guest.failed("stop tracking the writes of", error))?;
            stamp::remove(guest)?;
            "its dirty tracking switched off"
        }
    };
    Ok(text.into())
}

/// An emulator's failure; of a guest that is gone it needs no remedy.
fn call_of(guest: &Guest, operation: &'static str, error: EmulatorError) -> DomainError {
    match guest.info() {
        Err(gone @ DomainError::Gone(_)) => gone,
        _ => DomainError::Call {
            operation,
            domain: guest.name.clone(),
            source: error.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{
        Announce, CapBack, EmulatorForgets, EmulatorOn, Resume, TakeBack, TrackingOff, Unpause,
    };

    const STOPS: [Stop; 4] = [Stop::No, Stop::Requested, Stop::Suspended, Stop::Resumed];
    const SLOWED: [Slowed; 3] = [Slowed::No, Slowed::Capped, Slowed::Pulsing];
    const RUNS: [RunState; 3] = [
        RunState::Running,
        RunState::Suspended,
        RunState::Ended("crashed"),
    ];

    /// Every state that can be noted.
    fn states() -> impl Iterator<Item = State> {
        [false, true].into_iter().flat_map(|tracking| {
            STOPS.into_iter().flat_map(move |stop| {
                SLOWED.into_iter().map(move |slowed| State {
                    tracking,
                    stop,
                    slowed,
                    ..State::NONE
                })
            })
        })
    }

    /// Every way in which our guest can be found.
    fn finds() -> impl Iterator<Item = (RunState, bool, bool)> {
        RUNS.into_iter().flat_map(|run| {
            [(false, false), (false, true), (true, false), (true, true)]
                .map(|(paused, emulated)| (run, paused, emulated))
        })
    }

    #[test]
    fn each_state_of_our_guest_has_its_remedies_in_their_order() {
        use RunState::{Ended, Running, Suspended};
        for state in states() {
            for (run, paused, emulated) in finds() {
                let mut want = vec![];
                // A pause that nobody noted is somebody else's.
                if state.slowed == Slowed::Pulsing && paused {
                    want.push(Unpause);
                }
                if emulated && state.stop != Stop::No {
                    want.push(EmulatorOn);
                }
                // The guest runs before anything else is done about it; one that is suspended
                // though nobody asked is somebody else's, one that has ended is not resumed.
                want.extend(match (state.stop, run) {
                    (Stop::No, _) | (_, Ended(_)) | (Stop::Resumed, Suspended) => None,
                    (Stop::Requested, Running) => Some(TakeBack),
                    (Stop::Requested | Stop::Suspended, Suspended) => Some(Resume),
                    (Stop::Suspended | Stop::Resumed, Running) => Some(Announce),
                });
                if state.slowed == Slowed::Capped {
                    want.push(CapBack);
                }
                if state.tracking {
                    if emulated {
                        want.push(EmulatorForgets);
                    }
                    want.push(TrackingOff);
                }
                let found = Found::Ours {
                    run,
                    paused,
                    emulated,
                };
                assert_eq!(actions(state, found), want, "{state:?} {found:?}");
            }
        }
    }

    #[test]
    fn some_that_must_hold_as_they_are_written_here() {
        let of = |slowed, tracking, stop, run, paused| {
            let state = State {
                tracking,
                stop,
                slowed,
                ..State::NONE
            };
            let found = Found::Ours {
                run,
                paused,
                emulated: false,
            };
            actions(state, found)
        };
        let (no, capped, pulsing) = (Slowed::No, Slowed::Capped, Slowed::Pulsing);
        let (running, suspended) = (RunState::Running, RunState::Suspended);
        for (slowed, tracking, stop, run, paused, want) in [
            (no, false, Stop::No, running, true, &[][..]),
            (no, false, Stop::No, suspended, false, &[]),
            (no, true, Stop::No, suspended, true, &[TrackingOff]),
            (
                no,
                true,
                Stop::Suspended,
                suspended,
                false,
                &[Resume, TrackingOff],
            ),
            (
                capped,
                true,
                Stop::No,
                running,
                false,
                &[CapBack, TrackingOff],
            ),
            // An administrator's pause.
            (
                capped,
                true,
                Stop::No,
                running,
                true,
                &[CapBack, TrackingOff],
            ),
            (
                capped,
                true,
                Stop::Requested,
                running,
                false,
                &[TakeBack, CapBack, TrackingOff],
            ),
            (
                pulsing,
                true,
                Stop::No,
                running,
                true,
                &[Unpause, TrackingOff],
            ),
            (pulsing, true, Stop::No, running, false, &[TrackingOff]),
            (
                pulsing,
                false,
                Stop::Requested,
                running,
                true,
                &[Unpause, TakeBack],
            ),
        ] {
            let todo = of(slowed, tracking, stop, run, paused);
            assert_eq!(todo, want, "{slowed:?} {stop:?} {run:?} paused {paused}");
        }
    }

    #[test]
    fn another_domain_is_never_touched() {
        for state in states() {
            for found in [Found::Absent, Found::Another] {
                assert_eq!(actions(state, found), []);
            }
        }
    }

    #[test]
    fn beside_another_save_only_the_pace_is_put_right() {
        for action in [
            TakeBack,
            Resume,
            Announce,
            TrackingOff,
            EmulatorOn,
            EmulatorForgets,
        ] {
            assert!(action.disturbs());
        }
        for action in [Unpause, CapBack] {
            assert!(!action.disturbs());
        }
    }
}
