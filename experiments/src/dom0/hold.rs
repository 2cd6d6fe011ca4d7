//! A process that throttles a guest through the library and then does nothing, as a save that
//! hangs, so that what becomes of the guest can be seen in less time than a save takes.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid, kill_process};
use snapshot::guardian::NoDisks;
use snapshot::ports::{Cancel, Domain};
use snapshot::units::CpuPercent;
use snapshot::xen::{Guarding, XenDomain};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What it says when the guest is throttled.
pub const THROTTLED: &str = "throttled";

/// How long the guest's use of the CPU is measured.
const MEASURE: Duration = Duration::from_millis(1500);

/// What to do to whom.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// The guest.
    pub domain: &'a str,
    /// In percent of one CPU.
    pub limit: u32,
    /// By pauses, even where there is a cap.
    pub pauses: bool,
    /// What follows.
    pub then: &'a str,
    /// How long it may be silent.
    pub silence_ms: u64,
}

/// What may follow the throttling.
pub const DEEDS: [&str; 3] = ["wait", "kill-both", "measure"];

impl Hold<'_> {
    /// The command, to be run by `suite`.
    #[must_use]
    pub fn command(&self, suite: &Path) -> Command {
        let mut command = Command::new(suite);
        let how = if self.pauses { "pauses" } else { "cap" };
        command.arg("--hold").arg(format!(
            "{}:{}:{how}:{}:{}",
            self.domain, self.limit, self.then, self.silence_ms
        ));
        command
    }
}

/// Does what [`Hold::command`] says; `livesave` is the guardian.
pub fn hold(spec: &str, livesave: &Path) -> Result<()> {
    let words: Vec<_> = spec.split(':').collect();
    let [domain, limit, how, then, silence_ms] = words[..] else {
        bail!("--hold takes DOMAIN:PERCENT:cap|pauses:DEED:SILENCE-MS");
    };
    if !DEEDS.contains(&then) {
        bail!("no such deed: {then}");
    }
    let limit = CpuPercent(limit.parse()?);
    let mut guest = XenDomain::open(domain, &NoDisks, &Cancel::new())?;
    guest.on_notice(Box::new(|text| eprintln!("{text}")));
    guest.guarded(Guarding {
        program: livesave.to_owned(),
        partial: None,
        suspend_timeout: Duration::from_secs(10),
        silence: Duration::from_millis(silence_ms.parse()?),
        stall: Duration::ZERO,
        disks: String::new(),
    })?;
    if how == "pauses" {
        guest.throttle_by_pauses();
    }
    let before = if then == "measure" {
        used(&mut guest)?
    } else {
        0.0
    };
    // Twice, as a save does on its way down.
    guest.throttle(CpuPercent(limit.0 * 3 / 2))?;
    guest.throttle(limit)?;
    eprintln!("{THROTTLED}");
    match then {
        "wait" => loop {
            sleep(Duration::from_secs(3600));
        },
        "kill-both" => {
            // Past the first turn, which begins without a pause.
            sleep(Duration::from_millis(60));
            kill_process(guardian()?, Signal::KILL)?;
            kill_process(getpid(), Signal::KILL)?;
        }
        _ => {
            let throttled = used(&mut guest)?;
            guest.unthrottle()?;
            let after = used(&mut guest)?;
            let means = guest.cpu()?.means;
            println!("{means} {before:.1} {throttled:.1} {after:.1}");
        }
    }
    Ok(())
}

/// CPU time that the guest uses, in percent of one CPU.
fn used(guest: &mut XenDomain) -> Result<f64> {
    let (began, from) = (Instant::now(), guest.cpu_time()?);
    sleep(MEASURE);
    let used = guest.cpu_time()?.saturating_sub(from);
    Ok(used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0)
}

/// Our guardian, which is our only child.
fn guardian() -> Result<Pid> {
    let me = std::process::id();
    let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children"))?;
    let child = children.trim().parse()?;
    Pid::from_raw(child).context("no child")
}
