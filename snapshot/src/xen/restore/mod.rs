//! Bringing a guest back from its image, under its own name or, beside the original, under another.
//!
//! Stock `xl restore` does it; it is given the image as a stream, with the configuration that the
//! guest is to have. Everything that would make it fail and can be seen before is a [`Refusal`],
//! and nothing has been created then.

mod config;
mod disks;
mod feed;
mod host;
mod identity;
mod left;
mod lock;
mod memory;
mod refusal;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::config::Config;
pub use self::disks::{GuestDisks, RestoredDisk};
use self::feed::Failure;
use self::host::State;
use self::identity::{Running, Wanted};
pub use self::left::Left;
use self::lock::NameLock;
pub use self::refusal::Refusal;
use crate::image::{Chain, ImageError};
use crate::ports::{BoxError, Cancel};
use crate::units::{Bytes, PageCount};

/// How long a domain may take to disappear.
const VANISH: Duration = Duration::from_secs(20);

/// How a guest is to be restored.
#[derive(Clone, Debug)]
pub struct Request {
    /// Another name than it had.
    pub name: Option<String>,
    /// The user's own configuration file (xl.cfg), for the configuration in the image.
    pub config: Option<PathBuf>,
    /// On what its disks are to be.
    pub disks: GuestDisks,
    /// It is not to run yet.
    pub paused: bool,
    /// An `xl` that does nothing for longer is killed.
    pub silence: Duration,
    /// Where locks stand.
    pub locks: PathBuf,
}

/// A restored guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Its number.
    pub domid: u32,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// It does not run yet.
    pub paused: bool,
    /// What its disks are on.
    pub disks: Vec<RestoredDisk>,
}

/// A guest that was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image cannot be read, or is damaged; nothing was created.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The configuration in the image is not usable.
    #[error("The configuration in the image is not usable: {0}")]
    ImageConfig(String),
    /// It cannot be, here and now; nothing was created.
    #[error("The guest cannot be restored")]
    Refused(#[from] Refusal),
    /// The user's configuration file is not usable.
    #[error("Failed to read the configuration file {file}")]
    BadConfig {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// Nobody can be kept from restoring the same guest meanwhile.
    #[error("Failed to lock {path}")]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no such domain to clone.
    #[error("There is no domain {0:?}")]
    NoSuchDomain(String),
    /// `xl` does not tell what is asked for: Xen cannot be used here.
    #[error("Failed to {operation} through `xl`")]
    Xl {
        /// What was to be done, to stand after "failed to".
        operation: &'static str,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// The user wanted to stop before anything was created.
    #[error("Interrupted; nothing was created")]
    Cancelled(i32),
    /// The user wanted to stop while it was restored.
    #[error("The restore was interrupted; {left}")]
    Interrupted {
        /// The signal.
        signal: i32,
        /// What is left of the guest.
        left: Left,
    },
    /// It failed on the way.
    #[error("The restore failed; {left}")]
    Failed {
        /// What is left of the guest.
        left: Left,
        /// Why.
        #[source]
        source: BoxError,
    },
}

impl RestoreError {
    /// The signal by which the user asked to stop, if that is the reason.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        match self {
            Self::Cancelled(signal) | Self::Interrupted { signal, .. } => Some(*signal),
            _ => None,
        }
    }

    /// Whether, after [`Restore::run`] has failed, there may be a guest that uses its disks.
    #[must_use]
    pub fn may_leave_guest(&self) -> bool {
        match self {
            Self::Interrupted { left, .. } | Self::Failed { left, .. } => left.is_guest(),
            // It is there; only its number could not be seen.
            Self::Xl { .. } => true,
            _ => false,
        }
    }
}

/// A restore that nothing known speaks against.
#[derive(Debug)]
pub struct Restore<'a> {
    chain: &'a Chain,
    request: Request,
    checked: Checked,
}

/// What the checks come to.
#[derive(Debug)]
struct Checked {
    /// The configuration that the guest is to have.
    config: Config,
    warning: Option<String>,
    /// The domains that there were.
    before: Vec<Running>,
    /// Held until the guest is there.
    _lock: NameLock,
}

