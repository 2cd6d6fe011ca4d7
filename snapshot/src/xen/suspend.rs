//! The suspend handshake, with our own time limits.
//!
//! The toolstack writes `suspend` to the guest's `control/shutdown` in xenstore; the guest takes
//! it away (the acknowledgement), freezes its tasks and devices and enters the hypervisor's
//! suspend call. Until it acknowledges, the request can be taken back in a transaction. Afterwards
//! it cannot: the guest may still suspend at any time, and nobody but us would resume it. So after
//! a late give-up we stay and watch, for longer than Linux by default tries to freeze its tasks
//! (20 s for those of users, 20 s for its own).

use std::time::Duration;

use crate::fault;
use crate::ports::{Cancel, DomainError};

/// What the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs, or is about to.
    Running,
    /// It waits in the suspend call.
    Suspended,
    /// It is no more, or has ended in another way: the text says what it did.
    Ended(&'static str),
}

/// What became of a request that was to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The guest had not seen it and never will.
    TakenBack,
    /// It had not been made: whoever was to make it died before.
    NotMade,
    /// The guest had acknowledged it.
    TooLate,
    /// The guest had acknowledged it, suspended while xenstored was asked, and runs on again.
    Resumed,
    /// The hypervisor had been told to stop the guest, whose vCPUs did not all come to rest: that
    /// was cancelled, and it runs.
    Cancelled,
}

/// The guest's side of the handshake, and a clock.
pub trait Handshake {
    /// What the guest does now. Called at short intervals.
    fn state(&mut self) -> Result<RunState, DomainError>;
    /// Asks the guest to suspend.
    fn request(&mut self) -> Result<(), DomainError>;
    /// Takes the request back unless the guest has acknowledged it, or it was never made.
    fn withdraw(&mut self) -> Result<Withdrawal, DomainError>;
    /// Notes that the answer to the request is awaited no more.
    fn forget(&mut self) -> Result<(), DomainError>;
    /// Lets a suspended guest run on and announces that in xenstore; of a guest that runs on
    /// already, the announcement alone. May be called again if it failed.
    fn resume(&mut self) -> Result<(), DomainError>;
    /// The guest's name.
    fn name(&self) -> String;
    /// Tells the user that something takes long.
    fn notice(&mut self, text: &str);
    /// Waits.
    fn nap(&mut self, time: Duration);
    /// Time since the handshake began.
    fn elapsed(&self) -> Duration;
}

/// How often the guest is looked at, from the time on when it may be expected: the finer, the sooner
/// the window goes on. But no more often than in so many parts of the time that it takes: a guest that
/// takes long may do so because its emulator needs the CPU that we look with.
const LOOK: Duration = Duration::from_micros(300);
const RARE_LOOK: Duration = Duration::from_millis(5);
const LOOKS: u32 = 200;
/// How often before: looking takes the host's time too.
const EARLY_LOOK: Duration = Duration::from_millis(2);
const RARE_EARLY_LOOK: Duration = Duration::from_millis(20);
const EARLY_LOOKS: u32 = 50;
/// To wait for less is nothing unusual.
const LONG: Duration = Duration::from_secs(2);
/// It may be expected from this share of the time that it is expected to take.
const EARLY: f64 = 0.6;
/// Longer than Linux by default tries to freeze its tasks.
const LATE: Duration = Duration::from_secs(60);
/// How often it is looked at then.
const LATE_LOOK: Duration = Duration::from_millis(5);

/// How long a guest that acknowledged is watched after we gave it up.
pub(super) fn late() -> Duration {
    fault::watch_time(LATE)
}

/// Why we stop waiting.
#[derive(Debug)]
pub(super) enum GiveUp {
    Timeout(Duration),
    Signal(i32),
    /// It cannot be seen what the guest does.
    Blind(DomainError),
}

/// The guest has not suspended.
#[derive(Debug)]
pub(super) enum NotYet {
    /// There is nothing to be taken back, or nobody to take it from.
    Failed(DomainError),
    /// The request stands: [`give_up`] must follow, which may take long.
    GivenUp(GiveUp),
}

