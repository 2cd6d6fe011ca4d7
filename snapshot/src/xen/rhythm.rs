//! How a guest is paused in turns: the arithmetic of it.
//!
//! A guest that runs for the fraction *f* of the time uses *f* · 100 % of each of its vCPUs at
//! most; so a limit of *l* percent of one CPU over *v* vCPUs is held by *f* = *l* / (100 · *v*),
//! whatever the guest does. One that leaves vCPUs idle is slowed more than by a cap of the same
//! figure.

use std::time::Duration;

use crate::units::CpuPercent;

/// A turn: so long the guest runs and is paused together, where its share allows.
const TURN: Duration = Duration::from_millis(20);
/// It runs for that long in each turn, for a shorter time would not be slept exactly.
pub(super) const SHORTEST_RUN: Duration = Duration::from_millis(1);
/// Less than that fraction of the time is given to no guest, so that no pause is longer than 100
/// ms: it has to answer its peers.
const LEAST_SHARE: f64 = 0.01;

/// How long a guest runs and is paused in each turn.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rhythm {
    /// The fraction of the time that it runs.
    share: f64,
    run: Duration,
    pub pause: Duration,
}

impl Rhythm {
    /// The rhythm that limits a guest of so many vCPUs; `None` if it needs no pauses.
    pub fn of(limit: CpuPercent, vcpus: u32) -> Option<Self> {
        let whole = 100.0 * f64::from(vcpus.max(1));
        let share = (f64::from(limit.0) / whole).max(LEAST_SHARE);
        if share >= 1.0 {
            return None;
        }
        let turn = TURN.max(SHORTEST_RUN.div_f64(share));
        let run = turn.mul_f64(share);
        Some(Self {
            share,
            run,
            pause: turn - run,
        })
    }
}

/// What the guest is owed, as a dom0 with much to do wakes us late: then the next turns make up
/// for it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Account {
    /// Seconds that it should have run and has not; less than none if it ran too long.
    owed: f64,
}

impl Account {
    /// A turn went like this.
    pub fn turn(&mut self, rhythm: Rhythm, ran: Duration, paused: Duration) {
        let turn = (ran + paused).as_secs_f64();
        let most = (rhythm.run + rhythm.pause).as_secs_f64();
        // Bounded, so that one long delay does not let it run, or stand, for long.
        self.owed = (self.owed + turn * rhythm.share - ran.as_secs_f64()).clamp(-most, most);
    }

    /// How long it runs in the next one.
    pub fn run(self, rhythm: Rhythm) -> Duration {
        let run = rhythm.run.as_secs_f64() + self.owed;
        Duration::from_secs_f64(run.max(SHORTEST_RUN.as_secs_f64() / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_share_of_the_time_is_the_limit_over_all_vcpus() {
        for (limit, vcpus, run_ms, pause_ms) in [
            (50, 1, 10.0, 10.0),
            (20, 1, 4.0, 16.0),
            (20, 4, 1.0, 19.0),
            (360, 4, 18.0, 2.0),
            (2, 1, 1.0, 49.0),
            // No pause is longer than that.
            (1, 1, 1.0, 99.0),
            (1, 64, 1.0, 99.0),
            (0, 1, 1.0, 99.0),
        ] {
            let rhythm = Rhythm::of(CpuPercent(limit), vcpus).expect("pauses");
            let off = |time: Duration, ms: f64| (time.as_secs_f64() * 1e3 - ms).abs();
            assert!(
                off(rhythm.run, run_ms) < 0.01,
                "{limit}/{vcpus}: {rhythm:?}"
            );
            assert!(
                off(rhythm.pause, pause_ms) < 0.01,
                "{limit}/{vcpus}: {rhythm:?}"
            );
        }
        for (limit, vcpus) in [(100, 1), (400, 4), (1000, 1), (100, 0)] {
            assert_eq!(
                Rhythm::of(CpuPercent(limit), vcpus),
                None,
                "{limit}/{vcpus}"
            );
        }
    }

    #[test]
    fn what_a_turn_took_too_much_of_the_next_ones_give_back() {
        let rhythm = Rhythm::of(CpuPercent(20), 1).expect("pauses");
        let mut account = Account::default();
        let (mut ran, mut paused) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..1000 {
            let run = account.run(rhythm) + if turn % 10 == 3 { 8 * MS } else { MS / 20 };
            let pause = rhythm.pause + if turn % 7 == 5 { 9 * MS } else { MS / 20 };
            account.turn(rhythm, run, pause);
            ran += run;
            paused += pause;
        }
        let share = ran.as_secs_f64() / (ran + paused).as_secs_f64();
        assert!((share - 0.2).abs() < 0.005, "{share}");
        // After one long delay it does not run, nor stand, for long.
        account.turn(rhythm, MS, 60_000 * MS);
        assert!(account.run(rhythm) <= rhythm.run + TURN);
        account.turn(rhythm, 60_000 * MS, MS);
        assert!(account.run(rhythm) >= SHORTEST_RUN / 2);
    }
}
