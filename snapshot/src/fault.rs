//! Named points at which a test makes a save die, wait or meet an error. Nothing of it is in an
//! ordinary build.
//!
//! With the feature `fault-points`, `LIVESAVE_FAULT=POINT:DEED` does the deed when the point is
//! passed:
//!
//! | deed | what is done |
//! |---|---|
//! | `kill`, `kill-both`, `kill-guardian` | SIGKILL for the save; its guardian first; its guardian alone |
//! | `stop` | the save stops itself by SIGSTOP; the test lets it go on by SIGCONT |
//! | `hang`, `panic` | the save does so |
//! | `error:ERRNO` | the call that follows is not made and fails so; at points of calls only |
//! | `slow:MS` | the call takes so much longer |
//!
//! Behind it may stand when: `:3` the third time, `:2-4` from the second to the fourth, `:2-` from
//! the second on. Else it is the first time, and every time for `slow`. A guardian counts for
//! itself.
//!
//! Around the emulator of an HVM guest, in the order of a save: `emulator-log-starting`,
//! `emulator-log-on`, `emulator-ready`, `emulator-stopping`, `emulator-stopped`, `emulator-saved`,
//! `emulator-runs`, `emulator-log-off`. The commands to it are calls: `qmp-capabilities`,
//! `qmp-status`, `qmp-dirty-log`, `qmp-add-fd`, `qmp-stop`, `qmp-save`, `qmp-cont`. A guest without
//! PV drivers is suspended by the call `shutdown`; `cancel-shutdown` takes that back where the emulator
//! holds it up.
//!
//! `LIVESAVE_WATCH_MS` is how long a guest is watched that may suspend late.

/// The save passes here.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn point(_: &str) {}

/// A call follows that a test may have fail.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn call(_: &str) -> std::io::Result<()> {
    Ok(())
}

/// Whom `kill-both` kills first.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn guardian_is(_: u32) {}

/// How long a guest is watched that may suspend late; a test may have no time for that.
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn watch_time(time: std::time::Duration) -> std::time::Duration {
    time
}

#[cfg(feature = "fault-points")]
pub use built_in::{call, guardian_is, point, watch_time};

#[cfg(feature = "fault-points")]
mod built_in {
    use std::io;
    use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
    use std::thread::sleep;
    use std::time::Duration;

    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

    use super::plan::{Deed, Plan};

    static GUARDIAN: AtomicI32 = AtomicI32::new(0);
    static PASSED: AtomicU32 = AtomicU32::new(0);

    /// Whom `kill-both` kills first.
    pub fn guardian_is(pid: u32) {
        GUARDIAN.store(pid.cast_signed(), Ordering::SeqCst);
    }

    /// The save passes here.
    pub fn point(name: &str) {
        if let Err(error) = call(name) {
            eprintln!("livesave: LIVESAVE_FAULT: no call at {name:?} could fail ({error})");
        }
    }

    /// A call follows that a test may have fail.
    pub fn call(name: &str) -> io::Result<()> {
        let Ok(text) = std::env::var("LIVESAVE_FAULT") else {
            return Ok(());
        };
        let Some(plan) = Plan::parse(&text) else {
            eprintln!("livesave: LIVESAVE_FAULT={text}: no such deed");
            return Ok(());
        };
        if plan.point != name
            || !plan
                .when
                .contains(&(PASSED.fetch_add(1, Ordering::SeqCst) + 1))
        {
            return Ok(());
        }
        match plan.deed {
            Deed::Kill => kill(rustix::process::getpid(), Signal::KILL),
            Deed::KillBoth => {
                kill_guardian();
                kill(rustix::process::getpid(), Signal::KILL);
            }
            Deed::KillGuardian => kill_guardian(),
            Deed::Stop => kill(rustix::process::getpid(), Signal::STOP),
            Deed::Hang => loop {
                sleep(Duration::from_secs(3600));
            },
            Deed::Panic => panic!("LIVESAVE_FAULT={text}"),
            Deed::Error(errno) => return Err(errno.into()),
            Deed::Slow(time) => sleep(time),
        }
        Ok(())
    }

