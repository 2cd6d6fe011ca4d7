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
mod tests;
