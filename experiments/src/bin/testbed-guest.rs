//! Runs inside a testbed guest: the self-checking workload.
//!
//! Started by `guest-init`; settings from the kernel's command line, commands
//! from standard input (the console), lines to standard output.

use experiments::lines::Line;
use experiments::workload::commands::{self, Verb};
use experiments::workload::config::{Config, Rate};
use experiments::workload::devices::{self, Traffic};
use experiments::workload::emulated::{self, EmulatedReads};
use experiments::workload::faults::{self, Ending, NoFreeze};
use experiments::workload::forks;
use experiments::workload::output::Output;
use experiments::workload::records::{Progress, Records};
use experiments::workload::static_area::StaticArea;
use experiments::workload::ticker::Ticker;
use experiments::workload::writer::{Orders, PAGES_PER_MIB, Verdict, Writer};
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, task, number, seed] = &args[..]
        && task == forks::BREED
    {
        return match forks::breed(number, seed) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("LS error what=breeder why={why}");
                ExitCode::FAILURE
            }
        };
    }
    let out = Output::to_stdout();
    match Guest::start(&out) {
        Ok(guest) => guest.serve(),
        Err(why) => out.error("start", why),
    }
    // Process 1 must not end: that is a panic, which a test may not expect.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

struct Guest {
    out: Output,
    writers: Arc<Vec<Writer>>,
    fixed: StaticArea,
    ticker: Ticker,
    records: Option<Records>,
    emulated: Option<EmulatedReads>,
    forks: Option<Arc<forks::Progress>>,
    no_freeze: NoFreeze,
}

/// Each writer's share of the rate.
fn share(rate: Rate, writers: usize) -> Rate {
    match rate {
        Rate::Max => Rate::Max,
        Rate::PagesPerSecond(n) => Rate::PagesPerSecond(n / writers as u64),
    }
}

impl Guest {
    fn start(out: &Output) -> Result<Self, String> {
        let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(|e| e.to_string())?;
        let config = Config::from_cmdline(&cmdline)?;
        experiments::workload::lock_memory()
            .map_err(|e| format!("memory could not be locked: {e}"))?;
        let fixed = StaticArea::new(config.seed, config.static_mib * PAGES_PER_MIB);
        let orders = Orders {
            rate: share(config.rate, config.writers),
            pattern: config.pattern,
            scrub: config.scrub,
            extent: config.extent,
        };
        let pages = config.ring_mib * PAGES_PER_MIB / config.writers as u64;
        let writers: Arc<Vec<Writer>> = Arc::new(
            (0..config.writers)
                .map(|number| Writer::start(number, config.seed, pages, orders, out))
                .collect(),
        );
        let counted = Arc::clone(&writers);
        let ticker = Ticker::start(Duration::from_millis(config.gap_ms), out, move || {
            total_seq(&counted)
        });
        let traffic = Arc::new(Traffic::default());
        if config.disk {
            devices::use_disk(&traffic, config.seed, out).map_err(|e| format!("disk: {e}"))?;
        }
        if let Some(address) = &config.net {
            devices::use_net(&traffic, address, out).map_err(|e| format!("net: {e}"))?;
        }
        let records = Records::start(&config, out).map_err(|e| format!("records: {e}"))?;
        let emulated = config.emulated.as_deref();
        let emulated = emulated.map(|disk| EmulatedReads::start(disk, config.seed, out));
        let emulated = emulated
            .transpose()
            .map_err(|e| format!("emulated disk: {e}"))?;
        let forks = (config.forks > 0).then(|| forks::start(config.forks, config.seed, out));
        let forks = forks.transpose().map_err(|e| format!("forks: {e}"))?;
        out.say(
            Line::new("start")
                .with("rate", config.rate)
                .with("pattern", config.pattern)
                .with("ring_mib", config.ring_mib)
                .with("static_mib", config.static_mib)
                .with("writers", config.writers)
                .with("seed", config.seed)
                .with("tsc_khz", ticker.tsc_khz()),
        );
        let (counted, beats) = (Arc::clone(&writers), out.clone());
        let period = Duration::from_millis(config.beat_ms);
        let others = Others {
            traffic,
            records: records.as_ref().map(|r| Arc::clone(&r.progress)),
            emulated: emulated.as_ref().map(|e| Arc::clone(&e.progress)),
            forks: forks.clone(),
        };
        thread::spawn(move || beat(&counted, &others, period, &beats));
        Ok(Self {
            out: out.clone(),
            writers,
            fixed,
            ticker,
            records,
            emulated,
            forks,
            no_freeze: NoFreeze::default(),
        })
    }

