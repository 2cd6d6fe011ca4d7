//! What guest to start.

use super::console::LOG_DIR;
use super::guest::{HVM_RAMDISK, KERNEL, RAMDISK};
use std::path::{Path, PathBuf};

/// The name of the guests that tests share.
pub const SHARED_NAME: &str = "guest";

/// What a guest is to Xen: `type` of xl.cfg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestType {
    /// Hardware virtualisation, no emulated devices.
    Pvh,
    /// Hardware virtualisation, with a QEMU in dom0 that emulates a PC.
    Hvm,
    /// No hardware virtualisation.
    Pv,
}

impl GuestType {
    /// As xl.cfg spells it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Hvm => "hvm",
            Self::Pv => "pv",
        }
    }
}

/// Where a guest finds what it needs of its host; by default as in the testbed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its kernel, if it is no HVM guest.
    pub kernel: PathBuf,
    /// Its initramfs, with the workload.
    pub ramdisk: PathBuf,
    /// The kernel of an HVM guest, as distributions pack it: its QEMU loads it as a PC's loader does.
    pub hvm_kernel: PathBuf,
    /// The initramfs of an HVM guest. A small one: it is loaded byte by byte through an emulated port.
    pub hvm_ramdisk: PathBuf,
    /// CPUs that it runs on, as `cpus` of xl.cfg: a set, or in brackets one for each vCPU; empty is any.
    pub cpus: String,
    /// Where xenconsoled logs.
    pub console_logs: PathBuf,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            kernel: KERNEL.into(),
            ramdisk: RAMDISK.into(),
            hvm_kernel: own_kernel(),
            hvm_ramdisk: HVM_RAMDISK.into(),
            // Away from dom0: unpinned PVH guests triple-fault now and then under QEMU's emulation
            // of SVM.
            cpus: "1".to_owned(),
            console_logs: LOG_DIR.into(),
        }
    }
}

/// dom0's own, as Debian installs it. In the testbed other guests have the same unpacked.
fn own_kernel() -> PathBuf {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("/boot/vmlinuz-{}", release.trim()).into()
}

/// A guest with the self-checking workload, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// What it is to Xen.
    pub kind: GuestType,
    /// What only HVM guests have.
    pub pc: Pc,
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

/// What the emulated PC of an HVM guest has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pc {
    /// It boots through the BIOS from this disk ([`super::boot_disk`]); else QEMU loads its kernel.
    pub boot_disk: Option<PathBuf>,
    /// An emulated IDE disk that the guest goes on using, as `/dev/sda`: it is told not to have its
    /// emulated devices unplugged.
    pub emulated_disk: Option<PathBuf>,
    /// It knows of Xen, and has Xen's devices and console. Else it is as any operating system
    /// without drivers for Xen: it does not hear of a suspend request, and its console is a serial
    /// port.
    pub knows_xen: bool,
}

impl Default for Pc {
    fn default() -> Self {
        Self {
            boot_disk: None,
            emulated_disk: None,
            knows_xen: true,
        }
    }
}

impl Default for Spec {
    /// A PVH guest of 512 MiB, one vCPU, 5 000 pages/s round 128 MiB.
    fn default() -> Self {
        Self {
            name: SHARED_NAME.to_owned(),
            kind: GuestType::Pvh,
            pc: Pc::default(),
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

    /// The same as an HVM guest.
    #[must_use]
    pub fn hvm(mut self) -> Self {
        self.kind = GuestType::Hvm;
        self
    }

    /// The same as a PV guest.
    #[must_use]
    pub fn pv(mut self) -> Self {
        self.kind = GuestType::Pv;
        self
    }

    /// The same as a guest that knows nothing of Xen.
    #[must_use]
    pub fn without_xen(mut self) -> Self {
        self.pc.knows_xen = false;
        self.hvm()
    }

    /// The same, reading all the time from an emulated disk ([`crate::workload::emulated`]).
    #[must_use]
    pub fn reads_emulated(mut self, disk: impl Into<PathBuf>) -> Self {
        self.pc.emulated_disk = Some(disk.into());
        self.hvm().with("emulated=sda")
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

    /// Of a host's so many CPUs the first is dom0's: each vCPU has one of the others, in turn.
    #[must_use]
    pub fn each_on_its_own(mut self, host_cpus: u32) -> Self {
        let others = host_cpus.saturating_sub(1).max(1);
        let cpus = (0..self.vcpus).map(|vcpu| format!("\"{}\"", 1 + vcpu % others));
        self.site.cpus = format!("[{}]", cpus.collect::<Vec<_>>().join(", "));
        self
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
        assert!(!small.differs_in_rate_only(&small.clone().hvm()));
        let mut ballooned = small.clone();
        ballooned.memory_mib -= 8;
        assert!(!small.differs_in_rate_only(&ballooned));
    }
}
