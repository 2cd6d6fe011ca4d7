//! Made-up runs of every study, to test reports and to look at one without a Xen.
//!
//! The numbers follow a small model of pre-copy, so that plots have the shapes of real ones; nothing
//! here was measured.

use super::super::case::{Backend, Case, GuestKind, Load, Method, Planned};
use super::super::manifest::{Machine, Manifest};
use super::super::record::{Measured, Outcome, Pass, Run};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Pages a second that a copy makes.
const SPEED: f64 = 45_000.0;
/// Repeats of a case.
const REPEATS: u32 = 5;

/// The runs of all known studies and of one that the report does not know.
#[must_use]
pub fn runs() -> Vec<Run> {
    let mut made = Made {
        runs: Vec::new(),
        seed: 7,
    };
    for rate in ["idle", "100", "1000", "5000", "20000", "max"] {
        for method in Method::ALL.into_iter().filter(|m| *m != Method::Increment) {
            made.case("rates", method, |case| case.load = load(rate));
        }
    }
    for memory_mib in [256, 1024] {
        let methods = [
            Method::Plain,
            Method::StockLive,
            Method::MigratedPipe,
            Method::Live,
            Method::Improved,
        ];
        for method in methods {
            for cap in [1, 5, 10, 20, 40, 60, 80, 100, 0] {
                made.case("caps", method, |case| {
                    case.memory_mib = memory_mib;
                    case.cap = Some(cap).filter(|cap| *cap > 0);
                    case.load = load("max");
                });
            }
            made.case("idle", method, |case| {
                (case.memory_mib, case.load) = (memory_mib, load("idle"));
            });
        }
    }
    for rate in ["20000", "max"] {
        for target_ms in [Some(20), Some(50), Some(100), Some(200), Some(500), None] {
            for method in [Method::Live, Method::Improved] {
                made.case("targets", method, |case| {
                    (case.target_ms, case.load) = (target_ms, load(rate));
                    case.load.pattern = "random".into();
                });
            }
        }
    }
    for memory_mib in [128, 256, 512, 1024] {
        for method in [
            Method::Plain,
            Method::StockLive,
            Method::Live,
            Method::Improved,
        ] {
            made.case("memory", method, |case| case.memory_mib = memory_mib);
        }
    }
    for vcpus in [1, 2, 4] {
        for method in [Method::Plain, Method::StockLive, Method::Improved] {
            made.case("vcpus", method, |case| case.vcpus = vcpus);
        }
    }
    made.case("increments", Method::Improved, |case| {
        case.load = load("idle");
    });
    for share in [1, 5, 10, 25, 50] {
        made.case("increments", Method::Increment, |case| {
            (case.dirty_percent, case.load) = (Some(share), load("idle"));
        });
    }
    for pattern in ["ring", "random", "hot:16"] {
        made.case("patterns", Method::Improved, |case| {
            case.load.pattern = pattern.into();
        });
    }
    made.spoil();
    made.runs
}

/// What such a sweep would say of itself.
#[must_use]
pub fn manifest() -> Manifest {
    Manifest {
        livesave: "livesave 0.1.0 (made up)".into(),
        commit: Some("0123456789ab".into()),
        arguments: vec!["run".into(), "--plan".into(), "sample.json".into()],
        plan: "{\"repeats\": 5}".into(),
        began: 1_764_000_000,
        machine: Machine {
            cpu: "A CPU that does not exist".into(),
            cpus: 2,
            memory_mib: 2048,
            kernel: "6.1.0".into(),
            xen: Some("4.17.6, credit".into()),
            emulated: true,
        },
    }
}

fn load(rate: &str) -> Load {
    let idle = rate == "idle";
    Load {
        pattern: if idle { "idle" } else { "ring" }.into(),
        rate: if idle { "0" } else { rate }.into(),
    }
}

/// Runs in the making.
struct Made {
    runs: Vec<Run>,
    seed: u64,
}

impl Made {
    /// Between 0 and 1, the same in every report.
    fn chance(&mut self) -> f64 {
        // Knuth's generator: its upper bits are good enough for a sample.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005);
        self.seed = self.seed.wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as f64 / (1u64 << 31) as f64
    }

    /// A factor near 1; now and then not so near.
    fn jitter(&mut self) -> f64 {
        let rare = if self.chance() < 0.05 { 1.25 } else { 1.0 };
        (0.93 + 0.14 * self.chance()) * rare
    }

    fn case(&mut self, study: &str, method: Method, change: impl FnOnce(&mut Case)) {
        let mut case = Case {
            study: study.into(),
            backend: Backend::Xen,
            guest: GuestKind::Pvh,
            memory_mib: 256,
            vcpus: 1,
            cap: None,
            load: load("5000"),
            method,
            target_ms: None,
            dirty_percent: None,
        };
        change(&mut case);
        for repeat in 0..REPEATS {
            let case = case.clone();
            let planned = Planned { case, repeat };
            let measured = self.measured(&planned.case);
            self.runs.push(Run {
                id: planned.id(),
                planned,
                attempt: 1,
                began: 1_764_000_000 + 60 * self.runs.len() as u64,
                outcome: Outcome::Good,
                measured: Some(measured),
            });
        }
    }

