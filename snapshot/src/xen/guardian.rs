//! The guardian's process, and the recovery when it was killed too.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use xen_sys::{DomainId, Xen};

use super::first_aid::first_aid;
use super::guest::Guest;
use super::{settle, suspend};
use crate::guardian::{
    self, Entry, Journal, Locks, Outcome, Patience, PutRight, Recovered, State, Stop, serve,
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

/// The hidden command `guardian DOMID HANDSHAKE-MS SILENCE-MS`; see [`crate::guardian::Link`].
#[must_use]
pub fn guardian_main(arguments: &[OsString]) -> ExitCode {
    let Some((domid, patience)) = parse(arguments) else {
        return ExitCode::from(2);
    };
    match serve(&patience, || Charge::new(domid)) {
        Outcome::Right => ExitCode::SUCCESS,
        Outcome::Wrong => ExitCode::FAILURE,
    }
}

fn parse(arguments: &[OsString]) -> Option<(DomainId, Patience)> {
    let [domid, handshake, silence] = arguments else {
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
            retry: RETRY,
        },
    ))
}

/// One domain, with everything open that is needed to put it right.
struct Charge {
    domid: DomainId,
    guest: Option<Guest>,
    /// The guest was resumed, and that is still to be announced in xenstore.
    resumed: bool,
}

impl Charge {
    fn new(domid: DomainId) -> Result<Self, BoxError> {
        let guest = Some(settle::connect(domid)?);
        Ok(Self {
            domid,
            guest,
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
        if left == State::NONE {
            return Ok(done);
        }
        let mut guest = match self.guest.take() {
            Some(guest) => guest,
            None => settle::connect(self.domid)?,
        };
        // After an error everything is opened anew: xenstored may have been started again.
        let more = settle::settle(&mut guest, journal, entry, left)?;
        done.extend(more);
        self.guest = Some(guest);
        Ok(done)
    }
}

/// Puts right what killed saves left whose guardians were killed too. Domains that are being saved
/// are left alone; where there was nothing to do, nothing is reported.
///
/// # Errors
/// The directory of the locks cannot be read.
pub fn recover() -> std::io::Result<Vec<Recovered>> {
    guardian::recover(&locks(), at_work(), |domid| {
        // Nothing is opened for a domain that needs nothing.
        Ok(Charge {
            domid: DomainId::new(domid).ok_or("there is no domain of that number")?,
            guest: None,
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
        let (domid, patience) = parse("7 105000 60000").expect("parsed");
        assert_eq!(domid.get(), 7);
        assert_eq!(patience.handshake, Duration::from_secs(105));
        assert_eq!(patience.silence, Duration::from_secs(60));
        for line in ["", "7", "7 1", "7 1 x", "x 1 1", "99999 1 1", "7 1 1 1"] {
            assert!(parse(line).is_none(), "{line}");
        }
    }
}
