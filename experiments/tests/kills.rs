//! The harness that kills saves must be able to fail: each kind of wrong is brought about, and seen.

use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use experiments::kills::check::{Wrong, check};
use experiments::kills::lane::{Lane, Settings};
use experiments::kills::plan::{Harm, Plan, Victim, When};
use experiments::kills::strike::{Phase, Struck, rehearse};
use experiments::kills::{evidence, image};
use snapshot::embedded::EmbeddedGuest;
use snapshot::ports::Cancel;
use snapshot::units::Bytes;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kills");

struct Stage {
    lane: Lane,
    _directory: tempfile::TempDir,
}

/// A save that was killed and left nothing.
const KILLED: Plan = Plan {
    harm: Harm::Kill(Victim::Worker, When::Any),
    ..Plan::PEACEFUL
};

fn struck() -> Struck {
    Struck {
        landed: true,
        phase: Phase::None,
        end: ExitStatus::from_raw(9),
        took: Duration::ZERO,
    }
}

impl Stage {
    fn new(number: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings {
            program: PathBuf::from(PROGRAM),
            directory: directory.path().to_owned(),
            memory: Bytes::from_mib(8),
            // Slow enough for a test build on a busy machine.
            rate: 2000,
            sabotage: false,
        };
        let lane = Lane::new(number, &settings).expect("a lane");
        Self {
            lane,
            _directory: directory,
        }
    }

    fn image(&self) -> PathBuf {
        self.lane.image(KILLED.harm)
    }

    fn wrong(&self) -> Vec<Wrong> {
        let found = check(&self.lane, &KILLED, &struck(), true);
        let mut wrong: Vec<_> = found.wrong.iter().map(|&(wrong, _)| wrong).collect();
        wrong.dedup();
        wrong
    }

    fn save(&self) {
        rehearse(&self.lane, &Plan::PEACEFUL).expect("saved");
    }

    fn intruder(&self) -> EmbeddedGuest {
        EmbeddedGuest::attach(&self.lane.job(&KILLED).socket).expect("attached")
    }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path);
    file.and_then(|file| file.write_all_at(bytes, at))
        .expect("written");
}

#[test]
fn a_guest_that_is_left_wrong_is_seen() {
    for lane in [0, 1] {
        let stage = Stage::new(lane);
        assert_eq!(stage.wrong(), []);
        let guest = stage.intruder();
        guest
            .suspend(Duration::from_secs(10), &Cancel::new())
            .expect("suspended");
        assert!(stage.wrong().contains(&Wrong::Paused));
        guest.resume().expect("resumed");
        guest.cap_cpu(1).expect("capped");
        assert!(stage.wrong().contains(&Wrong::Capped));
        guest
            .cap_cpu(stage.lane.own_cap.unwrap_or(0))
            .expect("uncapped");
        guest.track().expect("tracked");
        // Not by what the guest says alone.
        let left = evidence::tracking_left(guest.pid()).expect("evidence");
        assert!(!left.is_empty());
        assert!(stage.wrong().contains(&Wrong::Tracked));
        guest.untrack().expect("untracked");
        assert_eq!(stage.wrong(), []);
    }
}

#[test]
fn an_image_that_is_not_whole_is_seen() {
    let stage = Stage::new(0);
    stage.save();
    let path = stage.image();
    assert_eq!(stage.wrong(), []);
    let whole = std::fs::read(&path).expect("read");
    let length = whole.len() as u64;

    // One bit of one page.
    let at = whole.len() / 2;
    write(&path, at as u64, &[whole[at] ^ 1]);
    let error = image::must_be_whole(&path)
        .expect_err("a wrong bit")
        .to_string();
    assert!(error.contains("checksum"), "{error}");
    assert_eq!(stage.wrong(), [Wrong::Image]);
    write(&path, at as u64, &[whole[at]]);
    assert_eq!(stage.wrong(), []);

    for cut in [length - 1, length / 2, 0] {
        std::fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(cut))
            .expect("cut");
        assert_eq!(stage.wrong(), [Wrong::Image], "{cut} of {length} bytes");
    }
    std::fs::write(&path, &whole).expect("written");
    let readable_by_all = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(&path, readable_by_all).expect("opened up");
    assert_eq!(stage.wrong(), [Wrong::Image]);
}

#[test]
fn what_a_save_leaves_in_the_directory_is_seen() {
    let stage = Stage::new(0);
    let partial = stage.image().with_file_name(".image.xl.livesave-1.partial");
    std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&partial)
        .expect("made");
    assert_eq!(stage.wrong(), [Wrong::Partial]);
    std::fs::remove_file(&partial).expect("removed");
    // An image was there, to be replaced, and is no more.
    let replacing = Plan {
        replace: true,
        ..KILLED
    };
    let found = check(&stage.lane, &replacing, &struck(), false);
    assert_eq!(found.wrong[0].0, Wrong::Image);
    // A save that should have succeeded.
    let found = check(&stage.lane, &Plan::PEACEFUL, &struck(), false);
    assert_eq!(found.wrong[0].0, Wrong::Save);
}

#[test]
fn the_harness_passes_and_fails_where_guardians_do_nothing() {
    let run = |more: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["--memory", "16", "--rate", "2000", "--seed", "1"])
            .args(more)
            .output()
            .expect("it runs");
        // The harness's own failure is told on stderr.
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (passed, text) = run(&["--kills", "10"]);
    assert!(passed && text.contains(": PASSED"), "{text}");
    let (passed, text) = run(&["--kills", "20", "--sabotage"]);
    assert!(!passed && text.contains(": FAILED"), "{text}");
    assert!(!text.contains(", 0 guests left in log-dirty"), "{text}");
}
