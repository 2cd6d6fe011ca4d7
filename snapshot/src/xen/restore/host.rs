//! What the host says, through `xl`: which domains there are, how much memory is free, what the
//! user's configuration means.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use super::RestoreError;
use super::config::Config;
use super::disks::GuestDisks;
use super::identity::Running;
use super::memory::{self, Host};
use super::refusal::Refusal;
use crate::ports::{BoxError, Cancel};
use crate::xen::xl;

/// xl's own settings.
const XL_CONF: &str = "/etc/xen/xl.conf";

/// All domains, dom0 and those just being built among them.
pub(super) fn running(cancel: &Cancel) -> Result<Vec<Running>, RestoreError> {
    let listing = ask(&["vm-list"], "list the domains", cancel)?;
    listing_of(&listing).map_err(|what| not_understood("list the domains", what))
}

/// The domain that the user named by its name or its number.
pub(super) fn find<'a>(running: &'a [Running], wanted: &str) -> Option<&'a Running> {
    if !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_digit()) {
        let domid: u32 = wanted.parse().ok()?;
        return running.iter().find(|domain| domain.domid == domid);
    }
    running.iter().find(|domain| domain.name == wanted)
}

/// The memory of the host.
pub(super) fn memory(cancel: &Cancel) -> Result<Host, RestoreError> {
    let operation = "see how much memory is free";
    let info = ask(&["info"], operation, cancel)?;
    let xl_conf = std::fs::read_to_string(XL_CONF).unwrap_or_default();
    memory::host(&info, &xl_conf).map_err(|what| not_understood(operation, what))
}

/// The configuration of a running domain.
pub(super) fn config_of(domid: u32, cancel: &Cancel) -> Result<Config, RestoreError> {
    let operation = "read the configuration of the domain";
    let listing = ask(&["list", "-l", &domid.to_string()], operation, cancel)?;
    let config = serde_json::from_str::<Value>(&listing)
        .ok()
        .and_then(|listing| listing.get(0)?.get("config").map(Value::to_string))
        .ok_or_else(|| not_understood(operation, "there is none in the listing".into()))?;
    Config::parse(config.as_bytes()).map_err(|what| not_understood(operation, what))
}

/// The user's own configuration file, as xl understands it.
pub(super) fn config_in(file: &Path, cancel: &Cancel) -> Result<Config, RestoreError> {
    let bad = |source: BoxError| RestoreError::BadConfig {
        file: file.to_owned(),
        source,
    };
    // Absolute: not to be taken for an option.
    let path = file.canonicalize().map_err(|error| bad(error.into()))?;
    let args = ["create", "--quiet", "--dryrun"].map(OsStr::new);
    let mut command = xl::command(args.into_iter().chain([path.as_os_str()]));
    let output = run(&mut command, "read the configuration file", cancel)?;
    if !output.status.success() {
        return Err(bad(summary(&output.stderr).into()));
    }
    Config::parse(&output.stdout).map_err(|what| bad(what.into()))
}

/// Refuses a configuration with a disk that is not there, those left out that are yet to be made.
pub(super) fn refuse_missing_disk(config: &Config, disks: &GuestDisks) -> Result<(), Refusal> {
    for disk in config.disks() {
        if disks.is_new(&disk.vdev) {
            continue;
        }
        if disk.plain && !disk.path.is_empty() && !Path::new(&disk.path).exists() {
            return Err(Refusal::DiskMissing {
                vdev: disk.vdev,
                path: disk.path.into(),
            });
        }
    }
    Ok(())
}

/// What `xl list` shows of one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It has never run: it is still being built, or was left so.
    Unborn,
    /// It is being destroyed.
    Dying,
    /// It has run, or there is no telling.
    Other,
}

/// The state of a domain; `None` if there is no such domain.
pub(super) fn state(domid: u32, cancel: &Cancel) -> Result<Option<State>, RestoreError> {
    let operation = "see the state of the domain";
    let listing = ask(&["list"], operation, cancel)?;
    Ok(listing
        .lines()
        .skip(1)
        .find_map(|line| state_of(line, domid)))
}

/// Ends a domain.
pub(super) fn destroy(domid: u32, cancel: &Cancel) -> Result<(), RestoreError> {
    let domid = domid.to_string();
    ask(&["destroy", &domid], "destroy the half domain", cancel).map(drop)
}

/// The lines of an `xl` that matter: those that say "error", or else the last; one line of text
/// without control characters.
pub(super) fn summary(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let is_error = |line: &&&str| line.to_ascii_lowercase().contains("error");
    let mut chosen: Vec<&str> = lines.iter().filter(is_error).take(3).copied().collect();
    if chosen.is_empty() {
        chosen = lines[lines.len().saturating_sub(3)..].to_vec();
    }
    let text = chosen.join("; ");
    text.chars().filter(|c| !c.is_control()).collect()
}