/// How long to wait for the next look, so long after the request.
fn look_after(since: Duration, expected: Duration) -> Duration {
    let fine = (expected.max(since) / LOOKS).clamp(LOOK, RARE_LOOK);
    let early = (expected / EARLY_LOOKS).clamp(EARLY_LOOK, RARE_EARLY_LOOK);
    let left = expected.mul_f64(EARLY).saturating_sub(since);
    left.clamp(fine, early.max(fine))
}

/// A guest that has not suspended after that long takes longer than anybody thought.
pub(super) fn is_long(since: Duration, expected: Duration) -> bool {
    since > (expected * 4).max(LONG)
}

/// Asks the guest to suspend and waits until it has, which is expected to take `expected`;
/// `moment` is called between two looks at it, with the time since the request, and says whether it
/// has more to do.
///
/// # Errors
/// [`NotYet`]; unless it is to be given up, the guest runs (or is gone).
pub fn wait(
    guest: &mut impl Handshake,
    timeout: Duration,
    cancel: &Cancel,
    expected: Duration,
    moment: &mut dyn FnMut(Duration) -> bool,
) -> Result<(), NotYet> {
    match guest.state().map_err(NotYet::Failed)? {
        RunState::Running => {}
        RunState::Suspended => {
            return Err(NotYet::Failed(DomainError::Unsupported(format!(
                "Domain {} was suspended by another tool in mid-save; nothing was saved",
                guest.name()
            ))));
        }
        RunState::Ended(how) => return Err(NotYet::Failed(gone(guest, how))),
    }
    guest.request().map_err(NotYet::Failed)?;
    loop {
        match guest.state() {
            Ok(RunState::Running) => {}
            Ok(RunState::Suspended) => return Ok(()),
            Ok(RunState::Ended(how)) => return Err(NotYet::Failed(gone(guest, how))),
            // The request must not stand: nobody would wait for the guest.
            Err(error) => return Err(NotYet::GivenUp(GiveUp::Blind(error))),
        }
        if let Some(signal) = cancel.raised() {
            return Err(NotYet::GivenUp(GiveUp::Signal(signal)));
        }
        if guest.elapsed() >= timeout {
            return Err(NotYet::GivenUp(GiveUp::Timeout(timeout)));
        }
        let busy = moment(guest.elapsed());
        let nap = look_after(guest.elapsed(), expected);
        // What is done between the looks is not to be done in the window for their rarity.
        guest.nap(if busy { nap.min(EARLY_LOOK) } else { nap });
    }
}

/// Takes the request back ([`take_back`]). The guest runs then (or is gone): the error says so, or
/// why that is not known.
pub(super) fn give_up(guest: &mut impl Handshake, why: GiveUp) -> DomainError {
    let how = match take_back(guest) {
        Ok(taken_back) => taken_back.failing(),
        Err(error) => return error,
    };
    match why {
        GiveUp::Signal(signal) => DomainError::Interrupted(signal),
        GiveUp::Blind(error) => error,
        GiveUp::Timeout(timeout) => DomainError::NotSuspended(format!(
            "Domain {} {how} within {timeout:?}; the save was cancelled and the guest runs on",
            guest.name()
        )),
    }
}

/// How a request came to stand no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakenBack {
    /// The guest had not acknowledged it.
    Unseen,
    /// It had not been made.
    NotMade,
    /// It suspended after all, and was resumed.
    Resumed,
    /// It acknowledged it, and has been watched for long.
    Ignored,
    /// The hypervisor was to stop it and could not; that was cancelled.
    Cancelled,
}

