//! The harness: measures ways to save a guest beside each other, and prints downtime tables.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use experiments::dom0::spec::Site;
use experiments::harness::case::Backend;
use experiments::harness::embedded::Embedded;
use experiments::harness::manifest::{self, MANIFEST, Machine, Manifest};
use experiments::harness::plan::{Dom0, Plan};
use experiments::harness::progress::Progress;
use experiments::harness::record::{self, Outcome, Run, Store};
use experiments::harness::sweep::{Ended, Runner, open_runs, seconds_since_1970, sweep};
use experiments::harness::testbed::{self, Testbed};
use experiments::harness::xen::XenHost;
use experiments::harness::{meter, report, wire};
use experiments::native::GUEST;
use snapshot::embedded::guest_main;
use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Measures ways to save a running guest beside each other: plain save, Xen's own live loop,
/// live-migrated save, live migration, and livesave.
///
/// A plan says what is measured (docs/experiments.md). Each run is stored when it has ended, in
/// RESULTS/runs.jsonl; the same command again goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "livesave-experiments", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    all runs were made, or refused by livesave for their kind of guest
  1    something failed that is not listed here
  2    the command line or the plan is wrong
  3    a save by livesave failed; the tables say which
  4    none did, but runs are missing: another method failed, the machine spoilt them, or the time
       was up
  130  interrupted; what was measured is stored";

