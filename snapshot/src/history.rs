//! Remembers the pause windows of earlier saves, so that the next can be foretold.
//!
//! One small file for each guest, named by its UUID, JSON, on a tmpfs: what is lost with a reboot
//! is learned again by the first save.
//!
//! A guest is foretold by its own saves. Other guests are asked for its first, and of them those of its
//! type only: guests that are alike in all that is known here differ by more than one guest's saves do.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::forecast::{GuestKind, PastWindow};

/// So many windows of a guest are kept.
const KEPT: usize = 12;
/// Those of so many other guests are asked, the latest saved.
const OTHERS: usize = 16;
/// A file is not read beyond.
const LONGEST: u64 = 64 << 10;

/// The windows on one host.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
}

impl History {
    /// The windows kept in a directory, which need not exist.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// The windows that the next save of a guest is foretold by, the latest last: its own; if it has
    /// none, those of other guests of its type. What cannot be read is as if it were not there: it
    /// only makes the forecast better.
    #[must_use]
    pub fn of(&self, uuid: &str, kind: Option<GuestKind>) -> Vec<PastWindow> {
        let own = self.path(uuid).map(|path| read(&path)).unwrap_or_default();
        if own.is_empty() {
            of_type(kind, &self.all())
        } else {
            own
        }
    }

    /// Those of the guests that were saved last.
    fn all(&self) -> Vec<PastWindow> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return vec![];
        };
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            // One that is just being written is there twice.
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        files.sort();
        let latest = &files[files.len().saturating_sub(OTHERS)..];
        latest.iter().flat_map(|(_, path)| read(path)).collect()
    }

    /// Adds a window of a guest.
    ///
    /// # Errors
    /// What the system says; nothing is lost but the window.
    pub fn add(&self, uuid: &str, window: PastWindow) -> io::Result<()> {
        let path = self
            .path(uuid)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut windows = read(&path);
        windows.push(window);
        windows.drain(..windows.len().saturating_sub(KEPT));
        std::fs::create_dir_all(&self.directory)?;
        // Whoever reads meanwhile reads the old one or the new one.
        let mut file = tempfile_in(&self.directory, uuid)?;
        let written = serde_json::to_writer(&mut file.0, &windows).map_err(io::Error::from);
        let done = written
            .and_then(|()| file.0.flush())
            .and_then(|()| std::fs::rename(&file.1, &path));
        if done.is_err() {
            let _ = std::fs::remove_file(&file.1);
        }
        done
    }

    /// A UUID is no path.
    fn path(&self, uuid: &str) -> Option<PathBuf> {
        let plain = !uuid.is_empty() && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        plain.then(|| self.directory.join(uuid))
    }
}

/// Those that say something of a guest of this type.
fn of_type(kind: Option<GuestKind>, windows: &[PastWindow]) -> Vec<PastWindow> {
    let of = |wanted: Option<GuestKind>| -> Vec<PastWindow> {
        let mut like = windows.to_vec();
        like.retain(|window| window.when.kind == wanted);
        like
    };
    if kind.is_none() {
        return windows.to_vec();
    }
    let known = of(kind);
    // Kept by an older livesave, which did not say of what. HVM guests take several times as long.
    if known.is_empty() && kind != Some(GuestKind::Hvm) {
        return of(None);
    }
    known
}

/// The saver of a guest holds its lock, so nobody else writes under this name.
fn tempfile_in(directory: &Path, uuid: &str) -> io::Result<(std::fs::File, PathBuf)> {
    let path = directory.join(format!(".{uuid}.new"));
    Ok((std::fs::File::create(&path)?, path))
}

