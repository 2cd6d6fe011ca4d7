//! Runs the selected tests one after the other and says how each went.

use super::{Bench, Settings, Test, all};
use crate::dom0::console::LOG_DIR;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::Livesave;
use crate::dom0::process::check;
use crate::dom0::xl;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

/// So many runs of a suite may be spoilt by a guest that breaks down; more are no accident.
const SPOILT_LIMIT: u32 = 3;

/// So many tests of a suite may need a second run, where nothing was harmed: a test that waits for
/// an instant of a save misses it now and then on an emulator.
const AGAIN_LIMIT: u32 = 2;

/// Runs the selected tests; `true` if there were any and all passed.
pub fn run(settings: &Settings) -> Result<bool> {
    let (selected, left_out): (Vec<_>, Vec<_>) =
        all().into_iter().partition(|test| settings.selects(test));
    let mut failed = Vec::new();
    let mut spoilt = 0;
    let mut again = 0;
    let started = Instant::now();
    for test in &selected {
        print!("test {} ... ", test.name);
        std::io::stdout().flush()?;
        let began = Instant::now();
        let mut panics_before = kernel_panics(test)?;
        let mut outcome = run_one(settings, test);
        // Under this emulation PVH guests break down by themselves now and then, with stock saves
        // too (see README.md). A few such runs are run again, seen.
        while let Err(error) = &outcome
            && spoilt < SPOILT_LIMIT
        {
            let crashed = format!("{error:#}").contains("crashed during the save");
            let how = breakdown(settings, test, panics_before)?;
            let Some(how) = how.or(crashed.then_some("crash, see its console")) else {
                break;
            };
            spoilt += 1;
            print!("a guest broke down ({how}), again ... ");
            std::io::stdout().flush()?;
            panics_before = kernel_panics(test)?;
            outcome = run_one(settings, test);
        }
        if let Err(error) = &outcome
            && again < AGAIN_LIMIT
            && !error.is::<Harm>()
        {
            again += 1;
            print!("failed ({error:#}), again ... ");
            std::io::stdout().flush()?;
            outcome = run_one(settings, test);
        }
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(note) if note.is_empty() => println!("ok [{took:.1} s]"),
            Ok(note) => println!("ok [{took:.1} s] {note}"),
            Err(err) => {
                println!("FAILED [{took:.1} s] ({err:#})");
                failed.push(test.name);
            }
        }
    }
    for name in &failed {
        println!("failed: {name}");
    }
    // With a filter, all others are left out on purpose.
    if settings.filters.is_empty() && !left_out.is_empty() {
        let names: Vec<_> = left_out.iter().map(|test| test.name).collect();
        println!("not asked for: {}", names.join(" "));
    }
    println!(
        "{} not asked for, {spoilt} runs spoilt by a guest's breakdown, {again} run a second time, {:.0} s",
        left_out.len(),
        started.elapsed().as_secs_f64()
    );
    println!(
        "{} passed, {} failed",
        selected.len() - failed.len(),
        failed.len()
    );
    if selected.is_empty() {
        println!("no test has such a name");
    }
    Ok(failed.is_empty() && !selected.is_empty())
}

fn run_one(settings: &Settings, test: &Test) -> Result<String> {
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
        name: test.name,
        repeats: settings.repeats,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| (test.run)(&bench)))
        .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked; see the console log")));
    if let Err(err) = &outcome {
        let path = bench.results.join("failure.txt");
        let mut file = fs::File::options().create(true).append(true).open(path)?;
        writeln!(file, "{err:?}")?;
    }
    // A guest that a test lost track of would disturb the next one.
    xl::destroy(test.name)?;
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
fn breakdown(
    settings: &Settings,
    test: &Test,
    panics_before: usize,
) -> Result<Option<&'static str>> {
    Ok(if keep_hypervisor_log(settings)?.contains("Triple fault") {
        Some("triple fault")
    } else if kernel_panics(test)? > panics_before {
        Some("kernel panic, see its console")
    } else {
        None
    })
}

/// Kernel panics on the consoles of a test's guests so far.
fn kernel_panics(test: &Test) -> Result<usize> {
    let mut panics = 0;
    for entry in fs::read_dir(LOG_DIR).with_context(|| LOG_DIR.to_owned())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(test.name) {
            let log = fs::read(entry.path())?;
            panics += String::from_utf8_lossy(&log)
                .matches("Kernel panic")
                .count();
        }
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
