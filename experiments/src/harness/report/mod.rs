//! The report of a sweep: tables, plots, and files for other programs.
//!
//! | file | what |
//! |---|---|
//! | `report.html` | all of it, to be read or printed; needs no other file |
//! | `tables.txt` | the tables as they are shown in the terminal |
//! | `plots/*.svg` | the plots, one file each |
//! | `runs.csv`, `rounds.csv` | a row for each run, and for each round of each run |
//! | `runs.json` | the runs as they were recorded |
//! | `summary.json` | medians and quartiles of every measure of every case |
//!
//! The same runs make the same files, byte for byte.

pub mod axis;
pub mod csv;
pub mod group;
pub mod guide;
pub mod html;
pub mod measure;
mod options;
pub mod plot;
pub mod sample;
pub mod stats;
pub mod studies;
pub mod summary;
pub mod tables;

use super::case::Backend;
use super::manifest::Manifest;
use super::record::{Outcome, Run};
use anyhow::{Context, Result, ensure};
use plot::{Plot, draw::draw, figures};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Writes all files of a report into a directory, which is made if it is not there; what an earlier
/// report left there is replaced. Returns the tables, for the terminal.
pub fn write(runs: &[Run], manifests: &[Manifest], out: &Path) -> Result<String> {
    ensure!(!runs.is_empty(), "there are no runs to report on");
    let runs = once(runs);
    let told = without_meaningless(&runs, manifests);
    let studies = group::studies(&told);
    let mut plots: Vec<_> = studies.iter().flat_map(figures::of_study).collect();
    plots.extend(figures::forecasts(&runs));
    name_apart(&mut plots);
    let drawn: Vec<_> = plots.iter().map(|plot| (plot, draw(plot))).collect();
    let tables: Vec<_> = studies
        .iter()
        .map(|study| (study, studies::tables(study)))
        .collect();
    let text = text(&runs, &tables);

    let put = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    clear(&out.join("plots"))?;
    for (plot, svg) in &drawn {
        put(&format!("plots/{}.svg", plot.slug), svg)?;
    }
    put("tables.txt", &text)?;
    put("runs.csv", &csv::runs(&runs))?;
    put("rounds.csv", &csv::rounds(&runs))?;
    put("runs.json", &json(&runs)?)?;
    put("summary.json", &json(&summary::of(&told))?)?;
    let html = html::page(&runs, manifests, &tables, &drawn);
    put("report.html", &html)?;
    Ok(text)
}

/// The runs without those that are given twice, as when a directory of results is named twice.
fn once(runs: &[Run]) -> Vec<Run> {
    let mut seen = BTreeSet::new();
    let new = |run: &&Run| seen.insert((run.id.clone(), run.attempt, run.began));
    runs.iter().filter(new).cloned().collect()
}

/// The runs as tables show them. On an emulated Xen a guest that writes as fast as it can has no
/// steady pace, against which what it lost could be told.
fn without_meaningless(runs: &[Run], manifests: &[Manifest]) -> Vec<Run> {
    let emulated = manifests.iter().any(|manifest| manifest.machine.emulated);
    let mut told = runs.to_vec();
    for run in told.iter_mut().filter(|_| emulated) {
        let case = &run.planned.case;
        let no_pace = case.backend == Backend::Xen && case.load.pages_per_second().is_none();
        if let Some(measured) = run.measured.as_mut().filter(|_| no_pace) {
            measured.work_lost_s = None;
        }
    }
    told
}

/// Gives plots of one name a number: names of studies may differ in what file names leave out.
fn name_apart(plots: &mut [Plot]) {
    let mut seen = BTreeSet::new();
    for plot in plots {
        let base = plot.slug.clone();
        let mut number = 1;
        while !seen.insert(plot.slug.clone()) {
            number += 1;
            plot.slug = format!("{base}-{number}");
        }
    }
}

/// Makes the directory of the plots; those of an earlier report would be taken for this one's.
fn clear(dir: &Path) -> Result<()> {
    let cannot = || format!("cannot make room in {}", dir.display());
    fs::create_dir_all(dir).with_context(cannot)?;
    for entry in fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.extension().is_some_and(|ext| ext == "svg") {
            fs::remove_file(&path).with_context(cannot)?;
        }
    }
    Ok(())
}

