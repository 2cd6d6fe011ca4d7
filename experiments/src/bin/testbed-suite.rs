//! Runs in the testbed's dom0: the tests on a real Xen.

use anyhow::{Result, bail};
use experiments::dom0::{hold, receiver};
use experiments::suite::{self, Settings, When};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

const USAGE: &str = "\
Usage: testbed-suite [OPTIONS]

  --list             list the tests
  --filter NAME      only tests whose name contains NAME (may be repeated)
  --bench            the long measurements too
  --repeats N        repeat each measurement N times (default 5)
  --cpus N           this machine has N CPUs, the first of which is dom0's (default 2)
  --budget SECONDS   begin no test that would not end in time (default: run all)
  --day N            number of the day, by which tests have their turn (default: today)
  --livesave FILE    the command under test (default /payload/livesave)
  --images DIR       where images go (default /images)
  --results DIR      where results go (default /results)
  --receive FILE     be the receiver of a VNsnap-style save
  --hold SPEC        throttle a guest and stay (see dom0/hold.rs)";

enum Task {
    Run(Settings),
    List,
    Receive(PathBuf),
    Hold(String, PathBuf),
}

fn main() -> ExitCode {
    match parse().and_then(perform) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("testbed-suite: {err:#}");
            ExitCode::from(2)
        }
    }
}

fn perform(task: Task) -> Result<bool> {
    match task {
        Task::Run(settings) => suite::run(&settings),
        Task::List => {
            for test in suite::all() {
                let when = match test.when {
                    When::Core => "  (core)",
                    When::InTurn => "",
                    When::Asked => "  (with --bench, or by its name)",
                };
                println!("{}{when}", test.name);
            }
            Ok(true)
        }
        Task::Receive(image) => receiver::receive(&image).map(|()| true),
        Task::Hold(spec, livesave) => hold::hold(&spec, &livesave).map(|()| true),
    }
}

/// Days since 1970. A clock that is before that is as good as any.
fn today() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / (24 * 60 * 60))
}

fn parse() -> Result<Task> {
    let mut settings = Settings {
        filters: Vec::new(),
        bench: false,
        livesave: PathBuf::from("/payload/livesave"),
        suite: std::env::current_exe()?,
        images: PathBuf::from("/images"),
        results: PathBuf::from("/results"),
        repeats: 5,
        cpus: 2,
        budget: None,
        day: today(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || match args.next() {
            Some(value) => Ok(value),
            None => bail!("{arg} needs a value\n{USAGE}"),
        };
        match arg.as_str() {
            "--list" => return Ok(Task::List),
            "--receive" => return Ok(Task::Receive(value()?.into())),
            "--hold" => return Ok(Task::Hold(value()?, settings.livesave)),
            "--filter" => settings.filters.push(value()?),
            "--bench" => settings.bench = true,
            "--repeats" => settings.repeats = value()?.parse()?,
            "--cpus" => settings.cpus = value()?.parse()?,
            "--budget" => settings.budget = Some(Duration::from_secs(value()?.parse()?)),
            "--day" => settings.day = value()?.parse()?,
            "--livesave" => settings.livesave = value()?.into(),
            "--images" => settings.images = value()?.into(),
            "--results" => settings.results = value()?.into(),
            _ => bail!("unknown argument {arg:?}\n{USAGE}"),
        }
    }
    if settings.repeats == 0 {
        bail!("--repeats must be 1 or more");
    }
    Ok(Task::Run(settings))
}
