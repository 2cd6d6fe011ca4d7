//! The processes that are killed: a save, and its guardian.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use lvm::MemoryOnly;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use snapshot::embedded::{Charge, EmbeddedDomain, EmbeddedGuest, GuardedDomain, Guarding};
use snapshot::guardian::{
    Entry, Journal, Locks, Outcome, Patience, PutRight, State, put_right, serve,
};
use snapshot::image::RawImage;
use snapshot::image::file::{Existing, partial_name};
use snapshot::ports::{BoxError, Cancel, Event, Observer};
use snapshot::units::{Bytes, CpuPercent};
use snapshot::{Mode, Options, Save};

/// The hidden modes of the harness's program.
pub const WORKER: &str = "worker";
/// The guardian of a worker.
pub const GUARDIAN: &str = "guardian";

/// How long a save may do nothing while the guest is suspended. Short, so that a hanging one does
/// not take the harness long; long for a machine under load.
pub const SILENCE: Duration = Duration::from_millis(700);
/// How long the guest may take to suspend.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// One save, as the harness orders it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The guest's socket.
    pub socket: PathBuf,
    /// The directory of the locks.
    pub locks: PathBuf,
    /// Where the image is to appear.
    pub image: PathBuf,
    /// Whether it may replace another.
    pub replace: bool,
    /// Suspend first, copy then.
    pub plain: bool,
    /// The guest's own CPU cap.
    pub own_cap: Option<u32>,
    /// The cap that it gets while it is copied.
    pub squeeze: Option<u32>,
    /// How large a file may become.
    pub file_limit: Option<u64>,
    /// The guardian does nothing.
    pub sabotage: bool,
}

impl Job {
    fn cap(&self) -> Option<CpuPercent> {
        self.own_cap.map(CpuPercent)
    }

    /// What puts the guest right.
    #[must_use]
    pub fn charge(&self) -> Charge {
        Charge::new(&self.socket, self.cap())
    }

    /// As an argument of one of the hidden modes.
    ///
    /// # Errors
    /// A path that is no text.
    pub fn encode(&self) -> Result<String> {
        serde_json::to_string(self).context("Failed to encode a job")
    }
}

/// Saves the guest, as `livesave DOMAIN` does a domU.
///
/// # Errors
/// Whatever fails the save.
pub fn work(job: &str) -> Result<()> {
    let job: Job = serde_json::from_str(job).context("The job is none")?;
    if let Some(limit) = job.file_limit {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(Resource::Fsize, limit).context("Failed to limit the size of files")?;
    }
    let guest = Arc::new(EmbeddedGuest::attach(&job.socket)?);
    let lock = Locks::new(&job.locks).take(guest.pid())?;
    put_right(lock.journal(), &mut job.charge())
        .map_err(|error| anyhow::anyhow!("A killed save could not be put right: {error}"))?;
    let mut domain = EmbeddedDomain::new(guest.clone());
    if let Some(cap) = job.cap() {
        domain = domain.with_own_cap(cap);
    }
    let guarding = Guarding {
        program: PathBuf::from("/proc/self/exe"),
        arguments: vec![GUARDIAN.into(), job.encode()?.into()],
        partial: partial_name(&job.image).ok(),
    };
    let mut domain = GuardedDomain::new(domain, lock, guarding)?;
    let existing = if job.replace {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let mut sink = RawImage::create(&job.image, existing)?;
    let mut squeezer = Squeezer { guest, job: &job };
    let options = Options {
        mode: match (job.plain, job.squeeze) {
            (true, _) => Mode::Plain,
            (false, Some(_)) => Mode::Live,
            (false, None) => Mode::Improved,
        },
        // So short that the guest is throttled for it.
        max_downtime: Duration::from_micros(100),
        min_cap: 1,
        suspend_timeout: SUSPEND_TIMEOUT,
        // Less than is left where the guest writes much, so that the window writes too.
        capture_memory: Bytes::from_mib(2),
        threads: 2,
        backend: "embedded",
        ..Options::default()
    };
    Save::new(
        &mut domain,
        &mut sink,
        &mut MemoryOnly,
        &mut squeezer,
        &Cancel::new(),
        options,
    )
    .run()?;
    Ok(())
}

/// Caps the guest from the first round to the suspension: longer than throttling does.
struct Squeezer<'a> {
    guest: Arc<EmbeddedGuest>,
    job: &'a Job,
}

impl Observer for Squeezer<'_> {
    fn event(&mut self, event: &Event<'_>) {
        let Some(squeeze) = self.job.squeeze else {
            return;
        };
        let capped = match event {
            Event::RoundStarted { round: 0, .. } => self.guest.cap_cpu(squeeze),
            Event::Suspending => self.guest.cap_cpu(self.job.own_cap.unwrap_or(0)),
            _ => return,
        };
        if let Err(error) = capped {
            eprintln!("warning: {error}");
        }
    }
}

/// Looks after a save, as the guardian of a domU does.
#[must_use]
pub fn guard(arguments: &[OsString]) -> ExitCode {
    let job = match arguments {
        [job] => job
            .to_str()
            .and_then(|job| serde_json::from_str::<Job>(job).ok()),
        _ => None,
    };
    let Some(job) = job else {
        return ExitCode::from(2);
    };
    let patience = Patience {
        look: Duration::from_millis(20),
        handshake: SUSPEND_TIMEOUT + SILENCE,
        silence: SILENCE,
        stall: SILENCE,
        retry: Duration::from_secs(10),
    };
    let outcome = if job.sabotage {
        serve(&patience, || Ok(Idler))
    } else {
        serve(&patience, || Ok(job.charge().opened()?))
    };
    match outcome {
        Outcome::Right => ExitCode::SUCCESS,
        Outcome::Wrong => ExitCode::FAILURE,
    }
}

/// A guardian that does nothing and says that all is well: what the harness must notice.
struct Idler;

impl PutRight for Idler {
    fn put_right(&mut self, _: &Journal, _: &Entry, _: State) -> Result<Vec<String>, BoxError> {
        Ok(vec![])
    }
}
