//! Counts what came of the strikes, and says what it proves.

use std::collections::BTreeMap;

use super::check::{Found, Wrong};
use super::plan::Harm;
use super::strike::{Phase, Struck};

/// The most examples of what went wrong that are kept.
const EXAMPLES: usize = 20;

/// What came of all strikes of a class.
#[derive(Clone, Debug, Default)]
struct Class {
    saves: u64,
    landed: u64,
    phases: [u64; Phase::ALL.len()],
    by_guardian: u64,
    by_recovery: u64,
    images: u64,
    wrong: u64,
}

/// What came of all strikes.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    classes: BTreeMap<String, Class>,
    wrong: BTreeMap<Wrong, u64>,
    examples: Vec<String>,
    random_kills: u64,
}

impl Tally {
    /// Counts one save.
    pub fn add(&mut self, harm: Harm, struck: &Struck, found: &Found) {
        let class = self.classes.entry(harm.class()).or_default();
        class.saves += 1;
        class.by_guardian += u64::from(found.by_guardian);
        class.by_recovery += u64::from(found.by_recovery);
        class.images += u64::from(found.image);
        class.wrong += u64::from(!found.wrong.is_empty());
        if struck.landed {
            class.landed += 1;
            for (count, phase) in class.phases.iter_mut().zip(Phase::ALL) {
                *count += u64::from(phase == struck.phase);
            }
            self.random_kills += u64::from(harm.is_random_kill());
        }
        let mut kinds: Vec<Wrong> = found.wrong.iter().map(|&(wrong, _)| wrong).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            *self.wrong.entry(kind).or_default() += 1;
        }
        for (wrong, what) in &found.wrong {
            if self.examples.len() < EXAMPLES {
                let (phase, took) = (struck.phase, struck.took);
                let class = harm.class();
                self.examples.push(format!(
                    "{wrong:?} ({class}, {harm:?}, in phase {phase:?}, {took:.1?}): {what}"
                ));
            }
        }
    }

    /// How many saves were killed at random instants.
    #[must_use]
    pub fn random_kills(&self) -> u64 {
        self.random_kills
    }

    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.wrong.is_empty()
    }

    /// How often something of a kind went wrong.
    #[must_use]
    pub fn count(&self, wrong: Wrong) -> u64 {
        self.wrong.get(&wrong).copied().unwrap_or(0)
    }

    /// The table, a line per class, and the verdict.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = format!(
            "{:<38} {:>5} {:>4} | {:>3} {:>4} {:>8} {:>9} {:>9} | {:>8} {:>7} {:>6} {:>5}\n",
            "what was done to the save",
            "saves",
            "hit",
            "-",
            "none",
            "tracking",
            "requested",
            "suspended",
            "guardian",
            "recover",
            "images",
            "wrong"
        );
        for (name, class) in &self.classes {
            let [no_journal, none, tracking, requested, suspended] = class.phases;
            text.push_str(&format!(
                "{name:<38} {:>5} {:>4} | {no_journal:>3} {none:>4} {tracking:>8} {requested:>9} \
                 {suspended:>9} | {:>8} {:>7} {:>6} {:>5}\n",
                class.saves,
                class.landed,
                class.by_guardian,
                class.by_recovery,
                class.images,
                class.wrong
            ));
        }
        text.push_str(
            "between the bars: what the journal said when it was hit; then: how often guardian and \
             recovery had something to put right, whole images\n",
        );
        for example in &self.examples {
            text.push_str(&format!("wrong: {example}\n"));
        }
        let saves: u64 = self.classes.values().map(|class| class.saves).sum();
        text.push_str(&format!(
            "{} saves killed at random instants, {saves} saves in all:",
            self.random_kills
        ));
        for (index, (wrong, name)) in Wrong::ALL.into_iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            text.push_str(&format!("{comma} {} {name}", self.count(wrong)));
        }
        text.push_str(if self.is_clean() {
            ": PASSED\n"
        } else {
            ": FAILED\n"
        });
        text
    }
}
