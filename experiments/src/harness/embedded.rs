//! Runs of the plan on the embedded guest: native speed, a real pause, no hypervisor.
//!
//! What a figure is measured with: the gap by the guest's own clock thread; work by its counter of
//! written pages, against its pace before; the rest by livesave's report, this process's CPU time
//! and peak of memory (the guest is another process), and a [`Witness`] of the machine.
//!
//! The guest: three pages in four are zero and not populated, so that 16 GiB fit beside their image
//! in 24; its load goes round an area of half its memory, 1 GiB at most, whose pages hold noise once
//! they were written. A guest is kept for the next run of the same memory, vCPUs and load, and then
//! its area is as the runs before left it.

mod guest;
mod save;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use snapshot::PageSet;
use snapshot::embedded::{EmbeddedGuest, GuestSpec};
use snapshot::forecast::PastWindow;
use snapshot::units::Pfn;
use tempfile::TempDir;

use super::case::{Backend, GuestKind, Method, Planned};
use super::record::{Measured, Outcome};
use super::room::{self, Needs};
use super::sweep::Runner;
use super::witness::{self, Witness};
use crate::native::{DIRECTORY, GUEST};
use guest::Wanted;
use save::Saver;

/// How long the guest's pace is measured before a save.
const PACE: Duration = Duration::from_millis(1500);
/// What a new cap is given to be felt.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a load may take to write what an increment is to hold.
const DIRTYING: Duration = Duration::from_secs(120);
/// A stall of less spoils nothing: any thread waits so long for a CPU now and then.
const HARMLESS: Duration = Duration::from_millis(20);
/// Windows that are kept to learn from, as livesave does.
const KEPT: usize = 12;

/// Makes runs, one after the other.
pub struct Embedded {
    /// A program that is the guest when its first argument is [`GUEST`].
    program: std::path::PathBuf,
    directory: TempDir,
    guest: Option<Kept>,
}

/// A guest that is there, and what its saves taught.
struct Kept {
    spec: GuestSpec,
    guest: Arc<EmbeddedGuest>,
    past: Vec<PastWindow>,
}

impl Kept {
    /// Starts a guest; why not, if it does not.
    fn start(program: &Path, wanted: &Wanted) -> Result<Self, String> {
        let spec = wanted.spec.clone();
        let guest = EmbeddedGuest::spawn(program, &[GUEST], spec.clone());
        Ok(Self {
            spec,
            guest: Arc::new(guest.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?),
            past: vec![],
        })
    }
}

/// Why there is nothing measured.
type Spoilt = Outcome;

impl Embedded {
    /// For a program that hands over to [`snapshot::embedded::guest_main`] when its first argument
    /// is [`GUEST`], which then starts itself as the guest. Images go to a directory of their own on
    /// tmpfs, which goes with this.
    ///
    /// # Errors
    /// There is no such directory to be had.
    pub fn new() -> Result<Self> {
        let program = std::env::current_exe().context("Failed to find the own program")?;
        Self::with_program(&program)
    }

