//! A plan: which runs a sweep is made of, and in which order.

use super::case::{Case, GuestKind, Planned};
use super::study::Study;
use crate::kills::rng::Rng;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The plans that come with the harness, by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("short", include_str!("../../plans/short.toml")),
    ("full", include_str!("../../plans/full.toml")),
    ("embedded", include_str!("../../plans/embedded.toml")),
];

/// A plan file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What shuffles the runs.
    #[serde(default = "one")]
    pub seed: u64,
    /// How often each case is measured, unless its study says otherwise.
    #[serde(default = "five")]
    pub repeats: u32,
    /// Where guests come from and images go, on a dom0.
    #[serde(default)]
    pub dom0: Dom0,
    /// The parts of the plan.
    #[serde(rename = "study")]
    pub studies: Vec<Study>,
}

/// What the harness finds on a dom0.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dom0 {
    /// The livesave command.
    pub livesave: PathBuf,
    /// A directory for one image at a time; what it is on is what images are written to.
    pub images: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The guests' initramfs, which holds the workload (`experiments/testbed/guest-initrd` makes it).
    pub ramdisk: PathBuf,
    /// Another kernel for HVM guests: it must be as distributions pack it.
    pub hvm_kernel: Option<PathBuf>,
    /// Another initramfs for HVM guests, such as the same packed by gzip.
    pub hvm_ramdisk: Option<PathBuf>,
    /// CPUs on which guests run, as `cpus` of xl.cfg; empty is any. Not dom0's, for its work would
    /// show as gaps.
    pub cpus: String,
    /// Where xenconsoled logs the guests' consoles (`--log=guest` or `--log=all`).
    pub console_logs: PathBuf,
}

impl Default for Dom0 {
    fn default() -> Self {
        Self {
            livesave: "livesave".into(),
            images: "/var/tmp".into(),
            kernel: "/boot/vmlinuz".into(),
            ramdisk: "/var/lib/livesave/guest-initrd.img".into(),
            hvm_kernel: None,
            hvm_ramdisk: None,
            cpus: String::new(),
            console_logs: crate::dom0::console::LOG_DIR.into(),
        }
    }
}

fn one() -> u64 {
    1
}

fn five() -> u32 {
    5
}

impl Plan {
    /// Reads a plan of that name, or a file. Also the text of it.
    pub fn find(name: &Path) -> Result<(Self, String)> {
        let built_in = BUILT_IN.iter().find(|(known, _)| Path::new(known) == name);
        let text = match built_in {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(name).with_context(|| {
                let names = BUILT_IN.map(|(name, _)| name).join(", ");
                format!(
                    "cannot read the plan {} (built in are {names})",
                    name.display()
                )
            })?,
        };
        let plan = Self::parse(&text).with_context(|| format!("plan {}", name.display()))?;
        Ok((plan, text))
    }

    /// Reads a plan.
    pub fn parse(text: &str) -> Result<Self> {
        let plan: Self = toml::from_str(text)?;
        ensure!(!plan.studies.is_empty(), "it has no study");
        let mut names = HashSet::new();
        for study in &plan.studies {
            study
                .check()
                .with_context(|| format!("study {:?}", study.name))?;
            ensure!(
                names.insert(&study.name),
                "two studies are named {:?}",
                study.name
            );
        }
        Ok(plan)
    }

    /// All runs, in the order in which they are made.
    ///
    /// Each repetition is one pass over all cases, in an order of its own, so that whatever the
    /// machine does for a while meets all of them alike. Within a pass cases of one guest follow each
    /// other (a guest takes seconds to boot), the guests in random order and the cases of each too.
    #[must_use]
    pub fn runs(&self) -> Vec<Planned> {
        let mut random = Rng::new(self.seed, 0);
        let cases: Vec<(Case, u32)> = self
            .studies
            .iter()
            .flat_map(|study| {
                let repeats = study.repeats.unwrap_or(self.repeats);
                study.cases().into_iter().map(move |case| (case, repeats))
            })
            .collect();
        let most = cases.iter().map(|(_, repeats)| *repeats).max().unwrap_or(0);
        let mut runs = Vec::new();
        for repeat in 0..most {
            let wanted = cases.iter().filter(|(_, repeats)| repeat < *repeats);
            let mut groups: Vec<(Shape, Vec<Case>)> = Vec::new();
            for (case, _) in wanted {
                let shape = Shape::of(case);
                match groups.iter_mut().find(|(known, _)| *known == shape) {
                    Some((_, group)) => group.push(case.clone()),
                    None => groups.push((shape, vec![case.clone()])),
                }
            }
            shuffle(&mut groups, &mut random);
            for (_, mut group) in groups {
                shuffle(&mut group, &mut random);
                runs.extend(group.into_iter().map(|case| Planned { case, repeat }));
            }
        }
        runs
    }
}

