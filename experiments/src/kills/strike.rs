//! Does harm to a running save, at its instant.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use snapshot::guardian::{Journal, State, Stop};

use super::lane::Lane;
use super::plan::{Deed, Harm, PERHAPS, Plan, Victim, When};
use super::rng::Rng;

/// No save takes longer, whatever is done to it.
const LONGEST: Duration = Duration::from_secs(40);
/// How often the journal is looked at for the window, and a save for its end.
const LOOK: Duration = Duration::from_micros(20);

/// Where a save was when it was struck, by its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It had noted nothing, or nothing any more.
    NoJournal,
    /// Nothing was to be put right.
    None,
    /// Dirty tracking may be on.
    Tracking,
    /// The guest may have been asked to suspend.
    Requested,
    /// The guest is suspended.
    Suspended,
}

impl Phase {
    /// All of them, as they follow each other.
    pub const ALL: [Self; 5] = [
        Self::NoJournal,
        Self::None,
        Self::Tracking,
        Self::Requested,
        Self::Suspended,
    ];

    fn of(state: Option<State>) -> Self {
        match state {
            None => Self::NoJournal,
            Some(state) => match state.stop {
                Stop::Suspended => Self::Suspended,
                Stop::Requested => Self::Requested,
                Stop::No | Stop::Resumed if state.tracking => Self::Tracking,
                Stop::No | Stop::Resumed => Self::None,
            },
        }
    }
}

/// What came of a strike.
#[derive(Debug)]
pub struct Struck {
    /// It hit: the victim lived until then.
    pub landed: bool,
    /// Where the save was.
    pub phase: Phase,
    /// How the save ended.
    pub end: ExitStatus,
    /// How long it took.
    pub took: Duration,
}

/// A save under way.
struct Running<'a> {
    lane: &'a Lane,
    child: Child,
    began: Instant,
}

/// Runs a save and does to it what was planned.
///
/// # Errors
/// Any; also a save that does not end.
pub fn strike(lane: &Lane, plan: &Plan, rng: &mut Rng) -> Result<Struck> {
    let mut save = Running {
        lane,
        child: lane.start(plan)?,
        began: Instant::now(),
    };
    let (landed, phase) = match plan.harm {
        Harm::Kill(victim, when) => {
            save.wait_for(when, plan.plain, rng)?;
            let phase = save.phase();
            (save.kill(victim), phase)
        }
        Harm::Hang => save.hang()?,
        Harm::GuestCrash => {
            save.wait_for(When::Any, plan.plain, rng)?;
            let phase = save.phase();
            let alive = save.lives()?;
            kill_process(pid(lane.guest.pid())?, Signal::KILL)?;
            (alive, phase)
        }
        Harm::DiskFull | Harm::FileLimit | Harm::None | Harm::Point(..) => (true, Phase::None),
    };
    let end = save.end()?;
    let died = end.signal().is_some();
    let landed = match plan.harm {
        Harm::Kill(Victim::Guardian, _) | Harm::GuestCrash | Harm::None => landed,
        Harm::DiskFull => !end.success(),
        Harm::Point(_, Deed::KillGuardian, _) => true,
        Harm::Point(point, deed, nth) => {
            let panicked = end.code() == Some(101);
            let done = if deed == Deed::Panic { panicked } else { died };
            let perhaps = PERHAPS.contains(&point) || nth > 1;
            ensure!(done || perhaps, "point {point} was not passed: {end}");
            done
        }
        _ => landed && died,
    };
    Ok(Struck {
        landed,
        phase,
        end,
        took: save.began.elapsed(),
    })
}

/// What a save that nobody harms takes.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal {
    /// From the start of its process to its end.
    pub whole: Duration,
    /// From its suspend request to the resume.
    pub window: Duration,
    /// From there to its end.
    pub end: Duration,
}

/// Runs a save that nobody harms.
///
/// # Errors
/// It fails.
pub fn rehearse(lane: &Lane, plan: &Plan) -> Result<Rehearsal> {
    let mut save = Running {
        lane,
        child: lane.start(plan)?,
        began: Instant::now(),
    };
    save.wait_for_state(|state| state.stop != Stop::No)?;
    let requested = Instant::now();
    save.wait_for_state(|state| state.stop == Stop::No)?;
    let resumed = Instant::now();
    let end = save.end()?;
    ensure!(
        end.success(),
        "A save that nobody harms failed: {}",
        lane.said()
    );
    Ok(Rehearsal {
        whole: save.began.elapsed(),
        window: resumed - requested,
        end: resumed.elapsed(),
    })
}

