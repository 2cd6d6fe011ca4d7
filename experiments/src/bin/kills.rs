//! Kills saves of embedded guests at random instants, and sees that nothing stays wrong.
//!
//! `kills [--kills 500] [--seed N] [--memory MIB] [--rate PAGES/S] [--lanes 2] [--directory DIR]
//! [--sabotage]`
//!
//! Exit status: 0 if nothing was left wrong, 1 if something was. With `--sabotage` the guardians do
//! nothing, and the harness must notice. Built with the feature `fault-points` (`kills-faults`) it
//! also strikes at every named point of the code.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use experiments::kills::lane::{GUEST, Lane, Pace, Settings};
use experiments::kills::plan::{Harm, Plan, at_the_points, throw};
use experiments::kills::rng::Rng;
use experiments::kills::strike::{Rehearsal, SmallDisk, rehearse, strike};
use experiments::kills::tally::Tally;
use experiments::kills::worker::{GUARDIAN, WORKER, guard, work};
use experiments::kills::{check, image};
use snapshot::embedded::guest_main;
use snapshot::units::Bytes;

/// Every so manieth image is restored into a fresh guest too.
const RESTORE: u64 = 10;
/// Saves that are only timed, of each mode.
const REHEARSALS: usize = 5;

struct Args {
    kills: u64,
    seed: u64,
    memory: Bytes,
    rate: u64,
    lanes: u64,
    directory: PathBuf,
    sabotage: bool,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next().and_then(|mode| mode.into_string().ok());
    let rest: Vec<_> = args.collect();
    let done = match mode.as_deref() {
        Some(GUEST) => return guest_main(rest),
        Some(GUARDIAN) => return guard(&rest),
        Some(WORKER) => {
            let job = rest
                .first()
                .and_then(|job| job.to_str())
                .unwrap_or_default();
            work(job).map(|()| true)
        }
        _ => parse().and_then(|args| run(&args)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kills: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Args> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mut args = Args {
        kills: 500,
        seed: since.as_secs(),
        memory: Bytes::from_mib(64),
        rate: 20_000,
        lanes: 2,
        directory: std::env::temp_dir(),
        sabotage: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--sabotage" {
            args.sabotage = true;
            continue;
        }
        let value = words
            .next()
            .with_context(|| format!("{word} wants a value"))?;
        let number = || {
            value
                .parse::<u64>()
                .with_context(|| format!("{word} wants a number"))
        };
        match word.as_str() {
            "--kills" => args.kills = number()?,
            "--seed" => args.seed = number()?,
            "--memory" => args.memory = Bytes::from_mib(number()?),
            "--rate" => args.rate = number()?,
            "--lanes" => args.lanes = number()?.max(1),
            "--directory" => args.directory = value.into(),
            _ => bail!(
                "Usage: kills [--kills N] [--seed N] [--memory MIB] [--rate PAGES/S] [--lanes N] \
                 [--directory DIR] [--sabotage]"
            ),
        }
    }
    Ok(args)
}

fn run(args: &Args) -> Result<bool> {
    let began = Instant::now();
    let directory = tempfile::Builder::new()
        .prefix("livesave-kills-")
        .tempdir_in(&args.directory)
        .context("Failed to make a directory for images")?;
    let settings = Settings {
        program: std::env::current_exe().context("Failed to find the own program")?,
        directory: directory.path().to_owned(),
        memory: args.memory,
        rate: args.rate,
        sabotage: args.sabotage,
    };
    println!("kills: --kills {} --seed {}", args.kills, args.seed);
    let points = if cfg!(feature = "fault-points") && !args.sabotage {
        at_the_points()
    } else {
        vec![]
    };
    let shared = Shared {
        args,
        tally: Mutex::new(Tally::default()),
        points: Mutex::new(points.into()),
    };
    let lanes = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..args.lanes)
            .map(|number| {
                let (shared, settings) = (&shared, &settings);
                scope.spawn(move || shared.lane(number, settings))
            })
            .collect();
        let end = |lane: ScopedJoinHandle<'_, _>| {
            lane.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        lanes.into_iter().map(end).collect::<Vec<_>>()
    });
    let tally = shared
        .tally
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if std::io::stderr().is_terminal() {
        eprint!("\r{:40}\r", "");
    }
    print!("{}", tally.report());
    println!("({:.0} s)", began.elapsed().as_secs_f64());
    // What was found is of interest even where the harness itself failed.
    lanes.into_iter().collect::<Result<()>>()?;
    Ok(tally.is_clean())
}

