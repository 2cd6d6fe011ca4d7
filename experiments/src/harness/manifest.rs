//! What a sweep was made with: versions, arguments, the machine.

use crate::native::proc_size;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::Command;
use xen_sys::{DomainId, Xen};

/// The name of the file in a directory of results.
pub const MANIFEST: &str = "manifest.json";

/// One start of the harness; a sweep that was interrupted has several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What livesave says of its version.
    pub livesave: String,
    /// The commit that it was built of, where that is known.
    pub commit: Option<String>,
    /// The arguments of the harness.
    pub arguments: Vec<String>,
    /// The plan, as it was given.
    pub plan: String,
    /// When it was started, in seconds since 1970.
    pub began: u64,
    /// Where.
    pub machine: Machine,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU's model.
    pub cpu: String,
    /// CPUs online.
    pub cpus: usize,
    /// Memory in MiB, of dom0 where there is a Xen.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: String,
    /// Xen's version and scheduler; `None` where there is no Xen.
    pub xen: Option<String>,
    /// The machine is an emulated one: its times compare with each other only.
    pub emulated: bool,
}

/// The manifests in a directory of results, in their order.
pub fn read(dir: &Path) -> Result<Vec<Manifest>> {
    let path = dir.join(MANIFEST);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a manifest", path.display()))
}

/// Adds one to those in a directory of results.
pub fn add(dir: &Path, manifest: Manifest) -> Result<()> {
    let path = dir.join(MANIFEST);
    let mut all = if path.exists() {
        read(dir)?
    } else {
        Vec::new()
    };
    all.push(manifest);
    fs::write(&path, serde_json::to_string_pretty(&all)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Machine {
    /// This one.
    pub fn this() -> Result<Self> {
        let cpu = value("/proc/cpuinfo", "model name")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        Ok(Self {
            // Under QEMU without hardware to help it the CPU's model says so.
            emulated: cpu.contains("QEMU"),
            cpu,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: proc_size("/proc/meminfo", "MemTotal:")? >> 20,
            kernel: kernel.trim().to_owned(),
            xen: xen(),
        })
    }
}

/// Version and scheduler of the Xen that this runs on, if it does.
fn xen() -> Option<String> {
    let xen = Xen::open().ok()?;
    let (major, minor) = xen.xen_version().ok()?;
    let share = xen.cpu_share(DomainId::new(0)?).ok()?;
    let scheduler = share.map_or("no caps".to_owned(), |share| {
        format!("{:?}", share.scheduler).to_lowercase()
    });
    Some(format!("{major}.{minor}, scheduler {scheduler}"))
}

/// The value of the first line with that name.
fn value(file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_once(':'));
    let (_, value) = value.with_context(|| format!("{file} has no {name}"))?;
    Ok(value.trim().to_owned())
}

/// What a livesave says of its version.
pub fn version_of(livesave: &Path) -> Result<String> {
    let output = Command::new(livesave)
        .arg("--version")
        .output()
        .with_context(|| format!("{} could not be started", livesave.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest {
            livesave: "livesave 0.1.0".into(),
            commit: None,
            arguments: vec!["run".into()],
            plan: "repeats = 1".into(),
            began: 1,
            machine: Machine::this().unwrap(),
        };
        for began in [1, 2] {
            let manifest = Manifest {
                began,
                ..manifest.clone()
            };
            add(dir.path(), manifest).unwrap();
        }
        let began: Vec<_> = read(dir.path()).unwrap().iter().map(|m| m.began).collect();
        assert_eq!(began, [1, 2]);
    }
}
