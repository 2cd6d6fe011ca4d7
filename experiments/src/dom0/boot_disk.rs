//! A disk that an HVM guest boots from, as a PC does: the BIOS loads the master boot record, that the
//! boot loader of the one partition (SYSLINUX), and that a distribution's kernel.

use super::lvm::Loop;
use super::process;
use super::spec::Spec;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The code of the master boot record, as Debian's `syslinux-common` has it: it starts what the active
/// partition begins with.
const MBR_CODE: &str = "/usr/lib/syslinux/mbr/mbr.bin";
/// Bytes of the record before its table of partitions.
const CODE: usize = 440;
const SECTOR: u64 = 512;
/// Where the partition begins, in sectors.
const START: u32 = 2048;
/// Room for kernel and initramfs, in MiB.
const SIZE: u64 = 64;
const LIMIT: Duration = Duration::from_secs(120);

/// Makes such a disk for a guest in a new file. It is the guest's while the result is kept.
pub fn make(spec: &Spec, file: &Path) -> Result<Loop> {
    let disk = File::create(file).with_context(|| format!("{}", file.display()))?;
    disk.set_len(SIZE << 20)?;
    let code = fs::read(MBR_CODE).with_context(|| MBR_CODE.to_owned())?;
    let sectors = u32::try_from((SIZE << 20) / SECTOR)? - START;
    disk.write_all_at(&boot_record(&code, sectors)?, 0)?;
    drop(disk);
    fill(spec, &Loop::on(file, u64::from(START) * SECTOR)?)?;
    Loop::on(file, 0)
}

/// A master boot record with one partition, an active one of Linux (type 0x83): the layout that every
/// BIOS knows.
fn boot_record(code: &[u8], sectors: u32) -> Result<[u8; SECTOR as usize]> {
    ensure!(code.len() <= CODE, "{MBR_CODE} has {} bytes", code.len());
    let mut record = [0; SECTOR as usize];
    record[..code.len()].copy_from_slice(code);
    // Cylinders, heads and sectors are of no use to any loader of these days.
    let nowhere = [0xfe, 0xff, 0xff];
    let entry = &mut record[446..462];
    entry[0] = 0x80;
    entry[1..4].copy_from_slice(&nowhere);
    entry[4] = 0x83;
    entry[5..8].copy_from_slice(&nowhere);
    entry[8..12].copy_from_slice(&START.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(record)
}

/// The partition: a file system with loader, kernel and initramfs.
fn fill(spec: &Spec, partition: &Loop) -> Result<()> {
    run(Command::new("mkfs.ext2").arg("-q").arg(&partition.0))?;
    let mounted = Mounted::mount(&partition.0, Path::new("/run/boot-disk"))?;
    let (kernel, ramdisk) = spec.kernel_and_ramdisk();
    for (from, to) in [(kernel, "vmlinuz"), (ramdisk, "initrd.img")] {
        fs::copy(from, mounted.0.join(to)).with_context(|| format!("{}", from.display()))?;
    }
    let words = format!(
        "DEFAULT linux\nPROMPT 0\nLABEL linux\n  KERNEL /vmlinuz\n  INITRD /initrd.img\n  APPEND {}\n",
        spec.command_line()
    );
    fs::write(mounted.0.join("extlinux.conf"), words)?;
    run(Command::new("extlinux").arg("--install").arg(&mounted.0))
}

fn run(command: &mut Command) -> Result<()> {
    process::check(command, LIMIT).map(drop)
}

/// A mounted file system; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn mount(device: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        run(Command::new("mount")
            .args(["-t", "ext2"])
            .arg(device)
            .arg(at))?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_the_code_and_one_active_partition() {
        let record = boot_record(&[7; 440], 129_024).unwrap();
        assert_eq!(record[..440], [7; 440]);
        assert_eq!((record[446], record[450]), (0x80, 0x83));
        assert_eq!(record[454..458], 2048_u32.to_le_bytes());
        assert_eq!(record[458..462], 129_024_u32.to_le_bytes());
        assert_eq!(record[462..510], [0; 48]);
        assert_eq!(record[510..], [0x55, 0xaa]);
        assert!(boot_record(&[7; 441], 1).is_err());
    }
}
