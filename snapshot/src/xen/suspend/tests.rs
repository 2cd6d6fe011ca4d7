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
