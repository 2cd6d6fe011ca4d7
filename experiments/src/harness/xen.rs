//! One run on a Xen: a guest as the case wants it, the save, and what it took.

use super::case::{Case, GuestKind, Method, Planned};
use super::methods::{self, Failure, Tools};
use super::plan::{Dom0, Shape};
use super::record::{Measured, Outcome};
use super::sweep::Runner;
use super::taken::{Work, put_together};
use super::witness::{self, Witness};
use crate::dom0::console::Console;
use crate::dom0::guest::{Guest, Progress};
use crate::dom0::hypervisor::Domain;
use crate::dom0::spec::{GuestType, Site, Spec};
use anyhow::{Context, Result, bail, ensure};
use std::thread;
use std::time::{Duration, Instant};
use xen_sys::{DomainId, ShutdownReason, Xen};

/// The name of the harness's guests.
const NAME: &str = "livesave-experiment";

/// After new orders, until the guest writes as it was told.
const SETTLE: Duration = Duration::from_secs(1);

/// For how long its pace before the save is watched.
const BASELINE: Duration = Duration::from_secs(2);

/// A stall of less spoils nothing here.
const HARMLESS: Duration = Duration::from_millis(40);

/// What every tool says of a file system that is full (strerror(3)).
const NO_ROOM: &str = "No space left on device";

/// Pages in a MiB.
const PAGES_PER_MIB: u64 = 256;

/// Makes runs on this host's Xen.
pub struct XenHost {
    xen: Xen,
    site: Site,
    tools: Tools,
    scratch: tempfile::TempDir,
    guest: Option<(Shape, Guest)>,
}

impl XenHost {
    /// A host as the plan says. Nothing is started yet.
    pub fn new(dom0: &Dom0) -> Result<Self> {
        let xen = Xen::open().context("this is no dom0, or Xen cannot be used")?;
        for (what, path) in [("kernel", &dom0.kernel), ("ramdisk", &dom0.ramdisk)] {
            ensure!(
                path.exists(),
                "the guests' {what} {} is not there; see `dom0` in the plan",
                path.display()
            );
        }
        let scratch = tempfile::Builder::new()
            .prefix("livesave-experiments-")
            .tempdir()
            .context("cannot make a directory for small files")?;
        Ok(Self {
            xen,
            site: Site {
                kernel: dom0.kernel.clone(),
                ramdisk: dom0.ramdisk.clone(),
                hvm_kernel: dom0.hvm_kernel.as_ref().unwrap_or(&dom0.kernel).clone(),
                hvm_ramdisk: dom0.hvm_ramdisk.as_ref().unwrap_or(&dom0.ramdisk).clone(),
                cpus: dom0.cpus.clone(),
                console_logs: dom0.console_logs.clone(),
            },
            tools: Tools {
                livesave: dom0.livesave.clone(),
                harness: std::env::current_exe().context("cannot find the own program")?,
                images: dom0.images.join("livesave-experiments"),
                scratch: scratch.path().to_owned(),
            },
            scratch,
            guest: None,
        })
    }

    fn take_guest(&mut self, shape: Shape) -> Result<Guest> {
        match self.guest.take() {
            Some((known, guest)) if known == shape => return Ok(guest),
            // Destroyed before the next is created: there may be no memory for both.
            other => drop(other),
        }
        let kind = match shape.guest {
            GuestKind::Pvh => GuestType::Pvh,
            GuestKind::Hvm => GuestType::Hvm,
            GuestKind::Pv => GuestType::Pv,
            GuestKind::Embedded => bail!("embedded guests have no Xen"),
        };
        let memory = shape.memory_mib;
        let mut spec = Spec {
            name: NAME.to_owned(),
            kind,
            site: self.site.clone(),
            ..Spec::default()
        };
        spec = spec.memory(memory).vcpus(shape.vcpus).rate("100");
        for setting in [
            format!("ring={}", memory / 4),
            format!("static={}", memory / 8),
            "scrub=0".to_owned(),
            "write=edges".to_owned(),
        ] {
            spec = spec.with(&setting);
        }
        Guest::start(spec, self.scratch.path())
    }
}