    /// `LIVESAVE_WATCH_MS`, if it is set.
    pub fn watch_time(time: Duration) -> Duration {
        let wanted = std::env::var("LIVESAVE_WATCH_MS").ok();
        wanted
            .and_then(|ms| ms.parse().ok())
            .map_or(time, Duration::from_millis)
    }

    fn kill_guardian() {
        if let Some(guardian) = Pid::from_raw(GUARDIAN.load(Ordering::SeqCst)) {
            kill(guardian, Signal::KILL);
            // Dead, but still ours to reap.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let _ = waitid(WaitId::Pid(guardian), options);
        }
    }

    fn kill(pid: Pid, signal: Signal) {
        let _ = kill_process(pid, signal);
    }
}

/// What `LIVESAVE_FAULT` says.
#[cfg(any(test, feature = "fault-points"))]
mod plan {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    use rustix::io::Errno;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) enum Deed {
        Kill,
        KillBoth,
        KillGuardian,
        Stop,
        Hang,
        Panic,
        Error(Errno),
        Slow(Duration),
    }

    #[derive(Clone, PartialEq, Eq, Debug)]
    pub(super) struct Plan<'a> {
        pub point: &'a str,
        pub deed: Deed,
        /// Which passings, counted from 1.
        pub when: RangeInclusive<u32>,
    }

    impl<'a> Plan<'a> {
        pub fn parse(text: &'a str) -> Option<Self> {
            let mut words = text.split(':');
            let (point, verb) = (words.next()?, words.next()?);
            let mut when = 1..=1;
            let deed = match verb {
                "kill" => Deed::Kill,
                "kill-both" => Deed::KillBoth,
                "kill-guardian" => Deed::KillGuardian,
                "stop" => Deed::Stop,
                "hang" => Deed::Hang,
                "panic" => Deed::Panic,
                "error" => Deed::Error(errno(words.next()?)?),
                "slow" => {
                    when = 1..=u32::MAX;
                    Deed::Slow(Duration::from_millis(words.next()?.parse().ok()?))
                }
                _ => return None,
            };
            if let Some(text) = words.next() {
                when = times(text)?;
            }
            words.next().is_none().then_some(Self { point, deed, when })
        }
    }

    fn errno(name: &str) -> Option<Errno> {
        Some(match name {
            "EIO" => Errno::IO,
            "ENOSPC" => Errno::NOSPC,
            "ENOMEM" => Errno::NOMEM,
            "EFAULT" => Errno::FAULT,
            "EBUSY" => Errno::BUSY,
            "EPERM" => Errno::PERM,
            _ => return None,
        })
    }

    /// `N`, `A-B` or `A-`.
    fn times(text: &str) -> Option<RangeInclusive<u32>> {
        let Some((first, last)) = text.split_once('-') else {
            let only = text.parse().ok()?;
            return Some(only..=only);
        };
        let last = match last {
            "" => u32::MAX,
            last => last.parse().ok()?,
        };
        Some(first.parse().ok()?..=last)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_a_point_a_deed_and_when() {
            let every = 1..=u32::MAX;
            for (text, deed, when) in [
                ("x:kill", Deed::Kill, 1..=1),
                ("x:kill-both", Deed::KillBoth, 1..=1),
                ("x:kill-guardian:2", Deed::KillGuardian, 2..=2),
                ("x:stop", Deed::Stop, 1..=1),
                ("x:hang:3", Deed::Hang, 3..=3),
                ("x:panic", Deed::Panic, 1..=1),
                ("x:error:EIO", Deed::Error(Errno::IO), 1..=1),
                ("x:error:ENOSPC:2-4", Deed::Error(Errno::NOSPC), 2..=4),
                ("x:error:EFAULT:7-", Deed::Error(Errno::FAULT), 7..=u32::MAX),
                ("x:slow:250", Deed::Slow(Duration::from_millis(250)), every),
            ] {
                let point = "x";
                let want = Plan { point, deed, when };
                assert_eq!(Plan::parse(text), Some(want), "{text}");
            }
            for text in [
                "",
                "x",
                "x:fly",
                "x:error",
                "x:error:EWHAT",
                "x:slow",
                "x:slow:soon",
                "x:kill:often",
                "x:kill:1:2",
            ] {
                assert_eq!(Plan::parse(text), None, "{text:?}");
            }
        }
    }
}
