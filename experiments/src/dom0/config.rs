//! What `xl create` is given for a guest.

use super::spec::{GuestType, Site, Spec};
use std::path::Path;

impl Spec {
    /// The guest's configuration, in the words of xl.cfg(5).
    #[must_use]
    pub fn config(&self) -> String {
        let mut config = format!(
            "name = \"{}\"\ntype = \"{}\"\nmemory = {}\nmaxmem = {}\nvcpus = {}\n\
             on_crash = \"preserve\"\non_reboot = \"preserve\"\n",
            self.name,
            self.kind.word(),
            self.max_memory_mib,
            self.max_memory_mib,
            self.vcpus,
        );
        if self.kind == GuestType::Hvm {
            config.push_str(self.pc());
        }
        if self.pc.boot_disk.is_some() {
            // Its command line is on the disk.
            config.push_str("boot = \"c\"\n");
        } else {
            let (kernel, ramdisk) = self.kernel_and_ramdisk();
            config.push_str(&format!(
                "kernel = \"{}\"\nramdisk = \"{}\"\ncmdline = \"{}\"\n",
                kernel.display(),
                ramdisk.display(),
                self.command_line(),
            ));
        }
        let cpus = &self.site.cpus;
        if cpus.starts_with('[') {
            config.push_str(&format!("cpus = {cpus}\n"));
        } else if !cpus.is_empty() {
            config.push_str(&format!("cpus = \"{cpus}\"\n"));
        }
        let disks = self.all_disks().into_iter();
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

    /// The guest kernel's command line.
    #[must_use]
    pub fn command_line(&self) -> String {
        let hvm = self.kind == GuestType::Hvm;
        let console = if self.has_serial_console() {
            "ttyS0,115200 xen_nopv"
        } else {
            "hvc0"
        };
        // Else Linux has all emulated disks taken away as soon as it sees that it has better ones.
        let keeps = hvm && self.pc.emulated_disk.is_some();
        let keeps = if keeps { " xen_emul_unplug=never" } else { "" };
        // What `guest-init` loads: it takes time.
        let parts = [
            (self.net, "net"),
            (self.disk.is_some() || !self.disks.is_empty(), "disk"),
            (self.filesystem, "filesystem"),
            (hvm && self.pc.emulated_disk.is_some(), "emulated"),
        ];
        let parts = parts.iter().filter(|(wanted, _)| *wanted);
        let load = parts.map(|(_, part)| *part).collect::<Vec<_>>().join(",");
        let mut line = format!(
            "console={console}{keeps} quiet panic=0 testbed.load={load} ls.rate={}",
            self.rate
        );
        for setting in &self.settings {
            line.push_str(" ls.");
            line.push_str(setting);
        }
        line
    }

    /// Kernel and initramfs.
    #[must_use]
    pub fn kernel_and_ramdisk(&self) -> (&Path, &Path) {
        let Site {
            kernel,
            ramdisk,
            hvm_kernel,
            hvm_ramdisk,
            ..
        } = &self.site;
        match self.kind {
            GuestType::Hvm => (hvm_kernel, hvm_ramdisk),
            GuestType::Pvh | GuestType::Pv => (kernel, ramdisk),
        }
    }

    /// Whether its console is a serial port, and not Xen's.
    #[must_use]
    pub fn has_serial_console(&self) -> bool {
        self.kind == GuestType::Hvm && !self.pc.knows_xen
    }

    /// What there is besides.
    fn pc(&self) -> &'static str {
        if self.pc.knows_xen {
            "vnc = 0\nserial = \"pty\"\n"
        } else {
            "vnc = 0\nserial = \"pty\"\nxen_platform_pci = 0\n"
        }
    }

    fn all_disks(&self) -> Vec<(&str, &Path)> {
        let mut disks = Vec::new();
        if self.kind == GuestType::Hvm {
            let pc = [&self.pc.boot_disk, &self.pc.emulated_disk];
            let pc = pc.into_iter().flatten();
            let names = ["hda", "hdb"].into_iter();
            disks.extend(names.zip(pc.map(AsRef::as_ref)));
        }
        let xvda = self.disk.iter().map(|device| ("xvda", device.as_path()));
        let more = self.disks.iter();
        let more = more.map(|(vdev, device)| (vdev.as_str(), device.as_path()));
        disks.extend(xvda.chain(more));
        disks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_every_setting() {
        let config = Spec::default().small().rate("max").config();
        assert!(config.contains("type = \"pvh\"\n"), "{config}");
        assert!(config.contains("maxmem = 128\n"), "{config}");
        assert!(config.contains(" ls.rate=max "), "{config}");
        assert!(config.contains(" ls.ring=16 "), "{config}");
        assert!(!config.contains("disk = ["), "{config}");
    }

    #[test]
    fn all_vcpus_have_one_set_of_cpus_or_each_its_own() {
        let pinned = Spec::default().small().config();
        assert!(pinned.contains("cpus = \"1\"\n"), "{pinned}");
        let two = Spec::default().vcpus(2).each_on_its_own(3).config();
        assert!(two.contains("cpus = [\"1\", \"2\"]\n"), "{two}");
        // As many as there are, and one is not dom0's.
        let four = Spec::default().vcpus(4).each_on_its_own(3).config();
        assert!(
            four.contains("cpus = [\"1\", \"2\", \"1\", \"2\"]\n"),
            "{four}"
        );
        let shared = Spec::default().vcpus(2).each_on_its_own(2).config();
        assert!(shared.contains("cpus = [\"1\", \"1\"]\n"), "{shared}");
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

    #[test]
    fn each_kind_has_the_kernel_and_the_devices_that_it_can_use() {
        let spec = Spec::default().small();
        let pv = spec.clone().pv().config();
        assert!(
            pv.contains("type = \"pv\"\n") && pv.contains("guest-vmlinux"),
            "{pv}"
        );
        let hvm = spec.clone().hvm().config();
        assert!(hvm.contains("type = \"hvm\"\n"), "{hvm}");
        assert!(
            hvm.contains("/boot/vmlinuz-") && hvm.contains("vnc = 0\n"),
            "{hvm}"
        );
        assert!(hvm.contains("console=hvc0 quiet"), "{hvm}");
        let alone = spec.clone().without_xen().config();
        assert!(alone.contains("xen_platform_pci = 0\n"), "{alone}");
        assert!(
            alone.contains("console=ttyS0,115200 xen_nopv quiet"),
            "{alone}"
        );
        let reads = spec.clone().reads_emulated("/dev/loop1").config();
        assert!(
            reads.contains("disk = [ \"phy:/dev/loop1,hda,w\" ]"),
            "{reads}"
        );
        assert!(reads.contains(" xen_emul_unplug=never "), "{reads}");
        assert!(reads.contains("testbed.load=emulated "), "{reads}");
    }

    #[test]
    fn what_boots_from_a_disk_is_given_no_kernel() {
        let mut spec = Spec::default().hvm();
        spec.pc.boot_disk = Some("/dev/loop0".into());
        let config = spec.config();
        assert!(config.contains("boot = \"c\"\n"), "{config}");
        assert!(config.contains("phy:/dev/loop0,hda,w"), "{config}");
        assert!(!config.contains("kernel ="), "{config}");
    }
}
