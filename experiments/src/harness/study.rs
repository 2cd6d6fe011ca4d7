//! One part of a plan, and the cases that it is made of.

use super::case::{Backend, Case, GuestKind, Load, Method};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Deserializer};

/// One part of a plan: the product of all its lists.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Its name; tables and plots are made for each.
    pub name: String,
    /// How often each case is measured.
    pub repeats: Option<u32>,
    /// Kinds of guest.
    pub guests: Vec<GuestKind>,
    /// Sizes in MiB.
    pub memory: Vec<u64>,
    /// Numbers of vCPUs.
    #[serde(default = "one_vcpu")]
    pub vcpus: Vec<u32>,
    /// Limits in percent of one CPU; 0 is none.
    #[serde(default = "no_cap")]
    pub caps: Vec<u32>,
    /// What guests write: pages a second or `max`, with a pattern behind them if it is not `ring`
    /// (`20000 random`, `max hot:16`); or `idle`.
    #[serde(deserialize_with = "loads")]
    pub loads: Vec<Load>,
    /// Ways to save.
    pub methods: Vec<Method>,
    /// Pauses asked for in milliseconds; 0 is livesave's default.
    #[serde(default = "default_target")]
    pub targets: Vec<u32>,
    /// Of increments: percent of the guest's memory written since the image before.
    #[serde(default)]
    pub dirty: Vec<u32>,
}

fn one_vcpu() -> Vec<u32> {
    vec![1]
}

fn no_cap() -> Vec<u32> {
    vec![0]
}

fn default_target() -> Vec<u32> {
    vec![0]
}

fn loads<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Load>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let loads = texts.iter().map(|text| load(text));
    loads
        .collect::<Result<_>>()
        .map_err(serde::de::Error::custom)
}

/// Reads `RATE [PATTERN]` or `idle`.
fn load(text: &str) -> Result<Load> {
    let words: Vec<_> = text.split_whitespace().collect();
    let (rate, pattern) = match words[..] {
        ["idle"] => ("0", "idle"),
        [rate] => (rate, "ring"),
        [rate, pattern] => (rate, pattern),
        _ => bail!("{text:?} is no load: RATE, RATE PATTERN or idle is wanted"),
    };
    // The words that the workload itself takes.
    let _: crate::workload::config::Rate = rate.parse().map_err(anyhow::Error::msg)?;
    let _: crate::workload::config::Pattern = pattern.parse().map_err(anyhow::Error::msg)?;
    Ok(Load {
        pattern: pattern.to_owned(),
        rate: rate.to_owned(),
    })
}

impl Study {
    /// Says what is wrong with it.
    pub(super) fn check(&self) -> Result<()> {
        let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !self.name.is_empty() && self.name.chars().all(safe),
            "its name may have small letters, digits and '-'"
        );
        for (what, empty) in [
            ("guests", self.guests.is_empty()),
            ("memory", self.memory.is_empty()),
            ("vcpus", self.vcpus.is_empty()),
            ("caps", self.caps.is_empty()),
            ("loads", self.loads.is_empty()),
            ("methods", self.methods.is_empty()),
            ("targets", self.targets.is_empty()),
        ] {
            ensure!(!empty, "{what} is empty");
        }
        let embedded = self.guests.contains(&GuestKind::Embedded);
        ensure!(
            !embedded || self.guests.len() == 1,
            "embedded guests have a study of their own"
        );
        let stock = |method: &&Method| !method.is_ours() && **method != Method::Plain;
        if let Some(method) = self.methods.iter().find(stock).filter(|_| embedded) {
            bail!("{method} needs a real Xen");
        }
        let increments = self.methods.contains(&Method::Increment);
        ensure!(
            increments || self.dirty.is_empty(),
            "`dirty` is for the method increment"
        );
        ensure!(
            !increments || !self.dirty.is_empty(),
            "the method increment needs `dirty`"
        );
        let tracked = [GuestKind::Pvh, GuestKind::Embedded];
        ensure!(
            !increments || self.guests.iter().all(|guest| tracked.contains(guest)),
            "the method increment is for PVH and embedded guests"
        );
        // The workload's ring is a quarter of the memory.
        ensure!(
            self.dirty.iter().all(|percent| (1..=25).contains(percent)),
            "`dirty` takes 1 to 25 percent"
        );
        // Less has no room for the workload beside the guest's kernel.
        let least = if embedded { 64 } else { 192 };
        let out = |mib: &&u64| **mib < least || **mib > 1 << 20;
        ensure!(
            !self.memory.iter().any(|mib| out(&mib)),
            "memory is in MiB, from {least} up"
        );
        let most = self.vcpus.iter().copied().max().unwrap_or(1);
        ensure!((1..=64).contains(&most), "vcpus is 1 to 64");
        ensure!(
            self.caps.iter().all(|cap| *cap <= 100 * most),
            "caps are percent of one CPU, up to 100 for each vCPU"
        );
        Ok(())
    }

    /// All its cases.
    pub(super) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for &guest in &self.guests {
            for &memory_mib in &self.memory {
                for &vcpus in &self.vcpus {
                    for &cap in &self.caps {
                        for load in &self.loads {
                            let case = Case {
                                study: self.name.clone(),
                                backend: match guest {
                                    GuestKind::Embedded => Backend::Embedded,
                                    _ => Backend::Xen,
                                },
                                guest,
                                memory_mib,
                                vcpus,
                                cap: (cap != 0).then_some(cap),
                                load: load.clone(),
                                method: Method::Plain,
                                target_ms: None,
                                dirty_percent: None,
                            };
                            cases.extend(self.methods_of(&case));
                        }
                    }
                }
            }
        }
        cases
    }

    /// The case with every method, and what varies for some of them only.
    fn methods_of(&self, case: &Case) -> Vec<Case> {
        let mut cases = Vec::new();
        for &method in &self.methods {
            let targets = if method.is_ours() {
                &self.targets[..]
            } else {
                &[0]
            };
            let dirty: Vec<_> = match method {
                Method::Increment => self.dirty.iter().copied().map(Some).collect(),
                _ => vec![None],
            };
            for &target in targets {
                for &dirty_percent in &dirty {
                    cases.push(Case {
                        method,
                        target_ms: (target != 0).then_some(target),
                        dirty_percent,
                        ..case.clone()
                    });
                }
            }
        }
        cases
    }
}