fn ask(args: &[&str], operation: &'static str, cancel: &Cancel) -> Result<String, RestoreError> {
    let output = run(&mut xl::command(args), operation, cancel)?;
    if !output.status.success() {
        let said = format!("{}: {}", output.status, summary(&output.stderr));
        return Err(not_understood(operation, said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(
    command: &mut std::process::Command,
    operation: &'static str,
    cancel: &Cancel,
) -> Result<std::process::Output, RestoreError> {
    xl::output(command, cancel).map_err(|source| match cancel.raised() {
        Some(signal) => RestoreError::Cancelled(signal),
        None => RestoreError::Xl {
            operation,
            source: source.into(),
        },
    })
}

fn not_understood(operation: &'static str, what: String) -> RestoreError {
    RestoreError::Xl {
        operation,
        source: what.into(),
    }
}

/// Reads `xl vm-list`: UUID, number, name; a heading first.
fn listing_of(text: &str) -> Result<Vec<Running>, String> {
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with("UUID")) {
        return Err("`xl vm-list` prints no list".to_owned());
    }
    lines
        .filter(|line| !line.trim().is_empty())
        .map(|line| domain_in(line).ok_or_else(|| format!("`xl vm-list` prints {:?}", line.trim())))
        .collect()
}

fn domain_in(line: &str) -> Option<Running> {
    let (uuid, rest) = line.trim().split_once(' ')?;
    let rest = rest.trim_start();
    // A domain just being built may have no name yet.
    let (domid, name) = rest.split_once(' ').unwrap_or((rest, ""));
    Some(Running {
        domid: domid.parse().ok()?,
        name: name.trim().to_owned(),
        uuid: uuid.to_ascii_lowercase(),
    })
}

/// The state of the domain with that number in a line of `xl list`. A name may hold blanks, so it
/// is read from the end: time, state, vCPUs, memory, number.
fn state_of(line: &str, domid: u32) -> Option<State> {
    let mut words = line.split_whitespace().rev();
    let (time, letters) = (words.next()?, words.next()?);
    let number = words.nth(2)?;
    (number.parse() == Ok(domid)).then(|| {
        if letters.contains('d') {
            State::Dying
        } else if letters.contains('p') && time == "0.0" {
            State::Unborn
        } else {
            State::Other
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_is_read() {
        let text = "UUID                                  ID    name\n\
            00000000-0000-0000-0000-000000000000  0    Domain-0                      \n\
            2F941814-e7bc-11f1-ba8f-ca684d7748dd  17   a b                           \n\
            3f941814-e7bc-11f1-ba8f-ca684d7748dd  18\n";
        let domains = listing_of(text).expect("a list");
        let of = |at: usize| (domains[at].domid, domains[at].name.as_str());
        assert_eq!(
            (of(0), of(1), of(2)),
            ((0, "Domain-0"), (17, "a b"), (18, ""))
        );
        assert_eq!(domains[1].uuid, "2f941814-e7bc-11f1-ba8f-ca684d7748dd");
        assert_eq!(find(&domains, "a b"), find(&domains, "17"));
        assert!(find(&domains, "a b").is_some());
        assert_eq!(find(&domains, "19"), None);
        for text in ["", "no list", "UUID\nx y z", "UUID\nx"] {
            assert!(listing_of(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_domain_that_never_ran_is_told_from_one_that_did() {
        let line = |state: &str, time: &str| {
            state_of(&format!("a b        5   512     1     {state}   {time}"), 5)
        };
        assert_eq!(line("--p---", "0.0"), Some(State::Unborn));
        assert_eq!(line("--p---", "0.1"), Some(State::Other));
        assert_eq!(line("r-----", "0.0"), Some(State::Other));
        assert_eq!(line("--ps-d", "0.0"), Some(State::Dying));
        assert_eq!(state_of("a 6 512 1 --p--- 0.0", 5), None);
        assert_eq!(state_of("5", 5), None);
    }

    #[test]
    fn of_what_xl_says_the_errors_are_kept() {
        let said = b"Parsing config from <saved>\nxc: info: Restoring domain\n\
            xc: error: Failed to read\x1b[1m\nlibxl: error: one\nlibxl: error: two\n\
            libxl: error: three\n";
        let text = summary(said);
        assert_eq!(
            text,
            "xc: error: Failed to read[1m; libxl: error: one; libxl: error: two"
        );
        assert_eq!(summary(b"a\nb\nc\nd\n"), "b; c; d");
        assert_eq!(summary(b""), "");
    }
}
