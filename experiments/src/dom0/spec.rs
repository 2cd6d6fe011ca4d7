//! What guest to start.

use super::console::LOG_DIR;
use super::guest::{KERNEL, RAMDISK};
use std::path::{Path, PathBuf};

/// The name of the guests that tests share.
pub const SHARED_NAME: &str = "guest";

/// Where a guest finds what it needs of its host; by default as in the testbed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs, with the workload.
    pub ramdisk: PathBuf,
    /// CPUs that it runs on, as `cpus` of xl.cfg; empty is any.
    pub cpus: String,
    /// Where xenconsoled logs.
    pub console_logs: PathBuf,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            kernel: KERNEL.into(),
            ramdisk: RAMDISK.into(),
            // Away from dom0: unpinned PVH guests triple-fault now and then under QEMU's emulation
            // of SVM.
            cpus: "1".to_owned(),
            console_logs: LOG_DIR.into(),
        }
    }
}

/// A guest with the self-checking workload, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Memory now, in MiB.
    pub memory_mib: u64,
    /// Memory at most, in MiB; the same unless the guest is ballooned down.
    pub max_memory_mib: u64,
    /// Virtual CPUs, and as many writers.
    pub vcpus: u32,
    /// Pages per second that it writes, or `max`. A running guest can be told another.
    pub rate: String,
    /// Other settings of the workload, such as `ring=16` (without `ls.`).
    pub settings: Vec<String>,
    /// A block device or image file for xvda.
    pub disk: Option<PathBuf>,
    /// More block devices, each with the name that it has in the guest, such as `xvdb`.
    pub disks: Vec<(String, PathBuf)>,
    /// Give it a network interface on the testbed's bridge.
    pub net: bool,
    /// What is taken from the host.
    pub site: Site,
    /// It can have file systems: one for the workload's `nofreeze` to freeze, and those on its disks.
    pub filesystem: bool,
}

impl Default for Spec {
    /// 512 MiB, one vCPU, 5 000 pages/s round 128 MiB.
    fn default() -> Self {
        Self {
            name: SHARED_NAME.to_owned(),
            memory_mib: 512,
            max_memory_mib: 512,
            vcpus: 1,
            rate: "5000".to_owned(),
            settings: vec!["beat=200".to_owned()],
            disk: None,
            disks: Vec::new(),
            net: false,
            site: Site::default(),
            filesystem: false,
        }
    }
}

impl Spec {
    /// Of this guest a save takes a second or two: for all that has nothing to do with size.
    #[must_use]
    pub fn small(self) -> Self {
        let small = self.memory(128).with("ring=16").with("static=8");
        small.with("beat=100").rate("1000")
    }

    /// Between the two: with room for what a fault needs, and saves that something may happen in.
    #[must_use]
    pub fn medium(self) -> Self {
        let mut medium = self.memory(256).with("ring=32").with("static=8");
        medium.filesystem = true;
        medium.with("beat=100").rate("2000")
    }

