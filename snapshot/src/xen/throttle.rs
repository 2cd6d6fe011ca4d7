//! Slows a domU: by the cap of its scheduler, by pauses where that knows none.
//!
//! A cap of Xen is in percent of one CPU for all vCPUs together, 0 is none, and it is set together
//! with the weight: so both are read before, and the weight goes back as it was. The cap is asked
//! of the domain, not of the host, whose CPU pools may have schedulers of their own.

use std::io;
use std::sync::Arc;

use xen_sys::{CpuShare, DomainId, Scheduler, Xen};

use super::guest::Guest;
use super::pulse::{Ended, Pausable, Pulser};
use super::rhythm::Rhythm;
use crate::fault;
use crate::guardian::{Caps, Keeper, Notes, Remedy, Slowed};
use crate::ports::{BoxError, Cpu, DomainError};
use crate::units::CpuPercent;

/// As Xen has it (xen/sched.h: 0 is "no cap").
const NO_CAP: u16 = 0;

/// What is done to one domU's CPU.
#[derive(Default)]
pub(super) struct Throttle {
    /// Pauses, even where there is a cap.
    by_pauses: bool,
    how: How,
}

#[derive(Default)]
enum How {
    #[default]
    No,
    /// It may have one of these.
    Capped(Caps),
    Pulsing(Pulser<PulseError>),
    /// The pulser is gone, and the journal tells whether the guest may still be paused.
    PulserGone,
}

