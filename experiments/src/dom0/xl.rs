//! The few `xl` and xenstore commands that the tests need.

use super::process::{Finished, check, run};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use xen_sys::Store;

/// Enough for anything `xl` does under emulation on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(180);

/// `xl ARGS…`, not started.
#[must_use]
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new("xl");
    command.args(args);
    command
}

/// Runs `xl ARGS…`; it must succeed.
pub fn xl(args: &[&str]) -> Result<Finished> {
    check(&mut command(args), LIMIT)
}

/// One line of `xl list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Domain number.
    pub domid: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs online.
    pub vcpus: u32,
    /// The six state letters, such as `-b----`.
    pub state: String,
}

impl Listed {
    /// Neither paused, nor shut down (suspended included), crashed or dying.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.state.contains(['p', 's', 'c', 'd'])
    }
}

/// The domain's line in `xl list`; `None` if there is no such domain.
pub fn list(name: &str) -> Result<Option<Listed>> {
    let finished = run(&mut command(&["list"]), LIMIT)?;
    if !finished.status.success() {
        bail!("xl list: {}", finished.tail());
    }
    for line in finished.stdout.lines().skip(1) {
        if line.split_whitespace().next() == Some(name) {
            return parse_list_line(line)
                .map(Some)
                .with_context(|| format!("xl list printed {line:?}"));
        }
    }
    Ok(None)
}

fn parse_list_line(line: &str) -> Option<Listed> {
    let mut words = line.split_whitespace().skip(1);
    Some(Listed {
        domid: words.next()?.parse().ok()?,
        memory_mib: words.next()?.parse().ok()?,
        vcpus: words.next()?.parse().ok()?,
        state: words.next().filter(|s| s.len() == 6)?.to_owned(),
    })
}

/// `xl restore IMAGE`, with the configuration inside the image.
pub fn restore(image: &Path) -> Result<Finished> {
    check(command(&["restore"]).arg(image), LIMIT)
}

/// Reads a xenstore key, which must be there.
pub fn xenstore_read(path: &str) -> Result<String> {
    let value = Store::open()?.read(path)?;
    value.with_context(|| format!("xenstore has no {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_xl_list() {
        let line =
            "g                                            7   512     2     -b----       4.9";
        let listed = parse_list_line(line).unwrap();
        assert_eq!((listed.domid, listed.memory_mib, listed.vcpus), (7, 512, 2));
        assert!(listed.is_running());
        for state in ["--p---", "---s--", "----c-", "-----d"] {
            let line = format!("g 7 512 1 {state} 1.0");
            assert!(!parse_list_line(&line).unwrap().is_running(), "{state}");
        }
        assert_eq!(parse_list_line("(null) 7 512"), None);
    }
}
