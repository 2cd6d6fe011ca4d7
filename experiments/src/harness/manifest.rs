//! What a sweep was made with: versions, arguments, the machine.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

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
