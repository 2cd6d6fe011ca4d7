//! What an image knows of the disks that belong to it.
//!
//! The disks themselves are not in the image: a snapshot of a logical volume stays in its volume
//! group, tied to the image by tags; a copy is a file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// The disks at the cut of the memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// How long the guest's I/O may have waited, in seconds: from the moment when the first disk was
    /// held, in the pause window, until the last one was let go, after the guest ran again. Zero if
    /// none was held.
    pub stall_s: f64,
    /// How long it may have waited at a stretch before, while LVM made the snapshots ready, in
    /// seconds; looked at every 5 ms.
    #[serde(default)]
    pub stall_before_s: f64,
    /// Every disk of the guest, in the order of its configuration.
    pub disks: Vec<DiskKept>,
}

/// One disk of the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskKept {
    /// Its name in the guest (`xvda`).
    pub vdev: String,
    /// What it was on in dom0, as in the guest's configuration.
    pub path: String,
    /// How it is kept.
    #[serde(flatten)]
    pub kept: Kept,
}

/// How a disk at the cut is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kept", rename_all = "lowercase")]
pub enum Kept {
    /// As a snapshot of its logical volume.
    Snapshot(SnapshotKept),
    /// As a file that its content was copied to, zstd.
    Copy(CopyKept),
    /// Not: the guest cannot write to it.
    Unchanged,
}

/// A snapshot of a logical volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotKept {
    /// The volume group.
    pub vg: String,
    /// The snapshot's name there.
    pub name: String,
    /// Of which volume it is.
    pub origin: String,
    /// The snapshot's UUID, as LVM prints it.
    pub uuid: String,
    /// The disk's size.
    pub size: Bytes,
    /// The thin pool that both are in; none for a thick volume, whose snapshot slows its writes and
    /// becomes useless when it is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// A copy of a logical volume's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyKept {
    /// The file, an absolute path.
    pub file: PathBuf,
    /// The disk's size.
    pub size: Bytes,
    /// The volume group of the volume.
    pub vg: String,
    /// The volume's name there.
    pub origin: String,
    /// The thin pool that it is in, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (vg, origin, size) = ("vg".to_owned(), "root".to_owned(), Bytes(4096));
        let disk = |vdev: &str, kept| DiskKept {
            vdev: vdev.into(),
            path: "/dev/vg/root".into(),
            kept,
        };
        let facts = DiskFacts {
            stall_s: 0.25,
            stall_before_s: 0.0,
            disks: vec![
                disk(
                    "xvda",
                    Kept::Snapshot(SnapshotKept {
                        vg: vg.clone(),
                        name: "root.livesave-1".into(),
                        origin: origin.clone(),
                        uuid: "a-b".into(),
                        size,
                        pool: None,
                    }),
                ),
                disk(
                    "xvdb",
                    Kept::Copy(CopyKept {
                        file: "/images/a.disk".into(),
                        size,
                        vg,
                        origin,
                        pool: Some("pool".into()),
                    }),
                ),
                disk("hdc", Kept::Unchanged),
            ],
        };
        let text = serde_json::to_string(&facts).expect("encoded");
        assert_eq!(
            serde_json::from_str::<DiskFacts>(&text).expect("read"),
            facts
        );
        assert!(
            text.contains(r#""vdev":"hdc","path":"/dev/vg/root","kept":"unchanged""#),
            "{text}"
        );
    }
}
