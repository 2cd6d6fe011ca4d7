//! How a save's cost grows with the guest: embedded guests of several sizes at native speed, saved
//! plainly, live and by an increment; on tmpfs, medians.
//!
//! `scaling [--sizes 1,2,4,8,16] [--repeats 3] [--results DIR]`, sizes in GiB. The runs stand in
//! `DIR/runs.jsonl` (`target/scaling` otherwise); those that are there already are not made again. A
//! size that does not fit in the machine's memory is told, and left out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use experiments::harness::case::{Backend, Case, GuestKind, Load, Method, Planned};
use experiments::harness::embedded::Embedded;
use experiments::harness::record::{Measured, Outcome, Run, Store};
use experiments::native::{GUEST, median};
use snapshot::embedded::guest_main;
use snapshot::units::Bytes;

const STUDY: &str = "sizes";
/// A run that the machine spoils is made again, so often in all.
const ATTEMPTS: u32 = 3;
/// What the guest writes while it is saved, pages a second.
const RATE: &str = "5000";
/// Of an increment: percent of the memory.
const DIRTY: u32 = 1;

/// What is asked for.
struct Args {
    sizes: Vec<u64>,
    repeats: u32,
    results: PathBuf,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == GUEST) {
        return guest_main(std::env::args_os().skip(2));
    }
    match parse(&args).and_then(|args| measure(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scaling: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[String]) -> Result<Args> {
    let mut parsed = Args {
        sizes: vec![1, 2, 4, 8, 16],
        repeats: 3,
        results: "target/scaling".into(),
    };
    let mut args = args.iter();
    while let Some(name) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--sizes" => parsed.sizes = sizes(value)?,
            "--repeats" => parsed.repeats = value.parse().context("--repeats is no number")?,
            "--results" => parsed.results = value.into(),
            _ => bail!("Usage: scaling [--sizes GIB,GIB…] [--repeats N] [--results DIR]"),
        }
    }
    Ok(parsed)
}

fn sizes(list: &str) -> Result<Vec<u64>> {
    let size = |text: &str| {
        text.parse()
            .with_context(|| format!("{text:?} is no number of GiB"))
    };
    list.split(',').map(size).collect()
}

/// The cases of a size, those of one guest after the other.
fn cases(gib: u64) -> Vec<Case> {
    let case = |method, pattern: &str, rate: &str| Case {
        study: STUDY.into(),
        backend: Backend::Embedded,
        guest: GuestKind::Embedded,
        memory_mib: gib << 10,
        vcpus: 1,
        cap: None,
        load: Load {
            pattern: pattern.into(),
            rate: rate.into(),
        },
        method,
        target_ms: None,
        dirty_percent: (method == Method::Increment).then_some(DIRTY),
    };
    vec![
        case(Method::Plain, "ring", RATE),
        case(Method::Live, "ring", RATE),
        case(Method::Improved, "ring", RATE),
        // Of an idle guest, so that it is of the same pages each time.
        case(Method::Increment, "idle", "0"),
    ]
}

fn measure(args: &Args) -> Result<()> {
    let mut store = Store::open(&args.results)?;
    let mut embedded = Embedded::new()?;
    for &gib in &args.sizes {
        for case in cases(gib) {
            for repeat in 0..args.repeats {
                let case = case.clone();
                one(&mut embedded, &mut store, &Planned { case, repeat })?;
            }
        }
    }
    print(args, &store);
    Ok(())
}

/// Makes a run until it is measured, or was tried often enough.
fn one(embedded: &mut Embedded, store: &mut Store, planned: &Planned) -> Result<()> {
    let id = planned.id();
    for _ in 0..ATTEMPTS {
        if store.settled().contains(id.as_str()) {
            break;
        }
        let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let (outcome, measured) = embedded.measure(planned)?;
        if !matches!(outcome, Outcome::Good) {
            eprintln!("{id}: {outcome:?}");
        }
        store.add(Run {
            id: id.clone(),
            planned: planned.clone(),
            attempt: store.attempts(&id) + 1,
            began,
            outcome,
            measured,
        })?;
    }
    Ok(())
}

/// A line for each case: medians of its good runs.
fn print(args: &Args, store: &Store) {
    println!(
        "{:>7} {:<20} {:>4} {:>8} {:>8} {:>9} {:>9} {:>8} {:>10} {:>10} {:>10}",
        "guest",
        "method",
        "runs",
        "total",
        "CPU",
        "pause",
        "gap",
        "pages",
        "resident",
        "image",
        "on disk"
    );
    for &gib in &args.sizes {
        for case in cases(gib) {
            let of_case = |run: &&Run| run.planned.case == case;
            let good: Vec<&Measured> = store
                .runs
                .iter()
                .filter(of_case)
                .filter_map(Run::good)
                .collect();
            if good.is_empty() {
                println!(
                    "{:>7} {:<20} not measured",
                    format!("{gib} GiB"),
                    case.method.title()
                );
                continue;
            }
            let middle = |value: fn(&Measured) -> f64| {
                let mut values: Vec<f64> = good.iter().map(|run| value(run)).collect();
                median(&mut values)
            };
            let bytes = |value: fn(&Measured) -> f64| Bytes(middle(value) as u64).to_string();
            println!(
                "{:>7} {:<20} {:>4} {:>8} {:>8} {:>9} {:>9} {:>8} {:>10} {:>10} {:>10}",
                format!("{gib} GiB"),
                case.method.title(),
                good.len(),
                format!("{:.2} s", middle(|run| run.total_s)),
                format!("{:.2} s", middle(|run| run.host_cpu_s)),
                format!("{:.2} ms", 1e3 * middle(|run| run.window_s.unwrap_or(0.0))),
                format!("{:.2} ms", 1e3 * middle(|run| run.gap_s)),
                middle(|run| run.pause_pages.unwrap_or(0) as f64),
                bytes(|run| run.peak_memory as f64),
                bytes(|run| run.image_bytes as f64),
                bytes(|run| run.allocated_bytes as f64),
            );
        }
    }
}
