//! A guest with the self-checking workload: what it is, and its life.

use super::console::{Console, Mark};
use super::harm::Harm;
use super::hypervisor::{self, Domain};
use super::serial::Logger;
use super::spec::{GuestType, Spec};
use super::xl;
use crate::lines::Line;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen_sys::{CpuShare, DomainId, Xen};

/// Kernel and initramfs of every guest; they come with the run's payload.
pub const KERNEL: &str = "/payload/guest-vmlinux";
/// See [`KERNEL`].
pub const RAMDISK: &str = "/payload/guest-initrd.img";
/// The same packed, for HVM guests.
pub const HVM_RAMDISK: &str = "/payload/guest-initrd.img.gz";

/// Time for a guest to boot, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// The same for one whose emulator, emulated itself, loads its kernel byte by byte.
const HVM_BOOT_LIMIT: Duration = Duration::from_secs(900);
/// Time for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// A guest that runs, or ran; destroyed when it is dropped.
pub struct Guest {
    /// What it was started as.
    pub spec: Spec,
    /// Its domain number; another one after a restore.
    pub domid: u32,
    /// Its console.
    pub console: Console,
    /// Logs what it says, where nobody else does.
    logger: Option<Logger>,
}

/// Result of a full check of the guest's memory by the guest itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Writes done up to then.
    pub seq: u64,
    /// Pages checked.
    pub pages: u64,
    /// Pages found wrong.
    pub bad: u64,
}

/// Result of the guest's own look at all its records ([`crate::records`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records {
    /// Slots looked at.
    pub slots: u64,
    /// Small files that were there.
    pub files: u64,
    /// Places that did not hold what they must, now and since the guest's start.
    pub bad: u64,
    /// Failed reads and writes, now and since the guest's start.
    pub err: u64,
    /// Acknowledged records of all disks together.
    pub acked: u64,
}

/// How far a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The largest gap since it was last asked.
    pub gap: Duration,
    /// Pages that it has written since its start.
    pub writes: u64,
    /// When, by its TSC, which goes on while it is suspended. Another clock after a restore or a
    /// migration.
    pub at: Duration,
}

/// Within so many heartbeats the writer must have gone on.
const BEATS: usize = 5;

impl Guest {
    /// Creates the guest and waits until its workload runs. `dir` takes its
    /// configuration file.
    pub fn start(spec: Spec, dir: &Path) -> Result<Self> {
        let mut console = Console::among(&spec.site.console_logs, &spec.name);
        if spec.has_serial_console() {
            console = console.on_serial_port();
        }
        let mark = console.mark()?;
        let file = write_config(&spec, dir)?;
        let path = file.to_str().context("configuration path is not UTF-8")?;
        xl::xl(&["create", path])?;
        let domid = hypervisor::number_of(&spec.name)?.context("xl create left no domain")?;
        let mut guest = Self::known(spec, domid, console);
        guest.log_serial_port()?;
        guest.wait_for_start(mark)?;
        if guest.spec.memory_mib != guest.spec.max_memory_mib {
            guest.balloon_down()?;
        }
        Ok(guest)
    }

    /// A guest that somebody else has started.
    #[must_use]
    pub fn known(spec: Spec, domid: u32, console: Console) -> Self {
        Self {
            spec,
            domid,
            console,
            logger: None,
        }
    }

    fn log_serial_port(&mut self) -> Result<()> {
        if self.spec.has_serial_console() {
            self.logger = Some(Logger::start(&self.console, self.domid)?);
        }
        Ok(())
    }

    fn wait_for_start(&self, mark: Mark) -> Result<()> {
        let limit = match self.spec.kind {
            GuestType::Hvm => HVM_BOOT_LIMIT,
            GuestType::Pvh | GuestType::Pv => BOOT_LIMIT,
        };
        let first = self
            .console
            .wait_for(mark, limit, "first heartbeat", |line| {
                line.kind == "beat" || line.kind == "error"
            })?;
        if first.kind == "error" {
            bail!("the workload did not start: {first}");
        }
        Ok(())
    }

    /// Shrinks the running guest to `spec.memory_mib`: it starts with its
    /// maximum and hands memory back, as a balloon does.
    fn balloon_down(&mut self) -> Result<()> {
        let target = self.spec.memory_mib;
        xl::xl(&["mem-set", &self.spec.name, &format!("{target}m")])?;
        let pages = (target + 2) << 8;
        let domain = Domain::of(self.domid)?;
        let ballooned = domain.wait("ballooned down", Duration::from_secs(60), |info| {
            info.tot_pages <= pages
        });
        ballooned.map(|_| ())
    }

    /// Restores the guest from an image by stock `xl restore`, after it was
    /// destroyed. Returns the place in the log before the restore.
    pub fn restore(&mut self, image: &Path) -> Result<Mark> {
        let mark = self.console.mark()?;
        xl::restore(image)?;
        self.find_again()?;
        Ok(mark)
    }

