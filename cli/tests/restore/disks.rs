//! The disks of an image, with LVM's commands of our own in the path.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use serde_json::{Value, json};
use snapshot::image::trailer;

use crate::bench::{Bench, STOPS_HALFWAY, TAKES_IT, UUID, kill, must_say, parts, text};

/// Volumes are lines of a file, and files that stand for devices; `root` with a snapshot, thin.
const LVM: &str = r#"#!/bin/sh
here=${0%/*}
program=${0##*/}
for last; do :; done
case $program in
lvs) printf '{"report": [{"lv": ['
  separator=
  while read -r name uuid origin attr tags; do
    [ "$origin" != - ] || origin=
    printf '%s{"lv_name":"%s", "lv_uuid":"%s", "vg_name":"vg0", "vg_uuid":"V", "vg_free":"4194304",
      "vg_extent_size":"4194304", "lv_size":"4194304", "segtype":"thin", "pool_lv":"pool", "thin_id":"",
      "origin":"%s", "lv_attr":"%s", "lv_tags":"%s", "data_percent":"", "metadata_percent":"",
      "lv_kernel_major":"-1", "lv_kernel_minor":"-1"}' "$separator" "$name" "$uuid" "$origin" "$attr" "$tags"
    separator=,
  done <"$here/volumes"
  printf ']}]}' ; exit ;;
esac
echo "$program $*" >>"$here/lvm"
case $program in
lvcreate) while [ $# -gt 1 ]; do [ "$1" != -n ] || name=$2; shift; done
  echo "$name new-$name - Vwi-a-tz-- livesave.restored" >>"$here/volumes"
  : >"$here/dev/vg0/$name" ;;
lvremove) sed -i "/^${last#vg0/} /d" "$here/volumes"; rm -f "$here/dev/$last" ;;
lvrename) while [ $# -gt 2 ]; do shift; done; sed -i "s/^$1 /$2 /" "$here/volumes" ;;
lvchange) ;;
esac
"#;

const VOLUMES: &str = "root ROOT - Vwi-a-tz-- \nroot.snap SNAP root Vri---tz-k livesave\n";

fn bench(restore: &str) -> Bench {
    let bench = Bench::new(restore);
    for program in ["lvs", "lvcreate", "lvremove", "lvrename", "lvchange"] {
        bench.put(program, LVM);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bench.path(program), executable).expect("executable");
    }
    bench.put("volumes", VOLUMES);
    fs::create_dir_all(bench.path("dev/vg0")).expect("directory");
    bench.put("dev/vg0/root", "");
    write_image(&bench);
    bench
}

/// An image that has the guest's disk `xvda` as a snapshot.
fn write_image(bench: &Bench) {
    let root = bench.path("dev/vg0/root");
    bench.write_image(&[("xvda", &root, 1)]);
    let facts = json!({
        "livesave": env!("CARGO_PKG_VERSION"),
        "backend": "xen",
        "domain": { "domid": 3, "name": "web1", "uuid": UUID },
        "mode": "live",
        "cut": "2026-01-01T00:00:00Z",
        "memory_pages": 700,
        "zero_pages": 0,
        "rounds": [],
        "stop": "plain",
        "window": snapshot::report::Window::default(),
        "disks": { "stall_s": 0.1, "disks": [{
            "vdev": "xvda", "path": root, "kept": "snapshot", "vg": "vg0", "name": "root.snap",
            "origin": "root", "uuid": "SNAP", "size": 4_194_304, "pool": "pool",
        }] },
    });
    let facts = serde_json::from_value(facts).expect("facts");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&bench.image)
        .expect("an image");
    let end = file.metadata().expect("metadata").len();
    let end = end.next_multiple_of(8);
    let trailer = trailer::encode(&facts, &[], end).expect("encoded");
    file.write_all_at(&trailer, end).expect("written");
}

fn run(bench: &Bench, more: &[&str]) -> std::process::Output {
    let dev = bench.path("dev").display().to_string();
    bench.run(&[more, &["--dev", &dev]].concat())
}

/// The name of the one new volume.
fn made(bench: &Bench) -> String {
    let volumes = bench.text("volumes");
    let mut names = volumes.lines().filter_map(|line| line.split(' ').next());
    let name = names.find(|name| name.starts_with("root.restored-"));
    name.expect("a new volume").to_owned()
}

