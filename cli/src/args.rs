//! The command line.

mod disks;
mod images;
mod periodic;
mod restore;
mod save;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use self::save::compression;

pub use self::disks::{DiskArgs, DisksArg};
pub use self::images::{DiffArgs, ExtractArgs, InspectArgs, MergeArgs, VerifyArgs};
pub use self::periodic::{IncrementalArg, ListArgs, PeriodicArgs, PruneArgs, StatusArgs};
pub use self::restore::{CloneArgs, HowArgs, RestoreArgs, RestoreDisksArg};
pub use self::save::{CompressArg, ModeArg, OnMissArg, SaveArgs, ThrottleArg};

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

/// Whose writes are no longer to be tracked.
#[derive(Args, Debug)]
pub struct UntrackArgs {
    /// The domain: its number or its name.
    pub domain: String,
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