    /// Takes over the domain that now bears the guest's name.
    pub fn find_again(&mut self) -> Result<()> {
        let domid = hypervisor::number_of(&self.spec.name)?;
        self.domid = domid.context("there is no such domain after it")?;
        self.log_serial_port()
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&self, command: &str) -> Result<Line> {
        self.console.ask(self.domid, command, ANSWER_LIMIT)
    }

    /// Has the guest look at every record on its disks.
    pub fn records(&self) -> Result<Records> {
        let line = self.ask("records")?;
        let number = |key| number(&line, key);
        Ok(Records {
            slots: number("slots")?,
            files: number("files")?,
            bad: number("bad")?,
            err: number("err")?,
            acked: number("acked")?,
        })
    }

    /// The look must find every record there and right: memory and disks are of the same instant.
    pub fn records_clean(&self) -> Result<Records> {
        let records = self.records()?;
        if records.bad != 0 || records.err != 0 || records.slots == 0 {
            return Err(Harm.because(format!("its disks are not as its memory: {records:?}")));
        }
        Ok(records)
    }

    /// Has the guest check all its pages.
    pub fn verify(&self) -> Result<Verified> {
        let line = self.ask("verify")?;
        let number = |key| number(&line, key);
        Ok(Verified {
            seq: number("seq")?,
            pages: number("pages")?,
            bad: number("bad")?,
        })
    }

    /// The check must find all pages there and right.
    pub fn verify_clean(&self) -> Result<Verified> {
        let verified = self.verify()?;
        if verified.bad != 0 || verified.pages == 0 {
            let bad = format!("{} of {} pages are bad", verified.bad, verified.pages);
            return Err(Harm.because(bad));
        }
        Ok(verified)
    }

    /// The largest gap that the guest saw since it was last asked.
    pub fn take_gap(&self) -> Result<Duration> {
        let line = self.ask("gap")?;
        let us = line.number("us").context("no us in the guest's answer")?;
        Ok(Duration::from_micros(us))
    }

    /// The largest gap since this or [`Self::take_gap`] was last asked, and how far the guest was
    /// when it answered.
    pub fn take_progress(&self) -> Result<Progress> {
        let line = self.ask("gap")?;
        let number = |key| number(&line, key);
        Ok(Progress {
            gap: Duration::from_micros(number("us")?),
            writes: number("seq")?,
            at: Duration::from_micros(number("at")?),
        })
    }

    /// Waits for the next heartbeat from now.
    pub fn next_beat(&self, limit: Duration) -> Result<Line> {
        let mark = self.console.mark()?;
        self.console
            .wait_for(mark, limit, "heartbeat", |line| line.kind == "beat")
    }

    /// The guest must be running, its heart beat and its writer write.
    pub fn must_run_on(&self) -> Result<()> {
        self.beats_on().map(|_| ())
    }

    /// The same; the last heartbeat.
    pub fn beats_on(&self) -> Result<Line> {
        if hypervisor::number_of(&self.spec.name)? != Some(self.domid) {
            bail!("the guest is gone");
        }
        let info = Domain::of(self.domid)?.info()?;
        if info.paused || info.shutdown.is_some() || info.dying {
            bail!("the guest is not running: {info:?}");
        }
        let beat = |limit| -> Result<(Line, u64)> {
            let beat = self.next_beat(limit)?;
            let seq = beat.number("seq").context("a heartbeat without seq")?;
            Ok((beat, seq))
        };
        let (_, first) = beat(Duration::from_secs(30))?;
        // On a host that has other things to do it may be late once.
        for _ in 0..BEATS {
            let (beat, seq) = beat(Duration::from_secs(30))?;
            if seq > first {
                return Ok(beat);
            }
        }
        bail!("the guest's writer stands still at {first}");
    }

    /// The shutdown request that stands in xenstore; empty if none does.
    pub fn request(&self) -> Result<String> {
        xl::xenstore_read(&format!("/local/domain/{}/control/shutdown", self.domid))
    }

    /// Its share of the CPU, by its scheduler; `None` if that knows no caps.
    pub fn cpu_share(&self) -> Result<Option<CpuShare>> {
        let domain = DomainId::new(self.domid).context("domain number out of range")?;
        Ok(Xen::open()?.cpu_share(domain)?)
    }

    /// Destroys it, unless it is gone: another domain that bears its name by now is left alone.
    pub fn destroy(&self) -> Result<()> {
        if hypervisor::number_of(&self.spec.name)? == Some(self.domid) {
            xl::xl(&["destroy", &self.domid.to_string()])?;
        }
        Ok(())
    }
}

fn number(line: &Line, key: &str) -> Result<u64> {
    line.number(key)
        .with_context(|| format!("the guest answered {line}"))
}

/// Writes the file that `xl create` is given.
pub(super) fn write_config(spec: &Spec, dir: &Path) -> Result<PathBuf> {
    let file = dir.join(format!("{}.cfg", spec.name));
    fs::write(&file, spec.config()).with_context(|| format!("{}", file.display()))?;
    Ok(file)
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A failure shows in the next test, which cannot have the name.
        let _ = self.destroy();
    }
}
