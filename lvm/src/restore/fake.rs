//! A volume group for tests: LVM's commands change rows, and files that stand for devices.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use snapshot::disks::{CopyKept, DiskFacts, DiskKept, Kept, SnapshotKept};
use snapshot::units::Bytes;

use super::{Place, RestoreError};
use crate::run::{Run, RunError};

/// The size of every disk.
pub const SIZE: Bytes = Bytes::from_mib(4);

/// Before the first command that starts so.
type Before = (String, fn(&mut Fake));

/// The group `vg0` with `root`, thin, and `data`, thick, each with a snapshot.
pub struct Fake {
    dev: PathBuf,
    rows: Vec<Row>,
    free: u64,
    asked: Vec<String>,
    fails: Vec<String>,
    /// What somebody does before a command is run.
    pub before: Option<Before>,
}

#[derive(Clone)]
pub struct Row {
    pub name: String,
    pub uuid: String,
    pub segtype: &'static str,
    pub pool: &'static str,
    pub origin: String,
    pub attr: String,
    pub tags: String,
    pub size: u64,
    pub percent: &'static str,
}

impl Fake {
    pub fn new(dev: &Path) -> Self {
        fs::create_dir_all(dev.join("vg0")).expect("directory");
        let row = |name: &str, uuid: &str, segtype, pool, origin: &str, attr: &str| Row {
            name: name.into(),
            uuid: uuid.into(),
            segtype,
            pool,
            origin: origin.into(),
            attr: attr.into(),
            tags: String::new(),
            size: SIZE.0,
            percent: "",
        };
        let mut fake = Self {
            dev: dev.to_owned(),
            rows: vec![
                row("pool", "POOL-uuid", "thin-pool", "", "", "twi-aotz--"),
                row("root", "ROOT-uuid", "thin", "pool", "", "Vwi-a-tz--"),
                row(
                    "root.snap",
                    "SNAP-uuid",
                    "thin",
                    "pool",
                    "root",
                    "Vri---tz-k",
                ),
                row("data", "DATA-uuid", "linear", "", "", "owi-a-s---"),
                row(
                    "data.snap",
                    "TSNAP-uuid",
                    "linear",
                    "",
                    "data",
                    "sri-a-s---",
                ),
            ],
            free: 64 << 20,
            asked: vec![],
            fails: vec![],
            before: None,
        };
        fake.row("root").tags = "mine".into();
        for (name, byte) in [("root", 1), ("data", 2), ("data.snap", 3)] {
            fake.write(name, byte);
        }
        fake
    }

    pub fn row(&mut self, name: &str) -> &mut Row {
        let row = self.rows.iter_mut().find(|row| row.name == name);
        row.expect("such a volume")
    }

    pub fn set_free(&mut self, free: u64) {
        self.free = free;
    }

    /// A volume that is removed by somebody else.
    pub fn forget(&mut self, name: &str) {
        self.rows.retain(|row| row.name != name);
    }

    /// From now on commands that start so fail.
    pub fn fail(&mut self, start: &str) {
        self.fails.push(start.into());
    }

    /// What was run, `lvs` without its arguments and numbers of our own as `#`.
    pub fn asked(&self) -> Vec<String> {
        let plain = |line: &String| {
            let mut line = line.clone();
            for mark in [".restored-", ".rollback-", ".replaced-"] {
                let mut from = 0;
                while let Some(at) = line[from..].find(mark).map(|at| from + at + mark.len()) {
                    let end = (at + 8).min(line.len());
                    line.replace_range(at..end, "#");
                    from = at;
                }
            }
            line
        };
        self.asked.iter().map(plain).collect()
    }

    /// That error says why, and nothing was touched before it.
    pub fn must_have_refused(&self, error: &RestoreError, words: &[&str]) {
        let RestoreError::Refused(refusal) = error else {
            panic!("{error}");
        };
        let text = refusal.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(self.asked.iter().all(|asked| asked == "lvs"));
    }

