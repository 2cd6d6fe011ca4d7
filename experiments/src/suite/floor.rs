//! Where the gap of an idle guest goes: livesave's pause and that of Xen's own live loop, seen from
//! outside in the same way.
//!
//! The hypervisor is asked all the while whether the guest is suspended; the request is noticed in
//! xenstore's stead by what each tool says when it makes it.

use super::table::{align, median};
use super::{Bench, Kind, Test};
use crate::dom0::hypervisor::Domain;
use crate::dom0::stock;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.asked("floor", floor)]
}

/// How often the hypervisor is asked.
const LOOK: Duration = Duration::from_micros(500);

/// One save, in seconds.
struct Parts {
    /// From the request until the guest stood still.
    handshake: f64,
    /// Standing still.
    suspended: f64,
    /// The gap that the guest saw.
    gap: f64,
}

/// When the guest was seen suspended, and when it ran again.
fn watch(domid: u32, over: &AtomicBool) -> Result<Option<(Instant, Instant)>> {
    let domain = Domain::of(domid)?;
    let mut since = None;
    while !over.load(Ordering::Relaxed) {
        let suspended = domain.info()?.is_suspended();
        let now = Instant::now();
        match since {
            None if suspended => since = Some(now),
            Some(since) if !suspended => return Ok(Some((since, now))),
            _ => {}
        }
        thread::sleep(LOOK);
    }
    Ok(None)
}

fn measure(domid: u32, save: &mut Save) -> Result<Parts> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(domid, &over));
        let asked = save.run();
        over.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        let (suspended, resumed) = seen.context("it was never seen suspended")?;
        Ok(Parts {
            handshake: suspended.saturating_duration_since(asked?).as_secs_f64(),
            suspended: (resumed - suspended).as_secs_f64(),
            gap: 0.0,
        })
    })
}

/// A save whose standard error is watched for the line that tells of the request.
struct Save {
    command: Command,
    says: &'static str,
}

impl Save {
    /// Runs it; when it made the request.
    fn run(&mut self) -> Result<Instant> {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stderr.take().context("no standard error")?;
        let mut asked = None;
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            if asked.is_none() && String::from_utf8_lossy(&line).contains(self.says) {
                asked = Some(Instant::now());
            }
        }
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "it ended with {status}");
        asked.context("it did not say that it asked the guest")
    }
}

fn floor(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.with("scrub=0").rate("100"))?;
    let name = guest.spec.name.as_str();
    let path = bench.image("x.xl");
    let mut rows = vec![
        [
            "",
            "request to standstill ms",
            "suspended ms",
            "gap ms",
            "of the gap not suspended ms",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    // One for livesave to learn the guest from.
    bench.livesave.save(name, &path, &[])?;
    std::fs::remove_file(&path)?;
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..bench.repeats {
        for own in [true, false] {
            let command = if own {
                bench.livesave.save_command(name, &path, &[])
            } else {
                stock::live_loop_command(&["-vvv"], name, &path, &bench.results)?
            };
            guest.must_run_on()?;
            guest.take_gap()?;
            let mut save = Save {
                command,
                says: if own {
                    "Suspending the guest"
                } else {
                    "suspend request via XenBus"
                },
            };
            let mut parts = measure(guest.domid, &mut save)?;
            parts.gap = guest.take_gap()?.as_secs_f64();
            std::fs::remove_file(&path)?;
            if own { &mut ours } else { &mut theirs }.push(parts);
        }
    }
    for (title, all) in [("livesave", &ours), ("stock live loop", &theirs)] {
        let mid =
            |value: fn(&Parts) -> f64| 1e3 * median(&all.iter().map(value).collect::<Vec<_>>());
        rows.push(vec![
            title.to_owned(),
            format!("{:.1}", mid(|p| p.handshake)),
            format!("{:.1}", mid(|p| p.suspended)),
            format!("{:.1}", mid(|p| p.gap)),
            format!("{:.1}", mid(|p| p.gap - p.suspended)),
        ]);
    }
    let table = align(&rows);
    println!("\n{table}");
    std::fs::write(bench.results.join("floor.txt"), &table)?;
    guest.verify_clean()?;
    Ok(format!("medians of {}", bench.repeats))
}
