//! A directory of images, as a user meets it: list, prune, status. Needs no Xen: the images are
//! written by the same code as those of domUs, of guests of a few pages.

mod made;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use made::{Made, damage, make, names};

fn livesave(args: &[&str], dir: &Path) -> Output {
    let words = args
        .iter()
        .map(|word| word.replace("DIR", dir.to_str().expect("a path")));
    Command::new(env!("CARGO_BIN_EXE_livesave"))
        .args(words)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("livesave runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Its standard output; it must end with that code.
fn out(args: &[&str], dir: &Path, code: i32) -> String {
    let done = livesave(args, dir);
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(code), "{args:?}: {out}{err}");
    out
}

const A: &str = "00000000-0000-0000-0000-00000000000a";
const B: &str = "00000000-0000-0000-0000-00000000000b";

/// Two guests, one of which has been renamed; a damaged image and other files.
fn some_directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    for (file, name, uuid, cut) in [
        ("a-1.xl", "old", A, "2026-11-20T10:00:00Z"),
        ("a-2.xl", "web1", A, "2026-11-21T10:00:00Z"),
        ("a-3.xl", "web1", A, "2026-11-22T10:00:00Z"),
        ("a-4.xl", "web1", A, "2026-11-22T11:00:00Z"),
        ("b-1.xl", "db1", B, "2026-11-22T12:00:00Z"),
    ] {
        make(&at.join(file), &Made { name, uuid, cut });
    }
    make(
        &at.join("broken.xl"),
        &Made {
            name: "web1",
            uuid: A,
            cut: "2026-11-23T00:00:00Z",
        },
    );
    damage(&at.join("broken.xl"));
    std::fs::write(at.join("notes.txt"), "not an image").expect("written");
    std::fs::create_dir(at.join("dir.xl")).expect("created");
    std::os::unix::fs::symlink(at.join("a-1.xl"), at.join("link.xl")).expect("linked");
    dir
}

/// An unfinished image of a dead process, which no save holds any more.
fn leftover(dir: &Path, name: &str) -> std::fs::File {
    let file = std::fs::File::create(dir.join(name)).expect("created");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .expect("aged");
    file
}

#[test]
fn list_shows_images_and_what_is_wrong() {
    let dir = some_directory();
    let _held = {
        let file = leftover(dir.path(), ".a-5.xl.livesave-1.partial");
        file.lock().expect("locked");
        file
    };
    leftover(dir.path(), ".a-6.xl.livesave-1.partial");
    let table = out(&["list", "DIR"], dir.path(), 0);
    let rows: Vec<_> = table.lines().collect();
    assert!(rows[0].starts_with("GUEST  CUT "), "{table}");
    let column = rows[0].find("FILE").expect("a column");
    let files: Vec<_> = rows[1..6].iter().map(|row| &row[column..]).collect();
    assert_eq!(
        files,
        ["b-1.xl", "a-1.xl", "a-2.xl", "a-3.xl", "a-4.xl"],
        "{table}"
    );
    assert!(
        rows[1].starts_with("db1    2026-11-22 12:00:00Z "),
        "{table}"
    );
    let rest = rows[6..].join("\n");
    assert!(rest.contains("damaged: broken.xl: Image "), "{rest}");
    assert!(
        rest.contains(".a-5.xl.livesave-1.partial: a save is under way"),
        "{rest}"
    );
    assert!(
        rest.contains(".a-6.xl.livesave-1.partial: left by a killed save"),
        "{rest}"
    );
    assert_eq!(rows.len(), 9, "{table}");

    let told: serde_json::Value =
        serde_json::from_str(&out(&["list", "DIR", "--json"], dir.path(), 0)).expect("JSON");
    assert_eq!(told["images"].as_array().map(Vec::len), Some(5));
    let first = &told["images"][0];
    assert_eq!(first["domain"]["uuid"], B);
    assert_eq!(first["cut"], "2026-11-22T12:00:00Z");
    assert_eq!(first["mode"], "plain");
    assert_eq!(first["pause_s"], 0.25);
    let size = dir
        .path()
        .join("b-1.xl")
        .metadata()
        .expect("metadata")
        .len();
    assert_eq!(first["image_bytes"], size);
    assert_eq!(told["damaged"].as_array().map(Vec::len), Some(1));
    let runs: Vec<_> = [0, 1]
        .map(|n| told["unfinished"][n]["save_runs"].clone())
        .into();
    assert_eq!(runs, [true, false]);
}

