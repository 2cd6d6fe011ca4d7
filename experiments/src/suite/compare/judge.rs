//! The tables of the comparison, and the bars that livesave must pass.

use super::super::saves::largest_image;
use super::super::table::{align, median};
use super::{LOADS, Load, Sample, WAYS, Way};
use crate::dom0::livesave::Window;

/// From that rate on livesave's gap is held against half of the others'.
const BUSY: u64 = 60_000;
/// From that rate on so are the pages written.
const REWRITING: u64 = 20_000;

fn of(samples: &[Sample], way: Way, load: Load) -> impl Iterator<Item = &Sample> {
    samples
        .iter()
        .filter(move |s| s.way == way && s.load == load)
}

fn mid(samples: &[Sample], way: Way, load: Load, value: fn(&Sample) -> f64) -> f64 {
    median(&of(samples, way, load).map(value).collect::<Vec<_>>())
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

/// Medians of every load and way.
pub fn table(samples: &[Sample]) -> String {
    let mut rows = vec![row(&[
        "pages/s",
        "way",
        "written/s",
        "gap s",
        "min",
        "max",
        "total s",
        "pages written",
        "image MB",
        "allocated MB",
    ])];
    for load in LOADS {
        for way in WAYS {
            let gaps: Vec<_> = of(samples, way, load).map(|s| s.gap_s).collect();
            if gaps.is_empty() {
                continue;
            }
            let number =
                |value: fn(&Sample) -> f64| format!("{:.0}", mid(samples, way, load, value));
            rows.push(vec![
                load.name.to_owned(),
                way.title().to_owned(),
                number(|s| s.written_per_s as f64),
                format!("{:.3}", median(&gaps)),
                format!("{:.3}", gaps.iter().copied().fold(f64::MAX, f64::min)),
                format!("{:.3}", gaps.iter().copied().fold(0.0, f64::max)),
                format!("{:.1}", mid(samples, way, load, |s| s.total_s)),
                number(|s| s.pages_written as f64),
                number(|s| s.size.bytes as f64 / 1e6),
                number(|s| s.size.allocated as f64 / 1e6),
            ]);
        }
    }
    align(&rows)
}

/// Where livesave's pause windows go, in milliseconds.
pub fn parts(samples: &[Sample]) -> String {
    let mut rows = vec![row(&[
        "pages/s",
        "way",
        "suspend ms",
        "dirty set",
        "copy",
        "state",
        "resume",
        "window",
        "foretold",
        "pages left",
        "captured",
        "rounds",
        "to memory",
        "throttled ms",
    ])];
    let ours = [Way::Livesave, Way::Throttled];
    for (load, way) in LOADS.iter().flat_map(|&load| ours.map(|way| (load, way))) {
        let reports: Vec<_> = of(samples, way, load)
            .filter_map(|sample| sample.own.as_ref())
            .map(|own| &own.report)
            .collect();
        if reports.is_empty() {
            continue;
        }
        let of_window = |value: fn(&Window) -> f64| {
            median(&reports.iter().map(|r| value(&r.window)).collect::<Vec<_>>())
        };
        let ms = |value: fn(&Window) -> f64| format!("{:.1}", 1e3 * of_window(value));
        let rounds: Vec<_> = reports.iter().map(|r| r.rounds.len() as f64).collect();
        let held: Vec<_> = reports
            .iter()
            .map(|r| r.rounds.iter().filter(|round| round.held).count() as f64)
            .collect();
        let brownouts: Vec<_> = reports
            .iter()
            .map(|r| r.brownout.as_ref().map_or(0.0, |b| 1e3 * b.seconds))
            .collect();
        rows.push(vec![
            load.name.to_owned(),
            way.title().to_owned(),
            ms(|w| w.suspend_s),
            ms(|w| w.dirty_fetch_s),
            ms(|w| w.copy_s),
            ms(|w| w.state_s),
            ms(|w| w.resume_s),
            ms(|w| w.total_s),
            ms(|w| w.predicted_s),
            format!("{:.0}", of_window(|w| w.left_pages as f64)),
            format!("{:.0}", of_window(|w| w.pages as f64)),
            format!("{:.0}", median(&rounds)),
            format!("{:.0}", median(&held)),
            format!("{:.0}", median(&brownouts)),
        ]);
    }
    align(&rows)
}

/// Which bars were missed.
pub fn missed(samples: &[Sample], ram: u64) -> Vec<String> {
    let mut missed = Vec::new();
    let gap = |way, load| mid(samples, way, load, |s| s.gap_s);
    let idle = gap(Way::Livesave, LOADS[0]);
    for load in LOADS {
        if of(samples, Way::Livesave, load).next().is_none() {
            continue;
        }
        let mut bar = |what: &str, ours: f64, limit: f64| {
            if ours > limit {
                missed.push(format!("{}: {what} {ours:.3} > {limit:.3}", load.name));
            }
        };
        let ours = gap(Way::Livesave, load);
        let share = if load.is_idle() {
            0.7
        } else if load.pages_per_second() >= BUSY {
            0.5
        } else {
            1.0
        };
        bar("gap", ours, share * gap(Way::StockLive, load));
        if load.pages_per_second() >= BUSY {
            bar(
                "gap beside live-migrated",
                ours,
                share * gap(Way::Vnsnap, load),
            );
        }
        bar("gap beside idle", ours, 1.25 * idle);
        bar(
            "gap beside idle, throttled",
            gap(Way::Throttled, load),
            1.25 * idle,
        );
        let total = |way| mid(samples, way, load, |s| s.total_s);
        bar("total time", total(Way::Livesave), total(Way::StockLive));
        if load.pages_per_second() >= REWRITING {
            let pages = |way| mid(samples, way, load, |s| s.pages_written as f64);
            bar(
                "pages written",
                pages(Way::Livesave),
                0.8 * pages(Way::StockLive),
            );
        }
        for sample in of(samples, Way::Livesave, load) {
            bar(
                "image bytes",
                sample.size.bytes as f64,
                largest_image(ram) as f64,
            );
            let nonzero = sample.own.as_ref().map_or(0, |own| own.nonzero_blocks) * 4096;
            bar(
                "allocated bytes",
                sample.size.allocated as f64,
                nonzero as f64 * 1.01,
            );
        }
    }
    let own: Vec<_> = samples.iter().filter_map(|s| s.own.as_ref()).collect();
    let foretold = own
        .iter()
        .filter(|own| {
            let window = &own.report.window;
            (0.8..=1.25).contains(&(window.total_s / window.predicted_s))
        })
        .count();
    if foretold * 10 < own.len() * 8 {
        missed.push(format!(
            "{foretold} of {} windows were foretold to 0.8 to 1.25",
            own.len()
        ));
    }
    missed
}

#[cfg(test)]
mod tests {
    use super::super::Own;
    use super::*;
    use crate::dom0::image::Size;
    use crate::dom0::livesave::Report;

    fn report() -> Report {
        let text = r#"{"mode": "improved", "image": "x", "image_bytes": 538000000,
            "allocated_bytes": 250000000, "memory_pages": 131072, "zero_pages": 70000,
            "rounds": [], "stop": "small-enough", "total_s": 3.0,
            "window": {"suspend_s": 0.05, "dirty_fetch_s": 0.001, "copy_s": 0.001,
                "state_s": 0.001, "disks_s": 0.0, "resume_s": 0.001, "total_s": 0.06, "suspended_s": 0.01,
                "pages": 100, "captured_bytes": 0, "written_in_window_bytes": 0,
                "predicted_s": 0.06, "left_pages": 10, "dirty_rate": 1.0}}"#;
        serde_json::from_str(text).expect("a report")
    }

    fn samples(change: impl Fn(&mut Sample)) -> Vec<Sample> {
        let mut samples = Vec::new();
        for load in LOADS {
            for way in WAYS {
                if way == Way::Throttled {
                    continue;
                }
                let ours = way == Way::Livesave;
                samples.push(Sample {
                    way,
                    load,
                    written_per_s: 0,
                    gap_s: if ours { 0.1 } else { 0.21 },
                    total_s: if ours { 5.0 } else { 5.5 },
                    pages_written: if ours { 90_000 } else { 140_000 },
                    size: Size {
                        bytes: 538_000_000,
                        allocated: 250_000_000,
                    },
                    own: ours.then(|| Own {
                        nonzero_blocks: 250_000_000 / 4096,
                        report: report(),
                    }),
                });
            }
        }
        for sample in samples.iter_mut().filter(|s| s.way == Way::Livesave) {
            change(sample);
        }
        samples
    }

    /// What spoils one measured value.
    type Spoil = fn(&mut Sample);

    #[test]
    fn every_bar_can_be_missed() {
        let ram = 512 << 20;
        assert_eq!(missed(&samples(|_| ()), ram), Vec::<String>::new());
        let spoil: [(&str, usize, Spoil); 7] = [
            ("gap", 6 + 2, |s| s.gap_s = 0.22),
            ("gap beside idle", 5, |s| {
                s.gap_s = if s.load.is_idle() { 0.05 } else { 0.1 };
            }),
            ("total", 6, |s| s.total_s = 5.7),
            ("pages written", 4, |s| s.pages_written = 115_000),
            ("image", 6, |s| s.size.bytes = 544_000_000),
            ("allocated", 6, |s| s.size.allocated = 253_000_000),
            ("foretold", 1, |s| {
                if let Some(own) = &mut s.own {
                    own.report.window.predicted_s = 0.04;
                }
            }),
        ];
        for (what, times, change) in spoil {
            let missed = missed(&samples(change), ram);
            assert_eq!(missed.len(), times, "{what}: {missed:?}");
            assert!(missed[0].contains(what), "{missed:?}");
        }
    }
}
