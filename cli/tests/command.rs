//! The command as a user meets it, on a machine without Xen.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn livesave(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livesave"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    livesave(args).output().expect("livesave runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn the_command_line_is_explained_and_checked() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    for word in [
        "DOMAIN",
        "--mode",
        "--max-rounds",
        "--timeout",
        "--json",
        "Exit codes",
        "inspect",
    ] {
        assert!(help.contains(word), "{word} is not in the help");
    }
    assert_eq!(run(&[]).status.code(), Some(2));
    let wrong = run(&["guest", "--mode", "fast"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("plain"));
}

#[test]
fn without_xen_a_save_is_refused_with_its_own_code() {
    if Path::new("/dev/xen/privcmd").exists() {
        println!("skipped: this is a dom0");
        return;
    }
    let refused = run(&["guest", "--json"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(refused.stdout.is_empty());
    let said = text(&refused.stderr);
    assert!(
        said.contains("dom0") && said.contains("livesave demo"),
        "{said}"
    );
}

#[test]
fn with_a_json_log_a_failure_is_a_json_object_too() {
    if Path::new("/dev/xen/privcmd").exists() {
        println!("skipped: this is a dom0");
        return;
    }
    let refused = run(&["guest", "--json-log"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(refused.stdout.is_empty());
    let said = text(&refused.stderr);
    let lines: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let last = lines.last().expect("a line");
    assert_eq!(
        (&last["event"], &last["exit_code"]),
        (&"failed".into(), &4.into())
    );
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|error| error.contains("dom0"))
    );
    assert!(
        last["time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
}

#[test]
fn what_is_no_image_is_told_with_its_place() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("image.xl");
    let inspect = |path: &Path| run(&["inspect", path.to_str().expect("a path")]);
    let missing = inspect(&file);
    assert_eq!(missing.status.code(), Some(8));
    assert!(text(&missing.stderr).contains("No such file"));
    std::fs::write(
        &file,
        "this is a text, not an image, and quite a short one at that",
    )
    .expect("written");
    let garbage = inspect(&file);
    assert_eq!(garbage.status.code(), Some(8));
    assert!(
        text(&garbage.stderr).contains("at byte 0"),
        "{}",
        text(&garbage.stderr)
    );
    assert_eq!(inspect(dir.path()).status.code(), Some(8));
}

#[test]
fn the_demo_proves_both_saves_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let images = dir.path().to_str().expect("a path");
    for workload in ["idle", "ring", "hot", "random"] {
        let demo = run(&[
            "demo",
            "--memory",
            "64MiB",
            "--workload",
            workload,
            "--directory",
            images,
        ]);
        let (table, log) = (text(&demo.stdout), text(&demo.stderr));
        assert_eq!(demo.status.code(), Some(0), "{log}");
        assert_eq!(table.matches("equal to the cut").count(), 2, "{table}");
        assert!(log.contains("round 0"), "{log}");
        assert!(
            !log.contains('\u{1b}') && !log.contains('\r'),
            "escape sequences in a pipe"
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0);
    }
}

#[test]
fn the_demo_proves_compressed_saves_too() {
    let dir = tempfile::tempdir().expect("directory");
    let images = dir.path().to_str().expect("a path");
    let options = [
        "--memory",
        "64MiB",
        "--directory",
        images,
        "--compress",
        "zstd:3",
    ];
    let demo = run(&[&["demo"], &options[..]].concat());
    let (table, log) = (text(&demo.stdout), text(&demo.stderr));
    assert_eq!(demo.status.code(), Some(0), "{log}");
    assert_eq!(table.matches("equal to the cut").count(), 2, "{table}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0);
}

#[test]
fn the_demo_needs_a_place_and_a_sensible_size() {
    let nowhere = run(&["demo", "--memory", "16MiB", "--directory", "/nonexistent"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("--directory"));
    assert_eq!(run(&["demo", "--memory", "0"]).status.code(), Some(1));
    assert_eq!(run(&["demo", "--memory", "much"]).status.code(), Some(2));
}

/// Waits until the demo has printed that a round runs, or is past it.
fn wait_for_line(child: &mut Child, word: &str) {
    use std::io::{BufRead, BufReader};
    let stderr = child.stderr.take().expect("a pipe");
    let mut lines = BufReader::new(stderr).lines();
    let found = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains(word));
    assert!(found, "{word:?} never appeared");
    // The rest is read away so that the child never waits for us.
    std::thread::spawn(move || lines.for_each(drop));
}

#[test]
fn signals_end_the_demo_with_their_code_and_leave_nothing() {
    for (signal, name, code) in [(2, "-INT", 130), (15, "-TERM", 143), (1, "-HUP", 129)] {
        let dir = tempfile::tempdir().expect("directory");
        let images = dir.path().to_str().expect("a path");
        // Through env: a signal that whoever runs the tests ignores (nohup, a background job)
        // would stay ignored.
        let mut child = Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_livesave")])
            .args(["demo", "--memory", "1GiB", "--directory", images])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        wait_for_line(&mut child, "Saving domain");
        let pid = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .expect("kill")
                .success()
        );
        let began = Instant::now();
        let status = child.wait().expect("ended");
        assert_eq!(status.code(), Some(code), "signal {signal}");
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it took long to stop"
        );
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0);
    }
}