#[test]
fn a_guest_comes_back_on_new_volumes() {
    let bench = bench(TAKES_IT);
    // Beside the original, which keeps its disk.
    bench.domains(&[&format!("{UUID}  3  web1")]);
    let done = run(&bench, &["--name", "web2", "--json"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let name = made(&bench);
    let path = bench.path("dev/vg0").join(&name).display().to_string();
    let told: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(told["disks"], json!([{"vdev": "xvda", "path": path}]));
    let stream = fs::read(bench.path("stream")).expect("the stream");
    let (config, _) = parts(&stream);
    assert_eq!(config["disks"][0]["pdev_path"], path);
    assert_eq!(config["disks"][0]["readwrite"], 1);
    assert_eq!(
        bench.text("lvm"),
        format!("lvcreate -q -s -kn -prw --addtag livesave.restored -n {name} vg0/root.snap\n")
    );
    bench.domains(&[]);
    let done = run(&bench, &["--name", "web3"]);
    let said = text(&done.stdout);
    assert!(
        said.contains("on new volumes: vg0/root.restored-"),
        "{said}"
    );
}

#[test]
fn new_volumes_go_when_the_guest_does_not_come() {
    let bench = bench("cat >/dev/null\necho 'libxl: error: no luck' >&2\nexit 3\n");
    let failed = run(&bench, &[]);
    must_say(&failed, 11, &["no luck", "the new volumes were removed"]);
    assert_eq!(bench.text("volumes"), VOLUMES);
    let names = fs::read_dir(bench.path("dev/vg0")).expect("directory");
    assert_eq!(names.count(), 1);
    // Where a domain is left that may use them, they stay.
    bench.put(
        "restore",
        &format!("echo \"{UUID}  7  web1\" >>\"$here/vm-list\"\nexit 1\n"),
    );
    bench.put("list", "Name ID\nweb1  7  100  1  -b----  4.2\n");
    let failed = run(&bench, &[]);
    let name = made(&bench);
    must_say(&failed, 11, &["domain 7 is left", &name, "may be on them"]);
}

#[test]
fn new_volumes_go_when_the_user_wants_to_stop() {
    let bench = bench(STOPS_HALFWAY);
    let dev = bench.path("dev").display().to_string();
    let child = bench.start(&["--dev", &dev]);
    bench.wait_for_half_domain();
    made(&bench);
    kill(&child, "-INT");
    std::thread::sleep(std::time::Duration::from_millis(200));
    bench.put("go", "");
    let output = child.wait_with_output().expect("ended");
    must_say(&output, 130, &["interrupted", "new volumes were removed"]);
    assert_eq!(bench.text("volumes"), VOLUMES);
}

#[test]
fn nothing_is_made_for_a_guest_that_cannot_be_restored() {
    let bench = bench(TAKES_IT);
    bench.domains(&[&format!("{UUID}  3  web1")]);
    let dev = bench.path("dev").display().to_string();
    bench.refused(&["--dev", &dev], 10, &["domain 3 (web1)"]);
    bench.put("volumes", "root ROOT - Vwi-a-tz-- \n");
    bench.refused(&["--dev", &dev], 10, &["vg0/root.snap", "is gone"]);
    bench.put("lvs", "#!/bin/sh\necho no >&2\nexit 5\n");
    bench.refused(&["--dev", &dev], 1, &["lvs", "no"]);
    assert_eq!(bench.text("lvm"), "");
}

#[test]
fn a_rollback_puts_the_guests_own_disks_back() {
    let bench = bench(TAKES_IT);
    let dev = bench.path("dev").display().to_string();
    let rollback = ["--disks", "rollback", "--dev", &dev];
    bench.domains(&[&format!("{UUID}  3  web1")]);
    let named = [&rollback[..], &["--name", "web2"]].concat();
    for arguments in [&rollback[..], &named] {
        bench.refused(arguments, 10, &["domain 3 (web1)", "put back", "end it"]);
    }
    bench.domains(&[]);
    bench.put("volumes", &VOLUMES.replace("Vwi-a-", "Vwi-ao"));
    bench.refused(&rollback, 10, &["vg0/root", "in use"]);
    assert_eq!(bench.text("lvm"), "");
    bench.put("volumes", VOLUMES);
    let done = bench.run(&rollback);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let said = text(&done.stdout);
    assert!(said.contains("put back to the cut: vg0/root"), "{said}");
    let asked = bench.text("lvm");
    let programs: Vec<_> = asked.lines().filter_map(|l| l.split(' ').next()).collect();
    let want = [
        "lvcreate", "lvchange", "lvrename", "lvrename", "lvremove", "lvchange",
    ];
    assert_eq!(programs, want);
    let stream = fs::read(bench.path("stream")).expect("the stream");
    let root = bench.path("dev/vg0/root").display().to_string();
    assert_eq!(parts(&stream).0["disks"][0]["pdev_path"], root);
    // The disks are back for all that.
    bench.put("restore", "exit 1\n");
    bench.domains(&[]);
    must_say(&bench.run(&rollback), 11, &["put back", "for all that"]);
}

#[test]
fn disks_as_they_are_are_warned_of() {
    let bench = bench(TAKES_IT);
    let done = run(&bench, &["--disks", "as-is"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let said = text(&done.stderr);
    assert!(
        said.contains("warning: the image has the guest's disks"),
        "{said}"
    );
    assert_eq!(bench.text("lvm"), "");
    let stream = fs::read(bench.path("stream")).expect("the stream");
    assert!(parts(&stream).0 == parts(&fs::read(&bench.image).expect("the image")).0);
}

#[test]
fn what_an_image_has_not_cannot_be_asked_for() {
    let bench = Bench::new(TAKES_IT);
    for which in ["new", "rollback"] {
        bench.refused(&["--disks", which], 10, &["memory alone", "as-is"]);
    }
    for which in ["new", "rollback", "other"] {
        let refused = bench.run(&["--disks", which, "--config", "/dev/null"]);
        assert_eq!(refused.status.code(), Some(2), "{which}");
    }
}