#[test]
fn prune_keeps_what_any_rule_keeps_and_touches_nothing_else() {
    let dir = some_directory();
    let before = names(dir.path());
    let prune = ["prune", "DIR", "--keep-last", "1", "--keep-daily", "2"];
    let dry = out(&[&prune[..], &["--dry-run"]].concat(), dir.path(), 0);
    for line in [
        &format!("web1 ({A})")[..],
        "  would remove 2026-11-20 10:00:00Z  a-1.xl",
        "  kept 2026-11-21 10:00:00Z  a-2.xl: daily",
        "  would remove 2026-11-22 10:00:00Z  a-3.xl",
        "  kept 2026-11-22 11:00:00Z  a-4.xl: last, daily",
        "  kept 2026-11-22 12:00:00Z  b-1.xl: last, daily",
        "left alone, damaged: broken.xl",
        "Kept: 3, would be removed: 2",
    ] {
        assert!(dry.lines().any(|found| found == line), "{line:?} in {dry}");
    }
    assert_eq!(names(dir.path()), before);

    let done = out(&prune, dir.path(), 0);
    assert!(done.contains("Kept: 3, removed: 2 ("), "{done}");
    let mut want = before.clone();
    want.retain(|name| name != "a-1.xl" && name != "a-3.xl");
    assert_eq!(names(dir.path()), want);
    // Again: nothing is left to do.
    assert!(out(&prune, dir.path(), 0).contains("Kept: 3, removed: 0"));
    assert_eq!(names(dir.path()), want);
}

#[test]
fn prune_may_be_of_one_guest_by_any_of_its_names_or_its_uuid() {
    for domain in ["web1", "old", &A.to_uppercase()] {
        let dir = some_directory();
        make(
            &dir.path().join("b-0.xl"),
            &Made {
                name: "db1",
                uuid: B,
                cut: "2026-01-01T00:00:00Z",
            },
        );
        let words = [
            "prune",
            "DIR",
            "--keep-last",
            "1",
            "--json",
            "--domain",
            domain,
        ];
        let told: serde_json::Value =
            serde_json::from_str(&out(&words, dir.path(), 0)).expect("JSON");
        assert_eq!(told["removed"].as_array().map(Vec::len), Some(3), "{told}");
        assert_eq!(told["images"][3]["kept_by"], serde_json::json!(["last"]));
        let left = names(dir.path());
        assert!(left.contains(&"b-0.xl".to_owned()) && left.contains(&"a-4.xl".to_owned()));
    }
    let dir = some_directory();
    let wrong = livesave(
        &["prune", "DIR", "--keep-last", "1", "--domain", "web"],
        dir.path(),
    );
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("no image of \"web\""));
    assert!(wrong.stdout.is_empty());
}

/// A damaged image of a later cut does not count: the last good one stays.
#[test]
fn the_last_good_image_is_never_removed() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    make(
        &at.join("good.xl"),
        &Made {
            name: "a",
            uuid: A,
            cut: "2026-01-01T00:00:00Z",
        },
    );
    for n in 0..3 {
        let path = at.join(format!("later-{n}.xl"));
        make(
            &path,
            &Made {
                name: "a",
                uuid: A,
                cut: "2026-11-20T00:00:00Z",
            },
        );
        damage(&path);
    }
    out(
        &["prune", "DIR", "--keep-last", "1", "--keep-hourly", "1"],
        at,
        0,
    );
    assert_eq!(
        names(at),
        ["good.xl", "later-0.xl", "later-1.xl", "later-2.xl"]
    );
}

#[test]
fn prune_removes_what_killed_saves_left_and_nothing_of_a_running_one() {
    let dir = some_directory();
    let dead = ".a-5.xl.livesave-4000000.partial";
    let running = ".a-6.xl.livesave-4000000.partial";
    let young = ".a-7.xl.livesave-4000000.partial";
    leftover(dir.path(), dead);
    let held = leftover(dir.path(), running);
    held.lock().expect("locked");
    std::fs::write(dir.path().join(young), "").expect("written");
    let said = out(&["prune", "DIR", "--keep-last", "9"], dir.path(), 0);
    assert!(
        said.contains(&format!("removed what a killed save left: {dead}")),
        "{said}"
    );
    let left = names(dir.path());
    assert!(!left.contains(&dead.to_owned()));
    assert!(left.contains(&running.to_owned()) && left.contains(&young.to_owned()));
}

#[test]
fn an_image_that_is_being_read_can_be_pruned() {
    let dir = some_directory();
    let reader = snapshot::image::Reader::open(&dir.path().join("a-1.xl")).expect("an image");
    let other = std::fs::File::open(dir.path().join("a-1.xl")).expect("opened");
    other.lock().expect("locked");
    out(&["prune", "DIR", "--keep-last", "1"], dir.path(), 0);
    assert!(!dir.path().join("a-1.xl").exists());
    let mut pages = 0;
    reader
        .for_each_page(|_, _| {
            pages += 1;
            Ok::<_, snapshot::image::ImageError>(())
        })
        .expect("still readable");
    assert_eq!(pages, made::PAGES);
}

