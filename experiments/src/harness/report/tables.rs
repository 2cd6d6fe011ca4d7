//! Tables as such: cells, numbers, and how a table is set for a terminal.

use super::stats::Summary;
use crate::suite::table::align;

/// Columns of a terminal that a table may take; a wider one is set in several parts.
const WIDTH: usize = 120;

/// What stands where there is nothing to tell.
pub const NOTHING: &str = "–";

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// How to read it; may be empty.
    pub note: String,
    /// How many columns name the row; the others are numbers.
    pub names: usize,
    /// The heads of the columns.
    pub head: Vec<String>,
    /// The rows, as wide as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// For a terminal, with its title.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        if !self.note.is_empty() {
            text.push_str(&format!("({})\n", self.note));
        }
        let rows: Vec<_> = std::iter::once(&self.head).chain(&self.rows).collect();
        let name = self.name_column(&rows);
        let numbers = self.head.len().saturating_sub(self.names);
        let mut from = 0;
        while from < numbers {
            // As many columns as fit, but one at least.
            let part = |to: usize| {
                let columns = self.names + from..self.names + to;
                let rows = rows.iter().zip(&name).map(|(row, name)| {
                    let cells = row.get(columns.clone()).unwrap_or_default();
                    std::iter::once(name).chain(cells).cloned().collect()
                });
                align(&rows.collect::<Vec<Vec<String>>>())
            };
            let fits = |to: &usize| part(*to).lines().all(|line| line.chars().count() <= WIDTH);
            let to = (from + 2..=numbers).take_while(fits).last();
            let to = to.unwrap_or(from + 1);
            if from > 0 {
                text.push('\n');
            }
            text.push_str(&part(to));
            from = to;
        }
        text
    }

    /// The columns that name the rows as one.
    fn name_column(&self, rows: &[&Vec<String>]) -> Vec<String> {
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.names).map(width).collect();
        let name = |row: &&Vec<String>| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ")
        };
        rows.iter().map(name).collect()
    }
}

/// Decimals with which a number of this size has about three digits that matter.
#[must_use]
pub fn decimals(value: f64) -> usize {
    match value.abs() {
        0.0 => 0,
        size if size < 0.995 => 3,
        size if size < 9.95 => 2,
        size if size < 99.5 => 1,
        _ => 0,
    }
}

/// A number with so many decimals, its thousands apart from 10 000 on.
#[must_use]
pub fn number_with(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    // What rounds to nothing has no sign.
    let text = match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        _ => text,
    };
    let whole = text.split('.').next().unwrap_or(&text);
    let digits = whole.trim_start_matches('-').len();
    if digits < 5 || !value.is_finite() {
        return text;
    }
    let sign = whole.len() - digits;
    let mut apart = String::new();
    for (at, c) in text.chars().enumerate() {
        let left = (sign + digits).saturating_sub(at);
        if at > sign && left > 0 && left.is_multiple_of(3) {
            apart.push('\u{a0}');
        }
        apart.push(c);
    }
    apart
}

/// A number as tables show it.
#[must_use]
pub fn number(value: f64) -> String {
    number_with(value, decimals(value))
}

/// Median, quartiles and number of values: `71.2 [70.1..74.0] (5)`. Quartiles that read as the median
/// does are left out.
#[must_use]
pub fn spread(summary: Option<Summary>) -> String {
    let Some(Summary {
        n, q1, median, q3, ..
    }) = summary
    else {
        return NOTHING.into();
    };
    // Counts have no decimals.
    let whole = [q1, median, q3].iter().all(|value| value.fract() == 0.0);
    let decimals = if whole { 0 } else { decimals(median.max(q3)) };
    let number = |value| number_with(value, decimals);
    let [low, middle, high] = [q1, median, q3].map(number);
    if low == middle && middle == high {
        return format!("{middle} ({n})");
    }
    format!("{middle} [{low}..{high}] ({n})")
}

/// The same without the number of values, for tables that have a column for it.
#[must_use]
pub fn range(summary: Option<Summary>) -> String {
    let text = spread(summary);
    match text.rsplit_once(" (") {
        Some((range, _)) => range.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        let shown = [0.0, 0.0712, 1.0, 71.23, 712.3, 7123.0, 71_234.0, -0.0001].map(number);
        let nbsp = "71\u{a0}234";
        let expected = ["0", "0.071", "1.00", "71.2", "712", "7123", nbsp, "0.000"];
        assert_eq!(shown, expected);
        assert_eq!(number(-1_234_567.0), "-1\u{a0}234\u{a0}567");
        assert_eq!(number_with(12_345.67, 1), "12\u{a0}345.7");
        assert_eq!(number(f64::INFINITY), "inf");
    }

    #[test]
    fn a_spread_has_its_quartiles_and_its_number() {
        let three = Summary::of([70.0, 71.5, 80.0]);
        assert_eq!(spread(three), "71.5 [70.8..75.8] (3)");
        assert_eq!(range(three), "71.5 [70.8..75.8]");
        let uneven = Summary::of([3.0, 4.0, 5.0]);
        assert_eq!(spread(uneven), "4.00 [3.50..4.50] (3)");
        assert_eq!(spread(Summary::of([4.0, 4.0])), "4 (2)");
        assert_eq!(spread(Summary::of([4.5])), "4.50 (1)");
        assert_eq!(spread(None), NOTHING);
    }

    #[test]
    fn a_wide_table_is_set_in_parts_that_all_name_their_rows() {
        let row = |name: &str| {
            let mut row = vec![name.to_owned(), "m".to_owned()];
            row.extend((0..9).map(|i| format!("column number {i}")));
            row
        };
        let table = Table {
            title: "T".into(),
            names: 2,
            head: row("head"),
            rows: vec![row("first")],
            ..Table::default()
        };
        let text = table.text();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.matches("first  m").count(), 2);
        assert_eq!(text.matches("column number 8").count(), 2);
    }
}
