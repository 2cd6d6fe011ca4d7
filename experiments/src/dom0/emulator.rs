//! The QEMU of an HVM guest, seen from outside: by its monitor (QMP), its process, and its writes.
//!
//! It is asked through the second of its two monitors, which is `xentop`'s: the first one is libxl's,
//! and livesave's. Nobody else uses the second, so no lock is needed.

use super::guest::Guest;
use super::harm::Harm;
use super::log_dirty;
use super::process::signal_process;
use super::xl;
use crate::workload::emulated;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// For one answer, on a busy emulated machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A guest's two monitors: libxl's, and xentop's.
fn sockets(domid: u32) -> [PathBuf; 2] {
    ["libxl", "libxenstat"].map(|who| format!("/run/xen/qmp-{who}-{domid}").into())
}

/// A conversation with an emulator.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(domid: u32) -> Result<Self> {
        let [_, path] = sockets(domid);
        let cannot = || format!("monitor {}", path.display());
        let stream = UnixStream::connect(&path).with_context(cannot)?;
        Self::over(stream).with_context(cannot)
    }

    fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        let greeting = monitor.line()?;
        ensure!(greeting.get("QMP").is_some(), "it greets with {greeting}");
        monitor.ask("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<Value> {
        let mut text = String::new();
        ensure!(self.stream.read_line(&mut text)? > 0, "it is closed");
        Ok(serde_json::from_str(&text)?)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let words = json!({"execute": command, "arguments": arguments});
        self.stream
            .get_mut()
            .write_all(format!("{words}\n").as_bytes())
            .with_context(|| format!("the emulator was asked {command}"))?;
        loop {
            let mut line = self
                .line()
                .with_context(|| format!("the emulator's answer to {command}"))?;
            if let Some(error) = line.get("error") {
                bail!("the emulator refused {command}: {error}");
            }
            // Events stand between.
            if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
        }
    }
}

/// Whether it does anything for its guest.
pub fn runs(domid: u32) -> Result<bool> {
    let status = Monitor::connect(domid)?.ask("query-status", &json!({}))?;
    Ok(status["running"] == true)
}

/// Its process must be there, neither stopped nor gone, and it must run.
pub fn must_run(domid: u32) -> Result<()> {
    let pid = pid(domid)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .map_err(|err| Harm.because(format!("the emulator is gone: {err}")))?;
    // The name before it is in brackets, and may hold any.
    let state = stat.rsplit(") ").next().unwrap_or_default();
    if state.starts_with(['T', 'Z', 'X']) {
        return Err(Harm.because(format!("the emulator's process is stopped: {state}")));
    }
    if !runs(domid)? {
        return Err(Harm.because("the emulator was left stopped".to_owned()));
    }
    Ok(())
}

/// Its process.
pub fn pid(domid: u32) -> Result<u32> {
    let path = format!("/local/domain/{domid}/image/device-model-pid");
    let pid = xl::xenstore_read(&path)?;
    pid.parse().with_context(|| format!("{path} is {pid:?}"))
}

/// Has it tell the hypervisor of its writes to the guest's memory, or not. Off where it is off makes
/// QEMU abort (from 6.2 on); on where it is on does nothing.
pub fn report_writes(domid: u32, enable: bool) -> Result<()> {
    let mut monitor = Monitor::connect(domid)?;
    monitor.ask("xen-set-global-dirty-log", &json!({"enable": enable}))?;
    Ok(())
}

/// Its process, stopped by SIGSTOP; goes on when this is dropped.
pub struct Stopped(u32);

impl Stopped {
    /// Stops it.
    pub fn stop(domid: u32) -> Result<Self> {
        let pid = pid(domid)?;
        signal_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = signal_process(self.0, Signal::CONT);
    }
}

/// A client at each of its monitors, without anybody's lock: nobody else is answered until this is
/// dropped.
pub struct Occupied {
    _clients: Vec<UnixStream>,
}

impl Occupied {
    /// Takes both.
    pub fn occupy(domid: u32) -> Result<Self> {
        let connect = |path: PathBuf| {
            let client = UnixStream::connect(&path)?;
            client.set_read_timeout(Some(LIMIT))?;
            // The greeting: it is we who are served.
            let mut greeting = String::new();
            BufReader::new(client.try_clone()?).read_line(&mut greeting)?;
            ensure!(greeting.contains("QMP"), "{}: {greeting:?}", path.display());
            Ok(client)
        };
        let clients = sockets(domid).into_iter().map(connect);
        Ok(Self {
            _clients: clients.collect::<Result<_>>()?,
        })
    }
}

/// How many of the pages that it alone writes the hypervisor hears of, and of how many. The guest
/// reads from an emulated disk ([`emulated`]) and is not tracked; it is while this looks.
pub fn reported_writes(guest: &Guest) -> Result<(usize, usize)> {
    let frames = guest.ask("frames")?;
    let frames = frames.get("list").context("no frames in the answer")?;
    let frames: Vec<u64> = frames
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("frames {frames:?}"))?;
    log_dirty::switch_on(guest.domid)?;
    let seen = dirty_among(guest, &frames);
    log_dirty::switch_off(guest.domid)?;
    Ok((seen?, frames.len()))
}

fn dirty_among(guest: &Guest, frames: &[u64]) -> Result<usize> {
    // What the first look finds is the past.
    log_dirty::fetch(guest.domid)?;
    wait_for_reads(guest, 2 * emulated::PAGES)?;
    log_dirty::dirty_among(guest.domid, frames)
}

/// Waits until the guest has read so many pages more from its emulated disk.
pub fn wait_for_reads(guest: &Guest, pages: u64) -> Result<()> {
    let read = |line: &crate::lines::Line| {
        let read = line.number("emulated");
        read.with_context(|| format!("a heartbeat without reads: {line}"))
    };
    let limit = Duration::from_secs(30);
    let from = read(&guest.next_beat(limit)?)?;
    let deadline = Instant::now() + Duration::from_secs(180);
    while read(&guest.next_beat(limit)?)? < from + pages {
        ensure!(
            Instant::now() < deadline,
            "the guest does not read {pages} pages from its emulated disk"
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each line with the next of these texts.
    fn monitor(answers: &[&'static str]) -> Result<Monitor> {
        let answers = answers.to_vec();
        let (ours, theirs) = UnixStream::pair()?;
        thread::spawn(move || -> Result<()> {
            let mut lines = BufReader::new(theirs.try_clone()?).lines();
            for answer in answers {
                (&theirs).write_all(answer.as_bytes())?;
                lines.next().context("no command")??;
            }
            Ok(())
        });
        Monitor::over(ours)
    }

    const GREETING: &str = "{\"QMP\": {}}\r\n";

    #[test]
    fn answers_are_told_from_events_and_errors() {
        let event = "{\"event\": \"STOP\"}\n{\"return\": {\"running\": true}}\n";
        let mut good = monitor(&[GREETING, "{\"return\": {}}\n", event]).unwrap();
        assert_eq!(
            good.ask("query-status", &json!({})).unwrap()["running"],
            true
        );
        let refused = "{\"error\": {\"desc\": \"not now\"}}\n";
        let err = monitor(&[GREETING, refused]).map(drop).unwrap_err();
        assert!(format!("{err:#}").contains("not now"), "{err:#}");
        assert!(monitor(&["{}\n"]).is_err());
        assert!(monitor(&[]).is_err());
    }
}
