//! The handle on an embedded guest: its parent's, or another process's ([`attach`](super::attach)).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::GuestError;
use super::layout::Layout;
use super::link::Link;
use super::memory::{GuestMemory, sealed_memfd};
use super::protocol::{GuestStats, Reply, Request};
use super::spec::GuestSpec;
use super::state::GuestState;
use super::sys;
use super::tracker::{Tracker, TrackerKind, mprotect, pagemap_scan, probe};
use crate::lineage::ImageId;
use crate::page_set::PageSet;
use crate::ports::Cancel;
use crate::units::Pfn;

/// A running or suspended embedded guest. It ends when the handle of its parent is dropped, and
/// also when that process ends in whatever way.
///
/// All calls may be made from several threads; they queue.
#[derive(Debug)]
pub struct EmbeddedGuest {
    pub(super) pid: u32,
    /// Its process, if that is our child.
    pub(super) _child: Option<Process>,
    pub(super) link: Link,
    pub(super) memory: GuestMemory,
    pub(super) threads: u32,
    pub(super) tracking: Mutex<Tracking>,
}

/// Dirty tracking and whether it is on through this handle.
#[derive(Debug)]
pub(super) struct Tracking {
    pub tracker: Tracker,
    pub on: bool,
    /// It was left on for an increment on that image.
    pub kept_for: Option<ImageId>,
}

/// What comparing a memory with its state record gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The checksum that the guest kept while it wrote.
    pub expected: u64,
    /// The checksum of what is in memory.
    pub computed: u64,
}

impl Verdict {
    /// Whether the memory is the one that the state belongs to.
    #[must_use]
    pub fn matches(self) -> bool {
        self.expected == self.computed
    }
}

impl EmbeddedGuest {
    /// Starts a guest: runs `program` with `leading_args` and arguments of its own, which must
    /// come to [`guest_main`](super::guest_main) with the latter; fills its memory and lets it run.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left of the guest.
    pub fn spawn(
        program: &Path,
        leading_args: &[&str],
        spec: GuestSpec,
    ) -> Result<Self, GuestError> {
        let guest = Self::start(program, leading_args, spec)?;
        guest.link.call("fill the memory of", Request::Fill)?;
        guest.resume()?;
        Ok(guest)
    }

    /// Starts a guest that is to go on where a saved one stood, from its state record. It is
    /// suspended and its memory empty: to be filled through [`Self::memory`], verified, resumed.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left of the guest.
    pub fn spawn_restored(
        program: &Path,
        leading_args: &[&str],
        record: &[u8],
    ) -> Result<Self, GuestError> {
        let state = GuestState::decode(record)?;
        let guest = Self::start(program, leading_args, state.spec.clone())?;
        guest
            .link
            .call("hand its state to", Request::Adopt(state))?;
        Ok(guest)
    }

