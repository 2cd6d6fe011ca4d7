//! An `xl` of our own, and an image for it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use snapshot::image::libxc::record;
use snapshot::image::{Preamble, Record, Tail, samples};
use tempfile::TempDir;

pub const UUID: &str = "2f941814-e7bc-11f1-ba8f-ca684d7748dd";

/// Answers from files beside it, keeps what it is asked; `restore` is a script of the test.
const XL: &str = r#"#!/bin/sh
here=${0%/*}
echo "$*" >>"$here/asked"
case "$1 $2" in
vm-list*) cat "$here/vm-list" ;;
info*) cat "$here/info" ;;
"list -l") cat "$here/list-l" ;;
list*) cat "$here/list" ;;
create*) [ -s "$here/config" ] || { echo "config: syntax error near line 1" >&2; exit 1; }
  cat "$here/config" ;;
destroy*) sed -i "/  $2  /d" "$here/vm-list" ;;
restore*) . "$here/restore" ;;
*) exit 99 ;;
esac
"#;

/// Takes the whole stream and makes a domain of it.
pub const TAKES_IT: &str = r#"cat /dev/stdin >"$here/stream"
uuid=$(grep -ao '"uuid":"[^"]*"' "$here/stream" | cut -d'"' -f4)
name=$(grep -ao '"name":"[^"]*"' "$here/stream" | cut -d'"' -f4)
echo "$uuid  7  $name" >>"$here/vm-list"
"#;

/// Makes a half domain of the first bytes and waits for the file `go`; then it is as stock `xl`:
/// where the stream is not whole it destroys what it has.
pub const STOPS_HALFWAY: &str = r#"head -c 4096 >"$here/stream"
uuid=$(grep -ao '"uuid":"[^"]*"' "$here/stream" | cut -d'"' -f4)
echo "$uuid  7  half" >>"$here/vm-list"
until [ -e "$here/go" ]; do sleep 0.01; done
cat >>"$here/stream"
sed -i "/  7  /d" "$here/vm-list"
echo "libxl: error: the stream is cut off" >&2
echo >"$here/ended"
exit 1
"#;

const PAGES: u64 = 700;

pub struct Bench {
    pub dir: TempDir,
    pub image: PathBuf,
}

impl Bench {
    pub fn new(restore: &str) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let image = dir.path().join("image.xl");
        let bench = Self { dir, image };
        bench.put("xl", XL);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bench.path("xl"), executable).expect("executable");
        bench.put("restore", restore);
        bench.domains(&[]);
        bench.put(
            "info",
            "free_memory : 2000\nxen_commandline : dom0_mem=1024M\n",
        );
        bench.put("list", "Name ID Mem VCPUs State Time(s)\n");
        bench.write_image(&[]);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn domains(&self, lines: &[&str]) {
        let mut text = "UUID                                  ID    name\n\
            00000000-0000-0000-0000-000000000000  0    Domain-0    \n"
            .to_owned();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        self.put("vm-list", &text);
    }

    /// An image of the guest `web1`, one page in four with content, mode 0600.
    pub fn write_image(&self, disks: &[(&str, &Path, u64)]) {
        let disks: Vec<_> = disks
            .iter()
            .map(|(vdev, path, readwrite)| {
                serde_json::json!({"vdev": vdev, "pdev_path": path, "readwrite": readwrite})
            })
            .collect();
        let preamble = Preamble {
            config: config("web1", UUID, &serde_json::json!(disks)).into_bytes(),
            ..samples::preamble()
        };
        let mut bytes = preamble.encode();
        let length = 8 + (8 + 4096) * PAGES;
        for field in [record::PAGE_DATA, length as u32, PAGES as u32, 0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for pfn in 0..PAGES {
            bytes.extend_from_slice(&pfn.to_le_bytes());
        }
        let _ = fs::remove_file(&self.image);
        let file = File::create_new(&self.image).expect("created");
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .expect("0600");
        file.write_all_at(&bytes, 0).expect("written");
        let start = bytes.len() as u64;
        for page in (0..PAGES).step_by(4) {
            let at = start + page * 4096;
            file.write_all_at(&[page as u8 | 1; 4096], at)
                .expect("written");
        }
        let tail = Tail {
            libxc: vec![
                Record::new(record::HVM_CONTEXT, vec![3; 40]),
                Record::new(record::HVM_PARAMS, vec![4; 24]),
            ],
            libxl: vec![],
        };
        file.write_all_at(&tail.encode(), start + PAGES * 4096)
            .expect("written");
    }

    pub fn command(&self, more: &[&str]) -> Command {
        // Through env: a signal that whoever runs the tests ignores would stay ignored.
        let mut command = Command::new("env");
        let path = format!("{}:/usr/bin:/bin", self.dir.path().display());
        command
            .args([
                "--default-signal",
                env!("CARGO_BIN_EXE_livesave"),
                "restore",
            ])
            .arg(&self.image)
            .arg("--locks")
            .arg(self.path("locks"))
            .args(more)
            .env("PATH", path)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().expect("livesave runs")
    }

    /// A restore that must end with that code and say that, and ask `xl` to build nothing.
    pub fn refused(&self, more: &[&str], code: i32, words: &[&str]) {
        let _ = fs::remove_file(self.path("asked"));
        let refused = self.run(more);
        must_say(&refused, code, words);
        let asked = self.text("asked");
        assert!(
            !asked.contains("restore") && !asked.contains("destroy"),
            "{asked}"
        );
    }

    pub fn start(&self, more: &[&str]) -> Child {
        let mut command = self.command(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("started")
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A half domain is there, and `xl` reads no more.
    pub fn wait_for_half_domain(&self) {
        self.wait_for("a half domain", || self.text("vm-list").contains("half"));
        // The pipe is filled in a moment: more than that it does not hold.
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn config(name: &str, uuid: &str, disks: &serde_json::Value) -> String {
    serde_json::json!({
        "c_info": {"type": "pvh", "name": name, "uuid": uuid},
        "b_info": {"max_memkb": 524_288, "max_vcpus": 1, "type.pvh": {}},
        "disks": disks,
        "nics": [{"devid": 0, "mac": "00:16:3e:11:22:33", "bridge": "xenbr0"}],
    })
    .to_string()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn must_say(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

pub fn kill(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

/// Configuration and rest of a stream or an image.
pub fn parts(bytes: &[u8]) -> (serde_json::Value, &[u8]) {
    let length = u32::from_le_bytes(bytes[48..52].try_into().expect("4 bytes")) as usize;
    let json = bytes[52..52 + length - 1].trim_ascii_end();
    (
        serde_json::from_slice(json).expect("JSON"),
        &bytes[52 + length..],
    )
}
