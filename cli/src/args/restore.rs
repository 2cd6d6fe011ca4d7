//! The command lines of `restore` and `clone`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::SaveArgs;

/// What to restore, and as whom.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// The image.
    pub image: PathBuf,

    /// Give the guest another name, and a UUID of its own; beside the running original also other
    /// MAC addresses.
    #[arg(long, value_name = "NEW")]
    pub name: Option<String>,

    /// What the guest's disks are: new volumes, made from the image's snapshots or copies; its own,
    /// put back to the cut; or its own as they are now [default: new if the image has its disks].
    #[arg(long, value_name = "WHICH", conflicts_with = "config")]
    pub disks: Option<RestoreDisksArg>,

    /// How else the guest comes back.
    #[command(flatten)]
    pub how: HowArgs,

    /// Print one JSON object about the restored guest.
    #[arg(long)]
    pub json: bool,

    /// Print nothing but errors and warnings.
    #[arg(short, long)]
    pub quiet: bool,
}

/// What a restored guest's disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestoreDisksArg {
    /// New volumes with the disks as they were at the cut; the guest's own are left alone.
    New,
    /// The guest's own, put back to the cut: what was written since is lost. The guest must have
    /// ended. Of a volume that is not thin the image's snapshot is used up by it.
    Rollback,
    /// The guest's own as they are now.
    AsIs,
}

/// What to clone, and as whom.
#[derive(Args, Debug)]
#[command(
    mut_arg("output", |arg| arg.help("Keep the image as FILE [default: it is not kept]")),
    mut_arg("json", |arg| arg.help("Print one JSON object about the save and the second guest"))
)]
pub struct CloneArgs {
    /// How the domain is saved.
    #[command(flatten)]
    pub save: SaveArgs,

    /// The second guest's name.
    #[arg(long, value_name = "NEW")]
    pub name: String,

    /// Where the image stands until the second guest is restored [default: /var/tmp].
    #[arg(long, value_name = "DIR")]
    pub tmp_dir: Option<PathBuf>,

    /// How the second guest comes up.
    #[command(flatten)]
    pub how: HowArgs,
}

/// How a guest is restored.
#[derive(Args, Debug)]
pub struct HowArgs {
    /// Leave the guest paused; `xl unpause` lets it run.
    #[arg(long)]
    pub paused: bool,

    /// Use this xl.cfg for the configuration in the image: other disks, bridges and so on.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How long `xl restore` may do nothing; then it is killed, and what it has built destroyed.
    #[arg(long, value_name = "TIME", default_value = "5m", hide = true,
          value_parser = humantime::parse_duration)]
    pub silence: Duration,

    /// Where locks stand.
    #[arg(long, value_name = "DIR", default_value = "/run/livesave", hide = true)]
    pub locks: PathBuf,

    /// Where devices stand.
    #[arg(long, value_name = "DIR", default_value = "/dev", hide = true)]
    pub dev: PathBuf,
}