/// Why a pulser ended by itself.
#[derive(Debug, thiserror::Error)]
enum PulseError {
    #[error(transparent)]
    Xen(#[from] xen_sys::Error),
    #[error("its journal cannot be written: {0}")]
    Note(#[from] io::Error),
}

impl Throttle {
    /// From here on by pauses only.
    pub fn by_pauses(&mut self) {
        self.by_pauses = true;
    }

    /// How the guest's use of the CPU can be limited, and how it is.
    pub fn cpu(&self, guest: &Guest) -> Result<Cpu, DomainError> {
        let share = share(guest)?;
        let means = match share {
            Some(share) if !self.by_pauses => match share.scheduler {
                Scheduler::Credit => "credit cap",
                Scheduler::Credit2 => "credit2 cap",
            },
            _ => "pauses",
        };
        Ok(Cpu {
            vcpus: guest.info()?.online_vcpus,
            own: share
                .map(|share| CpuPercent(share.cap.into()))
                .filter(|cap| cap.0 > 0),
            means,
        })
    }

    /// Limits the guest. Where it already has a lower cap, that is left.
    pub fn throttle(
        &mut self,
        guest: &mut Guest,
        keeper: &mut Keeper,
        limit: CpuPercent,
    ) -> Result<(), DomainError> {
        match share(guest)?.filter(|_| !self.by_pauses) {
            Some(share) => self.cap(guest, keeper, share, limit),
            None => self.pulse(guest, keeper, limit),
        }
    }

    fn cap(
        &mut self,
        guest: &mut Guest,
        keeper: &mut Keeper,
        share: CpuShare,
        limit: CpuPercent,
    ) -> Result<(), DomainError> {
        let past = match self.how {
            How::Capped(caps) => Some(caps),
            How::No => None,
            // Its CPU pool is another one now.
            How::Pulsing(_) | How::PulserGone => {
                self.unthrottle(guest, keeper)?;
                None
            }
        };
        // 0 would be no limit.
        let limit = u16::try_from(limit.0).unwrap_or(u16::MAX).max(1);
        let caps = Caps::next(past, share.cap, limit);
        if caps.own != 0 && caps.own <= limit {
            return self.unthrottle(guest, keeper);
        }
        let noted = keeper.tell_capped(caps);
        noted.map_err(|error| noting_failed(guest, error))?;
        self.how = How::Capped(caps);
        fault::point("throttling");
        set_cap(guest, share, limit)?;
        fault::point("throttled");
        Ok(())
    }

    /// Takes the guest's own cap away, if its scheduler knows one and it has one.
    pub fn lift(&mut self, guest: &mut Guest, keeper: &mut Keeper) -> Result<bool, DomainError> {
        let Some(share) = share(guest)?.filter(|share| share.cap > 0) else {
            return Ok(false);
        };
        let caps = Caps::next(None, share.cap, NO_CAP);
        let noted = keeper.tell_capped(caps);
        noted.map_err(|error| noting_failed(guest, error))?;
        self.how = How::Capped(caps);
        set_cap(guest, share, NO_CAP)?;
        fault::point("cap-lifted");
        Ok(true)
    }

    fn pulse(
        &mut self,
        guest: &mut Guest,
        keeper: &mut Keeper,
        limit: CpuPercent,
    ) -> Result<(), DomainError> {
        let rhythm = Rhythm::of(limit, guest.info()?.online_vcpus);
        if let (How::Pulsing(pulser), Some(rhythm)) = (&self.how, rhythm) {
            keeper.beat();
            if pulser.change(rhythm) {
                return Ok(());
            }
        }
        self.unthrottle(guest, keeper)?;
        let Some(rhythm) = rhythm else {
            return Ok(());
        };
        // Shows life first, as a cap does: it was no hang to be silent before.
        keeper.beat();
        fault::point("throttling");
        let pausing = Pausing {
            xen: guest.xen.clone(),
            id: guest.id,
            notes: keeper.notes().clone(),
        };
        let pulser = Pulser::start(pausing, rhythm).map_err(|error| failed(guest, error.into()))?;
        self.how = How::Pulsing(pulser);
        fault::point("throttled");
        Ok(())
    }

    /// Puts the guest's own cap back, or ends the pauses. What fails can be tried again.
    pub fn unthrottle(
        &mut self,
        guest: &mut Guest,
        keeper: &mut Keeper,
    ) -> Result<(), DomainError> {
        if matches!(self.how, How::No) {
            return Ok(());
        }
        keeper.beat();
        fault::point("unthrottling");
        if let How::Capped(caps) = self.how {
            let put_back = put_back(&guest.xen, guest.id, caps)
                .map_err(|error| guest.failed("put back the CPU cap of", error))?;
            if let Some(Remedy::Leave(cap)) = put_back {
                (guest.notice)(&format!(
                    "livesave: warning: somebody else set the CPU cap of domain {} to {} in \
                     mid-save; it was left so",
                    guest.name,
                    in_words(cap)
                ));
            }
        } else {
            self.end_pauses(guest, keeper.notes())?;
        }
        fault::point("unthrottled");
        let noted = keeper.tell_unslowed();
        noted.map_err(|error| noting_failed(guest, error))?;
        self.how = How::No;
        Ok(())
    }

    fn end_pauses(&mut self, guest: &mut Guest, notes: &Notes) -> Result<(), DomainError> {
        let mut why = None;
        if let How::Pulsing(pulser) = std::mem::replace(&mut self.how, How::PulserGone) {
            why = match pulser.end() {
                Some(Ended::Unpaused(why)) => why.map(|error| error.to_string()),
                Some(Ended::Paused(error)) => Some(error.to_string()),
                None => Some("their thread panicked".into()),
            };
        }
        if notes.state().slowed == Slowed::Pulsing {
            unpause(guest)?;
        }
        if let Some(why) = why {
            // Gone, it explains all else.
            guest.info()?;
            (guest.notice)(&format!(
                "livesave: warning: the pauses that slowed domain {} ended early: {why}",
                guest.name
            ));
        }
        Ok(())
    }
}

/// The domain's cap is put back, if it is one of ours. `None` if its scheduler knows no caps any
/// more. No xenstore is needed.
pub(super) fn put_back(
    xen: &Xen,
    id: DomainId,
    caps: Caps,
) -> Result<Option<Remedy>, xen_sys::Error> {
    let Some(share) = xen.cpu_share(id)? else {
        return Ok(None);
    };
    let remedy = caps.remedy(share.cap);
    if let Remedy::PutBack(cap) = remedy {
        xen.set_cpu_share(id, CpuShare { cap, ..share })?;
    }
    Ok(Some(remedy))
}

/// What was done about a cap, in words to stand in a list.
pub(super) fn deed(remedy: Option<Remedy>) -> String {
    match remedy {
        Some(Remedy::PutBack(own)) => format!("its CPU cap put back ({})", in_words(own)),
        Some(Remedy::Nothing) => "its CPU cap is its own".into(),
        Some(Remedy::Leave(theirs)) => format!(
            "its CPU cap left as somebody else has set it meanwhile ({})",
            in_words(theirs)
        ),
        None => "its scheduler knows no CPU cap any more".into(),
    }
}

/// Ends one pause of the guest, if it is paused; says whether it was.
pub(super) fn unpause(guest: &Guest) -> Result<bool, DomainError> {
    let paused = guest.info()?.paused;
    if paused {
        guest
            .xen
            .domain_unpause(guest.id)
            .map_err(|error| guest.failed("unpause", error))?;
    }
    Ok(paused)
}

/// A cap for a message.
fn in_words(cap: u16) -> String {
    match cap {
        0 => "none".into(),
        cap => CpuPercent(cap.into()).to_string(),
    }
}

fn share(guest: &Guest) -> Result<Option<CpuShare>, DomainError> {
    guest
        .xen
        .cpu_share(guest.id)
        .map_err(|error| guest.failed("read the CPU share of", error))
}

fn set_cap(guest: &Guest, share: CpuShare, cap: u16) -> Result<(), DomainError> {
    guest
        .xen
        .set_cpu_share(guest.id, CpuShare { cap, ..share })
        .map_err(|error| guest.failed("set the CPU cap of", error))
}

fn noting_failed(guest: &Guest, source: io::Error) -> DomainError {
    DomainError::Call {
        operation: super::domain::NOTE,
        domain: guest.name.clone(),
        source: source.into(),
    }
}

fn failed(guest: &Guest, source: BoxError) -> DomainError {
    DomainError::Call {
        operation: "start to pause in turns",
        domain: guest.name.clone(),
        source,
    }
}

/// A domU that is paused in turns.
struct Pausing {
    xen: Xen,
    id: DomainId,
    notes: Arc<Notes>,
}

impl Pausable for Pausing {
    type Error = PulseError;

    fn note(&mut self, paused: bool) -> Result<(), PulseError> {
        let slowed = if paused { Slowed::Pulsing } else { Slowed::No };
        Ok(self.notes.slowed(slowed)?)
    }

    fn pause(&mut self) -> Result<(), PulseError> {
        Ok(self.xen.domain_pause(self.id)?)
    }

    fn unpause(&mut self) -> Result<(), PulseError> {
        match self.xen.domain_unpause(self.id) {
            // Somebody else has ended the pause, or the domain is gone.
            Err(error) if error.errno() == Some(libc::EINVAL) || error.is_no_such_domain() => {
                Ok(())
            }
            done => Ok(done?),
        }
    }
}