#[derive(Debug, Subcommand)]
enum Task {
    /// Make the runs of a plan, and print their tables.
    Run(RunArgs),
    /// Make tables, plots and a report of stored runs.
    Report(ReportArgs),
    /// Run a command, and write what it took to a file.
    #[command(hide = true)]
    Meter {
        file: PathBuf,
        seconds: u64,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Store a migration stream from standard input.
    #[command(hide = true)]
    Receive { image: PathBuf },
    /// Store a migration stream from a TCP connection; says first where it listens.
    #[command(hide = true)]
    Serve { image: PathBuf, counts: PathBuf },
    /// Hand standard input to a daemon.
    #[command(hide = true)]
    Relay { address: SocketAddr },
    /// Hand standard input to a command, and count.
    #[command(hide = true)]
    Count {
        counts: PathBuf,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    at: Where,
    /// Where runs are stored.
    #[arg(long, value_name = "DIR", default_value = "experiments-results")]
    results: PathBuf,
    /// Measure each case N times, whatever the plan says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: Option<u32>,
    /// Only the study of that name (may be repeated).
    #[arg(long, value_name = "NAME")]
    study: Vec<String>,
    /// List the runs that are still to be made, and end.
    #[arg(long)]
    list: bool,
    /// With --on-testbed: the script that boots it.
    #[arg(long, value_name = "FILE", default_value = "experiments/testbed/run")]
    testbed: PathBuf,
    /// With --on-testbed: minutes from each boot on.
    #[arg(long, value_name = "MINUTES", default_value_t = 170)]
    timeout: u64,
    /// With --on-testbed: boot it so often at most.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    boots: u32,
    /// With --on-testbed: Xen's scheduler.
    #[arg(long, default_value = "credit", value_parser = ["credit", "credit2"])]
    sched: String,
    /// With --on-testbed: take the binaries that are there already.
    #[arg(long)]
    no_build: bool,
    /// This dom0 is the testbed's.
    #[arg(long, hide = true)]
    testbed_dom0: bool,
    /// The commit that livesave was built of.
    #[arg(long, hide = true)]
    commit: Option<String>,
}

impl RunArgs {
    /// The arguments that change the plan.
    fn changes(&self) -> Vec<String> {
        let repeats = self
            .repeats
            .map(|repeats| ["--repeats".to_owned(), repeats.to_string()]);
        let studies = self
            .study
            .iter()
            .map(|name| ["--study".to_owned(), name.clone()]);
        repeats.into_iter().chain(studies).flatten().collect()
    }
}

/// Where runs are made.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Where {
    /// On this machine's Xen.
    #[arg(long, value_name = "PLAN")]
    on_this_dom0: Option<PathBuf>,
    /// On a real Xen, booted inside QEMU from livesave's source tree. PLAN is a file, or `short` (a few
    /// minutes) or `full` (hours).
    #[arg(long, value_name = "PLAN")]
    on_testbed: Option<PathBuf>,
    /// On embedded guests: child processes whose memory the kernel tracks. Native speed, no Xen. PLAN
    /// is a file, or `embedded`.
    #[arg(long, value_name = "PLAN")]
    embedded: Option<PathBuf>,
}

impl Where {
    fn plan(&self) -> Option<&Path> {
        let given = [&self.on_testbed, &self.on_this_dom0, &self.embedded];
        given.into_iter().flatten().map(PathBuf::as_path).next()
    }
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// Directories of results, or their runs.jsonl.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where tables, plots and report go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> ExitCode {
    // This program is its own embedded guests, too.
    if std::env::args().nth(1).is_some_and(|arg| arg == GUEST) {
        return guest_main(std::env::args_os().skip(2));
    }
    let cli = Cli::parse();
    match perform(cli.task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("livesave-experiments: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const LIVESAVE_FAILED: u8 = 3;
const SOME_MISSING: u8 = 4;
const INTERRUPTED: u8 = 130;

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Run(args) => run(&args),
        Task::Report(args) => make_report(&args),
        Task::Meter {
            file,
            seconds,
            command,
        } => meter::run(&file, Duration::from_secs(seconds), &command).map(ExitCode::from),
        Task::Receive { image } => wire::receive_here(&image).map(|()| ExitCode::SUCCESS),
        Task::Serve { image, counts } => wire::serve(&image, &counts, |address| {
            // Whoever started it waits for this line.
            let _ = writeln!(std::io::stdout(), "{address}");
        })
        .map(|()| ExitCode::SUCCESS),
        Task::Relay { address } => wire::relay(address).map(|()| ExitCode::SUCCESS),
        Task::Count { counts, command } => {
            let code = wire::count(&counts, &command)?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
    }
}

fn run(args: &RunArgs) -> Result<ExitCode> {
    let name = args.at.plan().context("no plan")?;
    let (plan, text) = match plan(name, args) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("livesave-experiments: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    if args.list {
        for run in open_runs(&plan, &Store::open(&args.results)?) {
            println!("{}", run.id());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let complete = if args.at.on_testbed.is_some() {
        let testbed = Testbed {
            script: args.testbed.clone(),
            plan: text,
            arguments: args.changes(),
            minutes: args.timeout,
            boots: args.boots,
            no_build: args.no_build,
            scheduler: args.sched.clone(),
        };
        testbed.run(&plan, &args.results, &stop)?
    } else {
        here(args, &plan, text, &stop)? == Ended::Complete
    };
    if !complete {
        eprintln!(
            "{} runs are left; the same command goes on with them",
            open_runs(&plan, &Store::open(&args.results)?).len()
        );
        if stop.load(Ordering::Relaxed) {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }
    // The testbed's dom0 hands its runs on; whoever started it makes the report.
    if !args.testbed_dom0 {
        let (runs, manifests) = stored(&args.results)?;
        print!("{}", report::write(&runs, &manifests, &args.results)?);
        eprintln!("\nreport: {}", args.results.join("report.html").display());
    }
    how_it_went(&plan, &Store::open(&args.results)?)
}

/// The exit code for what is stored of a plan.
fn how_it_went(plan: &Plan, store: &Store) -> Result<ExitCode> {
    let failed =
        |run: &Run| matches!(run.outcome, Outcome::Method(_)) && run.planned.case.method.is_ours();
    let refused = |run: &&Run| matches!(run.outcome, Outcome::Refused(_));
    let good = store.runs.iter();
    let good = good.filter(|run| run.good().is_some() || refused(run));
    let good: HashSet<&str> = good.map(|run| run.id.as_str()).collect();
    Ok(if store.runs.iter().any(failed) {
        ExitCode::from(LIVESAVE_FAILED)
    } else if plan
        .runs()
        .iter()
        .all(|run| good.contains(run.id().as_str()))
    {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(SOME_MISSING)
    })
}

/// The runs of a directory of results, or of a file of runs, and what they were made with.
fn stored(results: &Path) -> Result<(Vec<Run>, Vec<Manifest>)> {
    let runs = record::read(results)?;
    // Runs without a manifest are runs all the same.
    let beside = results.is_dir() && results.join(MANIFEST).exists();
    let manifests = if beside {
        manifest::read(results)?
    } else {
        Vec::new()
    };
    Ok((runs, manifests))
}

/// The plan, changed as the arguments say; and its text.
fn plan(name: &Path, args: &RunArgs) -> Result<(Plan, String)> {
    let (mut plan, text) = Plan::find(name)?;
    if let Some(repeats) = args.repeats {
        plan.repeats = repeats;
        plan.studies
            .iter_mut()
            .for_each(|study| study.repeats = None);
    }
    for wanted in &args.study {
        if !plan.studies.iter().any(|study| study.name == *wanted) {
            let names: Vec<_> = plan.studies.iter().map(|s| s.name.as_str()).collect();
            bail!(
                "the plan has no study {wanted:?}; it has {}",
                names.join(", ")
            );
        }
    }
    if !args.study.is_empty() {
        plan.studies
            .retain(|study| args.study.contains(&study.name));
    }
    Ok((plan, text))
}

/// Makes the runs on this machine.
fn here(args: &RunArgs, plan: &Plan, text: String, stop: &AtomicBool) -> Result<Ended> {
    let dom0 = if args.testbed_dom0 {
        testbed_dom0()
    } else {
        plan.dom0.clone()
    };
    let embedded = args.at.embedded.is_some();
    let wanted = if embedded {
        Backend::Embedded
    } else {
        Backend::Xen
    };
    if let Some(run) = plan.runs().iter().find(|run| run.case.backend != wanted) {
        bail!(
            "study {:?} has {} guests, which cannot be had this way",
            run.case.study,
            run.case.guest
        );
    }
    let mut runner: Box<dyn Runner> = if embedded {
        Box::new(Embedded::new()?)
    } else {
        Box::new(XenHost::new(&dom0)?)
    };
    let mut store = Store::open(&args.results)?;
    let manifest = Manifest {
        livesave: if embedded {
            format!("livesave {}, as a library", env!("CARGO_PKG_VERSION"))
        } else {
            manifest::version_of(&dom0.livesave)?
        },
        commit: args
            .commit
            .clone()
            .filter(|commit| !commit.is_empty())
            .or_else(testbed::commit),
        arguments: std::env::args().skip(1).collect(),
        plan: text,
        began: seconds_since_1970(),
        machine: Machine::this()?,
    };
    manifest::add(&args.results, manifest)?;
    sweep(
        plan,
        runner.as_mut(),
        &mut store,
        &mut Progress::new(),
        stop,
    )
}

/// What the testbed has where.
fn testbed_dom0() -> Dom0 {
    let site = Site::default();
    Dom0 {
        livesave: "/payload/livesave".into(),
        images: "/images".into(),
        kernel: site.kernel,
        ramdisk: site.ramdisk,
        hvm_kernel: Some(site.hvm_kernel),
        hvm_ramdisk: Some(site.hvm_ramdisk),
        cpus: site.cpus,
        ..Dom0::default()
    }
}

fn make_report(args: &ReportArgs) -> Result<ExitCode> {
    let (mut runs, mut manifests) = (Vec::new(), Vec::new());
    for results in &args.results {
        let (more, made_with) = stored(results)?;
        runs.extend(more);
        manifests.extend(made_with);
    }
    print!("{}", report::write(&runs, &manifests, &args.out)?);
    eprintln!("\nreport: {}", args.out.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}
