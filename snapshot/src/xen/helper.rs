//! Another tool's save or migration of a domain, seen by its helper process.
//!
//! libxl saves through `libxl-save-helper --save-domain FD FD DOMID FLAGS…`, whatever the wrapper
//! around it. It switches the domain's dirty tracking off and on and fetches dirty bits as if it
//! were alone, so nothing of ours may go on beside it, nor switch its tracking off.

use std::fs;
use std::path::Path;

/// The process that saves or migrates a domain for libxl, if there is one.
pub(super) fn saving(domid: u32) -> Option<u32> {
    saving_in(Path::new("/proc"), domid)
}

fn saving_in(processes: &Path, domid: u32) -> Option<u32> {
    let entries = fs::read_dir(processes).ok()?;
    entries.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // One that ends meanwhile has no command line any more.
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        (saved_by(&line) == Some(domid)).then_some(pid)
    })
}

/// The domain that a command line says it saves.
fn saved_by(line: &[u8]) -> Option<u32> {
    let mut arguments = line.split(|&byte| byte == 0);
    arguments.find(|argument| *argument == b"--save-domain")?;
    str::from_utf8(arguments.nth(2)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_is_known_by_its_arguments() {
        for (line, domid) in [
            (
                "/usr/lib/xen/bin/libxl-save-helper\0--save-domain\x008\0-1\x0012\x001\x000\0",
                Some(12),
            ),
            (
                "/bin/sh\0/root/wrapper\0--save-domain\x008\0-1\x003\x000\0",
                Some(3),
            ),
            (
                "libxl-save-helper\0--restore-domain\x008\0-1\x003\x000\0",
                None,
            ),
            ("libxl-save-helper\0--save-domain\x008\0", None),
            ("bash\0", None),
            ("", None),
        ] {
            assert_eq!(saved_by(line.as_bytes()), domid, "{line:?}");
        }
    }

    #[test]
    fn it_is_found_among_others() {
        let proc = tempfile::tempdir().expect("directory");
        for (pid, line) in [("1", "init\0"), ("77", "h\0--save-domain\x001\x002\x005\0")] {
            fs::create_dir(proc.path().join(pid)).expect("created");
            fs::write(proc.path().join(pid).join("cmdline"), line).expect("written");
        }
        fs::create_dir(proc.path().join("sys")).expect("created");
        assert_eq!(saving_in(proc.path(), 5), Some(77));
        assert_eq!(saving_in(proc.path(), 6), None);
    }
}