    fn start(program: &Path, leading_args: &[&str], spec: GuestSpec) -> Result<Self, GuestError> {
        let layout = spec.layout()?;
        let failed = |operation| {
            let name = spec.name.clone();
            move |source| GuestError::Call {
                name,
                operation,
                source,
            }
        };
        let memory = GuestMemory::new(&layout).map_err(failed("allocate the memory of"))?;
        let bitmap = sealed_memfd(
            "dirty bitmap",
            mprotect::file_words(layout.span()) as u64 * 8,
        )
        .map_err(failed("allocate the dirty bitmap of"))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed("start"))?;
        let descriptors = [theirs.as_fd(), memory.file().as_fd(), bitmap.as_fd()];
        let process =
            Process::start(program, leading_args, descriptors).map_err(failed("start"))?;
        // Ours alone keeps the conversation open from now on: the guest's end is its end.
        drop(theirs);
        let link = Link::new(&spec.name, ours);
        let choice = spec.tracker;
        let threads = spec.workload.threads;
        let base = match link.call("start", Request::Start(spec))? {
            Reply::Started { base } => base,
            other => return Err(link.unexpected("start", &other)),
        };
        let tracker = probe::choose(choice, &link, &layout, |kind| {
            let made = match kind {
                TrackerKind::PagemapScan => {
                    pagemap_scan::Scanner::open(process.id, base, &layout).map(Tracker::PagemapScan)
                }
                TrackerKind::Mprotect => bitmap
                    .try_clone()
                    .map(|file| Tracker::Mprotect(mprotect::Bitmaps::new(file, layout.span()))),
            };
            made.map_err(|source| link.failed("set up dirty tracking of", source))
        })?;
        Ok(Self {
            pid: process.id,
            _child: Some(process),
            link,
            memory,
            threads,
            tracking: Mutex::new(Tracking {
                tracker,
                on: false,
                kept_for: None,
            }),
        })
    }

    /// The guest's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.link.name()
    }

    /// How many threads do its work, as vCPUs would.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Which pages exist.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.memory.layout()
    }

    /// Which dirty tracker was found to work.
    #[must_use]
    pub fn tracker(&self) -> TrackerKind {
        self.tracking().tracker.kind()
    }

    /// Starts dirty tracking; from the return on every write is seen.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Refused`] if it is on already, through whomever.
    pub fn track(&self) -> Result<(), GuestError> {
        let mut tracking = self.tracking();
        if tracking.kept_for.take().is_some() {
            tracking.tracker.disable(&self.link)?;
            tracking.on = false;
        }
        if tracking.on {
            return Err(self
                .link
                .refused("track", "dirty tracking is already on".to_owned()));
        }
        if let Err(error) = tracking.tracker.enable(&self.link) {
            // Half on is not on; but where the guest refuses it may be somebody else's.
            if !matches!(error, GuestError::Refused { .. }) {
                // What that says is of no more interest than the first error.
                let _ = tracking.tracker.disable(&self.link);
            }
            return Err(error);
        }
        tracking.on = true;
        Ok(())
    }

    /// Leaves tracking on for an increment on that image; starting it anew ends that.
    pub fn keep(&self, of: &ImageId) {
        self.tracking().kept_for = Some(of.clone());
    }

    /// Takes over the tracking that was left on for an increment on that image, if it was.
    pub fn take_kept(&self, of: &ImageId) -> bool {
        self.tracking()
            .kept_for
            .take_if(|kept| kept == of)
            .is_some()
    }

    /// Adds the pages written since tracking began or since the last fetch, and forgets them. A
    /// page written meanwhile is in this fetch or in the next.
    ///
    /// # Errors
    /// [`GuestError`]; dirty pages may then be lost.
    pub fn fetch_dirty(&self, into: &mut PageSet) -> Result<(), GuestError> {
        self.on()?.tracker.fetch(&self.link, into)
    }

    /// Adds the pages written since tracking began or since the last fetch, and forgets nothing:
    /// quicker than a fetch, and complete if the guest is suspended. Whether the guest still lives
    /// shows at the next call only.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn peek_dirty(&self, into: &mut PageSet) -> Result<(), GuestError> {
        self.on()?.tracker.peek(&self.link, into)
    }

    /// Ends dirty tracking.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn untrack(&self) -> Result<(), GuestError> {
        let mut tracking = self.on()?;
        tracking.tracker.disable(&self.link)?;
        tracking.on = false;
        Ok(())
    }

    /// Asks the guest to suspend and waits until it has, at most `timeout` and no longer than
    /// `cancel` stays quiet. On `Ok` nothing writes to its memory until [`Self::resume`].
    ///
    /// # Errors
    /// [`GuestError`]; the request has been taken back and the guest runs, unless it is gone or
    /// was suspended already.
    pub fn suspend(&self, timeout: Duration, cancel: &Cancel) -> Result<(), GuestError> {
        self.link.suspend(timeout, cancel)
    }

    /// Lets the suspended guest run on.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn resume(&self) -> Result<(), GuestError> {
        self.link.call("resume", Request::Resume).map(|_| ())
    }

    /// The state record of the suspended guest.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn state(&self) -> Result<GuestState, GuestError> {
        match self.link.call("take the state of", Request::State)? {
            Reply::State(state) => Ok(state),
            other => Err(self.link.unexpected("take the state of", &other)),
        }
    }

    /// Has the suspended guest compute the checksum of its memory, to compare with the one in its
    /// state.
    ///
    /// # Errors
    /// [`GuestError`]. That they differ is none.
    pub fn verify(&self) -> Result<Verdict, GuestError> {
        let expected = self.state()?.checksum;
        match self.link.call("verify the memory of", Request::Verify)? {
            Reply::Verified { computed } => Ok(Verdict { expected, computed }),
            other => Err(self.link.unexpected("verify the memory of", &other)),
        }
    }

    /// What the guest itself notices of its life.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn stats(&self) -> Result<GuestStats, GuestError> {
        match self.link.call("read the counters of", Request::Stats)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(self.link.unexpected("read the counters of", &other)),
        }
    }

    /// Forgets the largest gap seen so far.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn reset_gap(&self) -> Result<(), GuestError> {
        self.link
            .call("reset the counters of", Request::ResetGap)
            .map(|_| ())
    }

    /// Caps the guest at so many percent of one CPU, all its threads together; 0 lifts the cap.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cap_cpu(&self, percent: u32) -> Result<(), GuestError> {
        self.link
            .call("cap the CPU use of", Request::Cap(percent))
            .map(|_| ())
    }

    /// Makes an idle guest write to pages, which keep their content.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn touch(&self, pages: &[Pfn]) -> Result<(), GuestError> {
        probe::touch(&self.link, pages)
    }

    pub(super) fn tracking(&self) -> MutexGuard<'_, Tracking> {
        self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(&self) -> Result<MutexGuard<'_, Tracking>, GuestError> {
        let tracking = self.tracking();
        if !tracking.on {
            return Err(self
                .link
                .refused("track", "dirty tracking is off".to_owned()));
        }
        Ok(tracking)
    }
}

/// A child process that does not outlive its handle.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    id: u32,
}

impl Process {
    /// Runs the guest's program with the descriptors' numbers as its last arguments.
    fn start(
        program: &Path,
        leading_args: &[&str],
        descriptors: [std::os::fd::BorrowedFd<'_>; 3],
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;

        let mut command = Command::new(program);
        command.args(leading_args);
        command.args(descriptors.map(|descriptor| descriptor.as_raw_fd().to_string()));
        // Our standard output is the report's; what a guest has to say of its end is a message.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A group of its own: Ctrl-C on the terminal is meant for us, and the guest runs on.
        command.process_group(0);
        sys::inherit(&mut command, descriptors);
        let child = command.spawn()?;
        Ok(Self {
            id: child.id(),
            child,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The only error is that it has ended already, and has been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
