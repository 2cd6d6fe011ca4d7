//! Tests that the command lines handed out are ones that livesave takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use clap::Parser;

use crate::args::{Cli, SaveArgs};
use crate::periodic::keep::Rules;

const SERVICE: &str = include_str!("../packaging/livesave@.service");
const TIMER: &str = include_str!("../packaging/livesave@.timer");
const DEFAULTS: &str = include_str!("../packaging/livesave.default");
const CRON: &str = include_str!("../packaging/livesave.cron");
const README: &str = include_str!("../../README.md");

fn save(words: &[&str]) -> SaveArgs {
    match Cli::try_parse_from(words) {
        Ok(Cli {
            command: Some(crate::args::Command::Save(save)),
            ..
        }) => save,
        Ok(Cli {
            save: Some(save), ..
        }) => save,
        Ok(other) => panic!("{words:?} does not save: {other:?}"),
        Err(error) => panic!("{words:?}: {error}"),
    }
}

fn must_be_periodic(save: &SaveArgs) -> Rules {
    assert_eq!(
        save.periodic.dir.as_deref(),
        Some(Path::new("/var/lib/livesave"))
    );
    save.periodic.keep.rules().expect("something is kept")
}

/// The assignments of an environment file, or of a unit's Environment= lines.
fn assignments(text: &str, prefix: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.filter_map(|line| line.strip_prefix(prefix));
    lines
        .filter_map(|line| line.trim_matches('"').split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// The words of the service's command as systemd makes them: `${NAME}` is one, `$NAME` is split.
fn command_of_service(variables: &BTreeMap<String, String>, instance: &str) -> Vec<String> {
    let line = SERVICE
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="));
    let mut words = vec![];
    for word in line.expect("a command").split_whitespace() {
        if let Some(name) = word
            .strip_prefix("${")
            .and_then(|word| word.strip_suffix('}'))
        {
            words.push(variables[name].clone());
        } else if let Some(name) = word.strip_prefix('$') {
            words.extend(variables[name].split_whitespace().map(str::to_owned));
        } else {
            words.push(word.replace("%I", instance));
        }
    }
    words
}

#[test]
fn the_service_saves_its_guest_with_and_without_the_file_of_defaults() {
    let of_unit = assignments(SERVICE, "Environment=");
    let of_file = assignments(DEFAULTS, "");
    for variables in [&of_unit, &of_file] {
        assert_eq!(variables.len(), 2, "{variables:?}");
        for guest in ["web1", "-odd name", "list"] {
            let words = command_of_service(variables, guest);
            assert_eq!(words[0], "/usr/bin/livesave");
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let save = save(&words);
            assert_eq!(save.domain, guest);
            must_be_periodic(&save);
        }
    }
}

/// The lines of a crontab, or of a text with one in it.
fn cron_lines(text: &str) -> Vec<&str> {
    let is_time = |word: &str| {
        word.bytes()
            .all(|b| b.is_ascii_digit() || b"*/,-".contains(&b))
    };
    let five = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().take(6).collect();
        words.len() == 6 && words[..5].iter().all(|word| is_time(word)) && words[5] == "root"
    };
    text.lines().filter(five).collect()
}

#[test]
fn the_cron_lines_save_a_guest() {
    for text in [CRON, README] {
        let lines = cron_lines(text);
        assert!(!lines.is_empty());
        for line in lines {
            assert!(
                !line.replace("\\%", "").contains('%'),
                "cron ends a command at a %: {line}"
            );
            let line = line.replace("\\%", "%");
            let words: Vec<_> = line.split_whitespace().skip(6).collect();
            let save = save(&words);
            assert!(save.quiet, "cron would mail every save: {line}");
            must_be_periodic(&save);
        }
    }
}

/// What the README shows of `livesave` in its tables of usage and its examples.
#[test]
fn the_commands_of_the_readme_are_taken() {
    let shown = README
        .lines()
        .filter_map(|line| line.strip_prefix("# livesave "));
    let mut count = 0;
    for line in shown {
        let line = line.split(" #").next().unwrap_or(line);
        let words = std::iter::once("livesave").chain(line.split_whitespace());
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{line}: {error}");
        }
        count += 1;
    }
    assert!(count >= 4, "only {count} found");
}

/// systemd's own reading of the units, where there is one.
#[test]
fn systemd_takes_the_units() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("skipped: there is no systemd-analyze");
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    // It looks for the command.
    let this = std::env::current_exe().expect("this program");
    let service = SERVICE.replace("/usr/bin/livesave", &this.display().to_string());
    std::fs::write(dir.path().join("livesave@.service"), &service).expect("written");
    std::fs::write(dir.path().join("livesave@.timer"), TIMER).expect("written");
    let verify = |name: &str| {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(dir.path().join(name));
        let done = command.output().expect("it runs");
        (
            done.status.success(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    for name in ["livesave@.service", "livesave@.timer"] {
        let (good, said) = verify(name);
        // It warns of lines that it does not know, and succeeds.
        let of_ours: Vec<_> = said
            .lines()
            .filter(|line| line.contains("livesave@"))
            .collect();
        assert!(good && of_ours.is_empty(), "{name}: {said}");
    }
    let wrong = service.replace("KillMode=mixed", "KillMode=gently");
    std::fs::write(dir.path().join("livesave@.service"), wrong).expect("written");
    let (_, said) = verify("livesave@.service");
    assert!(
        said.contains("livesave@.service"),
        "a wrong unit was taken: {said}"
    );
}