    pub fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.name.clone()).collect()
    }

    pub fn write(&self, name: &str, byte: u8) {
        fs::write(self.device(name), vec![byte; SIZE.0 as usize]).expect("written");
    }

    pub fn device(&self, name: &str) -> PathBuf {
        self.dev.join("vg0").join(name)
    }

    /// The byte that a volume is full of.
    pub fn holds(&self, name: &str) -> u8 {
        let content = fs::read(self.device(name)).expect("a device");
        assert!(content.iter().all(|byte| *byte == content[0]));
        content[0]
    }

    fn listing(&self) -> String {
        let row = |row: &Row| {
            let active = row.attr.as_bytes()[4] != b'-';
            let number = if active { "7" } else { "-1" };
            serde_json::json!({
                "lv_name": row.name, "lv_uuid": row.uuid, "vg_name": "vg0", "vg_uuid": "VG-uuid",
                "vg_free": self.free.to_string(), "vg_extent_size": (4 << 20).to_string(),
                "lv_size": row.size.to_string(), "segtype": row.segtype, "pool_lv": row.pool,
                "thin_id": "",
                "origin": row.origin, "lv_attr": row.attr, "lv_tags": row.tags,
                "data_percent": row.percent, "metadata_percent": "",
                "lv_kernel_major": number, "lv_kernel_minor": number,
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        serde_json::json!({ "report": [{ "lv": rows }] }).to_string()
    }

    fn done(&mut self, program: &str, words: &[String]) -> Result<String, String> {
        let last = words.last().cloned().unwrap_or_default();
        let plain = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let after = |option: &str| {
            let at = words.iter().position(|word| word == option)?;
            words.get(at + 1).cloned()
        };
        match program {
            "lvs" => return Ok(self.listing()),
            "lvcreate" => {
                let name = after("-n").ok_or("no name")?;
                let thin = after("-V").is_some() || words.iter().any(|word| word == "-s");
                let tags: Vec<_> = words
                    .windows(2)
                    .filter(|two| two[0] == "--addtag")
                    .map(|two| two[1].clone())
                    .collect();
                self.rows.push(Row {
                    uuid: format!("uuid of {name}"),
                    segtype: if thin { "thin" } else { "linear" },
                    pool: if thin { "pool" } else { "" },
                    origin: after("-s").map(|_| plain(&last)).unwrap_or_default(),
                    attr: "-wi-a-----".into(),
                    tags: tags.join(","),
                    size: SIZE.0,
                    percent: "",
                    name: name.clone(),
                });
                self.write(&name, if after("-s").is_some() { 3 } else { 0 });
            }
            "lvremove" => {
                let name = plain(&last);
                self.row(&name);
                self.forget(&name);
                let _ = fs::remove_file(self.device(&name));
            }
            "lvrename" => {
                let (old, new) = (words[words.len() - 2].clone(), last);
                let exists = self.rows.iter().any(|row| row.name == new);
                if exists {
                    return Err("it exists".into());
                }
                self.row(&old).name.clone_from(&new);
                let _ = fs::rename(self.device(&old), self.device(&new));
            }
            "lvchange" if words.iter().any(|word| word == "-an") => {
                let attr = &mut self.row(&plain(&last)).attr;
                if attr.as_bytes()[5] == b'o' {
                    return Err("in use".into());
                }
                attr.replace_range(4..5, "-");
            }
            "lvchange" if words.iter().any(|word| word == "--poll") => {
                let name = plain(&last);
                self.row(&name).attr.replace_range(0..1, "-");
                self.write(&name, 3);
            }
            "lvchange" => self.row(&plain(&last)).attr.replace_range(4..5, "a"),
            "lvconvert" => {
                let name = plain(&last);
                let origin = self.row(&name).origin.clone();
                let attr = &mut self.row(&origin).attr;
                if attr.as_bytes()[4] == b'a' {
                    return Err("it would be put off".into());
                }
                attr.replace_range(0..1, "O");
                // It is hidden from then on.
                self.forget(&name);
            }
            _ => return Err("no such command".into()),
        }
        Ok(String::new())
    }
}

impl Run for Fake {
    fn run(
        &mut self,
        program: &str,
        arguments: &[OsString],
        _limit: Duration,
        _meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, RunError> {
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let command = format!("{program} {}", words.join(" "));
        self.asked.push(match program {
            "lvs" => "lvs".into(),
            _ => command.clone(),
        });
        if let Some((_, act)) = self
            .before
            .take_if(|(start, _)| command.starts_with(start.as_str()))
        {
            act(self);
        }
        let done = match self.fails.iter().any(|start| command.starts_with(start)) {
            true => Err("it is made to fail".to_owned()),
            false => self.done(program, &words),
        };
        done.map(String::into_bytes)
            .map_err(|said| RunError::Failed {
                command,
                status: ExitStatus::from_raw(5 << 8),
                said,
            })
    }
}

pub fn place(dev: &Path) -> Place {
    Place {
        dev: dev.to_owned(),
        beside: None,
        limit: Duration::from_secs(60),
        look: Duration::from_millis(1),
    }
}

/// The facts of disks `xvda`, `xvdb` and so on.
pub fn facts(kept: Vec<Kept>) -> DiskFacts {
    let disks = ('a'..).zip(kept).map(|(letter, kept)| DiskKept {
        vdev: format!("xvd{letter}"),
        path: "/dev/vg0/it".into(),
        kept,
    });
    DiskFacts {
        disks: disks.collect(),
        ..DiskFacts::default()
    }
}

fn snapshot_kept(origin: &str, uuid: &str, pool: Option<&str>) -> Kept {
    Kept::Snapshot(SnapshotKept {
        vg: "vg0".into(),
        name: format!("{origin}.snap"),
        origin: origin.into(),
        uuid: uuid.into(),
        size: SIZE,
        pool: pool.map(str::to_owned),
    })
}

pub fn thin_kept() -> Kept {
    snapshot_kept("root", "SNAP-uuid", Some("pool"))
}

pub fn thick_kept() -> Kept {
    snapshot_kept("data", "TSNAP-uuid", None)
}

pub fn copy_kept(file: &Path, pool: Option<&str>) -> Kept {
    Kept::Copy(CopyKept {
        file: file.to_owned(),
        size: SIZE,
        vg: "vg0".into(),
        origin: if pool.is_some() { "root" } else { "data" }.into(),
        pool: pool.map(str::to_owned),
    })
}

/// A copy of a disk full of that byte.
pub fn write_copy(file: &Path, byte: u8) {
    let content = vec![byte; SIZE.0 as usize];
    fs::write(file, zstd::encode_all(&content[..], 1).expect("packed")).expect("written");
}