impl TakenBack {
    /// What the guest failed to do, to stand after its name.
    fn failing(self) -> &'static str {
        match self {
            Self::Unseen | Self::NotMade => "did not acknowledge the suspend request",
            Self::Resumed | Self::Ignored => "acknowledged the suspend request and did not suspend",
            Self::Cancelled => {
                "was to be stopped by the hypervisor, and its emulator (QEMU) did not let it come \
                 to rest"
            }
        }
    }

    /// What we did.
    pub(super) fn deed(self) -> &'static str {
        match self {
            Self::Unseen => "the suspend request taken back",
            Self::NotMade => "the guest had not been asked to suspend",
            Self::Resumed => "the guest's suspension awaited and the guest resumed",
            Self::Ignored => "the guest watched until it could not suspend any more",
            Self::Cancelled => "the guest's suspension by the hypervisor cancelled",
        }
    }
}

/// Takes the request back, or sees to it that a guest that acknowledged it does not stay
/// suspended.
pub(super) fn take_back(guest: &mut impl Handshake) -> Result<TakenBack, DomainError> {
    // It was seen suspended: a resumption is due, or at least its announcement.
    let (mut due, how) = match guest.withdraw()? {
        Withdrawal::TakenBack => return Ok(TakenBack::Unseen),
        Withdrawal::NotMade => return Ok(TakenBack::NotMade),
        Withdrawal::TooLate => (false, TakenBack::Resumed),
        Withdrawal::Resumed => (true, TakenBack::Resumed),
        Withdrawal::Cancelled => (true, TakenBack::Cancelled),
    };
    if !due {
        guest.notice(&format!(
            "Domain {} acknowledged the suspend request and may still suspend: watching it for up \
             to {:?} to resume it",
            guest.name(),
            late()
        ));
    }
    let until = guest.elapsed() + late();
    let mut failed = None;
    while guest.elapsed() < until {
        // A call that fails is tried again: nobody else would resume the guest.
        let state = guest.state();
        due |= matches!(state, Ok(RunState::Suspended));
        let resumed = match state {
            Ok(RunState::Ended(how)) => return Err(gone(guest, how)),
            Ok(_) if due => guest.resume().map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        match resumed {
            Ok(true) => return Ok(how),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
        guest.nap(LATE_LOOK);
    }
    match failed {
        Some(error) => Err(error),
        None => guest.forget().map(|()| TakenBack::Ignored),
    }
}

fn gone(guest: &impl Handshake, how: &str) -> DomainError {
    DomainError::Gone(format!("{} {how}", guest.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A guest that acknowledges and suspends at given times, on a clock that only naps move.
    struct Scripted {
        acknowledges: Option<Duration>,
        suspends: Option<Duration>,
        ends: Option<Duration>,
        now: Duration,
        requested: bool,
        resumed: bool,
        /// Its resumption can be announced so many calls later only.
        mute: u32,
        announced: bool,
        /// xenstored takes so long to answer, and the guest is looked after meanwhile.
        store_away: Option<Duration>,
        /// The hypervisor is to stop it, and its emulator does not let it.
        stuck: bool,
        raise: Option<(Duration, Cancel)>,
    }

    impl Scripted {
        fn new(acknowledges: Option<u64>, suspends: Option<u64>) -> Self {
            Self {
                acknowledges: acknowledges.map(Duration::from_millis),
                suspends: suspends.map(Duration::from_millis),
                ends: None,
                now: Duration::ZERO,
                requested: false,
                resumed: false,
                mute: 0,
                announced: false,
                store_away: None,
                stuck: false,
                raise: None,
            }
        }

        fn is(&self, at: Option<Duration>) -> bool {
            self.requested && at.is_some_and(|at| self.now >= at)
        }
    }

    impl Handshake for Scripted {
        fn state(&mut self) -> Result<RunState, DomainError> {
            Ok(if self.is(self.ends) {
                RunState::Ended("crashed")
            } else if self.is(self.suspends) && !self.resumed {
                RunState::Suspended
            } else {
                RunState::Running
            })
        }
        fn request(&mut self) -> Result<(), DomainError> {
            self.requested = true;
            Ok(())
        }
        fn withdraw(&mut self) -> Result<Withdrawal, DomainError> {
            if let Some(away) = self.store_away.take() {
                self.now += away;
                if self.is(self.suspends) {
                    self.resumed = true;
                    return Ok(Withdrawal::Resumed);
                }
            }
            if self.stuck {
                self.requested = false;
                return Ok(Withdrawal::Cancelled);
            }
            if self.is(self.acknowledges) {
                return Ok(Withdrawal::TooLate);
            }
            if !self.requested {
                return Ok(Withdrawal::NotMade);
            }
            self.requested = false;
            Ok(Withdrawal::TakenBack)
        }
        fn forget(&mut self) -> Result<(), DomainError> {
            self.requested = false;
            Ok(())
        }
        fn resume(&mut self) -> Result<(), DomainError> {
            self.resumed = true;
            if self.mute > 0 {
                self.mute -= 1;
                return Err(DomainError::Unsupported("xenstored is away".into()));
            }
            self.announced = true;
            Ok(())
        }
        fn name(&self) -> String {
            "g".into()
        }
        fn notice(&mut self, _: &str) {}
        fn nap(&mut self, time: Duration) {
            self.now += time;
            if let Some((at, cancel)) = &self.raise
                && self.now >= *at
            {
                cancel.raise(2);
            }
        }
        fn elapsed(&self) -> Duration {
            self.now
        }
    }

    fn run(guest: &mut Scripted, timeout: Duration) -> Result<(), DomainError> {
        let cancel = guest
            .raise
            .as_ref()
            .map_or_else(Cancel::new, |(_, cancel)| cancel.clone());
        match wait(guest, timeout, &cancel, Duration::ZERO, &mut |_| false) {
            Ok(()) => Ok(()),
            Err(NotYet::Failed(error)) => Err(error),
            Err(NotYet::GivenUp(why)) => Err(give_up(guest, why)),
        }
    }

    /// The guest will never be found suspended by anybody, however long one waits.
    fn runs_on(guest: &mut Scripted) -> bool {
        guest.now += Duration::from_secs(3600);
        guest.state().expect("state") == RunState::Running
    }

    #[test]
    fn a_prompt_guest_is_seen_suspended_at_once() {
        let mut guest = Scripted::new(Some(2), Some(40));
        assert!(run(&mut guest, 1000 * MS).is_ok());
        assert!(guest.now < 41 * MS);
    }

    #[test]
    fn looks_are_rare_at_first_and_fine_when_it_is_expected() {
        let ms = Duration::from_millis;
        for (since, expected, want) in [
            (ms(0), ms(0), LOOK),
            (ms(0), ms(50), EARLY_LOOK),
            (ms(29), ms(50), ms(1)),
            (ms(30), ms(50), LOOK),
            (ms(400), ms(50), ms(2)),
            (ms(5000), ms(50), RARE_LOOK),
            (ms(0), ms(500), ms(10)),
            (ms(400), ms(500), Duration::from_micros(2500)),
        ] {
            assert_eq!(
                look_after(since, expected),
                want,
                "{since:?} of {expected:?}"
            );
        }
    }

    #[test]
    fn it_is_given_up_before_anything_is_waited_for() {
        let mut guest = Scripted::new(Some(5), Some(9000));
        let none = Cancel::new();
        let given_up = wait(&mut guest, 1000 * MS, &none, Duration::ZERO, &mut |_| false);
        assert!(matches!(given_up, Err(NotYet::GivenUp(GiveUp::Timeout(_)))));
        assert!(guest.now < 1100 * MS && !guest.resumed);
    }

    #[test]
    fn looks_are_not_rare_while_there_is_something_to_do() {
        let moments = |busy| {
            let (mut guest, mut moments) = (Scripted::new(Some(5), Some(500)), 0);
            let none = Cancel::new();
            let mut moment = |_| {
                moments += 1;
                busy
            };
            assert!(wait(&mut guest, 1000 * MS, &none, 1000 * MS, &mut moment).is_ok());
            moments
        };
        assert!(moments(true) >= 250 && moments(false) <= 50);
    }

    #[test]
    fn long_is_well_past_the_expected_time() {
        assert!(!is_long(1900 * MS, 50 * MS) && is_long(2100 * MS, 50 * MS));
        assert!(!is_long(7000 * MS, 2000 * MS) && is_long(8100 * MS, 2000 * MS));
    }

    #[test]
    fn a_request_never_acknowledged_is_taken_back() {
        let mut guest = Scripted::new(None, None);
        assert!(matches!(
            run(&mut guest, 1000 * MS),
            Err(DomainError::NotSuspended(_))
        ));
        assert!(guest.now < 1100 * MS);
        guest.suspends = Some(MS);
        assert!(runs_on(&mut guest), "the request still stands");
    }

    #[test]
    fn a_guest_that_suspends_after_we_gave_up_is_resumed() {
        let mut guest = Scripted::new(Some(5), Some(9000));
        assert!(matches!(
            run(&mut guest, 1000 * MS),
            Err(DomainError::NotSuspended(_))
        ));
        assert!(guest.resumed && runs_on(&mut guest));
    }

    #[test]
    fn a_resumption_that_could_not_be_announced_is_announced_later() {
        let mut guest = Scripted::new(Some(5), Some(9000));
        guest.mute = 3;
        assert!(run(&mut guest, 1000 * MS).is_err());
        assert!(guest.announced && runs_on(&mut guest));
        assert!(guest.now < 3600 * 1000 * MS + 9100 * MS);
    }

    #[test]
    fn a_guest_resumed_while_xenstored_was_away_is_announced() {
        let mut guest = Scripted::new(Some(5), Some(9000));
        guest.store_away = Some(10_000 * MS);
        let Err(DomainError::NotSuspended(text)) = run(&mut guest, 1000 * MS) else {
            panic!("it must be given up");
        };
        assert!(text.contains("acknowledged"), "{text}");
        assert!(guest.announced && guest.now < 12_000 * MS);
    }

    #[test]
    fn a_guest_that_acknowledges_and_never_suspends_is_given_up() {
        let mut guest = Scripted::new(Some(5), None);
        let Err(DomainError::NotSuspended(text)) = run(&mut guest, 1000 * MS) else {
            panic!("it must be given up");
        };
        assert!(text.contains("acknowledged"), "{text}");
    }

    #[test]
    fn a_request_that_was_never_made_is_not_waited_for() {
        let mut guest = Scripted::new(Some(5), Some(40));
        assert_eq!(take_back(&mut guest).expect("settled"), TakenBack::NotMade);
        assert_eq!(guest.now, Duration::ZERO);
    }

    #[test]
    fn a_stop_that_the_emulator_held_up_is_cancelled_and_announced() {
        let mut guest = Scripted::new(None, Some(9000));
        guest.stuck = true;
        let Err(DomainError::NotSuspended(text)) = run(&mut guest, 1000 * MS) else {
            panic!("it must be given up");
        };
        assert!(text.contains("emulator"), "{text}");
        assert!(guest.announced && guest.now < 1100 * MS);
        assert!(runs_on(&mut guest));
        assert!(TakenBack::Cancelled.deed().contains("cancelled"));
    }

    #[test]
    fn an_interrupt_before_and_after_the_acknowledgement_leaves_the_guest_running() {
        for acknowledges in [None, Some(5)] {
            let mut guest = Scripted::new(acknowledges, acknowledges.map(|_| 300));
            guest.raise = Some((100 * MS, Cancel::new()));
            assert!(matches!(
                run(&mut guest, 1000 * MS),
                Err(DomainError::Interrupted(2))
            ));
            assert!(runs_on(&mut guest));
        }
    }

    #[test]
    fn a_guest_that_crashes_is_gone() {
        let mut guest = Scripted::new(Some(5), Some(200));
        guest.ends = Some(50 * MS);
        assert!(matches!(
            run(&mut guest, 1000 * MS),
            Err(DomainError::Gone(_))
        ));
    }
}