impl<'a> Restore<'a> {
    /// Checks image, host and request; nothing is created.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn prepare(
        chain: &'a Chain,
        request: Request,
        cancel: &Cancel,
    ) -> Result<Self, RestoreError> {
        chain.check_structure()?;
        let reader = chain.newest();
        let facts = reader.facts();
        if facts.is_some_and(|facts| facts.backend == "embedded") {
            return Err(Refusal::Embedded.into());
        }
        let image = Config::parse(reader.config()).map_err(RestoreError::ImageConfig)?;
        let pages = facts.map(|facts| facts.memory_pages);
        let checked = check(&image, &request, pages, cancel)?;
        Ok(Self {
            chain,
            request,
            checked,
        })
    }

    /// What may go wrong for all that, if anything.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.checked.warning.as_deref()
    }

    /// The name that the guest will have.
    #[must_use]
    pub fn name(&self) -> &str {
        self.checked.config.name()
    }

    /// Restores the guest; its new disks are there by now. `progress` is told how many bytes of how many `xl` has taken.
    ///
    /// # Errors
    /// [`RestoreError`]; it says what is left of the guest, which is nothing unless that could not
    /// be helped.
    pub fn run(
        &self,
        cancel: &Cancel,
        mut progress: impl FnMut(Bytes, Bytes),
    ) -> Result<Restored, RestoreError> {
        let mut stream = self.chain.stream(&self.checked.config.text())?;
        let total = stream.length();
        let done = feed::restore(
            &mut *stream,
            self.request.paused,
            self.request.silence,
            cancel,
            &mut |taken| progress(taken, total),
        );
        match done {
            Ok(()) => self.restored(),
            Err(failure) => {
                let left = self.clean_up();
                let source: BoxError = match failure {
                    Failure::Cancelled(signal) => {
                        return Err(RestoreError::Interrupted { signal, left });
                    }
                    Failure::Image(error) => error.into(),
                    Failure::Io(error) => {
                        format!("`xl restore` cannot be run or fed: {error}").into()
                    }
                    Failure::Xl(said) => said.into(),
                    Failure::Silent(limit) => {
                        format!("`xl restore` did nothing for {limit:?} and was killed").into()
                    }
                };
                Err(RestoreError::Failed { left, source })
            }
        }
    }

    /// The new domain, by its UUID.
    fn restored(&self) -> Result<Restored, RestoreError> {
        // Not to be given up for a signal: the guest is there.
        let now = host::running(&Cancel::new())?;
        let domain = self.new_among(&now).next();
        domain.map_or_else(
            || {
                Err(RestoreError::Failed {
                    left: Left::nothing("no domain was left"),
                    source: "`xl restore` succeeded, but the guest has ended already".into(),
                })
            },
            |domain| {
                Ok(Restored {
                    domid: domain.domid,
                    name: domain.name.clone(),
                    uuid: domain.uuid.clone(),
                    paused: self.request.paused,
                    disks: disks::of(&self.checked.config),
                })
            },
        )
    }

    /// The domains with the guest's UUID and name (if they have one already) that were not there
    /// before.
    fn new_among<'b>(&self, now: &'b [Running]) -> impl Iterator<Item = &'b Running> {
        let Checked { config, before, .. } = &self.checked;
        let uuid = config.uuid();
        now.iter().filter(move |domain| {
            uuid.as_ref() == Some(&domain.uuid)
                && [config.name(), "", "(null)"].contains(&domain.name.as_str())
                && before.iter().all(|old| old.domid != domain.domid)
        })
    }

    /// Destroys what a failed `xl restore` has left, and says what is left then.
    fn clean_up(&self) -> Left {
        self.try_clean_up().unwrap_or_else(|error| {
            Left::guest(format!(
                "what is left of it could not be seen or destroyed ({}), see `xl list`",
                chain(&error)
            ))
        })
    }

    fn try_clean_up(&self) -> Result<Left, RestoreError> {
        // The user's wish to stop is what is being done.
        let quiet = Cancel::new();
        let began = Instant::now();
        let mut destroyed = None;
        loop {
            let now = host::running(&quiet)?;
            let Some(domid) = self.new_among(&now).next().map(|domain| domain.domid) else {
                return Ok(Left::nothing(
                    destroyed.map_or("no domain was left".to_owned(), |domid| {
                        format!("the half domain {domid} was destroyed")
                    }),
                ));
            };
            match host::state(domid, &quiet)? {
                // Never one that has run: it is somebody else's, whatever its UUID.
                Some(State::Unborn) if destroyed.is_none() => {
                    host::destroy(domid, &quiet)?;
                    destroyed = Some(domid);
                }
                Some(State::Other) => {
                    let left = format!("domain {domid} is left, and has run already");
                    return Ok(Left::guest(left));
                }
                _ if began.elapsed() > VANISH => {
                    return Ok(Left::guest(format!(
                        "domain {domid} is left; destroy it (`xl destroy {domid}`)"
                    )));
                }
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// Checks, before a running domain is saved for it, that a second guest could be restored from the
/// image.
///
/// # Errors
/// [`RestoreError`].
pub fn check_clone(domain: &str, request: &Request, cancel: &Cancel) -> Result<(), RestoreError> {
    let running = host::running(cancel)?;
    let original = host::find(&running, domain)
        .ok_or_else(|| RestoreError::NoSuchDomain(domain.to_owned()))?;
    let image = host::config_of(original.domid, cancel)?;
    check(&image, request, None, cancel).map(drop)
}

/// Checks everything but the image: its configuration is `image`, its size `pages`.
fn check(
    image: &Config,
    request: &Request,
    pages: Option<PageCount>,
    cancel: &Cancel,
) -> Result<Checked, RestoreError> {
    let own = match &request.config {
        Some(file) => Some(host::config_in(file, cancel)?),
        None => None,
    };
    let name = request.name.as_deref();
    let name = name.unwrap_or(own.as_ref().unwrap_or(image).name());
    let lock = NameLock::take(&request.locks, name)?;
    let before = host::running(cancel)?;
    let wanted = Wanted {
        name: request.name.as_deref(),
        config: own.as_ref(),
        disks: &request.disks,
    };
    let mut random_failed = None;
    let mut config = identity::decide(image, wanted, &before, |bytes| {
        if let Err(error) = getrandom::fill(bytes) {
            random_failed = Some(error);
        }
    })?;
    if let Some(error) = random_failed {
        return Err(RestoreError::Failed {
            left: Left::nothing("nothing was created"),
            source: format!("there are no random numbers for a UUID: {error}").into(),
        });
    }
    let disks = &request.disks;
    disks
        .apply(&mut config)
        .map_err(RestoreError::ImageConfig)?;
    host::refuse_missing_disk(&config, disks)?;
    let need = memory::need(&config.memory(), pages);
    let warning = memory::judge(need, &host::memory(cancel)?)?;
    Ok(Checked {
        config,
        warning,
        before,
        _lock: lock,
    })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{GuestType, Preamble, Record, Tail, libxc, trailer};
    use crate::testing::some_facts;

    #[test]
    fn an_embedded_guests_image_is_not_for_xen() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("image.xl");
        let mut bytes = Preamble {
            config: b"{}".to_vec(),
            guest: GuestType::Hvm,
            xen_version: (0, 0),
            static_data: vec![],
            before_memory: vec![],
            increment: false,
        }
        .encode();
        let records = [libxc::record::HVM_CONTEXT, libxc::record::HVM_PARAMS];
        let tail = Tail {
            libxc: records.map(|kind| Record::new(kind, vec![0; 8])).to_vec(),
            libxl: vec![],
        };
        bytes.extend_from_slice(&tail.encode());
        let facts = trailer::encode(&some_facts(), &[], bytes.len() as u64).expect("encoded");
        bytes.extend_from_slice(&facts);
        std::fs::write(&path, &bytes).expect("written");
        let chain = Chain::open(&path).expect("an image");
        let request = Request {
            name: None,
            config: None,
            disks: GuestDisks::AsIs,
            paused: false,
            silence: Duration::from_secs(1),
            locks: directory.path().to_owned(),
        };
        let refused = Restore::prepare(&chain, request, &Cancel::new()).expect_err("refused");
        assert!(
            matches!(refused, RestoreError::Refused(Refusal::Embedded)),
            "{refused}"
        );
    }
}
