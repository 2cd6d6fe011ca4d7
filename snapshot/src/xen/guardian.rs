//! The guardian's process, and the recovery when it was killed too.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use xen_sys::{DomainId, Xen};

use super::first_aid::first_aid;
use super::guest::Guest;
use super::{disks, settle, suspend};
use crate::guardian::{
    self, DiskCare, DiskState, Entry, Journal, Locks, Outcome, Patience, PutRight, Recovered,
    State, Stop, serve,
};
use crate::ports::BoxError;

/// How often a guardian looks after its save; a save's end it sees at once.
const LOOK: Duration = Duration::from_millis(500);
/// How long a guardian tries to put a guest right: xenstored may be away for a while, another
/// tool's save may be under way.
const RETRY: Duration = Duration::from_secs(600);
/// How long a guardian at work is waited for by a recovery: it may itself wait for a late
/// suspension.
fn at_work() -> Duration {
    suspend::late() + Duration::from_secs(15)
}

/// The hidden command `guardian DOMID HANDSHAKE-MS SILENCE-MS STALL-MS`; see
/// [`crate::guardian::Link`]. The disks are looked after by `care`.
#[must_use]
pub fn guardian_main(arguments: &[OsString], care: &'static dyn DiskCare) -> ExitCode {
    let Some((domid, patience)) = parse(arguments) else {
        return ExitCode::from(2);
    };
    match serve(&patience, || Charge::new(domid, care)) {
        Outcome::Right => ExitCode::SUCCESS,
        Outcome::Wrong => ExitCode::FAILURE,
    }
}

fn parse(arguments: &[OsString]) -> Option<(DomainId, Patience)> {
    let [domid, handshake, silence, stall] = arguments else {
        return None;
    };
    let number = |text: &OsString| text.to_str()?.parse::<u64>().ok();
    let domid = DomainId::new(number(domid)?.try_into().ok()?)?;
    Some((
        domid,
        Patience {
            look: LOOK,
            handshake: Duration::from_millis(number(handshake)?),
            silence: Duration::from_millis(number(silence)?),
            stall: Duration::from_millis(number(stall)?),
            retry: RETRY,
        },
    ))
}

/// One domain, with everything open that is needed to put it right.
struct Charge {
    domid: DomainId,
    guest: Option<Guest>,
    care: &'static dyn DiskCare,
    /// The guest was resumed, and that is still to be announced in xenstore.
    resumed: bool,
}

impl Charge {
    fn new(domid: DomainId, care: &'static dyn DiskCare) -> Result<Self, BoxError> {
        let guest = Some(settle::connect(domid)?);
        Ok(Self {
            domid,
            guest,
            care,
            resumed: false,
        })
    }
}

impl PutRight for Charge {
    fn put_right(
        &mut self,
        journal: &Journal,
        entry: &Entry,
        state: State,
    ) -> Result<Vec<String>, BoxError> {
        if state == State::NONE {
            return Ok(vec![]);
        }
        let xen = match &self.guest {
            Some(guest) => guest.xen.clone(),
            None => Xen::open()?,
        };
        let (mut done, mut left) = first_aid(&xen, self.domid, journal, entry, state);
        // Told from a guest that may still suspend, also in a second attempt.
        self.resumed |= left.stop != state.stop;
        if self.resumed {
            left.stop = Stop::Resumed;
        }
        // The guest runs; it waits for its disks no longer than it must, and not for xenstored.
        let freed = disks::let_go(self.care, journal, entry, &mut left);
        done.extend(freed.as_ref().ok().into_iter().flatten().cloned());
        done.extend(self.guest_right(journal, entry, left)?);
        // The guest is right, whatever becomes of the rest, and is not put right once more.
        let disks = journal.state()?.map_or(left.disks, |state| state.disks);
        journal.set(State {
            disks,
            ..State::NONE
        })?;
        freed?;
        if left.disks != DiskState::No {
            done.extend(self.care.tidy(&entry.disks)?);
        }
        Ok(done)
    }
}

impl Charge {
    /// What takes xenstore.
    fn guest_right(
        &mut self,
        journal: &Journal,
        entry: &Entry,
        left: State,
    ) -> Result<Vec<String>, BoxError> {
        let guests = State {
            disks: DiskState::No,
            ..left
        };
        if guests == State::NONE {
            return Ok(vec![]);
        }
        let mut guest = match self.guest.take() {
            Some(guest) => guest,
            None => settle::connect(self.domid)?,
        };
        // After an error everything is opened anew: xenstored may have been started again.
        let done = settle::settle(&mut guest, journal, entry, guests)?;
        self.guest = Some(guest);
        Ok(done)
    }
}

/// Puts right what killed saves left whose guardians were killed too. Domains that are being saved
/// are left alone; where there was nothing to do, nothing is reported.
///
/// # Errors
/// The directory of the locks cannot be read.
pub fn recover(care: &'static dyn DiskCare) -> std::io::Result<Vec<Recovered>> {
    guardian::recover(&locks(), at_work(), |domid| {
        // Nothing is opened for a domain that needs nothing.
        Ok(Charge {
            domid: DomainId::new(domid).ok_or("there is no domain of that number")?,
            guest: None,
            care,
            resumed: false,
        })
    })
}

/// The locks of domUs.
pub(super) fn locks() -> Locks {
    Locks::new(Path::new("/run/livesave"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_arguments_are_numbers() {
        let parse = |line: &str| parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let (domid, patience) = parse("7 105000 60000 25000").expect("parsed");
        assert_eq!(domid.get(), 7);
        assert_eq!(patience.handshake, Duration::from_secs(105));
        assert_eq!(patience.silence, Duration::from_secs(60));
        assert_eq!(patience.stall, Duration::from_secs(25));
        for line in [
            "",
            "7",
            "7 1",
            "7 1 1",
            "7 1 1 x",
            "x 1 1 1",
            "99999 1 1 1",
            "7 1 1 1 1",
        ] {
            assert!(parse(line).is_none(), "{line}");
        }
    }
}