fn text(runs: &[Run], tables: &[(&group::Study<'_>, Vec<tables::Table>)]) -> String {
    let mut text = count(runs);
    text.push('\n');
    for (study, tables) in tables {
        text.push_str(&format!("\n== {} ==\n{}\n", study.name, study.common));
        for table in tables {
            text.push('\n');
            text.push_str(&table.text());
        }
    }
    text
}

/// How many runs there are of each outcome.
#[must_use]
pub fn count(runs: &[Run]) -> String {
    let of = |outcome: fn(&Outcome) -> bool| {
        let runs = runs.iter().filter(|run| outcome(&run.outcome));
        runs.count()
    };
    let good = of(|outcome| matches!(outcome, Outcome::Good));
    let failed = of(|outcome| matches!(outcome, Outcome::Method(_)));
    let spoilt = of(|outcome| matches!(outcome, Outcome::Machine(_)));
    let refused = match of(|outcome| matches!(outcome, Outcome::Refused(_))) {
        0 => String::new(),
        n => format!(", {n} refused by livesave"),
    };
    let runs = match runs.len() {
        1 => "1 run".to_owned(),
        n => format!("{n} runs"),
    };
    format!(
        "{runs}: {good} good, {failed} failed by their method, {spoilt} spoilt by the machine{refused}."
    )
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::super::case::Method;
    use super::super::record::tests::run;
    use super::*;

    fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for dir in [dir.to_owned(), dir.join("plots")] {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    files.push((name, fs::read(&path).unwrap()));
                }
            }
        }
        files.sort();
        files
    }

    #[test]
    fn a_report_has_all_its_files_and_is_the_same_again() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let runs = sample::runs();
        let text = write(&runs, &[sample::manifest()], one.path()).unwrap();
        write(&runs, &[sample::manifest()], two.path()).unwrap();
        let files_of_one = files(one.path());
        assert_eq!(files_of_one, files(two.path()));
        let names: Vec<_> = files_of_one.iter().map(|(name, _)| name.as_str()).collect();
        for name in [
            "report.html",
            "tables.txt",
            "runs.csv",
            "rounds.csv",
            "runs.json",
        ] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
        assert!(names.contains(&"summary.json") && names.contains(&"rates-gap.svg"));
        assert_eq!(
            fs::read_to_string(one.path().join("tables.txt")).unwrap(),
            text
        );
        let again = fs::read_to_string(one.path().join("runs.json")).unwrap();
        assert!(serde_json::from_str::<Vec<Run>>(&again).unwrap() == runs);
    }

    #[test]
    fn an_earlier_reports_plots_do_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        write(&sample::runs(), &[], dir.path()).unwrap();
        write(&[run(Method::Live, "100", 0, 0.1)], &[], dir.path()).unwrap();
        assert!(!dir.path().join("plots/memory-gap.svg").exists());
        assert!(dir.path().join("plots/rates-gap.svg").exists());
    }

    #[test]
    fn a_run_that_is_given_twice_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let runs = vec![run(Method::Live, "100", 0, 0.1); 2];
        let text = write(&runs, &[], dir.path()).unwrap();
        assert!(text.starts_with("1 run: 1 good"), "{text}");
    }

    #[test]
    fn work_lost_is_left_out_of_tables_where_there_was_no_pace() {
        let runs = ["5000", "max"].map(|rate| run(Method::Live, rate, 0, 0.1));
        let lost = |manifests: &[Manifest]| {
            let told = without_meaningless(&runs, manifests);
            let lost = told.iter().map(|run| run.good().unwrap().work_lost_s);
            lost.collect::<Vec<_>>()
        };
        assert_eq!(lost(&[]), [Some(0.2), Some(0.2)]);
        assert_eq!(lost(&[sample::manifest()]), [Some(0.2), None]);
        let dir = tempfile::tempdir().unwrap();
        write(&runs, &[sample::manifest()], dir.path()).unwrap();
        // As it was measured.
        let rows = fs::read_to_string(dir.path().join("runs.csv")).unwrap();
        assert_eq!(rows.matches(",0.2,").count(), 2, "{rows}");
    }

    #[test]
    fn studies_whose_names_look_alike_have_plots_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let runs = ["a b", "a/b"].map(|study| {
            let mut run = run(Method::Live, "100", 0, 0.1);
            run.planned.case.study = study.into();
            run.id = run.planned.id();
            run
        });
        write(&runs, &[], dir.path()).unwrap();
        assert!(dir.path().join("plots/a-b-gap.svg").exists());
        assert!(dir.path().join("plots/a-b-gap-2.svg").exists());
    }

    #[test]
    fn odd_values_do_no_harm() {
        let odd = [0.0, -1.0, 1e-300, 1e300, f64::NAN, f64::INFINITY];
        let mut runs = Vec::new();
        for (index, value) in odd.into_iter().enumerate() {
            for study in group::KNOWN {
                let mut run = run(Method::Improved, "0", index as u32, value);
                let case = &mut run.planned.case;
                case.study = study.into();
                (case.memory_mib, case.vcpus) = (0, 0);
                case.cap = Some(index as u32 * 1_000_000);
                (case.target_ms, case.dirty_percent) = (Some(0), Some(u32::MAX));
                if let Some(measured) = &mut run.measured {
                    measured.rounds.clear();
                    (measured.total_s, measured.work_lost_s) = (value, Some(value));
                    measured.image_bytes = u64::MAX;
                }
                runs.push(run);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        write(&runs, &[], dir.path()).unwrap();
        for (name, bytes) in files(dir.path()) {
            if name.ends_with(".svg") {
                let text = String::from_utf8(bytes).unwrap();
                roxmltree::Document::parse(&text).unwrap();
                assert!(!text.contains("NaN") && !text.contains("inf"), "{name}");
            }
        }
    }

    #[test]
    fn no_runs_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let err = write(&[], &[], dir.path()).unwrap_err();
        assert_eq!(err.to_string(), "there are no runs to report on");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
