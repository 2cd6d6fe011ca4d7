//! Processes other than the parent at a guest: a save that may be killed, its guardian.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use super::error::GuestError;
use super::handle::{EmbeddedGuest, Tracking};
use super::link::Link;
use super::memory::GuestMemory;
use super::protocol::{GuestStatus, Reply, Request};
use super::tracker::{Tracker, TrackerKind, mprotect, pagemap_scan};

/// What a guest is called until it has said its name.
const UNNAMED: &str = "(attached)";

impl EmbeddedGuest {
    /// Has the guest talk to other processes too, at a socket of that name. Whoever may connect to
    /// it may do with the guest what its parent may: the directory must be private. For the
    /// parent, once.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn listen(&self, path: &Path) -> Result<(), GuestError> {
        let request = Request::Listen {
            path: path.to_owned(),
            tracker: self.tracker(),
        };
        self.link.call("open a socket of", request).map(|_| ())
    }

    /// A handle on another process's guest, by its socket. The guest outlives it, and is left as
    /// it is when this is dropped or its process killed: suspended, tracked, capped.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Gone`] if nobody listens there.
    pub fn attach(path: &Path) -> Result<Self, GuestError> {
        let failed = |operation| {
            move |source| GuestError::Call {
                name: UNNAMED.to_owned(),
                operation,
                source,
            }
        };
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => {
                GuestError::Gone(path.display().to_string())
            }
            _ => failed("connect to")(source),
        })?;
        let link = Link::new(UNNAMED, stream);
        let welcome = match link.call("attach to", Request::Hello)? {
            Reply::Welcome(welcome) => welcome,
            other => return Err(link.unexpected("attach to", &other)),
        };
        let link = link.named(&welcome.spec.name);
        let layout = welcome.spec.layout()?;
        let (pid, base) = (welcome.pid, welcome.base);
        let open = |descriptor: i32| File::open(format!("/proc/{pid}/fd/{descriptor}"));
        let memory = open(welcome.memory).map_err(|e| link.failed("open the memory of", e))?;
        let tracker = match welcome.tracker {
            TrackerKind::PagemapScan => {
                pagemap_scan::Scanner::open(pid, base, &layout).map(Tracker::PagemapScan)
            }
            TrackerKind::Mprotect => open(welcome.bitmap)
                .map(|file| Tracker::Mprotect(mprotect::Bitmaps::new(file, layout.span()))),
        };
        let tracker = tracker.map_err(|e| link.failed("set up dirty tracking of", e))?;
        Ok(Self {
            pid,
            _child: None,
            link,
            memory: GuestMemory::of(memory, &layout),
            threads: welcome.spec.workload.threads,
            tracking: Mutex::new(Tracking {
                tracker,
                on: false,
                kept_for: None,
            }),
        })
    }

    /// How the guest is, by its own account, whoever made it so.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn status(&self) -> Result<GuestStatus, GuestError> {
        match self.link.call("look at", Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.link.unexpected("look at", &other)),
        }
    }

    /// Ends all other conversations with the guest but its parent's. From the return on nothing
    /// happens to it any more that a dead process had asked for.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn send_others_away(&self) -> Result<(), GuestError> {
        self.link
            .call("send the others away from", Request::Alone)
            .map(|_| ())
    }

    /// Ends dirty tracking, whoever began it.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn untrack_whoever_tracks(&self) -> Result<(), GuestError> {
        self.tracking().tracker.disable(&self.link)
    }
}
