//! Volume groups on loop devices, for guests' disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lvm::dm::Dm;
use lvm::inventory::{Volume, volumes};
use lvm::run::Host;

use super::process;

const LIMIT: Duration = Duration::from_secs(120);

/// A loop device on a file; detached when dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    /// On a new file of that size.
    pub fn create(file: &Path, mib: u64) -> Result<Self> {
        fs::File::create(file)?.set_len(mib << 20)?;
        Self::on(file, 0)
    }

    /// On a file that is there, from that byte on.
    pub fn on(file: &Path, offset: u64) -> Result<Self> {
        let offset = format!("--offset={offset}");
        let made = process::check(
            Command::new("losetup")
                .args(["--find", "--show", &offset])
                .arg(file),
            Duration::from_secs(30),
        )?;
        Ok(Self(PathBuf::from(made.stdout.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let mut detach = Command::new("losetup");
        detach.arg("--detach").arg(&self.0);
        let _ = process::run(&mut detach, Duration::from_secs(30));
    }
}

/// A volume group; gone when dropped, with all that is in it.
pub struct Group {
    /// Its name.
    pub name: String,
    device: Option<Loop>,
    file: PathBuf,
}

impl Group {
    /// One of that size on a new file.
    pub fn create(name: &str, file: &Path, mib: u64) -> Result<Self> {
        let device = Loop::create(file, mib)?;
        lvm(&["vgcreate", "-q", name, &device.0.display().to_string()])?;
        Ok(Self {
            name: name.to_owned(),
            device: Some(device),
            file: file.to_owned(),
        })
    }

    /// A thin pool in it, called `pool`.
    pub fn pool(self, mib: u64) -> Result<Self> {
        let pool = format!("{}/pool", self.name);
        lvm(&["lvcreate", "-q", "-L", &format!("{mib}m"), "-T", &pool])?;
        Ok(self)
    }

    /// A thin volume; the path of its device.
    pub fn thin(&self, name: &str, mib: u64) -> Result<PathBuf> {
        let pool = format!("{}/pool", self.name);
        let size = format!("{mib}m");
        lvm(&["lvcreate", "-q", "-V", &size, "-T", &pool, "-n", name])?;
        Ok(self.path(name))
    }

    /// A linear volume; the path of its device.
    pub fn thick(&self, name: &str, mib: u64) -> Result<PathBuf> {
        let size = format!("{mib}m");
        lvm(&["lvcreate", "-q", "-y", "-L", &size, "-n", name, &self.name])?;
        Ok(self.path(name))
    }

    /// The path of a volume's device.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/dev/{}/{name}", self.name))
    }

    /// Its volumes, as `lvm` tells them.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let mut all = volumes(&mut Host, LIMIT)?;
        all.retain(|volume| volume.vg == self.name);
        Ok(all)
    }

    /// One of its volumes.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let mut all = self.volumes()?.into_iter();
        let found = all.find(|volume| volume.name == name);
        found.with_context(|| format!("LVM does not tell of {}/{name}", self.name))
    }

    /// No device of it is held, and it has the volumes of these names and no other.
    pub fn must_hold_only(&self, names: &[&str]) -> Result<()> {
        let volumes = self.volumes()?;
        let mut found: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let mut wanted = names.to_vec();
        found.sort_unstable();
        wanted.sort_unstable();
        ensure!(
            found == wanted,
            "{} has {found:?}, not {wanted:?}",
            self.name
        );
        let dm = Dm::open()?;
        for volume in &volumes {
            let status = dm.status(&volume.dm_device())?;
            ensure!(
                status.is_none_or(|status| !status.held && !status.has_new_table),
                "{} is held: {status:?}",
                volume.full_name()
            );
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A test that failed may have left its guest on it.
        if lvm(&["vgremove", "-q", "-ff", "-y", &self.name]).is_ok() {
            // What no udev rule has removed.
            let _ = fs::remove_dir_all(Path::new("/dev").join(&self.name));
            self.device = None;
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Runs one of LVM's commands, which must succeed.
pub fn lvm(arguments: &[&str]) -> Result<()> {
    process::check(Command::new("lvm").args(arguments), LIMIT).map(drop)
}

/// Removes a volume, named by its group and name or by its path.
pub fn remove(volume: &str) -> Result<()> {
    lvm(&["lvremove", "-q", "-f", "-y", volume])
}
