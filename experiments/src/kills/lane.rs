//! One guest, the saves of it, and the places where they leave things.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use snapshot::embedded::{EmbeddedGuest, GuestSpec, Pattern, TrackerChoice, Workload};
use snapshot::guardian::{Journal, LockError, Locks, Recovered, recover};
use snapshot::units::Bytes;

use super::plan::{Harm, Plan};
use super::strike::Struck;
use super::worker::{Job, WORKER};

/// The hidden mode behind which a guest's process runs.
pub const GUEST: &str = "embedded-guest";
/// What a guest is capped at while it is squeezed: a fraction of what its work takes.
const SQUEEZE: u32 = 1;
/// How long a guardian may be at work.
const AT_WORK: Duration = Duration::from_secs(15);

/// What is the same for all saves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The harness's own program.
    pub program: PathBuf,
    /// Where the lanes have their directories.
    pub directory: PathBuf,
    /// The guests' memory.
    pub memory: Bytes,
    /// Pages that a guest writes per second.
    pub rate: u64,
    /// The guardians do nothing.
    pub sabotage: bool,
}

/// How long saves take that nobody kills.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// A live save, from the start of its process to its end.
    pub live: Duration,
    /// A plain one.
    pub plain: Duration,
    /// The pause window of a live save.
    pub live_window: Duration,
    /// And of a plain one.
    pub plain_window: Duration,
    /// From the end of the pause window to the end.
    pub end: Duration,
}

impl Pace {
    /// Other load on the machine comes and goes: saves that ended in order tell.
    pub fn learn(&mut self, plan: &Plan, struck: &Struck) {
        if struck.end.success() {
            let whole = if plan.plain {
                &mut self.plain
            } else {
                &mut self.live
            };
            *whole = (*whole * 3 + struck.took) / 4;
        }
    }
}

/// A guest and its saves.
#[derive(Debug)]
pub struct Lane {
    /// Which it is.
    pub number: u64,
    /// What is the same for all.
    pub settings: Settings,
    /// The guest.
    pub guest: EmbeddedGuest,
    /// Its own CPU cap.
    pub own_cap: Option<u32>,
    /// How long saves take.
    pub pace: Pace,
    guests: u64,
    directory: PathBuf,
}

impl Lane {
    /// A lane with a running guest. Every other one has a guest with a CPU cap of its own, tracked
    /// by `mprotect`.
    ///
    /// # Errors
    /// Any.
    pub fn new(number: u64, settings: &Settings) -> Result<Self> {
        let directory = settings.directory.join(format!("lane-{number}"));
        for part in ["", "images", "small", "run"] {
            std::fs::create_dir(directory.join(part))?;
        }
        let own_cap = (number % 2 == 1).then_some(90);
        let guest = start_guest(settings, number, 0, own_cap, &directory)?;
        Ok(Self {
            number,
            settings: settings.clone(),
            guest,
            own_cap,
            pace: Pace::default(),
            guests: 1,
            directory,
        })
    }

    /// A new guest in the place of one that crashed, or that something was left of.
    ///
    /// # Errors
    /// Any.
    pub fn renew_guest(&mut self) -> Result<()> {
        let (settings, directory) = (&self.settings, &self.directory);
        self.guest = start_guest(settings, self.number, self.guests, self.own_cap, directory)?;
        self.guests += 1;
        Ok(())
    }

    /// The directory of the images.
    #[must_use]
    pub fn images(&self, harm: Harm) -> PathBuf {
        self.directory.join(match harm {
            Harm::DiskFull => "small",
            _ => "images",
        })
    }

    /// The image of the next save.
    #[must_use]
    pub fn image(&self, harm: Harm) -> PathBuf {
        self.images(harm).join("image.xl")
    }

    /// A whole image, to be replaced by others.
    #[must_use]
    pub fn spare(&self) -> PathBuf {
        self.directory.join("spare.xl")
    }

    /// What the last save and its guardians said.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.directory.join("said")).unwrap_or_default()
    }

    /// The order for a save.
    #[must_use]
    pub fn job(&self, plan: &Plan) -> Job {
        Job {
            socket: socket(&self.directory, self.guests - 1),
            locks: self.directory.join("run"),
            image: self.image(plan.harm),
            replace: plan.replace,
            plain: plan.plain,
            own_cap: self.own_cap,
            squeeze: plan.squeeze.then_some(SQUEEZE),
            file_limit: (plan.harm == Harm::FileLimit).then_some(self.settings.memory.0 / 2),
            sabotage: self.settings.sabotage,
        }
    }

    /// Starts a save, in a process group of its own.
    ///
    /// # Errors
    /// Any.
    pub fn start(&self, plan: &Plan) -> Result<Child> {
        let mut command = Command::new(&self.settings.program);
        command
            .args([WORKER, &self.job(plan).encode()?])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.directory.join("said"))?);
        if let Harm::Point(point, deed, nth) = plan.harm {
            command.env("LIVESAVE_FAULT", format!("{point}:{}:{nth}", deed.name()));
        }
        if plan.named {
            command.env("LIVESAVE_NO_TMPFILE", "1");
        }
        command.spawn().context("Failed to start a save")
    }

    /// The journal of the guest's save as it stands; `None` before the first.
    #[must_use]
    pub fn journal(&self) -> Option<Journal> {
        let path = self
            .directory
            .join("run")
            .join(self.guest.pid().to_string());
        File::open(path).ok().map(Journal::new)
    }

    /// Waits until neither a save nor a guardian has the guest's lock.
    ///
    /// # Errors
    /// They have it too long.
    pub fn wait_until_free(&self) -> Result<()> {
        let locks = Locks::new(&self.directory.join("run"));
        let began = Instant::now();
        loop {
            match locks.take(self.guest.pid()) {
                Ok(_) => return Ok(()),
                Err(LockError::Taken(_)) => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(
                began.elapsed() < AT_WORK,
                "the lock of the guest is not given back"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// What `livesave recover` does, for this lane's guest.
    ///
    /// # Errors
    /// The locks cannot be read.
    pub fn recover(&self) -> Result<Vec<Recovered>> {
        let job = self.job(&Plan::PEACEFUL);
        Ok(recover(&Locks::new(&job.locks), AT_WORK, |_| {
            Ok(job.charge())
        })?)
    }
}

fn socket(directory: &Path, guest: u64) -> PathBuf {
    directory.join(format!("guest-{guest}"))
}

fn start_guest(
    settings: &Settings,
    lane: u64,
    number: u64,
    own_cap: Option<u32>,
    directory: &Path,
) -> Result<EmbeddedGuest> {
    let mut spec = GuestSpec::new(&format!("lane-{lane}"), settings.memory);
    spec.content.seed = lane * 1000 + number;
    // Away from the end of memory as real guests have it.
    spec.absent = std::iter::once(spec.span.0 / 2..spec.span.0 / 2 + 100).collect();
    spec.workload = Workload {
        pattern: if lane.is_multiple_of(2) {
            Pattern::Random
        } else {
            Pattern::Ring
        },
        rate: Some(settings.rate),
        region: None,
        threads: 1,
    };
    if !lane.is_multiple_of(2) {
        spec.tracker = TrackerChoice::Mprotect;
    }
    let guest = EmbeddedGuest::spawn(&settings.program, &[GUEST], spec)
        .context("Failed to start a guest")?;
    guest.cap_cpu(own_cap.unwrap_or(0))?;
    guest.listen(&socket(directory, number))?;
    Ok(guest)
}
