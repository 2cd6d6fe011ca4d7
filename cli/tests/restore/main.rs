//! `livesave restore` with an `xl` of our own in the path: what it is told, what it is fed, and
//! what becomes of it where it fails, hangs or is interrupted. Needs no Xen.

mod bench;
mod disks;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bench::{Bench, STOPS_HALFWAY, TAKES_IT, UUID, config, kill, must_say, parts, text};

#[test]
fn a_guest_comes_back_as_it_was() {
    let bench = Bench::new(TAKES_IT);
    let done = bench.run(&["--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let result: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(
        result,
        serde_json::json!({"domid": 7, "name": "web1", "uuid": UUID, "paused": false, "disks": []})
    );
    let (image, stream) = (
        fs::read(&bench.image).expect("the image"),
        fs::read(bench.path("stream")).expect("the stream"),
    );
    assert_eq!(parts(&stream).0, parts(&image).0);
    assert!(parts(&stream).1 == parts(&image).1, "another content");
    assert!(bench.text("asked").contains("restore /dev/stdin\n"));
    assert!(!text(&done.stderr).contains("warning"));
}

#[test]
fn beside_the_original_it_is_somebody_else() {
    let bench = Bench::new(TAKES_IT);
    let original = format!("{UUID}  3  web1   ");
    bench.domains(&[&original]);
    bench.refused(&[], 10, &["domain 3 (web1)", "--name NEW", "xl destroy 3"]);
    bench.refused(&["--name", "web1"], 10, &["has the name web1"]);
    bench.refused(&["--name", "17"], 10, &["no name for a domain"]);
    let done = bench.run(&["--name", "web2", "--paused"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("Restored web2 as domain 7, paused"));
    assert!(bench.text("asked").contains("restore -p /dev/stdin\n"));
    let stream = fs::read(bench.path("stream")).expect("the stream");
    let (config, _) = parts(&stream);
    assert_eq!(config["c_info"]["name"], "web2");
    assert_ne!(config["c_info"]["uuid"], UUID);
    let mac = config["nics"][0]["mac"].as_str().expect("a MAC");
    assert!(
        mac.starts_with("00:16:3e:") && mac != "00:16:3e:11:22:33",
        "{mac}"
    );
}

#[test]
fn disks_must_be_there_and_nobody_elses() {
    let bench = Bench::new(TAKES_IT);
    let disk = bench.path("disk.img");
    bench.write_image(&[("xvda", &disk, 1)]);
    bench.refused(&[], 10, &["xvda", "disk.img", "does not exist"]);
    File::create(&disk).expect("a disk");
    let original = format!("{UUID}  3  web1");
    bench.domains(&[&original]);
    let words = ["domain 3 (web1)", "xvda", "two guests", "--config"];
    bench.refused(&["--name", "web2"], 10, &words);
    // With copies of his own the user may.
    let copy = bench.path("copy.img");
    let own = serde_json::json!([{"vdev": "xvda", "pdev_path": copy, "readwrite": 1}]);
    bench.put(
        "config",
        &config("web2", "3f941814-e7bc-11f1-ba8f-ca684d7748dd", &own),
    );
    bench.put("web2.cfg", "name = \"web2\"\n");
    let file = bench.path("web2.cfg").display().to_string();
    bench.refused(&["--config", &file], 10, &["copy.img", "does not exist"]);
    File::create(&copy).expect("a disk");
    let done = bench.run(&["--config", &file]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(
        bench
            .text("asked")
            .contains(&format!("create --quiet --dryrun {file}\n"))
    );
    let stream = fs::read(bench.path("stream")).expect("the stream");
    let (given, _) = parts(&stream);
    assert_eq!(given["disks"][0]["pdev_path"], copy.display().to_string());
    assert_eq!(given["c_info"]["name"], "web2");
    // A read-only disk may be both's.
    bench.domains(&[&original]);
    bench.write_image(&[("xvda", &disk, 0)]);
    let done = bench.run(&["--name", "web3"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
}

#[test]
fn a_configuration_that_xl_does_not_take_is_told() {
    let bench = Bench::new(TAKES_IT);
    bench.refused(
        &["--config", "/nonexistent"],
        1,
        &["/nonexistent", "No such file"],
    );
    bench.put("bad.cfg", "name = ");
    let file = bench.path("bad.cfg").display().to_string();
    bench.refused(&["--config", &file], 1, &["bad.cfg", "syntax error"]);
}

#[test]
fn too_little_memory_is_told_in_figures() {
    let bench = Bench::new(TAKES_IT);
    bench.put("info", "free_memory : 100\nxen_commandline : dom0_mem=1G\n");
    // 512 MiB by its configuration, and 3 MiB of tables.
    bench.refused(&[], 10, &["515.0 MiB", "100.0 MiB free", "dom0"]);
    bench.put("info", "free_memory : 100\nxen_commandline : console=vga\n");
    let done = bench.run(&[]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("warning: the guest needs 515.0 MiB"));
}

#[test]
fn what_is_no_whole_image_creates_nothing() {
    let bench = Bench::new(TAKES_IT);
    let whole = fs::read(&bench.image).expect("the image");
    for length in [0, 10, 60, 4000, whole.len() / 2, whole.len() - 8] {
        fs::write(&bench.image, &whole[..length]).expect("written");
        bench.refused(&[], 8, &["not usable", "at byte"]);
    }
    fs::remove_file(&bench.image).expect("removed");
    bench.refused(&[], 8, &["No such file"]);
}

#[test]
fn an_image_that_others_can_read_is_warned_of() {
    let bench = Bench::new(TAKES_IT);
    fs::set_permissions(&bench.image, fs::Permissions::from_mode(0o644)).expect("0644");
    let done = bench.run(&[]);
    assert_eq!(done.status.code(), Some(0));
    let said = text(&done.stderr);
    assert!(
        said.contains("0644") && said.contains("chmod 600"),
        "{said}"
    );
}

#[test]
fn where_xl_does_not_work_it_is_told_apart() {
    let bench = Bench::new(TAKES_IT);
    let xl = fs::read_to_string(bench.path("xl")).expect("the script");
    bench.put(
        "xl",
        "#!/bin/sh\necho 'xencall: error: Could not obtain handle' >&2; exit 1\n",
    );
    bench.refused(&[], 4, &["list the domains", "Could not obtain handle"]);
    bench.put(
        "xl",
        &xl.replace("vm-list*) cat", "vm-list*) echo a b c; : "),
    );
    bench.refused(&[], 4, &["vm-list"]);
    if !["/usr/sbin/xl", "/sbin/xl"]
        .iter()
        .any(|xl| Path::new(xl).exists())
    {
        fs::remove_file(bench.path("xl")).expect("removed");
        bench.refused(&[], 4, &["No such file"]);
    }
}

#[test]
fn a_failure_of_xl_is_told_with_its_words() {
    let bench = Bench::new(
        "head -c 5000 >/dev/null\necho 'xc: info: Restoring'\necho 'libxl: error: no luck' >&2\nexit 3\n",
    );
    let failed = bench.run(&[]);
    must_say(
        &failed,
        11,
        &[
            "no domain was left",
            "exit status: 3",
            "libxl: error: no luck",
        ],
    );
    assert!(!text(&failed.stderr).contains("xc: info"));
    // A success after which nothing is there is none.
    bench.put("restore", "cat >/dev/null\n");
    must_say(&bench.run(&[]), 11, &["ended already"]);
}

#[test]
fn two_at_once_do_not_take_each_others_domain_for_their_own() {
    let bench = Bench::new(STOPS_HALFWAY);
    let first = bench.start(&[]);
    bench.wait_for_half_domain();
    bench.refused(&[], 10, &["another livesave restores a guest web1"]);
    assert!(bench.text("vm-list").contains("half"));
    bench.put("go", "");
    must_say(&first.wait_with_output().expect("ended"), 11, &["cut off"]);
}

#[test]
fn a_half_domain_is_destroyed_but_never_one_that_has_run() {
    let leaves = format!("echo \"{UUID}  7  web1\" >>\"$here/vm-list\"\nexit 1\n");
    let bench = Bench::new(&leaves);
    bench.put("list", "Name ID\nweb1  7  100  1  --p---  0.0\n");
    must_say(&bench.run(&[]), 11, &["the half domain 7 was destroyed"]);
    assert!(bench.text("asked").contains("destroy 7\n"));
    let bench = Bench::new(&leaves);
    bench.put("list", "Name ID\nweb1  7  100  1  -b----  4.2\n");
    must_say(
        &bench.run(&[]),
        11,
        &["domain 7 is left, and has run already"],
    );
    assert!(!bench.text("asked").contains("destroy"));
}

#[test]
fn signals_end_it_in_order() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let bench = Bench::new(STOPS_HALFWAY);
        let child = bench.start(&[]);
        bench.wait_for_half_domain();
        kill(&child, signal);
        // xl, as stock does, notices by the end of its stream.
        std::thread::sleep(Duration::from_millis(200));
        bench.put("go", "");
        let output = child.wait_with_output().expect("ended");
        must_say(&output, code, &["interrupted", "no domain was left"]);
        let stream = fs::metadata(bench.path("stream")).expect("a stream").len();
        let whole = fs::metadata(&bench.image).expect("an image").len();
        assert!(stream < whole, "{stream} of {whole} bytes: it was fed on");
        assert!(bench.path("ended").exists(), "xl was killed");
    }
}

#[test]
fn our_own_death_ends_xls_stream() {
    let bench = Bench::new(STOPS_HALFWAY);
    let mut child = bench.start(&[]);
    bench.wait_for_half_domain();
    kill(&child, "-KILL");
    child.wait().expect("ended");
    bench.put("go", "");
    bench.wait_for("xl's own end", || bench.path("ended").exists());
    assert!(!bench.text("vm-list").contains("half"));
}

#[test]
fn an_xl_that_hangs_is_killed_with_its_helper() {
    // It reads nothing more, or never ends; it has a helper, as stock has.
    for reads in ["head -c 4096", "cat"] {
        let script = format!(
            "{reads} >/dev/null\necho \"{UUID}  7  web1\" >>\"$here/vm-list\"\nsleep 1000 &\n\
             echo $! >\"$here/helper\"\nwait\n"
        );
        let bench = Bench::new(&script);
        bench.put("list", "Name ID\nweb1  7  100  1  --p---  0.0\n");
        let killed = bench.run(&["--silence", "500ms"]);
        must_say(
            &killed,
            11,
            &["did nothing", "the half domain 7 was destroyed"],
        );
        let helper = PathBuf::from(format!("/proc/{}/stat", bench.text("helper").trim()));
        bench.wait_for("the helper's end", || {
            fs::read_to_string(&helper).map_or(true, |stat| stat.contains(") Z "))
        });
    }
}

#[test]
fn a_clone_that_could_not_be_restored_is_not_begun() {
    let bench = Bench::new(TAKES_IT);
    let clone = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livesave"));
        let path = format!("{}:/usr/bin:/bin", bench.dir.path().display());
        let locks = bench.path("locks");
        command.arg("clone").args(more).arg("--locks").arg(locks);
        command.env("PATH", path);
        command.output().expect("livesave runs")
    };
    must_say(
        &clone(&["web1", "--name", "web2"]),
        3,
        &["no domain \"web1\""],
    );
    bench.domains(&[&format!("{UUID}  3  web1"), "0  4  web2"]);
    let listing = |disks| {
        let config = config("web1", UUID, &disks);
        bench.put(
            "list-l",
            &format!("[{{\"domid\": 3, \"config\": {config}}}]"),
        );
    };
    listing(serde_json::json!([]));
    must_say(
        &clone(&["3", "--name", "web2"]),
        10,
        &["domain 4 has the name web2"],
    );
    listing(serde_json::json!([{"vdev": "xvda", "pdev_path": "/dev/null", "readwrite": 1}]));
    must_say(
        &clone(&["web1", "--name", "web3", "--disks", "memory-only"]),
        10,
        &["xvda (/dev/null)", "two guests"],
    );
    listing(serde_json::json!([]));
    bench.put("info", "free_memory : 100\nxen_commandline : dom0_mem=1G\n");
    must_say(&clone(&["web1", "--name", "web3"]), 10, &["515.0 MiB"]);
}
