//! The tests and measurements that run in the testbed's dom0.
//!
//! A small framework of its own: the tests need a real Xen, run one after the
//! other on it, and their lines must be seen as they come.

pub mod brought_back;
pub mod compare;
pub mod compressed;
pub mod cut;
pub mod disks;
mod dying;
pub mod endings;
pub mod failures;
pub mod faults;
pub mod floor;
pub mod guardian;
pub mod held;
pub mod hvm;
pub mod improved;
mod in_a_row;
pub mod increments;
pub mod interference;
pub mod mapping;
pub mod others;
pub mod packaged;
pub mod plan;
pub mod pv;
pub mod records;
pub mod restored;
mod runner;
pub mod saves;
pub mod signals;
pub mod stock;
pub mod table;
pub mod throttle;
mod transcripts;
pub mod volumes;
pub mod xenstored;

pub use plan::{Kind, When};
pub use runner::run;

use crate::dom0::emulator;
use crate::dom0::guest::Guest;
use crate::dom0::harm::Harm;
use crate::dom0::livesave::Livesave;
use crate::dom0::log_dirty;
use crate::dom0::pool::{Lent, Pool};
use crate::dom0::spec::{GuestType, Spec};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// What a test has at hand.
pub struct Bench {
    /// The command under test.
    pub livesave: Livesave,
    /// This suite's own binary, which is also the VNsnap-style receiver.
    pub suite: PathBuf,
    /// An empty directory on tmpfs for images, emptied after each test.
    pub images: PathBuf,
    /// The test's directory among the results.
    pub results: PathBuf,
    /// Lends guests.
    pub pool: Rc<Pool>,
    /// How often a measurement is repeated.
    pub repeats: usize,
    /// CPUs of this machine, the first of which is dom0's.
    pub cpus: u32,
}

/// One test.
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// When it is run.
    pub when: When,
    /// What guest it begins with, so that those with the same one are run one after the other.
    pub kind: Kind,
    /// The test; what it returns is printed beside `ok`.
    pub run: fn(&Bench) -> Result<String>,
}

impl Kind {
    /// A test that is run in every suite.
    #[must_use]
    pub fn core(self, name: &'static str, run: fn(&Bench) -> Result<String>) -> Test {
        self.test(When::Core, name, run)
    }

    /// A test that is run if there is time for it.
    #[must_use]
    pub fn in_turn(self, name: &'static str, run: fn(&Bench) -> Result<String>) -> Test {
        self.test(When::InTurn, name, run)
    }

    /// A test that is run when it is asked for.
    #[must_use]
    pub fn asked(self, name: &'static str, run: fn(&Bench) -> Result<String>) -> Test {
        self.test(When::Asked, name, run)
    }

    fn test(self, when: When, name: &'static str, run: fn(&Bench) -> Result<String>) -> Test {
        Test {
            name,
            when,
            kind: self,
            run,
        }
    }
}

/// All tests. `plan` puts them in order.
#[must_use]
pub fn all() -> Vec<Test> {
    let mut tests = Vec::new();
    tests.extend(stock::tests());
    tests.extend(saves::tests());
    tests.extend(in_a_row::tests());
    tests.extend(packaged::tests());
    tests.extend(compressed::tests());
    tests.extend(improved::tests());
    tests.extend(restored::tests());
    tests.extend(increments::tests());
    tests.extend(failures::tests());
    tests.extend(signals::tests());
    tests.extend(guardian::tests());
    tests.extend(others::tests());
    tests.extend(faults::tests());
    tests.extend(xenstored::tests());
    tests.extend(endings::tests());
    tests.extend(volumes::tests());
    tests.extend(disks::tests());
    tests.extend(cut::tests());
    tests.extend(brought_back::tests());
    tests.extend(records::tests());
    tests.extend(held::tests());
    tests.extend(throttle::tests());
    tests.extend(interference::tests());
    tests.extend(hvm::tests());
    tests.extend(pv::tests());
    tests.extend(compare::tests());
    tests.extend(floor::tests());
    tests.extend(mapping::tests());
    tests.extend(transcripts::tests());
    tests
}

/// Which tests to run, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Parts of names; empty means all.
    pub filters: Vec<String>,
    /// The long measurements too.
    pub bench: bool,
    /// The command under test.
    pub livesave: PathBuf,
    /// This binary.
    pub suite: PathBuf,
    /// Directory for images.
    pub images: PathBuf,
    /// Directory for results.
    pub results: PathBuf,
    /// How often a measurement is repeated.
    pub repeats: usize,
    /// CPUs of this machine, the first of which is dom0's.
    pub cpus: u32,
    /// The time for all of it; without, every test that is selected is run.
    pub budget: Option<Duration>,
    /// Number of the day: with it changes which tests come first.
    pub day: u64,
}

impl Settings {
    fn selects(&self, test: &Test) -> bool {
        if self.filters.is_empty() {
            self.bench || test.when != When::Asked
        } else {
            self.filters.iter().any(|part| test.name.contains(part))
        }
    }
}

impl Bench {
    /// Lends a guest, as new: it may have been in other tests, and goes to others.
    pub fn guest(&self, change: impl FnOnce(Spec) -> Spec) -> Result<Lent> {
        let mut spec = change(Spec::default());
        if spec.vcpus > 1 {
            spec = spec.each_on_its_own(self.cpus);
        }
        self.pool.lend(spec, &self.results)
    }

    /// The command built with points at which it meets faults.
    #[must_use]
    pub fn faulty(&self) -> Livesave {
        Livesave {
            binary: dying::FAULTY.into(),
            ..self.livesave.clone()
        }
    }

    /// A path for an image.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }

    /// Keeps something among the results, as JSON.
    pub fn keep(&self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let path = self.results.join(name);
        fs::write(&path, serde_json::to_string_pretty(value)?)
            .with_context(|| format!("{}", path.display()))
    }

    /// What must hold after every save, failed or not: the guest runs as if
    /// nothing had been, and is not being logged.
    pub fn must_be_unharmed(&self, guest: &Guest) -> Result<()> {
        guest
            .must_run_on()
            .context("after the save")
            .context(Harm)?;
        log_dirty::must_be_off(guest.domid).context(Harm)?;
        if guest.spec.kind == GuestType::Hvm {
            emulator::must_run(guest.domid)?;
        }
        let left = guest.request().unwrap_or_default();
        if !left.is_empty() {
            return Err(Harm.because(format!("a shutdown request was left in xenstore: {left:?}")));
        }
        Ok(())
    }

    /// The directory must hold these names and no other.
    pub fn must_hold_only(&self, dir: &Path, names: &[&str]) -> Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            found.push(entry?.file_name().to_string_lossy().into_owned());
        }
        found.sort();
        let mut wanted = names.to_vec();
        wanted.sort_unstable();
        if found != wanted {
            let held = format!("{} holds {found:?}, not {wanted:?}", dir.display());
            return Err(Harm.because(held));
        }
        Ok(())
    }
}
