//! What the kernel says of a guest's process: whether anything of dirty tracking is left.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The name of the guest's memory in its maps.
const MEMORY: &str = "memfd:guest memory";

/// What of dirty tracking the kernel still has on for a process; empty if nothing.
///
/// # Errors
/// The process's files in /proc cannot be read.
pub fn tracking_left(pid: u32) -> Result<Vec<String>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let smaps = std::fs::read_to_string(process.join("smaps"))
        .with_context(|| format!("Failed to read the maps of process {pid}"))?;
    let mut left = in_maps(&smaps);
    for entry in std::fs::read_dir(process.join("fd"))? {
        // One that is closed meanwhile is no evidence.
        if let Ok(target) = std::fs::read_link(entry?.path())
            && target.to_string_lossy().contains("userfaultfd")
        {
            left.push("a userfaultfd is open".to_owned());
        }
    }
    Ok(left)
}

/// How many descriptors a process has open.
///
/// # Errors
/// The process's files in /proc cannot be read.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn in_maps(smaps: &str) -> Vec<String> {
    let mut left = vec![];
    let mut of_memory = false;
    let mut found = false;
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if of_memory && flags.split_whitespace().any(|flag| flag == "uw") {
                left.push("its memory is registered for write protection".to_owned());
            }
        } else if line
            .split_once(' ')
            .is_some_and(|(range, _)| range.contains('-'))
        {
            of_memory = line.contains(MEMORY);
            found |= of_memory;
            let access = line.split_whitespace().nth(1).unwrap_or_default();
            if of_memory && !access.starts_with("rw") {
                left.push(format!("its memory is {access}"));
            }
        }
    }
    if !found {
        left.push("its memory is not mapped".to_owned());
    }
    left.dedup();
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(access: &str, flags: &str) -> String {
        format!(
            "55d0-55d1 r--p 00000000 08:01 123 /usr/bin/kills\nSize: 4 kB\nVmFlags: rd mr uw\n\
             7f00-7f10 {access} 00000000 00:01 9 /memfd:guest memory (deleted)\n\
             Size: 64 kB\nVmFlags: {flags}\n"
        )
    }

    #[test]
    fn both_ways_of_tracking_are_told_from_none() {
        assert_eq!(in_maps(&maps("rw-s", "rd wr sh mr")), Vec::<String>::new());
        assert_eq!(in_maps(&maps("rw-s", "rd wr sh uw")).len(), 1);
        assert_eq!(in_maps(&maps("r--s", "rd sh mr")), ["its memory is r--s"]);
        assert_eq!(in_maps(""), ["its memory is not mapped"]);
    }
}
