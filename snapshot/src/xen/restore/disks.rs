//! On what the guest's disks are to be, beside what its configuration says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::config::Config;

/// Where the guest's disks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GuestDisks {
    /// Where the configuration says, as they are now.
    #[default]
    AsIs,
    /// Where the configuration says, put back to the cut before the guest is restored. The original
    /// may not run, under whatever name the guest comes back.
    PutBack,
    /// On volumes of its own, which are there by the time when it is restored: by the disk's name in
    /// the guest. Disks that are not told of stay where they are.
    New(BTreeMap<String, PathBuf>),
    /// As `New`, but which they are is not known yet: for [`super::check_clone`].
    NewLater,
}

/// A disk of a restored guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestoredDisk {
    /// Its name in the guest.
    pub vdev: String,
    /// What it is on in dom0; empty for an empty drive.
    pub path: String,
}

impl GuestDisks {
    /// Puts the guest's disks where they are to be.
    ///
    /// # Errors
    /// What is wrong: the configuration lacks one of them.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), String> {
        let Self::New(paths) = self else {
            return Ok(());
        };
        for (vdev, path) in paths {
            let path = path.to_str().ok_or("a disk's path is no text")?;
            if !config.set_disk_path(vdev, path) {
                return Err(format!("it has no disk {vdev:?}, of which the image tells"));
            }
        }
        Ok(())
    }

    /// Whether the disk gets a volume of its own, which may not be there yet.
    pub(super) fn is_new(&self, vdev: &str) -> bool {
        match self {
            Self::AsIs | Self::PutBack => false,
            Self::New(paths) => paths.contains_key(vdev),
            Self::NewLater => true,
        }
    }
}

/// The disks of a configuration.
pub(super) fn of(config: &Config) -> Vec<RestoredDisk> {
    let disks = config.disks().into_iter();
    disks
        .map(|disk| RestoredDisk {
            vdev: disk.vdev,
            path: disk.path,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::config;
    use super::*;

    fn new(vdev: &str) -> GuestDisks {
        GuestDisks::New([(vdev.to_owned(), "/dev/vg/new".into())].into())
    }

    #[test]
    fn only_the_disks_that_are_told_of_are_elsewhere() {
        let mut changed = config();
        new("xvda").apply(&mut changed).expect("applied");
        let paths: Vec<_> = of(&changed).into_iter().map(|disk| disk.path).collect();
        assert_eq!(paths, ["/dev/vg/new", "iqn.2001", ""]);
        for untouched in [GuestDisks::AsIs, GuestDisks::PutBack, GuestDisks::NewLater] {
            let mut same = config();
            untouched.apply(&mut same).expect("applied");
            assert_eq!(same, config());
        }
    }

    #[test]
    fn a_disk_that_the_guest_has_not_is_told() {
        let error = new("xvdz").apply(&mut config()).expect_err("none");
        assert!(error.contains("xvdz"), "{error}");
    }

    #[test]
    fn it_is_known_which_disks_are_its_own() {
        assert!(new("xvda").is_new("xvda") && !new("xvda").is_new("xvdb"));
        assert!(GuestDisks::NewLater.is_new("xvdb"));
        assert!(!GuestDisks::AsIs.is_new("xvda") && !GuestDisks::PutBack.is_new("xvda"));
    }
}