struct Shared<'a> {
    args: &'a Args,
    tally: Mutex<Tally>,
    points: Mutex<VecDeque<Plan>>,
}

impl Shared<'_> {
    /// Strikes at the saves of one guest until all have struck often enough.
    fn lane(&self, number: u64, settings: &Settings) -> Result<()> {
        let mut rng = Rng::new(self.args.seed, number);
        let mut lane = Lane::new(number, settings)?;
        prepare(&mut lane)?;
        let mut images = 0;
        while let Some(plan) = self.next(&mut rng) {
            let image = lane.image(plan.harm);
            let _ = std::fs::remove_file(&image);
            let mut small = None;
            if plan.harm == Harm::DiskFull {
                let size = 1 + (lane.settings.memory.0 as f64 * rng.fraction() * 0.7) as u64;
                small = SmallDisk::mount(&lane.images(plan.harm), size);
                if small.is_none() {
                    continue;
                }
            }
            if plan.replace {
                std::fs::hard_link(lane.spare(), &image)?;
            }
            let struck = strike(&lane, &plan, &mut rng)?;
            lane.pace.learn(&plan, &struck);
            let found = check::check(&lane, &plan, &struck, images % RESTORE == 0);
            images += u64::from(found.image);
            drop(small);
            let random_kills = {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.add(plan.harm, &struck, &found);
                tally.random_kills()
            };
            if plan.harm == Harm::GuestCrash || !found.wrong.is_empty() {
                // What was left of the old guest is not to be found again.
                lane.renew_guest()?;
            }
            if std::io::stderr().is_terminal() {
                let _ = write!(
                    std::io::stderr(),
                    "\r{random_kills} of {} ",
                    self.args.kills
                );
            }
        }
        Ok(())
    }

    fn next(&self, rng: &mut Rng) -> Option<Plan> {
        let point = self
            .points
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        point.or_else(|| (tally.random_kills() < self.args.kills).then(|| throw(rng)))
    }
}

/// Sees how long saves take that nobody harms, and keeps an image of one.
fn prepare(lane: &mut Lane) -> Result<()> {
    let plan = |plain| Plan {
        plain,
        ..Plan::PEACEFUL
    };
    let image = lane.image(Harm::None);
    let (mut live, mut plain) = (vec![], vec![]);
    for turn in 0..REHEARSALS {
        for (is_plain, times) in [(true, &mut plain), (false, &mut live)] {
            times.push(rehearse(lane, &plan(is_plain))?);
            image::must_be_whole(&image)?;
            if turn + 1 == REHEARSALS && !is_plain {
                std::fs::rename(&image, lane.spare())?;
            } else {
                std::fs::remove_file(&image)?;
            }
        }
    }
    lane.pace = Pace {
        live: median(&live, |took| took.whole),
        plain: median(&plain, |took| took.whole),
        live_window: median(&live, |took| took.window),
        plain_window: median(&plain, |took| took.window),
        end: median(&live, |took| took.end),
    };
    println!(
        "lane {}: writes tracked by {}; {:.1?}",
        lane.number,
        lane.guest.tracker(),
        lane.pace
    );
    Ok(())
}

fn median(all: &[Rehearsal], of: impl Fn(&Rehearsal) -> Duration) -> Duration {
    let mut times: Vec<_> = all.iter().map(of).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
