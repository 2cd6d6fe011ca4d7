//! A guest with the self-checking workload: what it is, and its life.

use super::console::{Console, Mark};
use super::harm::Harm;
use super::xl;
use crate::lines::Line;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Kernel and initramfs of every guest; they come with the run's payload.
pub const KERNEL: &str = "/payload/guest-vmlinux";
/// See [`KERNEL`].
pub const RAMDISK: &str = "/payload/guest-initrd.img";

/// Time for a guest to boot, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Time for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(40);

/// What guest to start.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Memory now, in MiB.
    pub memory_mib: u64,
    /// Memory at most, in MiB; the same unless the guest is ballooned down.
    pub max_memory_mib: u64,
    /// Virtual CPUs, and as many writers.
    pub vcpus: u32,
    /// Settings of the workload, such as `rate=5000` (without `ls.`).
    pub settings: Vec<String>,
    /// A block device or image file for xvda.
    pub disk: Option<PathBuf>,
    /// Give it a network interface on the testbed's bridge.
    pub net: bool,
}

impl Spec {
    /// 512 MiB, one vCPU, 5 000 pages/s round 128 MiB.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 512,
            max_memory_mib: 512,
            vcpus: 1,
            settings: vec!["rate=5000".to_owned(), "beat=400".to_owned()],
            disk: None,
            net: false,
        }
    }

    /// The same with a setting of the workload added (a later one wins).
    #[must_use]
    pub fn with(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The same with so many vCPUs, each with a writer of its own.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self.with(&format!("writers={vcpus}"))
    }

    fn config(&self) -> String {
        let mut settings = String::new();
        for setting in &self.settings {
            settings.push_str(" ls.");
            settings.push_str(setting);
        }
        // Pinned away from dom0: unpinned PVH guests triple-fault now and then
        // under QEMU's emulation of SVM.
        let mut config = format!(
            "name = \"{}\"\ntype = \"pvh\"\nmemory = {}\nmaxmem = {}\nvcpus = {}\ncpus = \"1\"\n\
             kernel = \"{KERNEL}\"\nramdisk = \"{RAMDISK}\"\n\
             cmdline = \"console=hvc0 quiet panic=0{settings}\"\n\
             on_crash = \"preserve\"\non_reboot = \"preserve\"\n",
            self.name, self.max_memory_mib, self.max_memory_mib, self.vcpus
        );
        if let Some(disk) = &self.disk {
            config.push_str(&format!("disk = [ \"phy:{},xvda,w\" ]\n", disk.display()));
        }
        if self.net {
            config.push_str("vif = [ \"bridge=xenbr0\" ]\n");
        }
        config
    }
}

/// A guest that runs, or ran; destroyed when it is dropped.
pub struct Guest {
    /// What it was started as.
    pub spec: Spec,
    /// Its domain number; another one after a restore.
    pub domid: u32,
    /// Its console.
    pub console: Console,
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

/// Within so many heartbeats the writer must have gone on.
const BEATS: usize = 5;

impl Guest {
    /// Creates the guest and waits until its workload runs. `dir` takes its
    /// configuration file.
    pub fn start(spec: Spec, dir: &Path) -> Result<Self> {
        xl::destroy(&spec.name)?;
        let console = Console::of(&spec.name);
        let mark = console.mark()?;
        let file = dir.join(format!("{}.cfg", spec.name));
        fs::write(&file, spec.config()).with_context(|| format!("{}", file.display()))?;
        let path = file.to_str().context("configuration path is not UTF-8")?;
        xl::xl(&["create", path])?;
        let listed = xl::list(&spec.name)?.context("xl create left no domain")?;
        let mut guest = Self {
            spec,
            domid: listed.domid,
            console,
        };
        guest.wait_for_start(mark)?;
        if guest.spec.memory_mib != guest.spec.max_memory_mib {
            guest.balloon_down()?;
        }
        Ok(guest)
    }

    fn wait_for_start(&self, mark: Mark) -> Result<()> {
        let first = self
            .console
            .wait_for(mark, BOOT_LIMIT, "first heartbeat", |line| {
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
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = xl::list(&self.spec.name)?.context("the guest is gone")?;
            if now.memory_mib <= target + 2 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("ballooned to {} MiB only, wanted {target}", now.memory_mib);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
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
        let listed = xl::list(&self.spec.name)?.context("there is no such domain after it")?;
        self.domid = listed.domid;
        Ok(())
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&self, command: &str) -> Result<Line> {
        self.console.ask(self.domid, command, ANSWER_LIMIT)
    }

    /// Has the guest check all its pages.
    pub fn verify(&self) -> Result<Verified> {
        let line = self.ask("verify")?;
        let number = |key| {
            line.number(key)
                .with_context(|| format!("the guest answered {line}"))
        };
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

    /// Waits for the next heartbeat from now.
    pub fn next_beat(&self, limit: Duration) -> Result<Line> {
        let mark = self.console.mark()?;
        self.console
            .wait_for(mark, limit, "heartbeat", |line| line.kind == "beat")
    }

    /// The guest must be running, its heart beat and its writer write.
    pub fn must_run_on(&self) -> Result<()> {
        let listed = xl::list(&self.spec.name)?.context("the guest is gone")?;
        if listed.domid != self.domid || !listed.is_running() {
            bail!("the guest is not running: {listed:?}");
        }
        let seq = |limit| -> Result<u64> {
            let beat = self.next_beat(limit)?;
            beat.number("seq").context("a heartbeat without seq")
        };
        let first = seq(Duration::from_secs(30))?;
        // On a host that has other things to do it may be late once.
        for _ in 0..BEATS {
            if seq(Duration::from_secs(30))? > first {
                return Ok(());
            }
        }
        bail!("the guest's writer stands still at {first}");
    }

    /// Destroys it.
    pub fn destroy(&self) -> Result<()> {
        xl::destroy(&self.spec.name)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A failure shows in the next test, which cannot have the name.
        let _ = self.destroy();
    }
}
