//! The command line.

mod disks;
mod periodic;
mod restore;

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use disks::{DiskArgs, DisksArg};
pub use periodic::{IncrementalArg, ListArgs, PeriodicArgs, PruneArgs, StatusArgs};

pub use self::restore::{CloneArgs, HowArgs, RestoreArgs, RestoreDisksArg};

/// Takes a consistent image of a running domU while it runs on.
///
/// livesave copies the guest's memory into a file while the guest runs, then again only what the
/// guest wrote meanwhile, until little is left; it suspends the guest for the rest, typically for
/// a fraction of a second, and lets it run on. Where the guest writes too fast for the pause asked
/// for, its CPU is capped for the last rounds. The image is an `xl save` file: `xl restore IMAGE`
/// brings the guest back as it was at that moment.
#[derive(Debug, Parser)]
#[command(
    name = "livesave",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// What to do; without it, save DOMAIN.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to save.
    #[command(flatten)]
    pub save: Option<SaveArgs>,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    the image is complete and durable
  1    something failed that is not listed here
  2    the command line is wrong
  3    no such domain, or not one that can be saved
  4    Xen cannot be used here: not a dom0, no permission, a library missing
  5    the guest did not suspend in time; the save was cancelled, the guest runs
  6    the image could not be written, or might not have room
  7    the domain went away during the save
  8    the file is not an image, or a damaged one
  9    the pause would have been longer than --max-downtime, and --on-miss is abort: the guest
       was not paused, nothing was saved
  10   the guest cannot be restored here and now: a name is taken, memory is short, a disk is
       missing or in use; nothing was created
  11   the restore failed on the way; the message says what is left, normally nothing
  12   a disk of the guest is on no logical volume of which a snapshot can be made, or there is
       no room for its snapshot; nothing was saved
  129, 130, 131, 143   ended by SIGHUP, SIGINT (Ctrl-C), SIGQUIT, SIGTERM
Those of `livesave status` are others: those of monitoring plugins.

Unless it is 7, a guest that was saved runs on (else a warning says so), and no half image is left.";