fn read(path: &Path) -> Vec<PastWindow> {
    let sane = |w: &PastWindow| {
        [w.rate, w.copy_s, w.fixed_s, w.suspend_s]
            .iter()
            .all(|value| value.is_finite() && *value >= 0.0)
    };
    let small = std::fs::metadata(path).is_ok_and(|meta| meta.len() <= LONGEST);
    let text = small.then(|| std::fs::read(path).ok()).flatten();
    let windows = text.and_then(|text| serde_json::from_slice::<Vec<PastWindow>>(&text).ok());
    let mut windows = windows.unwrap_or_default();
    windows.retain(sane);
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::{Circumstances, GuestKind};
    use crate::units::{CpuPercent, PageCount};

    const HVM: Option<GuestKind> = Some(GuestKind::Hvm);

    fn window(rate: f64) -> PastWindow {
        PastWindow {
            rate,
            left: PageCount(1),
            pages: PageCount(2),
            copy_s: 0.001,
            fixed_s: 0.05,
            suspend_s: 0.04,
            when: Circumstances {
                kind: Some(GuestKind::Hvm),
                vcpus: 2,
                memory: PageCount(65_536),
                cap: Some(CpuPercent(40)),
                cap_kept: true,
            },
            ..PastWindow::default()
        }
    }

    #[test]
    fn the_last_windows_of_a_guest_are_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let history = History::in_directory(&dir.path().join("windows"));
        assert!(history.of("0a-1", HVM).is_empty());
        for n in 0..20 {
            history.add("0a-1", window(f64::from(n))).expect("added");
        }
        let kept = history.of("0a-1", HVM);
        let rates: Vec<_> = kept.iter().map(|w| w.rate as u32).collect();
        assert_eq!(rates, (8..20).collect::<Vec<_>>());
    }

    #[test]
    fn other_guests_are_asked_only_for_a_first_save() {
        let dir = tempfile::tempdir().expect("directory");
        let history = History::in_directory(dir.path());
        history.add("0a", window(7.0)).expect("added");
        assert_eq!(history.of("0b", HVM), [window(7.0)]);
        assert!(history.of("0b", Some(GuestKind::Pvh)).is_empty());
        std::fs::write(dir.path().join(".0b.new"), "[{}]").expect("written");
        history.add("0b", window(9.0)).expect("added");
        assert_eq!(history.of("0b", HVM), [window(9.0)]);
        assert_eq!(history.of("0a", HVM), [window(7.0)]);
        // Its own count however it was then.
        assert_eq!(history.of("0b", Some(GuestKind::Pvh)), [window(9.0)]);
    }

    #[test]
    fn of_other_guests_those_of_the_same_type_count() {
        let of = |kind| PastWindow {
            when: Circumstances {
                kind,
                ..Circumstances::default()
            },
            ..window(1.0)
        };
        let [pvh, hvm, old] = [Some(GuestKind::Pvh), HVM, None].map(of);
        assert_eq!(of_type(Some(GuestKind::Pvh), &[hvm, pvh, old]), [pvh]);
        assert_eq!(of_type(HVM, &[pvh, hvm, old]), [hvm]);
        // What an older livesave has kept is better than nothing, but not for HVM.
        assert_eq!(of_type(Some(GuestKind::Pv), &[pvh, old]), [old]);
        assert_eq!(of_type(HVM, &[pvh, old]), []);
        assert_eq!(of_type(None, &[pvh, old]), [pvh, old]);
    }

    #[test]
    fn what_an_older_livesave_has_kept_can_be_read() {
        let dir = tempfile::tempdir().expect("directory");
        let history = History::in_directory(dir.path());
        let old = r#"[{"rate":5.0,"left":1,"pages":2,"copy_s":0.001,"fixed_s":0.05,"suspend_s":0.04,
            "first_pass_s":0.0,"later_pass_s":0.0}]"#;
        std::fs::write(dir.path().join("0d"), old).expect("written");
        let want = PastWindow {
            when: Circumstances::default(),
            ..window(5.0)
        };
        assert_eq!(history.of("0d", HVM), [want]);
        history.add("0d", window(6.0)).expect("added");
        assert_eq!(history.of("0d", HVM), [want, window(6.0)]);
    }

    #[test]
    fn what_is_damaged_is_not_there_and_no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().expect("directory");
        let history = History::in_directory(dir.path());
        for text in ["", "[", "[{\"rate\":1}]", "[[]]"] {
            std::fs::write(dir.path().join("0c"), text).expect("written");
            assert!(history.of("0c", None).is_empty(), "{text}");
        }
        assert!(history.add("../x", window(0.0)).is_err());
        history.add("0c", window(1.0)).expect("added");
        assert_eq!(history.of("0c", None), [window(1.0)]);
    }
}
