//! How a domain is saved.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::{DiskArgs, PeriodicArgs};

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

pub(super) fn compression(text: &str) -> Result<CompressArg, String> {
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

pub(super) fn threads(text: &str) -> Result<usize, String> {
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

fn share(text: &str) -> Result<f64, String> {
    let value = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    value.ok_or_else(|| "a number from 0 to 1 is needed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read() {
        assert_eq!(compression("zstd"), Ok(CompressArg::Zstd(1)));
        assert_eq!(compression("zstd:19"), Ok(CompressArg::Zstd(19)));
        assert_eq!(compression("none"), Ok(CompressArg::None));
    }
}