    /// The same with so much memory.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        (self.memory_mib, self.max_memory_mib) = (mib, mib);
        self
    }

    /// The same with a setting of the workload added (a later one wins).
    #[must_use]
    pub fn with(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The same, writing so many pages per second.
    #[must_use]
    pub fn rate(mut self, rate: &str) -> Self {
        rate.clone_into(&mut self.rate);
        self
    }

    /// The same with so many vCPUs, each with a writer of its own.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self.with(&format!("writers={vcpus}"))
    }

    /// The same with one more disk.
    #[must_use]
    pub fn disk(mut self, vdev: &str, device: impl Into<PathBuf>) -> Self {
        self.disks.push((vdev.to_owned(), device.into()));
        self
    }

    /// The same with records ([`crate::records`]) on these disks, which are its disks too: raw ones,
    /// and ones with an ext4 file system (`mkfs.ext4 -b 4096`), for which 128 MiB of memory are not
    /// enough. It writes to them in this order.
    #[must_use]
    pub fn records(mut self, raw: &[(&str, &Path)], files: &[(&str, &Path)]) -> Self {
        for (setting, disks) in [("records", raw), ("files", files)] {
            if disks.is_empty() {
                continue;
            }
            let names: Vec<_> = disks.iter().map(|(vdev, _)| *vdev).collect();
            self = self.with(&format!("{setting}={}", names.join(",")));
            for (vdev, device) in disks {
                self = self.disk(vdev, device);
            }
        }
        self.filesystem |= !files.is_empty();
        self
    }

    /// Whether a guest of this kind is also one of the other kind, once it has been told its rate.
    #[must_use]
    pub fn differs_in_rate_only(&self, other: &Self) -> bool {
        self.clone().rate("") == other.clone().rate("")
    }

    /// What `xl create` is given.
    #[must_use]
    pub fn config(&self) -> String {
        let mut settings = format!(" ls.rate={}", self.rate);
        for setting in &self.settings {
            settings.push_str(" ls.");
            settings.push_str(setting);
        }
        // What `guest-init` loads: it takes time.
        let parts = [
            (self.net, "net"),
            (self.disk.is_some() || !self.disks.is_empty(), "disk"),
            (self.filesystem, "filesystem"),
        ];
        let parts = parts.iter().filter(|(wanted, _)| *wanted);
        let load = parts.map(|(_, part)| *part).collect::<Vec<_>>().join(",");
        let Site {
            kernel,
            ramdisk,
            cpus,
            console_logs: _,
        } = &self.site;
        let mut config = format!(
            "name = \"{}\"\ntype = \"pvh\"\nmemory = {}\nmaxmem = {}\nvcpus = {}\n\
             kernel = \"{}\"\nramdisk = \"{}\"\n\
             cmdline = \"console=hvc0 quiet panic=0 testbed.load={load}{settings}\"\n\
             on_crash = \"preserve\"\non_reboot = \"preserve\"\n",
            self.name,
            self.max_memory_mib,
            self.max_memory_mib,
            self.vcpus,
            kernel.display(),
            ramdisk.display()
        );
        if !cpus.is_empty() {
            config.push_str(&format!("cpus = \"{cpus}\"\n"));
        }
        let xvda = self.disk.iter().map(|device| ("xvda", device));
        let more = self.disks.iter();
        let more = more.map(|(vdev, device)| (vdev.as_str(), device));
        let disks = xvda.chain(more);
        let disks = disks.map(|(vdev, device)| format!("\"phy:{},{vdev},w\"", device.display()));
        let disks = disks.collect::<Vec<_>>().join(", ");
        if !disks.is_empty() {
            config.push_str(&format!("disk = [ {disks} ]\n"));
        }
        if self.net {
            config.push_str("vif = [ \"bridge=xenbr0\" ]\n");
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_guest_can_be_told_its_rate_and_nothing_else() {
        let small = Spec::default().small();
        assert!(small.differs_in_rate_only(&small.clone().rate("max")));
        assert!(!small.differs_in_rate_only(&Spec::default()));
        assert!(!small.differs_in_rate_only(&small.clone().vcpus(2)));
        assert!(!small.differs_in_rate_only(&small.clone().with("scrub=0")));
        let mut ballooned = small.clone();
        ballooned.memory_mib -= 8;
        assert!(!small.differs_in_rate_only(&ballooned));
    }

    #[test]
    fn the_configuration_has_every_setting() {
        let config = Spec::default().small().rate("max").config();
        assert!(config.contains("maxmem = 128\n"), "{config}");
        assert!(config.contains(" ls.rate=max "), "{config}");
        assert!(config.contains(" ls.ring=16 "), "{config}");
        assert!(!config.contains("disk = ["), "{config}");
    }
    #[test]
    fn every_disk_is_given_and_disks_with_records_are_told_of() {
        let mut spec = Spec::default().with("disk=1");
        spec.disk = Some("/dev/loop0".into());
        let config = spec.clone().config();
        assert!(
            config.contains("disk = [ \"phy:/dev/loop0,xvda,w\" ]\n"),
            "{config}"
        );
        assert!(config.contains("testbed.load=disk "), "{config}");
        let (raw, files) = (Path::new("/dev/vg/raw"), Path::new("/dev/vg/files"));
        let config = spec.records(&[("xvdb", raw)], &[("xvdc", files)]).config();
        let disks = "disk = [ \"phy:/dev/loop0,xvda,w\", \"phy:/dev/vg/raw,xvdb,w\", \
                     \"phy:/dev/vg/files,xvdc,w\" ]\n";
        assert!(config.contains(disks), "{config}");
        assert!(
            config.contains(" ls.records=xvdb ls.files=xvdc"),
            "{config}"
        );
        assert!(config.contains("testbed.load=disk,filesystem "), "{config}");
    }
}
