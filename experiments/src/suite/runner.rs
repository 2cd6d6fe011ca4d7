//! Runs the selected tests one after the other and says how each went.

use super::plan::{Budget, order};
use super::{Bench, Settings, Test, all};
use crate::dom0::console::LOG_DIR;
use crate::dom0::harm::{Harm, NotHere};
use crate::dom0::livesave::Livesave;
use crate::dom0::pool::Pool;
use crate::dom0::process::check;
use crate::dom0::xl;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// So many runs of a suite may be spoilt by a guest that breaks down; more are no accident.
const SPOILT_LIMIT: u32 = 3;

/// So many tests of a suite may need a second run, where nothing was harmed: a test that waits for
/// an instant of a save misses it now and then on an emulator.
const AGAIN_LIMIT: u32 = 2;

/// How a suite went.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    /// These say themselves that they are for another Xen.
    not_here: Vec<&'static str>,
    /// There was no time for these.
    left_out: Vec<&'static str>,
    spoilt: u32,
    again: u32,
}

/// Runs the selected tests; `true` if there were any and none failed.
pub fn run(settings: &Settings) -> Result<bool> {
    let (selected, not_asked): (Vec<_>, Vec<_>) =
        all().into_iter().partition(|test| settings.selects(test));
    let selected = order(selected, settings.day);
    let started = Instant::now();
    let mut budget = Budget::new(settings.budget);
    if let Some(total) = settings.budget {
        println!(
            "{} s for all tests, in the order of day {}",
            total.as_secs(),
            settings.day
        );
    }
    let pool = Rc::new(Pool::default());
    let mut tally = Tally::default();
    for test in &selected {
        if !budget.admits(test.when, started.elapsed()) {
            tally.left_out.push(test.name);
            continue;
        }
        print!("test {} ... ", test.name);
        std::io::stdout().flush()?;
        let began = Instant::now();
        let outcome = run_until_clear(settings, &pool, test, &mut tally)?;
        let took = began.elapsed();
        budget.learn(test.when, took);
        let took = took.as_secs_f64();
        match outcome {
            Ok(note) => {
                println!("ok [{took:.1} s] {note}");
                tally.passed += 1;
            }
            Err(err) if err.is::<NotHere>() => {
                println!("not run [{took:.1} s] ({err:#})");
                tally.not_here.push(test.name);
            }
            Err(err) => {
                println!("FAILED [{took:.1} s] ({err:#})");
                tally.failed.push(test.name);
            }
        }
    }
    pool.clear();
    // With a filter, all others are left out on purpose.
    if settings.filters.is_empty() && !not_asked.is_empty() {
        let names: Vec<_> = not_asked.iter().map(|test| test.name).collect();
        println!("not asked for: {}", names.join(" "));
    }
    println!(
        "{} not asked for, {} runs spoilt by a guest's breakdown, {} run a second time, {:.0} s",
        not_asked.len(),
        tally.spoilt,
        tally.again,
        started.elapsed().as_secs_f64()
    );
    if selected.is_empty() {
        println!("no test has such a name");
    }
    Ok(tally.is_good() && !selected.is_empty())
}

impl Tally {
    /// Prints what failed and what there was no time for; whether all is well.
    fn is_good(&self) -> bool {
        for name in &self.failed {
            println!("failed: {name}");
        }
        if !self.left_out.is_empty() {
            println!(
                "left out, for the time was up (their turn comes on other days): {}",
                self.left_out.join(" ")
            );
        }
        let not_here = match self.not_here.len() {
            0 => String::new(),
            n => format!(", {n} for another Xen"),
        };
        println!(
            "{} passed, {} failed, {} left out{not_here}",
            self.passed,
            self.failed.len(),
            self.left_out.len()
        );
        self.failed.is_empty()
    }
}

/// Runs a test, and again where it was spoilt.
fn run_until_clear(
    settings: &Settings,
    pool: &Rc<Pool>,
    test: &Test,
    tally: &mut Tally,
) -> Result<Result<String>> {
    let mut panics_before = kernel_panics()?;
    let mut outcome = run_one(settings, pool, test);
    // Under this emulation PVH guests break down by themselves now and then, with stock saves
    // too (see README.md). A few such runs are run again, seen.
    while let Err(error) = &outcome
        && tally.spoilt < SPOILT_LIMIT
    {
        if error.is::<NotHere>() {
            break;
        }
        let crashed = format!("{error:#}").contains("crashed during the save");
        let how = breakdown(settings, panics_before)?;
        let Some(how) = how.or(crashed.then_some("crash, see its console")) else {
            break;
        };
        tally.spoilt += 1;
        print!("a guest broke down ({how}), again ... ");
        std::io::stdout().flush()?;
        panics_before = kernel_panics()?;
        outcome = run_one(settings, pool, test);
    }
    if let Err(error) = &outcome
        && tally.again < AGAIN_LIMIT
        && !error.is::<Harm>()
        && !error.is::<NotHere>()
    {
        tally.again += 1;
        print!("failed ({error:#}), again ... ");
        std::io::stdout().flush()?;
        outcome = run_one(settings, pool, test);
    }
    Ok(outcome)
}

fn run_one(settings: &Settings, pool: &Rc<Pool>, test: &Test) -> Result<String> {
    let results = settings.results.join(test.name);
    fs::create_dir_all(&results).with_context(|| format!("{}", results.display()))?;
    empty(&settings.images)?;
    keep_hypervisor_log(settings)?;
    let bench = Bench {
        livesave: Livesave {
            binary: settings.livesave.clone(),
            log: results.join("livesave.log"),
        },
        suite: settings.suite.clone(),
        images: settings.images.clone(),
        results,
        pool: Rc::clone(pool),
        repeats: settings.repeats,
        cpus: settings.cpus,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| (test.run)(&bench)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked; see the console log")));
    if let Err(err) = &outcome
        && !err.is::<NotHere>()
    {
        let path = bench.results.join("failure.txt");
        let mut file = fs::File::options().create(true).append(true).open(path)?;
        writeln!(file, "{err:?}")?;
        // Whatever it was, the next one begins anew.
        pool.clear();
    }
    pool.destroy_others()?;
    empty(&settings.images)?;
    outcome
}

/// Moves what the hypervisor has logged to a file, so that its buffer holds the next test's alone.
fn keep_hypervisor_log(settings: &Settings) -> Result<String> {
    let logged = check(&mut xl::command(&["dmesg", "-c"]), xl::LIMIT)?.stdout;
    let path = settings.results.join("xl-dmesg-so-far.txt");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)?;
    file.write_all(logged.as_bytes())
        .with_context(|| format!("{}", path.display()))?;
    Ok(logged)
}

/// How a guest broke down since a test began, if one did.
fn breakdown(settings: &Settings, panics_before: usize) -> Result<Option<&'static str>> {
    Ok(if keep_hypervisor_log(settings)?.contains("Triple fault") {
        Some("triple fault")
    } else if kernel_panics()? > panics_before {
        Some("kernel panic, see its console")
    } else {
        None
    })
}

/// Kernel panics on all consoles so far: guests share a name, and so a log.
fn kernel_panics() -> Result<usize> {
    let mut panics = 0;
    for entry in fs::read_dir(LOG_DIR).with_context(|| LOG_DIR.to_owned())? {
        let log = fs::read(entry?.path())?;
        panics += String::from_utf8_lossy(&log)
            .matches("Kernel panic")
            .count();
    }
    Ok(panics)
}

/// Removes everything in a directory, but keeps it.
fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
