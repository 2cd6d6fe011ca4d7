//! Makes the guest misbehave, so that a save's failure paths run for real.

use super::output::Output;
use super::sys;
use crate::lines::Line;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const FROZEN: &str = "/mnt/frozen";

/// Keeps every vCPU busy at a real-time priority for a while. The kernel's own
/// threads starve, the one that acknowledges a suspend request among them: the
/// guest **never acks**. With `then` it crashes or reboots at the end, before anything else runs.
pub fn hog(duration: Duration, then: Option<Ending>, out: &Output) -> io::Result<()> {
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    end_fair_servers()?;
    let cpus = thread::available_parallelism()?.get();
    out.say(
        Line::new("hog")
            .with("state", "start")
            .with("cpus", cpus)
            .with("s", duration.as_secs_f64()),
    );
    // The line above must be out before nothing else can run.
    thread::sleep(Duration::from_millis(300));
    let busy: Vec<_> = (0..cpus)
        .map(|cpu| {
            let out = out.clone();
            thread::spawn(move || {
                let mut set = rustix::thread::CpuSet::new();
                set.set(cpu);
                if let Err(err) = rustix::thread::sched_setaffinity(None, &set) {
                    out.error("hog affinity", err);
                }
                // Last: from here on this thread alone runs on its vCPU.
                if let Err(err) = sys::set_fifo(99) {
                    return out.error("hog priority", err);
                }
                let start = Instant::now();
                while start.elapsed() < duration {
                    std::hint::spin_loop();
                }
                if let Some(Err(err)) = then.map(end) {
                    out.error("end", err);
                }
            })
        })
        .collect();
    let out = out.clone();
    thread::spawn(move || {
        for thread in busy {
            let _ = thread.join();
        }
        out.say(Line::new("hog").with("state", "end"));
    });
    Ok(())
}

/// Newer kernels (6.12 has it) keep a share of each CPU, 5 %, for what is not real-time: enough to
/// acknowledge a request.
fn end_fair_servers() -> io::Result<()> {
    match fs::read_dir("/sys/kernel/debug/sched/fair_server") {
        Ok(mut servers) => servers.try_for_each(|cpu| fs::write(cpu?.path().join("runtime"), "0")),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

/// A task that cannot be frozen: it writes to a file system that is frozen, and
/// waits for that uninterruptibly. The guest **acks** a suspend request, tries
/// to freeze its tasks, fails, and **never suspends**.
#[derive(Default)]
pub struct NoFreeze(Mutex<Option<JoinHandle<()>>>);

impl NoFreeze {
    /// Puts the task there. `timeout_ms`: how long the kernel tries to freeze
    /// (it gives up and thaws everybody then; Linux's own default is 20 s).
    pub fn start(&self, timeout_ms: u64, out: &Output) -> io::Result<()> {
        let mut task = self.0.lock().expect("no thread panics with the lock");
        if task.is_some() {
            return Err(io::Error::other("already there"));
        }
        fs::write("/sys/power/pm_freeze_timeout", timeout_ms.to_string())?;
        if !Path::new(FROZEN).exists() {
            fs::create_dir_all(FROZEN)?;
            run("dd", &["if=/ramdisk.ext4", "of=/dev/ram0", "bs=1M"])?;
            run("mount", &["-t", "ext4", "/dev/ram0", FROZEN])?;
        }
        run("fsfreeze", &["--freeze", FROZEN])?;
        let errors = out.clone();
        *task = Some(thread::spawn(move || {
            if let Err(err) = fs::write(format!("{FROZEN}/file"), b"blocked until the thaw") {
                errors.error("nofreeze write", err);
            }
        }));
        Ok(())
    }

    /// Takes the task away again.
    pub fn stop(&self) -> io::Result<()> {
        let mut task = self.0.lock().expect("no thread panics with the lock");
        let Some(blocked) = task.take() else {
            return Err(io::Error::other("not there"));
        };
        run("fsfreeze", &["--unfreeze", FROZEN])?;
        blocked
            .join()
            .map_err(|_| io::Error::other("the task panicked"))
    }
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A kernel panic.
    Crash,
    /// An immediate reboot.
    Reboot,
}

/// Ends the guest.
pub fn end(how: Ending) -> io::Result<()> {
    fs::write("/proc/sys/kernel/sysrq", "1")?;
    let key = match how {
        Ending::Crash => "c",
        Ending::Reboot => "b",
    };
    fs::write("/proc/sysrq-trigger", key)
}

/// Runs one of busybox's commands.
pub(super) fn run(program: &str, args: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
