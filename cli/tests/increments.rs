//! Increments, as a user meets them: listed, verified, read, merged, pruned. Needs no Xen.

mod made;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use made::{Made, PAGES, damage, make, make_on, names};
use serde_json::Value;

fn livesave(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_livesave"))
        .args(args)
        .current_dir(dir)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("livesave runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Its standard output and error; it must end with that code.
fn run(args: &[&str], dir: &Path, code: i32) -> (String, String) {
    let done = livesave(args, dir);
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(code), "{args:?}: {out}{err}");
    (out, err)
}

fn json(args: &[&str], dir: &Path, code: i32) -> Value {
    serde_json::from_str(&run(args, dir, code).0).expect("JSON")
}

fn made(day: u32) -> (String, &'static str) {
    (
        format!("2026-11-{day:02}T10:00:00Z"),
        "00000000-0000-0000-0000-00000000000a",
    )
}

/// A full image of the 20th, increments of the 21st and 22nd, a full one of the 23rd and an
/// increment on that of the 24th.
fn two_chains() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    let at = |file: &str| dir.path().join(file);
    let with = |day, write: &dyn Fn(&Made<'_>)| {
        let (cut, uuid) = made(day);
        write(&Made {
            name: "web1",
            uuid,
            cut: &cut,
        });
    };
    with(20, &|m| make(&at("20.xl"), m));
    with(21, &|m| {
        make_on(&at("21.xli.zst"), m, &at("20.xl"), 1..3, 1);
    });
    with(22, &|m| {
        make_on(&at("22.xli.zst"), m, &at("21.xli.zst"), 2..4, 2);
    });
    with(23, &|m| make(&at("23.xl"), m));
    with(24, &|m| {
        make_on(&at("24.xli.zst"), m, &at("23.xl"), 5..6, 5);
    });
    dir
}