impl Runner for XenHost {
    fn measure(&mut self, planned: &Planned) -> Result<(Outcome, Option<Measured>)> {
        let case = &planned.case;
        let shape = Shape::of(case);
        let guest = match self.take_guest(shape) {
            Ok(guest) => guest,
            Err(why) => {
                let why = format!("the guest did not start: {why:#}");
                return Ok((Outcome::Machine(why), None));
            }
        };
        let mut run = Run {
            xen: &self.xen,
            tools: &self.tools,
            guest,
            case,
        };
        let ended = run.make();
        let guest = run.guest;
        match ended {
            Ok((outcome, measured)) => {
                // After anything else the next one begins with a new guest.
                let as_it_was = matches!(outcome, Outcome::Good | Outcome::Refused(_));
                if as_it_was || measured.is_some() {
                    self.guest = Some((shape, guest));
                }
                Ok((outcome, measured))
            }
            Err(why) => Ok((Outcome::Machine(format!("{why:#}")), None)),
        }
    }
}

impl Drop for XenHost {
    fn drop(&mut self) {
        drop(self.guest.take());
        // Empty by now, or of use to whoever looks at what went wrong.
        let _ = std::fs::remove_dir(&self.tools.images);
    }
}

struct Run<'a> {
    xen: &'a Xen,
    tools: &'a Tools,
    guest: Guest,
    case: &'a Case,
}

