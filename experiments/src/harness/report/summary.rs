//! Every case in a few numbers, for other programs.

use super::super::case::Case;
use super::super::record::{Measured, Outcome, Run};
use super::measure;
use super::stats::Summary;
use serde::Serialize;
use std::collections::BTreeMap;

/// What the runs of a case come to.
#[derive(Debug, Serialize)]
pub struct OfCase {
    /// The case.
    pub case: Case,
    /// How many runs were good.
    pub good: usize,
    /// How many failed by their method.
    pub failed: usize,
    /// How many livesave refused, for their kind of guest.
    pub refused: usize,
    /// How many the machine spoilt.
    pub spoilt: usize,
    /// Of the good ones: every measure that is known of one at least, by its name with its unit.
    pub measures: BTreeMap<&'static str, Summary>,
}

/// All cases, in their order.
#[must_use]
pub fn of(runs: &[Run]) -> Vec<OfCase> {
    let mut cases: BTreeMap<&Case, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        cases.entry(&run.planned.case).or_default().push(run);
    }
    cases
        .into_iter()
        .map(|(case, runs)| of_case(case, &runs))
        .collect()
}

fn of_case(case: &Case, runs: &[&Run]) -> OfCase {
    let good: Vec<&Measured> = runs.iter().filter_map(|run| run.good()).collect();
    let count = |of: fn(&Outcome) -> bool| runs.iter().filter(|run| of(&run.outcome)).count();
    let spoilt = count(|outcome| matches!(outcome, Outcome::Machine(_)));
    let refused = count(|outcome| matches!(outcome, Outcome::Refused(_)));
    let measures = measure::ALL
        .into_iter()
        .filter_map(|measure| Some((measure.key, measure.summary(&good)?)));
    OfCase {
        case: case.clone(),
        failed: runs.len() - good.len() - spoilt - refused,
        refused,
        spoilt,
        measures: measures.collect(),
        good: good.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::case::Method;
    use super::super::super::record::tests::run;
    use super::*;

    #[test]
    fn a_case_has_the_medians_of_its_good_runs() {
        let gaps = [0.1, 0.2, 0.4, 9.0].into_iter().enumerate();
        let mut runs: Vec<_> = gaps
            .map(|(repeat, gap)| run(Method::Live, "100", repeat as u32, gap))
            .collect();
        runs[3].outcome = Outcome::Machine("it stood still".into());
        runs.push(run(Method::Plain, "100", 0, 4.0));
        let cases = of(&runs);
        assert_eq!(cases.len(), 2);
        let live = cases
            .iter()
            .find(|c| c.case.method == Method::Live)
            .unwrap();
        assert_eq!((live.good, live.failed, live.spoilt), (3, 0, 1));
        let gap = live.measures["gap_ms"];
        assert_eq!((gap.n, gap.median), (3, 200.0));
    }
}
