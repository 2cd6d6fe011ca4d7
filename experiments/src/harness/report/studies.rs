//! Which tables a study gets.

use super::super::case::Method;
use super::super::record::Measured;
use super::axis::{Axis, X};
use super::group::{Cell, Panel, Study};
use super::measure::{self, Measure};
use super::stats::Summary;
use super::tables::{NOTHING, Table, number_with, range, spread};
use std::cmp::Ordering;

/// The most rounds that get a column of their own.
const ROUNDS: usize = 8;

/// The row that counts the runs that are in no median.
pub const LOST: &str = "failed + spoilt";

/// How the tables with one value in a cell are to be read.
const SPREAD: &str = "median [lower quartile..upper quartile] (number of runs)";

/// The tables of a study, those of a panel together.
#[must_use]
pub fn tables(study: &Study<'_>) -> Vec<Table> {
    study
        .panels
        .iter()
        .flat_map(|panel| panel_tables(study, panel))
        .collect()
}

fn panel_tables(study: &Study<'_>, panel: &Panel<'_>) -> Vec<Table> {
    let maker = Maker { study, panel };
    let mut tables = match study.name {
        "targets" => vec![maker.targets()],
        "increments" => vec![maker.increments()],
        _ => vec![maker.across("Gap seen by the guest", measure::GAP)],
    };
    tables.push(maker.times());
    tables.push(maker.costs());
    // What rounds do is a matter of the load and of its limits.
    if matches!(study.axis, Axis::Load | Axis::Cap) {
        tables.extend(maker.rounds());
    }
    tables
}

/// Makes the tables of a panel.
struct Maker<'a> {
    study: &'a Study<'a>,
    panel: &'a Panel<'a>,
}

type Column<'a> = (String, Box<dyn Fn(&X, Method, &Cell<'_>) -> String + 'a>);

