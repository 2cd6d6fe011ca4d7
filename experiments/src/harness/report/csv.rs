//! Runs as comma-separated values: as they were measured, in the units in which they were, one row each.

use super::super::record::{Outcome, Run};
use super::measure::{self, Measure};
use serde::Serialize;

/// Every run, the failed and the spoilt ones too.
#[must_use]
pub fn runs(runs: &[Run]) -> String {
    let head = "id,study,backend,guest,memory_mib,vcpus,cap_percent,pattern,rate_pages_per_s,method,\
                target_ms,dirty_percent,repeat,attempt,began_unix_s,outcome,why,gap_s,suspended_s,\
                total_s,rounds,mean_round_s,pause_pages,pages_sent,written_bytes,writes_per_s,\
                dirty_pages_per_s,network_bytes,image_bytes,allocated_bytes,host_cpu_s,\
                peak_memory_bytes,work_lost_s,predicted_s,window_s,target_met,throttled_s,\
                machine_stall_s";
    let mut text = format!("{head}\n");
    let width = head.split(',').count();
    for run in runs {
        let mut cells = case(run);
        cells.extend(measured(run));
        cells.resize(width, String::new());
        push(&mut text, &cells);
    }
    text
}

/// Every round of every run.
#[must_use]
pub fn rounds(runs: &[Run]) -> String {
    let mut text = String::from(
        "id,attempt,outcome,round,pages,written_bytes,seconds,dirty_pages,dirty_pages_or_sent_next\n",
    );
    for run in runs {
        let Some(measured) = &run.measured else {
            continue;
        };
        for (index, pass) in measured.rounds.iter().enumerate() {
            let cells = [
                run.id.clone(),
                run.attempt.to_string(),
                outcome(run).0.to_owned(),
                (index + 1).to_string(),
                pass.pages.to_string(),
                or_empty(pass.bytes),
                or_empty(pass.seconds),
                or_empty(pass.dirty_pages),
                or_empty(measure::dirty_after(measured, index)),
            ];
            push(&mut text, &cells);
        }
    }
    text
}

fn case(run: &Run) -> Vec<String> {
    let case = &run.planned.case;
    let (outcome, why) = outcome(run);
    vec![
        run.id.clone(),
        case.study.clone(),
        word(&case.backend),
        word(&case.guest),
        case.memory_mib.to_string(),
        case.vcpus.to_string(),
        or_empty(case.cap),
        case.load.pattern.clone(),
        case.load.rate.clone(),
        case.method.key().to_owned(),
        or_empty(case.target_ms),
        or_empty(case.dirty_percent),
        run.planned.repeat.to_string(),
        run.attempt.to_string(),
        run.began.to_string(),
        outcome.to_owned(),
        why.to_owned(),
    ]
}

fn measured(run: &Run) -> Vec<String> {
    let Some(m) = &run.measured else {
        return Vec::new();
    };
    let taken = |measure: Measure| or_empty(measure.of(m));
    vec![
        m.gap_s.to_string(),
        or_empty(m.suspended_s),
        m.total_s.to_string(),
        m.rounds.len().to_string(),
        taken(measure::ROUND_TIME),
        or_empty(m.pause_pages),
        m.pages_sent.to_string(),
        m.bytes_written.to_string(),
        m.writes_per_s.to_string(),
        or_empty(m.dirty_pages_per_s),
        m.network_bytes.to_string(),
        m.image_bytes.to_string(),
        m.allocated_bytes.to_string(),
        m.host_cpu_s.to_string(),
        m.peak_memory.to_string(),
        or_empty(m.work_lost_s),
        or_empty(m.predicted_s),
        or_empty(m.window_s),
        or_empty(m.target_met),
        or_empty(m.throttled_s),
        m.machine_stall_s.to_string(),
    ]
}

/// How a run ended in a word, and why.
#[must_use]
pub fn outcome(run: &Run) -> (&'static str, &str) {
    match &run.outcome {
        Outcome::Good => ("good", ""),
        Outcome::Method(why) => ("failed", why),
        Outcome::Refused(why) => ("refused", why),
        Outcome::Machine(why) => ("spoilt", why),
    }
}

/// As it is spelt in plans.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn or_empty(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Adds a row; what has commas, quotes or line ends is quoted (RFC 4180).
fn push(text: &mut String, cells: &[String]) {
    for (index, cell) in cells.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        if cell.contains([',', '"', '\n', '\r']) {
            text.push_str(&format!("\"{}\"", cell.replace('"', "\"\"")));
        } else {
            text.push_str(cell);
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::super::case::Method;
    use super::super::super::record::tests::run;
    use super::super::sample;
    use super::*;

    /// Reads it back.
    fn parse(text: &str) -> Vec<Vec<String>> {
        let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
        let (mut quoted, mut chars) = (false, text.chars().peekable());
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    cell.push('"');
                }
                '"' => quoted = !quoted,
                ',' if !quoted => row.push(std::mem::take(&mut cell)),
                '\n' if !quoted => {
                    row.push(std::mem::take(&mut cell));
                    rows.push(std::mem::take(&mut row));
                }
                c => cell.push(c),
            }
        }
        rows
    }

    fn value<'a>(rows: &'a [Vec<String>], row: usize, column: &str) -> &'a str {
        let column = rows[0].iter().position(|head| head == column).unwrap();
        &rows[row][column]
    }

    #[test]
    fn every_run_has_a_row_that_reads_back() {
        let runs = sample::runs();
        let rows = parse(&super::runs(&runs));
        assert_eq!(rows.len(), runs.len() + 1);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
        for (index, run) in runs.iter().enumerate() {
            assert_eq!(value(&rows, index + 1, "id"), run.id);
            let gap = value(&rows, index + 1, "gap_s").parse::<f64>().ok();
            assert_eq!(gap, run.measured.as_ref().map(|m| m.gap_s));
            let stall = value(&rows, index + 1, "machine_stall_s").parse::<f64>();
            assert_eq!(stall.ok(), run.measured.as_ref().map(|m| m.machine_stall_s));
        }
    }

    #[test]
    fn reasons_are_quoted() {
        let mut failed = run(Method::Plain, "100", 0, 4.0);
        let why = "it said \"no\", and\nended";
        failed.outcome = Outcome::Method(why.into());
        let rows = parse(&super::runs(&[failed]));
        assert_eq!(value(&rows, 1, "why"), why);
        assert_eq!(value(&rows, 1, "outcome"), "failed");
        assert_eq!(value(&rows, 1, "guest"), "pvh");
        assert_eq!(value(&rows, 1, "cap_percent"), "");
    }

    #[test]
    fn every_round_has_a_row() {
        let runs = sample::runs();
        let measured = runs.iter().filter_map(|run| run.measured.as_ref());
        let rounds: usize = measured.map(|m| m.rounds.len()).sum();
        let rows = parse(&super::rounds(&runs));
        assert_eq!(rows.len(), rounds + 1);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    }
}