    fn measured(&mut self, case: &Case) -> Measured {
        let memory = (case.memory_mib << 20) / PAGE;
        let cap = case.cap.map_or(1.0, |cap| f64::from(cap) / 100.0);
        let asked = case.load.pages_per_second().unwrap_or(90_000);
        let rate = (asked as f64).min(90_000.0 * cap) + 40.0;
        let speed = SPEED * self.jitter();
        let (rounds, left) = self.rounds(case, memory, rate, speed);
        let copied: f64 = rounds.iter().filter_map(|pass| pass.seconds).sum();
        let window = (0.012 + left / speed) * self.jitter();
        let base = match case.method {
            Method::Improved | Method::Live | Method::Increment => 0.055,
            Method::Plain => 0.3,
            _ => 0.16,
        };
        let gap_s = window + base * self.jitter() + 0.004 * f64::from(case.vcpus);
        let total_s = copied + gap_s + 0.6 * self.jitter();
        let sent: u64 = rounds.iter().map(|pass| pass.pages).sum();
        let pages_sent = sent + left as u64;
        let moved = matches!(
            case.method,
            Method::MigratedPipe | Method::MigratedTcp | Method::Migration
        );
        let image_bytes = match case.method {
            Method::Migration => 0,
            Method::Live | Method::Improved => memory * PAGE + 65_536,
            _ => pages_sent * (PAGE + 8) + 65_536,
        };
        let ours = case.method.is_ours();
        Measured {
            gap_s,
            suspended_s: (!moved).then_some(gap_s * 0.93),
            total_s,
            pause_pages: ours.then_some(left as u64),
            pages_sent,
            bytes_written: pages_sent * PAGE,
            writes_per_s: rate,
            dirty_pages_per_s: ours.then_some(rate * 0.9),
            network_bytes: if moved && case.method != Method::MigratedPipe {
                pages_sent * (PAGE + 30)
            } else {
                0
            },
            image_bytes,
            allocated_bytes: image_bytes / 10 * 9,
            host_cpu_s: total_s * 0.4 * self.jitter(),
            peak_memory: if ours { 24 << 20 } else { 12 << 20 },
            work_lost_s: Some(gap_s * 1.1 + copied * 0.05 * self.jitter()),
            predicted_s: ours.then(|| window * self.jitter()),
            window_s: ours.then_some(window),
            target_met: ours.then(|| window * 1e3 <= f64::from(case.target_ms.unwrap_or(300))),
            throttled_s: ours.then_some(if case.method == Method::Improved && rate > 3000.0 {
                copied * 0.4
            } else {
                0.0
            }),
            machine_stall_s: 0.002 + 0.006 * self.chance(),
            rounds,
        }
    }

    /// The passes of a method, and the pages that are left for the pause.
    fn rounds(&mut self, case: &Case, memory: u64, rate: f64, speed: f64) -> (Vec<Pass>, f64) {
        let (most, enough) = match case.method {
            Method::Plain => return (Vec::new(), memory as f64),
            Method::Live | Method::Improved => {
                let target = f64::from(case.target_ms.unwrap_or(100)) / 1e3;
                (12, (target - 0.014).max(0.002) * speed)
            }
            Method::Increment => (4, 300.0),
            _ => (5, 50.0),
        };
        let share = case
            .dirty_percent
            .map_or(1.0, |share| f64::from(share) / 100.0);
        let mut pages = memory as f64 * share;
        let mut passes = Vec::new();
        let mut rate = rate;
        while passes.len() < most && (passes.is_empty() || pages > enough) {
            let seconds = (pages / speed + 0.02) * self.jitter();
            // A guest writes round an area of 100 MiB: no more than that is dirty.
            let dirty = (rate * seconds).min(25_600.0).min(memory as f64 * 0.8);
            passes.push(Pass {
                pages: pages as u64,
                bytes: Some(pages as u64 * PAGE),
                seconds: Some(seconds),
                dirty_pages: Some(dirty as u64),
            });
            // What makes no headway is throttled, or given up.
            let stuck = dirty > pages * 0.7;
            pages = dirty;
            if case.method == Method::Improved {
                rate *= if stuck { 0.3 } else { 0.7 };
            } else if stuck && case.method == Method::Live && passes.len() > 4 {
                break;
            }
        }
        (passes, pages)
    }

    /// Some runs fail, some are spoilt by the machine and made again.
    fn spoil(&mut self) {
        for index in (11..self.runs.len()).step_by(61) {
            let mut again = self.runs[index].clone();
            again.attempt = 2;
            let spoilt = &mut self.runs[index];
            spoilt.outcome = Outcome::Machine("the machine stood still for 1.8 s".into());
            self.runs.push(again);
        }
        for index in (29..self.runs.len()).step_by(97) {
            let failed = &mut self.runs[index];
            failed.measured = None;
            failed.outcome = Outcome::Method("the command ended with status 1: \"no room\"".into());
        }
    }
}
