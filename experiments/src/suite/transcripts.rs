//! What livesave prints, for the README: kept among the results as it was printed.

use super::{Bench, Kind, Test};
use crate::dom0::livesave::LIMIT;
use crate::dom0::process;
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![Kind::Other.asked("transcripts", transcripts)]
}

/// A guest's third save, of which the pause is foretold from those before, and a plan of the next.
fn transcripts(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|mut spec| {
        spec.name = "web1".to_owned();
        spec.rate("max")
    })?;
    let mut said = String::new();
    for number in 1..=3 {
        let image = bench.image(&format!("web1-{number}.xl"));
        said = say(bench, &["web1".as_ref(), "-o".as_ref(), image.as_ref()])?;
        fs::remove_file(&image).context("no image")?;
        bench.must_be_unharmed(&guest)?;
    }
    fs::write(bench.results.join("save.txt"), &said)?;
    let plan = say(bench, &["plan".as_ref(), "web1".as_ref()])?;
    fs::write(bench.results.join("plan.txt"), &plan)?;
    guest.own().destroy()?;
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.starts_with("Saved web1"), "{said}");
    Ok(last.to_owned())
}

/// The command as it is typed, and all that it prints to a pipe.
fn say(bench: &Bench, arguments: &[&Path]) -> Result<String> {
    let mut command = bench.livesave.command(&[]);
    let finished = process::run(command.args(arguments), LIMIT)?;
    bench.livesave.note(&finished)?;
    ensure!(finished.status.success(), "{}", finished.tail());
    let typed: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    let typed = typed.join(" ".as_ref());
    let (first, rest) = (&finished.stderr, &finished.stdout);
    Ok(format!("# livesave {}\n{first}{rest}", typed.display()))
}
