//! The arguments of periodic snapshots: a directory of images, and which of them are kept.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use snapshot::units::Bytes;

use crate::periodic::keep::Rules;
use crate::periodic::room::KeepFree;

/// A save into a directory of images.
#[derive(Args, Debug)]
#[command(next_help_heading = "Periodic snapshots")]
#[command(mut_group("KeepArgs", |keep| keep.requires("dir").conflicts_with("output")))]
pub struct PeriodicArgs {
    /// Write the image into DIR, under a name made of the domain's and the time.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "force"])]
    pub dir: Option<PathBuf>,

    /// Save nothing, with exit code 6, if afterwards the file system might have less than that left
    /// (10GiB, or 5% of it) [default: 0 with --dir].
    #[arg(long, value_name = "SIZE|PERCENT%")]
    pub keep_free: Option<KeepFree>,

    /// Save only what the guest wrote since its last image in DIR. Its writes are tracked from then
    /// on, until a save without this or `livesave untrack`; where it is not certain what it wrote,
    /// all is saved. With =compared they are not tracked, and its memory is compared with that image.
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, value_enum,
          default_missing_value = "tracked", requires = "dir")]
    pub incremental: Option<IncrementalArg>,

    /// After so many increments the next image is a full one.
    #[arg(long, value_name = "N", default_value_t = 24, requires = "incremental",
          value_parser = clap::value_parser!(u32).range(1..=500))]
    pub full_every: u32,

    /// Which images of the guest in DIR are kept when the new one is on disk and has been checked;
    /// without any, all.
    #[command(flatten)]
    pub keep: KeepArgs,
}

/// How it is known what a guest has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IncrementalArg {
    /// Its writes are tracked from one save to the next.
    Tracked,
    /// All of its memory is read and compared.
    Compared,
}

impl PeriodicArgs {
    /// What is to stay free; `None`: whether there is room is seen when the image is written.
    pub fn keep_free(&self) -> Option<KeepFree> {
        let whole = self.dir.as_ref().map(|_| KeepFree::Size(Bytes(0)));
        self.keep_free.or(whole)
    }
}

/// Which images of a guest are kept; one that any rule keeps stays.
#[derive(Args, Clone, Copy, Debug)]
pub struct KeepArgs {
    /// Keep the N latest images of the guest; those that no rule keeps are removed.
    #[arg(long, value_name = "N", value_parser = count())]
    pub keep_last: Option<u32>,

    /// Keep the latest image of each of the N latest hours that have one.
    #[arg(long, value_name = "N", value_parser = count())]
    pub keep_hourly: Option<u32>,

    /// Keep the latest image of each of the N latest days that have one.
    #[arg(long, value_name = "N", value_parser = count())]
    pub keep_daily: Option<u32>,

    /// Keep the latest image of each of the N latest weeks (from Monday on) that have one.
    #[arg(long, value_name = "N", value_parser = count())]
    pub keep_weekly: Option<u32>,

    /// Keep the latest image of each of the N latest months that have one.
    #[arg(long, value_name = "N", value_parser = count())]
    pub keep_monthly: Option<u32>,
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

impl KeepArgs {
    /// The rules; `None` if there are none.
    pub fn rules(&self) -> Option<Rules> {
        let rules = Rules {
            last: self.keep_last.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
        };
        (rules != Rules::default()).then_some(rules)
    }
}

/// Which images to list.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The directory.
    #[arg(required_unless_present = "orphans")]
    pub dir: Option<PathBuf>,

    /// The disk snapshots of this host whose image is not where it was written: it was removed or
    /// moved, or its save was killed (those `livesave recover` removes).
    #[arg(long, conflicts_with = "dir")]
    pub orphans: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Which images to remove.
#[derive(Args, Debug)]
#[command(mut_group("KeepArgs", |keep| keep.required(true)))]
pub struct PruneArgs {
    /// The directory.
    pub dir: PathBuf,

    /// Which are kept.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// Only tell what would be kept and removed.
    #[arg(long)]
    pub dry_run: bool,

    /// Only the images of that guest [default: each guest's].
    #[arg(long, value_name = "NAME|UUID")]
    pub domain: Option<String>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to judge.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes are those of monitoring plugins, not those of the other subcommands:
  0    OK
  1    WARNING: a damaged image, what a killed save left, a cut in the future, or older than
       --warn-age
  2    CRITICAL: no image, or the latest image of a guest is older than --max-age
  3    UNKNOWN: the directory cannot be read, or the command line is wrong")]
pub struct StatusArgs {
    /// The directory.
    pub dir: PathBuf,

    /// The latest image of each guest must not be older (26h, 8days).
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub max_age: Duration,

    /// Warn if it is older than that.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub warn_age: Option<Duration>,

    /// Only that guest [default: every guest that has an image there].
    #[arg(long, value_name = "NAME|UUID")]
    pub domain: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::args::Cli;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn rules_need_a_directory_and_prune_needs_rules() {
        for line in [
            "livesave web1 --dir d",
            "livesave web1 --dir d --keep-last 3 --keep-daily 7 --keep-free 10%",
            "livesave save --dir d --keep-monthly 12 -- -web1",
            "livesave web1 -o f --keep-free 1GiB",
            "livesave web1 --dir d --incremental --full-every 7 --keep-daily 7",
            "livesave --dir d --incremental web1",
            "livesave web1 --dir d --incremental=compared",
            "livesave prune d --keep-weekly 4 --dry-run --domain web1",
            "livesave status d --max-age 26h",
            "livesave list d --json",
            "livesave list --orphans --json",
        ] {
            assert!(read(line).is_ok(), "{line}");
        }
        for line in [
            "livesave web1 --keep-last 3",
            "livesave save web1 -o f --keep-last 3",
            "livesave web1 --dir d -o f",
            "livesave web1 --incremental",
            "livesave web1 --dir d --incremental=guessed",
            "livesave web1 --dir d --full-every 7",
            "livesave web1 --dir d --incremental --full-every 0",
            "livesave web1 --dir d --incremental --full-every 501",
            "livesave web1 --dir d --force",
            "livesave web1 --dir d --keep-last 0",
            "livesave web1 --dir d --keep-free lots",
            "livesave web1 --dir d --keep-free 101%",
            "livesave prune d",
            "livesave prune d --dry-run",
            "livesave prune --keep-last 1",
            "livesave prune d --keep-last -1",
            "livesave status d",
            "livesave status d --max-age 26",
            "livesave list",
            "livesave list d --orphans",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