#[test]
fn they_are_listed_inspected_and_verified_with_what_they_are_built_on() {
    let dir = two_chains();
    let (out, _) = run(&["list", "."], dir.path(), 0);
    let kinds = ["full", "increment 1", "increment 2", "full", "increment 1"];
    for (row, kind) in out.lines().skip(1).zip(kinds) {
        assert!(row.contains(kind), "{out}");
    }
    let (out, _) = run(&["inspect", "22.xli.zst"], dir.path(), 0);
    assert!(out.contains("number 2, on 21.xli.zst"), "{out}");
    let (out, _) = run(&["verify", "22.xli.zst"], dir.path(), 0);
    assert_eq!(out.lines().count(), 3, "{out}");
    let found = json(&["verify", "22.xli.zst", "--json"], dir.path(), 0);
    assert_eq!(
        (&found["whole"], &found["pages"]),
        (&true.into(), &2.into())
    );
    assert_eq!(found["built_on"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_damaged_or_missing_base_is_named() {
    let dir = two_chains();
    damage(&dir.path().join("20.xl"));
    let (_, err) = run(&["verify", "22.xli.zst"], dir.path(), 8);
    assert!(err.contains("21.xli.zst") || err.contains("20.xl"), "{err}");
    let (_, err) = run(&["restore", "22.xli.zst"], dir.path(), 8);
    assert!(err.contains("20.xl"), "{err}");
    std::fs::remove_file(dir.path().join("20.xl")).expect("removed");
    let (_, err) = run(&["verify", "22.xli.zst"], dir.path(), 8);
    assert!(
        err.contains("20.xl") && err.contains("not in its directory"),
        "{err}"
    );
    let found = json(&["verify", "22.xli.zst", "--json"], dir.path(), 8);
    assert_eq!(found["whole"], false);
    let (out, _) = run(&["list", "."], dir.path(), 0);
    assert_eq!(
        out.lines()
            .filter(|line| line.starts_with("damaged"))
            .count(),
        2,
        "{out}"
    );
    let (_, err) = run(&["merge", "22.xli.zst", "-o", "x.xl"], dir.path(), 8);
    assert!(err.contains("20.xl"), "{err}");
    assert!(!dir.path().join("x.xl").exists());
}

#[test]
fn pages_are_read_through_the_chain() {
    let dir = two_chains();
    let args = ["extract", "22.xli.zst", "--pfn", "0-4", "-o", "pages"];
    run(&args, dir.path(), 0);
    let bytes = std::fs::read(dir.path().join("pages")).expect("read");
    let first: Vec<_> = bytes.chunks(4096).map(|page| page[0]).collect();
    assert_eq!(first, [7, 1, 2, 2, 7]);
    let found = json(&["diff", "20.xl", "22.xli.zst", "--json"], dir.path(), 0);
    assert_eq!(found["differ"]["ranges"], serde_json::json!([[1, 3]]));
    assert_eq!(found["equal_pages"], PAGES - 3);
}

#[test]
fn a_merged_image_stands_alone() {
    let dir = two_chains();
    for (output, compress) in [("m.xl", "none"), ("m.xl.zst", "zstd:3")] {
        let args = ["merge", "22.xli.zst", "-o", output, "--compress", compress];
        let (out, _) = run(&args, dir.path(), 0);
        assert!(out.contains("3 images"), "{out}");
        run(&["verify", output], dir.path(), 0);
        let found = json(&["diff", "22.xli.zst", output, "--json"], dir.path(), 0);
        assert_eq!(found["equal_pages"], PAGES);
        let (_, err) = run(&args, dir.path(), 6);
        assert!(err.contains("exists"), "{err}");
    }
}

#[test]
fn prune_keeps_what_kept_images_are_built_on() {
    let dir = two_chains();
    let (out, _) = run(
        &["prune", ".", "--keep-last", "3", "--dry-run"],
        dir.path(),
        0,
    );
    let line = |file: &str| {
        let mut lines = out.lines();
        lines
            .find(|line| line.contains(file))
            .expect("a line")
            .to_owned()
    };
    // The three latest, and the two that the 22nd is built on.
    assert!(
        line("20.xl").contains("an increment is built on it"),
        "{out}"
    );
    assert!(
        line("21.xli.zst").contains("an increment is built on it"),
        "{out}"
    );
    assert!(line("22.xli.zst").contains("last"), "{out}");
    run(&["prune", ".", "--keep-last", "2"], dir.path(), 0);
    assert_eq!(names(dir.path()), ["23.xl", "24.xli.zst"]);
    run(&["prune", ".", "--keep-last", "1"], dir.path(), 0);
    assert_eq!(names(dir.path()), ["23.xl", "24.xli.zst"]);
    run(&["verify", "24.xli.zst"], dir.path(), 0);
}

#[test]
fn an_increment_alone_is_no_good_image() {
    let dir = two_chains();
    std::fs::remove_file(dir.path().join("23.xl")).expect("removed");
    // It does not push out the last one that can be restored.
    run(&["prune", ".", "--keep-last", "1"], dir.path(), 0);
    let left = ["20.xl", "21.xli.zst", "22.xli.zst", "24.xli.zst"];
    assert_eq!(names(dir.path()), left);
}

/// The full image was made while the clock was fast.
#[test]
fn a_clock_that_was_set_back_costs_no_base() {
    let dir = tempfile::tempdir().expect("directory");
    let at = |file: &str| dir.path().join(file);
    let uuid = made(1).1;
    let of = |cut: &'static str| Made {
        name: "web1",
        uuid,
        cut,
    };
    make(&at("0.xl"), &of("2026-11-20T12:00:00Z"));
    let cuts = [
        "2026-11-20T10:30:00Z",
        "2026-11-20T11:30:00Z",
        "2026-11-20T12:30:00Z",
    ];
    let mut base = "0.xl".to_owned();
    for (number, cut) in (1..).zip(cuts) {
        let file = format!("{number}.xli.zst");
        make_on(&at(&file), &of(cut), &at(&base), 1..3, number);
        base = file;
    }
    run(&["prune", ".", "--keep-last", "1"], dir.path(), 0);
    assert_eq!(names(dir.path()).len(), 4);
    run(&["verify", "3.xli.zst"], dir.path(), 0);
}

#[test]
fn a_base_that_has_rotted_is_not_merged() {
    let dir = two_chains();
    let path = dir.path().join("20.xl");
    let mut bytes = std::fs::read(&path).expect("read");
    // In the last page's slot: its structure is as it was.
    let page = bytes
        .windows(4096)
        .rposition(|page| page.iter().all(|&b| b == 7));
    bytes[page.expect("a page") + 100] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let (_, err) = run(&["merge", "22.xli.zst", "-o", "x.xl"], dir.path(), 8);
    assert!(err.contains("20.xl") && err.contains("checksum"), "{err}");
    assert!(!dir.path().join("x.xl").exists());
}