/// What livesave does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Save a domain: the same as `livesave DOMAIN`, for domains named like a subcommand.
    Save(SaveArgs),
    /// Foretell what a save of a domain would be like, without saving or pausing it.
    Plan(PlanArgs),
    /// Bring a guest back from its image, or beside the original under another name.
    Restore(RestoreArgs),
    /// Save a domain and restore it under another name in one go; the original runs on.
    Clone(CloneArgs),
    /// Tell what an image holds.
    Inspect(InspectArgs),
    /// Look at every byte of an image: every checksum, every record, its structure.
    Verify(VerifyArgs),
    /// Write pages of an image to a file.
    Extract(ExtractArgs),
    /// Tell in which pages two images differ.
    Diff(DiffArgs),
    /// Make a full image of an increment and what it is built on.
    Merge(MergeArgs),
    /// End the tracking of a domain's writes that incremental saves leave on.
    Untrack(UntrackArgs),
    /// Save an embedded guest, plainly and live, restore both, and compare: needs no Xen.
    Demo(DemoArgs),
    /// List the images in a directory.
    List(ListArgs),
    /// Remove the images of a directory that no --keep option keeps.
    Prune(PruneArgs),
    /// Judge the age of the latest images in a directory, as a monitoring plugin.
    Status(StatusArgs),
    /// Put right what killed saves left of their guests, where their guardians were killed too.
    Recover,
    /// Write what comes with a package: man pages, shell completions.
    #[command(hide = true, subcommand)]
    Generate(GenerateCommand),
    /// Looks after a save.
    #[command(hide = true)]
    Guardian {
        /// The domain and time limits.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// The embedded guest's own process.
    #[command(hide = true)]
    EmbeddedGuest {
        /// Inherited descriptors.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// What comes with a package.
#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// A man page for livesave and for each subcommand, into DIR.
    Man {
        /// The directory.
        dir: PathBuf,
    },
    /// The completions of a shell, on standard output.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// How a domain is saved.
// clap leaves the group of a struct empty that has others flattened into it.
#[derive(Args, Debug)]
#[command(mut_group("SaveArgs", |group| group.arg("domain")))]
pub struct SaveArgs {
    /// The domain: its number or its name.
    pub domain: String,

    /// The image to write [default: ./NAME-DATE-TIME.xl, compressed .xl.zst].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Replace FILE if it exists, in one step and only by a complete image.
    #[arg(long)]
    pub force: bool,

    /// Compress the image: none, or zstd with a level from 1 (the default) to 19.
    #[arg(long, value_name = "zstd[:LEVEL]", default_value = "none", value_parser = compression)]
    pub compress: CompressArg,

    /// Threads that compress [default: one for each CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,

    /// How to save.
    #[arg(long, value_enum, default_value_t = ModeArg::Improved)]
    pub mode: ModeArg,

    /// How long the guest may pause (300ms, 2s).
    #[arg(long, value_name = "TIME", default_value = "300ms",
          value_parser = humantime::parse_duration)]
    pub max_downtime: Duration,

    /// What to do if the pause is foretold to be longer: save all the same, or save nothing.
    #[arg(long, value_enum, default_value_t = OnMissArg::Proceed)]
    pub on_miss: OnMissArg,

    /// Never throttle the guest below that share of its vCPUs, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub min_cap: u32,

    /// Leave the guest's own CPU cap in place while it freezes and thaws. By default it is free of it
    /// for that moment, so that its pause does not consist of waiting for its turn.
    #[arg(long)]
    pub keep_cap: bool,

    /// Memory for the pages captured in the pause, and before it where the disk is slow; what of
    /// the pause exceeds it is written in the pause [default: a quarter of what is free, at most 256 MiB].
    #[arg(long, value_name = "SIZE")]
    pub capture_memory: Option<ByteSize>,

    /// Copy at most N times while the guest runs, the first full copy included.
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rounds: u32,

    /// How long the guest may take to suspend (30s, 2m); then the save is cancelled.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,

    /// Wait that long for another livesave of the domain to end (5m).
    #[arg(long, value_name = "TIME", default_value = "0s", hide_default_value = true,
          value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// How long a save may do nothing while the guest is suspended; then it is killed, and the
    /// guest resumed.
    #[arg(long, value_name = "TIME", default_value = "60s", hide = true,
          value_parser = humantime::parse_duration)]
    pub hang_limit: Duration,

    /// A further round must be expected to leave at most that share of what it copies
    /// [default: 0.9, on AMD 0.6].
    #[arg(long, value_name = "SHARE", hide = true, value_parser = share)]
    pub worthwhile: Option<f64>,

    /// How the guest is slowed, should that be needed.
    #[arg(long, value_enum, default_value_t = ThrottleArg::Auto, hide = true)]
    pub throttle_by: ThrottleArg,

    /// Print one JSON object about the save on standard output.
    #[arg(long)]
    pub json: bool,

    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    pub quiet: bool,

    /// Tell on standard error what happens as JSON objects, one a line (docs/json-log.md), not as
    /// text.
    #[arg(long, conflicts_with = "quiet")]
    pub json_log: bool,

    /// The disks.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Into a directory of images.
    #[command(flatten)]
    pub periodic: PeriodicArgs,
}

/// Whether an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressArg {
    /// It is raw.
    None,
    /// By zstd, at a level.
    Zstd(i32),
}

fn compression(text: &str) -> Result<CompressArg, String> {
    let level = match text {
        "none" => return Ok(CompressArg::None),
        "zstd" => Some(1),
        _ => text
            .strip_prefix("zstd:")
            .and_then(|level| level.parse().ok()),
    };
    level
        .filter(|level| (1..=19).contains(level))
        .map(CompressArg::Zstd)
        .ok_or_else(|| "none, zstd or zstd:LEVEL with a level from 1 to 19 is needed".to_owned())
}

fn threads(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=256).contains(count));
    count.ok_or_else(|| "a number from 1 to 256 is needed".to_owned())
}

/// How memory is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Suspend the guest, copy all its memory, let it run on.
    Plain,
    /// Copy while it runs; suspend it only for the rest.
    Live,
    /// The same, and cap the guest's CPU for a moment if it writes too fast for --max-downtime.
    Improved,
}

/// What happens if the pause is foretold to be longer than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnMissArg {
    /// Save it all the same, with a warning.
    Proceed,
    /// Neither pause nor save it; exit code 9.
    Abort,
}

/// How a guest is slowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ThrottleArg {
    /// By the cap of its scheduler, or by pauses where that has none.
    Auto,
    /// By pauses.
    Pauses,
}

/// What to foretell.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// The domain: its number or its name.
    pub domain: String,

    /// How long to watch how it writes to its memory.
    #[arg(long, value_name = "TIME", default_value = "4s", value_parser = humantime::parse_duration)]
    pub watch: Duration,

    /// How long the guest may pause (300ms, 2s).
    #[arg(long, value_name = "TIME", default_value = "300ms",
          value_parser = humantime::parse_duration)]
    pub max_downtime: Duration,

    /// Never throttle the guest below that share of its vCPUs, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub min_cap: u32,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to tell of an image.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The image.
    pub image: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to look at.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The image.
    pub image: PathBuf,
    /// Threads that work [default: one for each CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to take out of an image.