/// What a running guest cannot be told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its kind.
    pub guest: GuestKind,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its vCPUs.
    pub vcpus: u32,
}

impl Shape {
    /// The guest that a case needs.
    #[must_use]
    pub fn of(case: &Case) -> Self {
        Self {
            guest: case.guest,
            memory_mib: case.memory_mib,
            vcpus: case.vcpus,
        }
    }
}

fn shuffle<T>(values: &mut [T], random: &mut Rng) {
    for last in (1..values.len()).rev() {
        values.swap(last, (random.throw() % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = r#"
        seed = 7
        repeats = 3
        [[study]]
        name = "rates"
        guests = ["pvh"]
        memory = [256, 512]
        loads = ["100", "5000 random", "idle"]
        methods = ["plain", "improved"]
        targets = [0, 100]
        [[study]]
        name = "increments"
        repeats = 1
        guests = ["pvh"]
        memory = [256]
        loads = ["100"]
        methods = ["increment"]
        dirty = [1, 10]
    "#;

    #[test]
    fn every_run_is_there_once_and_repetitions_follow_each_other() {
        let plan = Plan::parse(PLAN).unwrap();
        let runs = plan.runs();
        // Targets are for livesave only.
        assert_eq!(runs.len(), 3 * 2 * 3 * (1 + 2) + 2);
        let ids: HashSet<_> = runs.iter().map(Planned::id).collect();
        assert_eq!(ids.len(), runs.len());
        assert!(runs.is_sorted_by_key(|run| run.repeat));
        let first = |runs: &[Planned]| runs[..18].iter().map(Planned::id).collect::<Vec<_>>();
        assert_eq!(first(&runs), first(&plan.runs()));
        let other = Plan::parse(&PLAN.replace("seed = 7", "seed = 8")).unwrap();
        assert_ne!(first(&runs), first(&other.runs()));
    }

    #[test]
    fn a_guest_is_started_once_a_repetition() {
        let runs = Plan::parse(PLAN).unwrap().runs();
        let mut starts = 0;
        for (last, next) in runs.iter().zip(&runs[1..]) {
            starts += u32::from(Shape::of(&last.case) != Shape::of(&next.case));
        }
        assert!(starts <= 5, "{starts}");
    }

    #[test]
    fn plans_that_cannot_be_are_refused_by_name() {
        for (from, to, named) in [
            ("memory = [256, 512]", "memory = []", "memory is empty"),
            ("\"100\", \"5000 random\"", "\"fast\"", "fast"),
            ("[\"plain\", \"improved\"]", "[\"rsync\"]", "rsync"),
            ("memory = [256]", "memory = [128]", "from 192 up"),
            ("dirty = [1, 10]", "", "needs `dirty`"),
            (
                "guests = [\"pvh\"]\n        memory = [256]\n",
                "guests = [\"hvm\"]\n        memory = [256]\n",
                "PVH and embedded",
            ),
            ("dirty = [1, 10]", "dirty = [90]", "1 to 25"),
            ("name = \"increments\"", "name = \"rates\"", "two studies"),
            ("seed = 7", "sed = 7", "sed"),
            (
                "guests = [\"pvh\"]",
                "guests = [\"embedded\", \"pvh\"]",
                "of their own",
            ),
        ] {
            let err = format!(
                "{:#}",
                Plan::parse(&PLAN.replacen(from, to, 1)).unwrap_err()
            );
            assert!(err.contains(named), "{to}: {err}");
        }
    }

    #[test]
    fn the_plans_that_come_with_it_can_be_read() {
        for (name, _) in BUILT_IN {
            let (plan, _) = Plan::find(Path::new(name)).unwrap();
            assert!(!plan.runs().is_empty(), "{name}");
        }
    }
}