impl Run<'_> {
    fn make(&mut self) -> Result<(Outcome, Option<Measured>)> {
        self.prepare()?;
        let before = self.guest.take_progress()?;
        thread::sleep(BASELINE);
        let start = self.guest.take_progress()?;
        let pace = pace(before, start)?;
        let (clock, dom0_cpu) = (Instant::now(), self.dom0_cpu()?);
        // A migrated guest is another domain: what the first one does then says nothing.
        let looked_at = (self.case.method != Method::Migration).then_some(self.guest.domid);
        let witness = Witness::start(looked_at)?;
        let made = methods::make(self.tools, &self.guest.spec.name, self.case);
        let (seen, dom0_cpu) = (witness.end()?, self.dom0_cpu()? - dom0_cpu);
        let made = match made {
            Ok(Ok(made)) => made,
            Ok(Err(Failure::Failed(why))) => return Ok((self.blame(why), None)),
            Ok(Err(Failure::Refused(why))) => {
                return Ok(match self.restore_order() {
                    Ok(()) => (Outcome::Refused(why), None),
                    Err(harmed) => (self.blame(format!("{why}; {harmed:#}")), None),
                });
            }
            Err(why) => return Ok((self.blame(format!("{why:#}")), None)),
        };
        if self.case.method == Method::Migration {
            self.guest.find_again()?;
            let name = format!("{}--incoming", self.guest.spec.name);
            self.guest.console = Console::among(&self.guest.spec.site.console_logs, &name);
        }
        let end = match self.guest.take_progress() {
            Ok(end) => end,
            Err(why) => return Ok((self.blame(format!("{why:#}")), None)),
        };
        let elapsed = match self.case.method {
            Method::Migration => clock.elapsed(),
            _ => end.at.saturating_sub(start.at),
        };
        let work = Work {
            pace,
            elapsed,
            done: end.writes.saturating_sub(start.writes),
        };
        let measured = put_together(&made, end.gap, &work, seen, dom0_cpu, looked_at.is_some());
        if let Err(why) = self.restore_order() {
            return Ok((self.blame(format!("{why:#}")), None));
        }
        Ok((witness::judge(&measured, HARMLESS), Some(measured)))
    }

    /// Tells the guest what to write, and caps it.
    fn prepare(&self) -> Result<()> {
        let guest = &self.guest;
        if let (Method::Increment, Some(percent)) = (self.case.method, self.case.dirty_percent) {
            self.order("idle", "0")?;
            methods::make_base(self.tools, &guest.spec.name)?;
            let mib = (self.case.memory_mib * u64::from(percent) / 100).max(1);
            self.write_once(mib)?;
        }
        self.order(&self.case.load.pattern, &self.case.load.rate)?;
        self.cap(self.case.cap.unwrap_or(0))?;
        thread::sleep(SETTLE);
        Ok(())
    }

    fn order(&self, pattern: &str, rate: &str) -> Result<()> {
        self.guest.ask(&format!("pattern {pattern}"))?;
        self.guest.ask(&format!("rate {rate}")).map(|_| ())
    }

    /// Has the guest write so many MiB of its ring, and then no more.
    fn write_once(&self, mib: u64) -> Result<()> {
        let from = self.guest.take_progress()?.writes;
        self.order(&format!("hot:{mib}"), "max")?;
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.guest.take_progress()?.writes < from + mib * PAGES_PER_MIB {
            ensure!(
                Instant::now() < deadline,
                "the guest did not write {mib} MiB in two minutes"
            );
            thread::sleep(Duration::from_millis(100));
        }
        self.order("idle", "0")
    }

    fn id(&self) -> Result<DomainId> {
        DomainId::new(self.guest.domid).context("domain number out of range")
    }

    fn cap(&self, percent: u32) -> Result<()> {
        let id = self.id()?;
        let share = self.xen.cpu_share(id)?;
        let Some(mut share) = share else {
            ensure!(percent == 0, "the scheduler of this Xen has no caps");
            return Ok(());
        };
        share.cap = u16::try_from(percent).context("the cap is out of range")?;
        Ok(self.xen.set_cpu_share(id, share)?)
    }

    /// The guest must be as it was: with its cap, running, every page that it has looked at right.
    fn restore_order(&self) -> Result<()> {
        let share = self.xen.cpu_share(self.id()?)?;
        let cap = share.map_or(0, |share| u32::from(share.cap));
        let wanted = match self.case.method {
            // A new domain has none.
            Method::Migration => 0,
            _ => self.case.cap.unwrap_or(0),
        };
        ensure!(cap == wanted, "the guest's cap is {cap}, it was {wanted}");
        self.cap(0)?;
        self.order("ring", "100")?;
        let beat = self.guest.beats_on()?;
        ensure!(
            beat.number("bad") == Some(0),
            "the guest found bad pages: {beat}"
        );
        if self.case.method == Method::Increment {
            methods::forget_base(self.tools, &self.guest.spec.name)?;
        }
        Ok(())
    }

    /// Who is to blame for a run that failed: under emulation guests break down by themselves now and
    /// then (a triple fault), with every method, which the hypervisor tells.
    fn blame(&self, why: String) -> Outcome {
        // Whoever wrote: the directory of images is too small for this plan.
        if why.contains(NO_ROOM) {
            return Outcome::Machine(why);
        }
        let info = Domain::of(self.guest.domid).and_then(|domain| domain.info());
        match info {
            Ok(info) if info.shutdown == Some(ShutdownReason::Crash) => {
                Outcome::Machine(format!("the guest crashed: {why}"))
            }
            _ => Outcome::Method(why),
        }
    }

    /// CPU time of dom0 so far.
    fn dom0_cpu(&self) -> Result<Duration> {
        let dom0 = DomainId::new(0).context("dom0 has no number")?;
        let info = self.xen.domain_info(dom0)?.context("there is no dom0")?;
        Ok(Duration::from_nanos(info.cpu_time_ns))
    }
}

/// Pages that the guest wrote per second between the two.
fn pace(from: Progress, to: Progress) -> Result<f64> {
    let took = to.at.saturating_sub(from.at).as_secs_f64();
    ensure!(took > 0.0, "the guest's clock stands still");
    Ok(to.writes.saturating_sub(from.writes) as f64 / took)
}