#[derive(Args, Debug)]
pub struct ExtractArgs {
    /// The image.
    pub image: PathBuf,
    /// The page's number, or those of the first and the last (0x100-0x1ff); decimal or 0x….
    #[arg(long, value_name = "A[-B]", value_parser = pages)]
    pub pfn: Range<u64>,
    /// The file to write, which must not exist.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// What to merge.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// The increment; what it is built on is in the same directory.
    pub image: PathBuf,
    /// The full image to write, which must not exist; increments on IMAGE find it in its place if
    /// it is in their directory and IMAGE is not.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Compress the image: none, or zstd with a level from 1 (the default) to 19.
    #[arg(long, value_name = "zstd[:LEVEL]", default_value = "none", value_parser = compression)]
    pub compress: CompressArg,
    /// Threads that compress [default: one for each CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Whose writes are no longer to be tracked.
#[derive(Args, Debug)]
pub struct UntrackArgs {
    /// The domain: its number or its name.
    pub domain: String,
}

/// What to compare.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// One image.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

fn pages(text: &str) -> Result<Range<u64>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    let range = number(first).zip(number(last)).and_then(|(first, last)| {
        let end = last.checked_add(1)?;
        (first < end).then_some(first..end)
    });
    range.ok_or_else(|| "a page number, or two with the lower first, is needed".to_owned())
}

/// How the demonstration goes.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Compress the images, as for a save.
    #[arg(long, value_name = "zstd[:LEVEL]", default_value = "none", value_parser = compression)]
    pub compress: CompressArg,

    /// The embedded guest's memory.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory: ByteSize,

    /// What it does meanwhile.
    #[arg(long, value_enum, default_value_t = WorkloadArg::Ring)]
    pub workload: WorkloadArg,

    /// How many pages it writes per second.
    #[arg(long, value_name = "PAGES", default_value_t = 5000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,

    /// Where the images stand until they have been compared [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// What an embedded guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkloadArg {
    /// Nothing.
    Idle,
    /// It writes page after page, round and round.
    Ring,
    /// Nine writes in ten fall on a tenth of the pages.
    Hot,
    /// It writes anywhere.
    Random,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    value.ok_or_else(|| "a number from 0 to 1 is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_domain_is_saved_with_and_without_the_word() {
        for line in [
            &["livesave", "-o", "x", "guest"][..],
            &["livesave", "save", "guest", "-o", "x"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parsed");
            let save = match (cli.command, cli.save) {
                (Some(Command::Save(save)), None) | (None, Some(save)) => save,
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (save.domain.as_str(), save.output),
                ("guest", Some("x".into()))
            );
        }
    }

    #[test]
    fn levels_and_page_numbers_are_read() {
        assert_eq!(compression("zstd"), Ok(CompressArg::Zstd(1)));
        assert_eq!(compression("zstd:19"), Ok(CompressArg::Zstd(19)));
        assert_eq!(compression("none"), Ok(CompressArg::None));
        assert_eq!(pages("16"), Ok(16..17));
        assert_eq!(pages("0x10-0x1f"), Ok(16..32));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            &["livesave"][..],
            &["livesave", "a", "b"],
            &["livesave", "a", "--mode", "fast"],
            &["livesave", "a", "--timeout", "soon"],
            &["livesave", "a", "--max-rounds", "0"],
            &["livesave", "a", "--max-downtime", "300"],
            &["livesave", "a", "--on-miss", "cry"],
            &["livesave", "a", "--min-cap", "0"],
            &["livesave", "a", "--capture-memory", "much"],
            &["livesave", "inspect"],
            &["livesave", "restore"],
            &["livesave", "clone", "a"],
            &["livesave", "a", "--compress", "lz4"],
            &["livesave", "a", "--compress", "zstd:20"],
            &["livesave", "a", "--compress", "zstd:"],
            &["livesave", "a", "--threads", "0"],
            &["livesave", "extract", "x", "--pfn", "2-1", "-o", "y"],
            &["livesave", "extract", "x", "--pfn", "0xg", "-o", "y"],
            &[
                "livesave",
                "extract",
                "x",
                "--pfn",
                "18446744073709551615",
                "-o",
                "y",
            ],
            &["livesave", "diff", "a"],
            &["livesave", "merge", "a"],
            &["livesave", "untrack"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