#[test]
fn prune_refuses_what_could_go_wrong() {
    use std::os::unix::fs::PermissionsExt;
    let dir = some_directory();
    let before = names(dir.path());
    let without = livesave(&["prune", "DIR"], dir.path());
    assert_eq!(without.status.code(), Some(2));
    assert!(
        text(&without.stderr).contains("--keep-last"),
        "{}",
        text(&without.stderr)
    );
    // Sticky or not: anybody could put images there that push out the others.
    for mode in [0o777, 0o1777] {
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(mode)).expect("opened up");
        let open = livesave(&["prune", "DIR", "--keep-last", "1"], dir.path());
        assert_eq!(open.status.code(), Some(1));
        assert!(
            text(&open.stderr).contains("Anybody"),
            "{}",
            text(&open.stderr)
        );
    }
    assert_eq!(names(dir.path()), before);
    let nowhere = livesave(&["prune", "DIR/missing", "--keep-last", "1"], dir.path());
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("No such file"));
}

#[test]
fn status_is_a_monitoring_plugin() {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    let status = |more: &[&str], code: i32| {
        let said = out(&[&["status", "DIR"], more].concat(), at, code);
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let empty = status(&["--max-age", "1h"], 2);
    assert_eq!(empty, "LIVESAVE CRITICAL - no image\n");
    let now = jiff::Timestamp::now();
    let cut = (now - jiff::SignedDuration::from_secs(600)).to_string();
    make(
        &at.join("a.xl"),
        &Made {
            name: "web1",
            uuid: A,
            cut: &cut,
        },
    );
    let good = status(&["--max-age", "1h"], 0);
    assert!(good.starts_with("LIVESAVE OK - web1 10m "), "{good}");
    assert!(
        good.contains(" old | 'web1'=60") && good.contains("s;;3600;0 "),
        "{good}"
    );
    assert!(status(&["--max-age", "1h", "--warn-age", "5m"], 1).contains("WARNING"));
    assert!(status(&["--max-age", "5m", "--domain", "web1"], 2).contains("CRITICAL"));
    status(&["--max-age", "1h", "--domain", "web2"], 2);
    make(
        &at.join("b.xl"),
        &Made {
            name: "db1",
            uuid: B,
            cut: &cut,
        },
    );
    damage(&at.join("b.xl"));
    assert!(status(&["--max-age", "1h"], 1).contains("damaged: b.xl"));
    // What cannot be judged is not critical.
    let missing = livesave(&["status", "DIR/missing", "--max-age", "1h"], at);
    assert_eq!(missing.status.code(), Some(3));
    assert!(text(&missing.stdout).starts_with("LIVESAVE UNKNOWN - "));
    for wrong in [&["status", "DIR"][..], &["status", "DIR", "--max-age", "1"]] {
        assert_eq!(livesave(wrong, at).status.code(), Some(3));
    }
    assert_eq!(livesave(&["status", "--help"], at).status.code(), Some(0));
}

#[test]
fn list_of_nothing_says_so() {
    let dir = tempfile::tempdir().expect("directory");
    assert!(out(&["list", "DIR"], dir.path(), 0).starts_with("No images"));
    let missing = livesave(&["list", "DIR/missing"], dir.path());
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("No such file"));
}

/// Killed at any moment, a prune has removed some of what it would have removed and nothing else.
#[test]
fn a_killed_prune_leaves_whole_images_and_can_be_run_again() {
    let dir = tempfile::tempdir().expect("directory");
    for n in 0..200 {
        let cut = format!("2026-01-01T{:02}:{:02}:00Z", n / 60, n % 60);
        make(
            &dir.path().join(format!("a-{n:03}.xl")),
            &Made {
                name: "a",
                uuid: A,
                cut: &cut,
            },
        );
    }
    let prune = ["prune", "DIR", "--keep-last", "10"];
    let mut left = names(dir.path());
    for delay in [0, 2, 4, 6, 8, 10, 12] {
        let path = dir.path().to_str().expect("a path");
        let mut child = Command::new(env!("CARGO_BIN_EXE_livesave"))
            .args(prune.map(|word| word.replace("DIR", path)))
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let now = names(dir.path());
        assert!(now.iter().all(|name| left.contains(name)));
        assert!((190..200).all(|n| now.contains(&format!("a-{n:03}.xl"))));
        for name in &now {
            snapshot::image::Reader::open(&dir.path().join(name)).expect("whole");
        }
        left = now;
    }
    out(&prune, dir.path(), 0);
    let want: Vec<_> = (190..200).map(|n| format!("a-{n:03}.xl")).collect();
    assert_eq!(names(dir.path()), want);
}