impl Maker<'_> {
    fn title(&self, what: &str) -> String {
        let Self { study, panel } = self;
        let place = if panel.title.is_empty() {
            String::new()
        } else {
            format!(", {}", panel.title)
        };
        format!("{}: {what}{place}", study.name)
    }

    /// A measure, with a row for each place and a column for each method. What failed is in a last row
    /// of its own.
    fn across(&self, what: &str, measure: Measure) -> Table {
        let methods = self.panel.methods();
        self.across_methods(what, measure, &methods)
    }

    fn across_methods(&self, what: &str, measure: Measure, methods: &[Method]) -> Table {
        let mut head = vec![self.study.axis.header().to_owned()];
        head.extend(methods.iter().map(|method| method.title().to_owned()));
        let value = |cell: &Cell<'_>| {
            match cell {
                cell if !cell.good.is_empty() => {}
                Cell { failed: 1.., .. } => return "failed".to_owned(),
                Cell { refused: 1.., .. } => return "refused".to_owned(),
                _ => {}
            }
            spread(measure.summary(&cell.good))
        };
        let row = |x: &X| {
            let cells = methods.iter().map(|method| {
                let cell = self.panel.cell(x, *method);
                cell.map_or_else(|| NOTHING.into(), value)
            });
            std::iter::once(x.label.clone()).chain(cells).collect()
        };
        let mut rows: Vec<Vec<_>> = self.panel.places().into_iter().map(row).collect();
        let mut lost = vec![LOST.to_owned()];
        for method in methods {
            let cells = self.panel.cells().filter(|(_, of, _)| of == method);
            let (failed, spoilt) = cells.fold((0, 0), |(failed, spoilt), (_, _, cell)| {
                (failed + cell.failed, spoilt + cell.spoilt)
            });
            lost.push(format!("{failed} + {spoilt}"));
        }
        rows.push(lost);
        let unit = match measure.unit {
            "" => String::new(),
            unit => format!("in {unit}; "),
        };
        Table {
            title: self.title(what),
            note: format!("{unit}{SPREAD}"),
            names: 1,
            head,
            rows,
        }
    }

    /// How long things take: a row for each place and method.
    fn times(&self) -> Table {
        let mut columns = vec![
            measured(measure::GAP),
            measured(measure::SUSPENDED),
            measured(measure::TOTAL),
            measured(measure::LOST),
        ];
        if self.panel.methods().contains(&Method::Improved) {
            columns.insert(1, self.ratio());
        }
        self.down("Times", columns)
    }

    /// What is spent.
    fn costs(&self) -> Table {
        let columns = [
            measure::PAGES,
            measure::IMAGE,
            measure::NETWORK,
            measure::CPU,
            measure::PEAK,
        ];
        self.down("Costs", columns.map(measured).into())
    }

    /// How short the pauses were that were asked for.
    fn targets(&self) -> Table {
        let share: Column<'_> = (
            "pause / target".into(),
            Box::new(|x, _, cell| {
                let pause = measure::PAUSE.summary(&cell.good);
                let target = (x.value > 0).then_some(x.value as f64);
                ratio(pause.map(|s| s.median), target)
            }),
        );
        let met: Column<'_> = (
            "met".into(),
            Box::new(|_, _, cell| {
                let known = cell.good.iter().filter_map(|run| run.target_met);
                let known: Vec<_> = known.collect();
                if known.is_empty() {
                    return NOTHING.into();
                }
                let met = known.iter().filter(|met| **met).count();
                format!("{met} of {}", known.len())
            }),
        );
        let columns = vec![
            measured(measure::PAUSE),
            share,
            met,
            measured(measure::PREDICTED),
            measured(measure::GAP),
            measured(measure::THROTTLED),
        ];
        self.down("Pauses against their targets", columns)
    }

    /// What an increment costs.
    fn increments(&self) -> Table {
        let columns = [
            measure::TOTAL,
            measure::IMAGE,
            measure::ALLOCATED,
            measure::PAGES,
            measure::GAP,
        ];
        self.down("Time and size of increments", columns.map(measured).into())
    }

    /// The gap in gaps of the improved method at the same place.
    fn ratio(&self) -> Column<'_> {
        let ratio = |x: &X, _: Method, cell: &Cell<'_>| {
            let gap = |cell: &Cell<'_>| measure::GAP.summary(&cell.good).map(|s| s.median);
            let ours = self.panel.cell(x, Method::Improved).and_then(gap);
            ratio(gap(cell), ours)
        };
        ("× improved".into(), Box::new(ratio))
    }

    /// A row for each place and method.
    fn down(&self, what: &str, mut columns: Vec<Column<'_>>) -> Table {
        let count = |of: fn(&Cell<'_>) -> usize| {
            Box::new(move |_: &X, _: Method, cell: &Cell<'_>| of(cell).to_string())
        };
        columns.push(("n".into(), count(|cell| cell.good.len())));
        // Only where there is something to tell: the tables are wide enough.
        if self.panel.cells().any(|(_, _, cell)| cell.failed > 0) {
            columns.push(("failed".into(), count(|cell| cell.failed)));
        }
        if self.panel.cells().any(|(_, _, cell)| cell.refused > 0) {
            columns.push(("refused".into(), count(|cell| cell.refused)));
        }
        if self.panel.cells().any(|(_, _, cell)| cell.spoilt > 0) {
            columns.push(("spoilt".into(), count(|cell| cell.spoilt)));
        }
        let mut head = vec![self.study.axis.header().to_owned(), "method".to_owned()];
        head.extend(columns.iter().map(|(head, _)| head.clone()));
        let mut last = None;
        let row = |(x, method, cell): (&X, Method, &Cell<'_>)| {
            // A place is named in the first of its rows.
            let name = if last.as_ref() == Some(x) {
                String::new()
            } else {
                x.label.clone()
            };
            last = Some(x.clone());
            let mut row = vec![name, method.title().to_owned()];
            row.extend(columns.iter().map(|(_, of)| of(x, method, cell)));
            row
        };
        Table {
            title: self.title(what),
            note: "median [lower quartile..upper quartile]; n good runs".into(),
            names: 2,
            rows: self.panel.cells().map(row).collect(),
            head,
        }
    }

    /// Rounds: how many, how long, and what each left dirty. None of methods that do not tell.
    fn rounds(&self) -> Vec<Table> {
        let mut methods = self.panel.methods();
        methods.retain(|method| {
            let mut cells = self.panel.cells().filter(|(_, of, _)| of == method);
            cells.any(|(_, _, cell)| cell.good.iter().any(|run| !run.rounds.is_empty()))
        });
        if methods.is_empty() {
            return Vec::new();
        }
        let mut tables = vec![
            self.across_methods("Rounds", measure::ROUNDS, &methods),
            self.across_methods("Mean round time", measure::ROUND_TIME, &methods),
        ];
        let dirty = methods.iter().map(|method| self.dirty(*method));
        tables.extend(dirty.flatten());
        tables
    }

    /// Pages left dirty by each round of a method.
    fn dirty(&self, method: Method) -> Option<Table> {
        let cells = self.panel.cells().filter(|(_, of, _)| *of == method);
        let medians: Vec<_> = cells
            .map(|(x, _, cell)| (x, cell.good.len(), dirty_per_round(&cell.good)))
            .collect();
        let most = medians.iter().map(|(_, _, rounds)| rounds.len()).max();
        let most = most.filter(|most| *most > 0)?;
        let shown = most.min(ROUNDS);
        let mut head = vec![self.study.axis.header().to_owned()];
        head.extend((1..=shown).map(|round| format!("round {round}")));
        if most > shown {
            head.push("last".into());
        }
        head.push("n".into());
        let row = |(x, n, rounds): &(&X, usize, Vec<Summary>)| {
            let number = |s: &Summary| number_with(s.median, 0);
            let mut row = vec![x.label.clone()];
            for round in 0..shown {
                row.push(rounds.get(round).map_or_else(|| NOTHING.into(), number));
            }
            if most > shown {
                let last = rounds.last().filter(|_| rounds.len() > shown);
                let last = last.map(|s| format!("{} (round {})", number(s), rounds.len()));
                row.push(last.unwrap_or_else(|| NOTHING.into()));
            }
            row.push(n.to_string());
            row
        };
        Some(Table {
            title: self.title(&format!("Pages dirty at the end of each round, {method}")),
            note: "median of the runs that had that round".into(),
            names: 1,
            head,
            rows: medians.iter().map(row).collect(),
        })
    }
}