    fn serve(&self) {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if line.trim().is_empty() {
                continue;
            }
            match commands::parse(&line) {
                Ok((id, verb)) => match self.obey(id, verb) {
                    Ok(answer) => self.out.say(answer.with("id", id)),
                    Err(why) => self.out.say(
                        Line::new("error")
                            .with("id", id)
                            .with("what", line)
                            .with("why", why),
                    ),
                },
                Err(why) => self.out.error(&format!("command {line}"), why),
            }
        }
    }

    fn obey(&self, id: u64, verb: Verb) -> std::io::Result<Line> {
        let ok = Line::new("ok");
        match verb {
            Verb::Ping => Ok(ok),
            Verb::Verify => Ok(self.verify()),
            Verb::Frames => match &self.emulated {
                Some(emulated) => Ok(frames(emulated.frames())),
                None => Err(std::io::Error::other("there is no emulated disk")),
            },
            Verb::Records => match &self.records {
                Some(records) => records.scan(),
                None => Err(std::io::Error::other("no disk has records")),
            },
            Verb::Gap => Ok(Line::new("maxgap")
                .with("us", self.ticker.take_largest_us())
                .with("seq", total_seq(&self.writers))
                .with("at", self.ticker.now_us())),
            Verb::Rate(rate) => {
                let rate = share(rate, self.writers.len());
                self.writers.iter().for_each(|w| w.order(|o| o.rate = rate));
                Ok(ok)
            }
            Verb::Pattern(pattern) => {
                self.writers
                    .iter()
                    .for_each(|w| w.order(|o| o.pattern = pattern));
                Ok(ok)
            }
            Verb::Hog(duration) => {
                // Answered first: nothing is printed while the hog runs.
                self.out
                    .say(Line::new("ok").with("id", id).with("hog", "soon"));
                faults::hog(duration, None, &self.out).map(|()| Line::new("hogging"))
            }
            Verb::NoFreeze(timeout_ms) => self.no_freeze.start(timeout_ms, &self.out).map(|()| ok),
            Verb::Unfreeze => self.no_freeze.stop().map(|()| ok),
            Verb::Crash(after) => self.end(id, Ending::Crash, after),
            Verb::Reboot(after) => self.end(id, Ending::Reboot, after),
        }
    }

    fn end(&self, id: u64, how: Ending, after: Duration) -> std::io::Result<Line> {
        if after == Duration::ZERO {
            return faults::end(how).map(|()| Line::new("ended"));
        }
        // Answered first: nothing is printed while the hog runs.
        self.out
            .say(Line::new("ok").with("id", id).with("end", "soon"));
        faults::hog(after, Some(how), &self.out).map(|()| Line::new("hogging"))
    }

    fn verify(&self) -> Line {
        let started = Instant::now();
        let answers: Vec<_> = self.writers.iter().map(|w| w.verify.ask()).collect();
        let emulated = self.emulated.as_ref().map(|e| e.verify.ask());
        let mut total = self.fixed.verify(&self.out);
        if let Some(answer) = emulated {
            let Ok(Verdict { pages, bad, .. }) = answer.recv() else {
                return Line::new("error").with("why", "the reader is gone");
            };
            total.pages += pages;
            total.bad += bad;
        }
        for answer in answers {
            let Ok(Verdict { seq, pages, bad }) = answer.recv() else {
                return Line::new("error").with("why", "a writer is gone");
            };
            total.seq += seq;
            total.pages += pages;
            total.bad += bad;
        }
        if let Some(forks) = &self.forks {
            total.bad += forks.bad.load(Ordering::Relaxed);
        }
        Line::new("verify")
            .with("seq", total.seq)
            .with("pages", total.pages)
            .with("bad", total.bad)
            .with("ms", started.elapsed().as_millis())
    }
}

fn total_seq(writers: &[Writer]) -> u64 {
    let seqs = writers
        .iter()
        .map(|w| w.progress.seq.load(Ordering::Relaxed));
    seqs.sum()
}

/// Frame numbers in one word.
fn frames(frames: &[u64]) -> Line {
    let words: Vec<_> = frames.iter().map(u64::to_string).collect();
    Line::new("frames").with("list", words.join(","))
}

/// What a heartbeat tells of besides the writers.
struct Others {
    traffic: Arc<Traffic>,
    records: Option<Arc<Progress>>,
    emulated: Option<Arc<emulated::Progress>>,
    forks: Option<Arc<forks::Progress>>,
}

/// The heartbeat, once in every period or somewhat later.
fn beat(writers: &[Writer], others: &Others, period: Duration, out: &Output) {
    let Others {
        traffic,
        records,
        emulated,
        forks,
    } = others;
    let (start, mut last, mut last_seq) = (Instant::now(), Instant::now(), total_seq(writers));
    loop {
        thread::sleep(period);
        let (now, seq) = (Instant::now(), total_seq(writers));
        let rate = (seq - last_seq) as f64 / (now - last).as_secs_f64();
        let sum = |counter: fn(&Writer) -> u64| writers.iter().map(counter).sum::<u64>();
        let line = Line::new("beat")
            .with("t", format_args!("{:.3}", start.elapsed().as_secs_f64()))
            .with("seq", seq)
            .with("rate", rate as u64)
            .with("bad", sum(|w| w.progress.bad.load(Ordering::Relaxed)))
            .with(
                "scrubbed",
                sum(|w| w.progress.scrubbed.load(Ordering::Relaxed)),
            )
            .with("disk_ok", traffic.disk_ok.load(Ordering::Relaxed))
            .with("disk_bad", traffic.disk_bad.load(Ordering::Relaxed))
            .with("net_sent", traffic.net_sent.load(Ordering::Relaxed))
            .with("net_back", traffic.net_back.load(Ordering::Relaxed));
        let line = match emulated {
            Some(emulated) => line
                .with("emulated", emulated.read.load(Ordering::Relaxed))
                .with("emulated_bad", emulated.bad.load(Ordering::Relaxed)),
            None => line,
        };
        let line = match forks {
            Some(forks) => line
                .with("forks", forks.done.load(Ordering::Relaxed))
                .with("forks_bad", forks.bad.load(Ordering::Relaxed)),
            None => line,
        };
        out.say(match records {
            Some(records) => records.add_to(line),
            None => line,
        });
        (last, last_seq) = (now, seq);
    }
}