    /// The same with another program as the guest.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_program(program: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("embedded-runs-")
            .tempdir_in(DIRECTORY)
            .context("Failed to make a directory for images")?;
        Ok(Self {
            program: program.to_owned(),
            directory,
            guest: None,
        })
    }

    fn attempt(&mut self, wanted: &Wanted) -> Result<Result<Measured, Spoilt>> {
        if let Some(why) = self.lack(wanted)? {
            return Ok(Err(Outcome::Machine(why)));
        }
        let Self {
            program,
            directory,
            guest,
        } = self;
        let kept = match guest {
            Some(kept) => kept,
            None => match Kept::start(program, wanted) {
                Ok(kept) => guest.insert(kept),
                Err(why) => return Ok(Err(Outcome::Machine(why))),
            },
        };
        let saver = Saver {
            wanted,
            guest: &kept.guest,
            directory: directory.path(),
        };
        run(&saver, &mut kept.past)
    }

    /// Why guest and image do not fit, if they do not. A guest of another kind goes first.
    fn lack(&mut self, wanted: &Wanted) -> Result<Option<String>> {
        let running = self.guest.as_ref().is_some_and(|k| k.spec == wanted.spec);
        if !running {
            self.guest = None;
        }
        let mut needs = Needs::of(&wanted.spec);
        // Touched zero pages are populated, and a base stands beside its increment.
        needs.guest.0 += wanted.dirty.0 * u64::from(wanted.is_idle());
        let images = if wanted.method == Method::Increment {
            2
        } else {
            1
        };
        let free = room::available()?;
        let room = room::left_in(self.directory.path())?;
        Ok(needs.lack(running, images, free, room))
    }

    /// Whatever a run left in the directory goes.
    fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.directory.path())? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Runner for Embedded {
    /// Makes a run. A save that fails, or harms the guest, is [`Outcome::Method`] without figures; a
    /// guest that does not start or does not fit is [`Outcome::Machine`] without figures; a machine
    /// that stood still for a good part of the gap is [`Outcome::Machine`] with them. No image is
    /// left.
    ///
    /// # Errors
    /// The plan asks for what the embedded guest does not have, or the harness itself fails.
    fn measure(&mut self, planned: &Planned) -> Result<(Outcome, Option<Measured>)> {
        let case = &planned.case;
        ensure!(
            case.backend == Backend::Embedded && case.guest == GuestKind::Embedded,
            "{}: not a run on the embedded guest",
            planned.id()
        );
        let wanted = Wanted::of(case).with_context(|| planned.id())?;
        let made = self.attempt(&wanted)?;
        self.clear()?;
        match made {
            Ok(measured) => Ok((witness::judge(&measured, HARMLESS), Some(measured))),
            Err(outcome) => {
                // In whatever state it is, the next run gets another.
                self.guest = None;
                Ok((outcome, None))
            }
        }
    }
}

/// Prepares the guest, saves it, and looks after it.
fn run(saver: &Saver<'_>, past: &mut Vec<PastWindow>) -> Result<Result<Measured, Spoilt>> {
    let &Saver { wanted, guest, .. } = saver;
    guest.cap_cpu(wanted.cap.map_or(0, |cap| cap.0))?;
    std::thread::sleep(SETTLE);
    if past.is_empty() && wanted.method != Method::Plain {
        // As any guest but one that was never saved: forecasts have something to go by.
        match saver.rehearse() {
            Ok(window) => past.push(window),
            Err(why) => return Ok(Err(Outcome::Method(why))),
        }
    }
    let pace = pace(guest, PACE)?;
    let base = match saver.base() {
        Ok(base) => base,
        Err(why) => return Ok(Err(Outcome::Method(why))),
    };
    if base.is_some()
        && let Some(why) = dirty(wanted, guest)?
    {
        return Ok(Err(Outcome::Machine(why)));
    }
    let witness = Witness::start(None)?;
    let saved = saver.save(past, base, pace);
    let stall = witness.end()?.stall.as_secs_f64();
    let (mut measured, window) = match saved? {
        Ok(saved) => saved,
        Err(why) => return Ok(Err(Outcome::Method(why))),
    };
    measured.machine_stall_s = stall;
    if wanted.method != Method::Plain {
        past.push(window);
        past.drain(..past.len().saturating_sub(KEPT));
    }
    Ok(Ok(measured))
}

/// Pages that the guest writes per second.
fn pace(guest: &EmbeddedGuest, time: Duration) -> Result<f64> {
    let (began, before) = (Instant::now(), guest.stats()?.written);
    std::thread::sleep(time);
    let written = guest.stats()?.written - before;
    Ok(written as f64 / began.elapsed().as_secs_f64())
}

/// Has pages written since the base was cut: an idle guest touches them, strewn evenly; of another
/// its load is waited for. Why not, if that takes too long.
fn dirty(wanted: &Wanted, guest: &EmbeddedGuest) -> Result<Option<String>> {
    let want = wanted.dirty.whole_pages().0;
    if wanted.is_idle() {
        let all = guest.layout().pages().0;
        let pages: Vec<Pfn> = (0..want).map(|n| Pfn(n * all / want)).collect();
        for pages in pages.chunks(4096) {
            guest.touch(pages)?;
        }
        return Ok(None);
    }
    let mut found = PageSet::new(guest.layout().span());
    let began = Instant::now();
    loop {
        found.clear();
        guest.peek_dirty(&mut found)?;
        let found = found.count().0;
        if found >= want {
            return Ok(None);
        }
        if began.elapsed() > DIRTYING {
            return Ok(Some(format!(
                "the load wrote {found} of {want} pages in {DIRTYING:?}"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