/// Of the pages that each round left dirty: the runs that had that round and tell it.
#[must_use]
pub fn dirty_per_round(runs: &[&Measured]) -> Vec<Summary> {
    let most = runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    let round = |round| {
        let dirty = runs
            .iter()
            .filter_map(|run| measure::dirty_after(run, round));
        Summary::of(dirty)
    };
    (0..most).map_while(round).collect()
}

fn measured<'a>(measure: Measure) -> Column<'a> {
    let value = move |_: &X, _: Method, cell: &Cell<'_>| range(measure.summary(&cell.good));
    (measure.header(), Box::new(value))
}

fn ratio(of: Option<f64>, to: Option<f64>) -> String {
    match (of, to) {
        (Some(of), Some(to)) if to.total_cmp(&0.0) == Ordering::Greater => {
            let ratio = of / to;
            number_with(ratio, if ratio < 9.95 { 2 } else { 1 })
        }
        _ => NOTHING.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::case::Method;
    use super::super::super::record::tests::run;
    use super::super::super::record::{Outcome, Run};
    use super::super::{group, sample};
    use super::*;

    fn of(runs: &[Run]) -> Vec<Table> {
        group::studies(runs).iter().flat_map(tables).collect()
    }

    fn cell<'a>(table: &'a Table, row: &str, column: &str) -> &'a str {
        let column = table.head.iter().position(|head| head == column).unwrap();
        let row = table.rows.iter().find(|cells| cells[0] == row).unwrap();
        &row[column]
    }

    #[test]
    fn the_gap_has_a_row_for_each_rate_and_a_column_for_each_method() {
        let mut runs = Vec::new();
        for (repeat, gap) in [0.1, 0.2, 0.4].into_iter().enumerate() {
            runs.push(run(Method::Live, "100", repeat as u32, gap));
            runs.push(run(Method::Plain, "100", repeat as u32, gap * 10.0));
        }
        runs.push(run(Method::Live, "5000", 0, 0.5));
        let tables = of(&runs);
        let table = &tables[0];
        assert_eq!(table.title, "rates: Gap seen by the guest");
        assert_eq!(cell(table, "100", "livesave live"), "200 [150..300] (3)");
        let plain = cell(table, "100", "plain save");
        assert_eq!(plain, "2000 [1500..3000] (3)");
        assert_eq!(cell(table, "5000", "plain save"), NOTHING);
        assert_eq!(cell(table, "5000", "livesave live"), "500 (1)");
    }

    #[test]
    fn what_failed_or_was_spoilt_is_counted_and_not_in_the_medians() {
        let mut runs = vec![run(Method::Live, "100", 0, 0.1)];
        let mut failed = run(Method::Live, "100", 1, 100.0);
        failed.outcome = Outcome::Method("the guest died".into());
        let mut spoilt = run(Method::Live, "100", 2, 100.0);
        spoilt.outcome = Outcome::Machine("it stood still".into());
        runs.extend([failed.clone(), spoilt.clone(), spoilt]);
        let tables = of(&runs);
        assert_eq!(cell(&tables[0], "100", "livesave live"), "100 (1)");
        let lost = cell(&tables[0], "failed + spoilt", "livesave live");
        assert_eq!(lost, "1 + 2");
        let times = &tables[1];
        assert_eq!(cell(times, "100", "gap (ms)"), "100");
        assert_eq!(cell(times, "100", "n"), "1");
        assert_eq!(cell(times, "100", "failed"), "1");
        assert_eq!(cell(times, "100", "spoilt"), "2");
        assert_eq!(cell(&of(&[failed])[0], "100", "livesave live"), "failed");
    }

    #[test]
    fn what_was_refused_is_told_and_did_not_fail() {
        let mut refused = run(Method::Live, "100", 0, 0.1);
        refused.outcome = Outcome::Refused("it is a PV guest".into());
        refused.measured = None;
        let tables = of(&[refused, run(Method::Plain, "100", 0, 4.0)]);
        assert_eq!(cell(&tables[0], "100", "livesave live"), "refused");
        assert_eq!(cell(&tables[0], LOST, "livesave live"), "0 + 0");
        let times = &tables[1];
        let at = times
            .head
            .iter()
            .position(|head| head == "refused")
            .unwrap();
        let counts: Vec<_> = times.rows.iter().map(|row| &*row[at]).collect();
        assert_eq!(counts, ["0", "1"]);
    }

    #[test]
    fn gaps_are_told_in_gaps_of_the_improved_method() {
        let runs = [
            run(Method::Plain, "100", 0, 4.0),
            run(Method::Improved, "100", 0, 0.1),
        ];
        let times = &of(&runs)[1];
        assert_eq!(times.rows[0][3], "40.0");
        assert_eq!(times.rows[1][3], "1.00");
        // The place is named once.
        assert_eq!((&*times.rows[0][0], &*times.rows[1][0]), ("100", ""));
    }

    #[test]
    fn rounds_are_told_one_by_one() {
        let runs = [run(Method::Live, "100", 0, 0.1)];
        let tables = of(&runs);
        let named = |what: &str| tables.iter().find(|t| t.title.contains(what)).unwrap();
        assert_eq!(cell(named("Rounds"), "100", "livesave live"), "1 (1)");
        let times = named("Mean round time");
        assert_eq!(cell(times, "100", "livesave live"), "3 (1)");
        let dirty = named("Pages dirty at the end of each round");
        assert_eq!(cell(dirty, "100", "round 1"), "5000");
    }

    #[test]
    fn rows_are_as_wide_as_their_heads() {
        let tables = of(&sample::runs());
        for table in &tables {
            let width = table.head.len();
            assert!(table.rows.iter().all(|row| row.len() == width), "{table:?}");
        }
        let titles: Vec<_> = tables.iter().map(|table| &table.title).collect();
        let once: std::collections::BTreeSet<_> = titles.iter().collect();
        assert_eq!(titles.len(), once.len());
        for what in [
            "Pauses against",
            "Time and size of incr",
            "caps: Rounds, 1024",
        ] {
            assert!(titles.iter().any(|title| title.contains(what)), "{what}");
        }
    }
}
