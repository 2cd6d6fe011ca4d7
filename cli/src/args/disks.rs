//! What becomes of a guest's disks when it is saved.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

/// How the disks are saved.
#[derive(Args, Debug)]
pub struct DiskArgs {
    /// What becomes of the guest's disks: an LVM `snapshot` of each at the cut, `memory-only` to
    /// leave them out, `copy:DIR` to copy the snapshots to files and drop them.
    #[arg(long, value_name = "HOW", default_value = "snapshot", value_parser = disks)]
    pub disks: DisksArg,

    /// How much of a thick volume may be overwritten before its snapshot becomes useless
    /// [default: the tenth part of it, 256 MiB at least].
    #[arg(long, value_name = "SIZE")]
    pub snapshot_size: Option<ByteSize>,

    /// How long the guest's disk I/O may wait for the snapshots; then it goes on, and the save fails.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub disk_limit: Duration,
}

/// What becomes of the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisksArg {
    /// A snapshot of each volume is kept.
    Snapshot,
    /// They are left out.
    MemoryOnly,
    /// Each is copied to a file in that directory.
    Copy(PathBuf),
}

fn disks(text: &str) -> Result<DisksArg, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("snapshot", "") => Ok(DisksArg::Snapshot),
        ("memory-only", "") => Ok(DisksArg::MemoryOnly),
        ("copy", dir) if !dir.is_empty() => Ok(DisksArg::Copy(dir.into())),
        _ => Err("snapshot, memory-only or copy:DIR is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_them_is_read() {
        assert_eq!(disks("snapshot"), Ok(DisksArg::Snapshot));
        assert_eq!(disks("memory-only"), Ok(DisksArg::MemoryOnly));
        assert_eq!(disks("copy:/a:b"), Ok(DisksArg::Copy("/a:b".into())));
        for text in ["", "copy", "copy:", "snapshots", "snapshot:x"] {
            assert!(disks(text).is_err(), "{text}");
        }
    }
}