impl Running<'_> {
    fn lives(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    fn phase(&self) -> Phase {
        let state = self.lane.journal().and_then(|journal| journal.state().ok());
        Phase::of(state.flatten())
    }

    /// Waits for the instant, or until the save has ended.
    fn wait_for(&mut self, when: When, plain: bool, rng: &mut Rng) -> Result<()> {
        let pace = &self.lane.pace;
        let until = match when {
            When::Any => {
                let whole = if plain { pace.plain } else { pace.live };
                self.began + rng.within(whole.mul_f64(1.02))
            }
            When::Window => {
                self.wait_for_state(|state| state.stop != Stop::No)?;
                let window = if plain {
                    pace.plain_window
                } else {
                    pace.live_window
                };
                Instant::now() + rng.within(window)
            }
            When::End => {
                self.wait_for_state(|state| state.stop == Stop::Suspended)?;
                self.wait_for_state(|state| state == State::NONE)?;
                Instant::now() + rng.within(pace.end)
            }
        };
        while Instant::now() < until && self.lives()? {
            let rest = until.saturating_duration_since(Instant::now());
            std::thread::sleep(rest.min(Duration::from_millis(1)));
        }
        Ok(())
    }

    fn wait_for_state(&mut self, wanted: impl Fn(State) -> bool) -> Result<()> {
        let mut journal: Option<Journal> = None;
        while self.lives()? {
            if let Some(journal) = &journal {
                if journal.state()?.is_some_and(&wanted) {
                    return Ok(());
                }
            } else {
                journal = self.lane.journal();
            }
            std::thread::sleep(LOOK);
            ensure!(
                self.began.elapsed() < LONGEST,
                "a save does not come to its window"
            );
        }
        Ok(())
    }

    /// Kills whom it shall; says whether they lived.
    fn kill(&mut self, victim: Victim) -> bool {
        let guardian = self.guardian();
        let save = Pid::from_child(&self.child);
        // The save is not reaped yet, so that its number is its own.
        let kill_save = || kill_process(save, Signal::KILL).is_ok();
        let kill_guardian = || guardian.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
        match victim {
            Victim::Worker => kill_save(),
            Victim::Group => kill_process_group(save, Signal::KILL).is_ok(),
            Victim::Guardian => kill_guardian(),
            Victim::WorkerThenGuardian => {
                let killed = kill_save();
                kill_guardian();
                killed
            }
            Victim::GuardianThenWorker => {
                kill_guardian();
                kill_save()
            }
        }
    }

    /// The guardian, which is the save's only child.
    fn guardian(&self) -> Option<Pid> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child = children.split_whitespace().next()?;
        Pid::from_raw(child.parse().ok()?)
    }

    /// Stops the save in its window, for its guardian to kill. One that was too quick goes on.
    fn hang(&mut self) -> Result<(bool, Phase)> {
        self.wait_for_state(|state| state.stop != Stop::No)?;
        if !self.lives()? {
            return Ok((false, self.phase()));
        }
        let save = Pid::from_child(&self.child);
        kill_process(save, Signal::STOP)?;
        // It stops when it next runs.
        let began = Instant::now();
        while !is_stopped(self.child.id()) && began.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(LOOK);
        }
        let phase = self.phase();
        let held_up = matches!(phase, Phase::Requested | Phase::Suspended);
        if !held_up {
            kill_process(save, Signal::CONT)?;
        }
        Ok((held_up, phase))
    }

    fn end(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(end) = self.child.try_wait()? {
                return Ok(end);
            }
            if self.began.elapsed() > LONGEST {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!("a save did not end within {LONGEST:?}");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}

fn pid(number: u32) -> Result<Pid> {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process has that number")
}

/// A small file system, mounted for as long as this lives.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// A file system of that size at a directory; `None` where this process may not mount any.
    #[must_use]
    pub fn mount(at: &Path, bytes: u64) -> Option<Self> {
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={bytes},mode=0700"),
                "tmpfs",
            ])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}
