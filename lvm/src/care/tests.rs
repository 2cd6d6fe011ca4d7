//! What becomes of the snapshots of killed saves, with volumes and images that are told or made here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use snapshot::image::any::AnyImage;
use snapshot::image::file::Existing;
use snapshot::image::samples;
use snapshot::image::trailer::Facts;
use snapshot::lineage::ImageId;
use snapshot::ports::{Cancel, ImageSink};
use snapshot::{PageCount, PageSet};

use super::*;
use crate::run::RunError;
use crate::tags::of_image as tags_of;

const ID: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "ffffffffffffffffffffffffffffffff";
/// No process has that number.
const DEAD: &str = "livesave.unfinished=4194999.1";

/// A group with these volumes and their tags.
#[derive(Default)]
struct Told {
    volumes: Vec<(String, Vec<String>)>,
    fails: Option<&'static str>,
}

impl Told {
    fn with(volumes: &[(&str, &[String])]) -> Self {
        let volumes = volumes.iter();
        Self {
            volumes: volumes
                .map(|(name, tags)| (name.to_string(), tags.to_vec()))
                .collect(),
            fails: None,
        }
    }

    fn names(&self) -> Vec<&str> {
        self.volumes.iter().map(|(name, _)| name.as_str()).collect()
    }
}

impl Run for Told {
    fn run(
        &mut self,
        program: &str,
        arguments: &[OsString],
        limit: Duration,
        _: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, RunError> {
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        let command = format!("{program} {}", words.join(" "));
        if self.fails.is_some_and(|part| command.contains(part)) {
            return Err(RunError::TimedOut { command, limit });
        }
        let target = words.last().and_then(|name| name.strip_prefix("vg/"));
        match (program, target) {
            ("lvremove", Some(target)) => self.volumes.retain(|(name, _)| name != target),
            ("lvchange", Some(target)) => {
                let tag = words.iter().skip_while(|word| *word != "--deltag").nth(1);
                let tag = tag.expect("a tag");
                let found = self.volumes.iter_mut().find(|(name, _)| name == target);
                found.expect("a volume").1.retain(|other| other != tag);
            }
            ("lvs", _) => {
                let rows: Vec<_> = self
                    .volumes
                    .iter()
                    .map(|(name, tags)| {
                        json!({
                            "lv_name": name, "lv_uuid": format!("{name}-uuid"), "vg_name": "vg",
                            "vg_uuid": "v", "vg_free": "0", "vg_extent_size": "4194304",
                            "lv_size": "4194304", "segtype": "linear", "pool_lv": "", "thin_id": "",
                            "origin": "root", "lv_attr": "swi-a-s---", "lv_tags": tags.join(","),
                            "data_percent": "1.0", "metadata_percent": "", "lv_kernel_major": "-1",
                            "lv_kernel_minor": "-1", "lv_merging": "", "lv_merge_failed": "",
                            "lv_snapshot_invalid": "", "lv_device_open": "",
                        })
                    })
                    .collect();
                return Ok(json!({ "report": [{ "lv": rows }] })
                    .to_string()
                    .into_bytes());
            }
            _ => panic!("{command}"),
        }
        Ok(vec![])
    }
}

/// An image of that identity.
fn make_image(path: &Path, id: &str) {
    let mut image = AnyImage::create(path, Existing::Keep, None, &Cancel::new()).expect("created");
    image
        .begin(&samples::preamble(), &PageSet::new(PageCount(1)))
        .expect("begun");
    let facts = Facts {
        memory_pages: PageCount(0),
        zero_pages: PageCount(0),
        id: Some(ImageId::try_from(id.to_owned()).expect("an identity")),
        ..samples::facts()
    };
    image.finish(&samples::tail(), &facts).expect("finished");
    image.commit().expect("committed");
}

fn plan(image: &Path, copies: &[&Path]) -> Plan {
    Plan {
        id: ID.into(),
        image: crate::tags::escape(image),
        snapshots: vec![],
        copies: copies
            .iter()
            .map(|path| crate::tags::escape(path))
            .collect(),
    }
}

fn dead(id: &str, image: &Path) -> Vec<String> {
    let mut tags = tags_of(id, image);
    tags.retain(|tag| !is_unfinished(tag));
    tags.push(DEAD.into());
    tags
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let image = directory.path().join("image.xl");
    (directory, image)
}

#[test]
fn what_was_made_for_an_image_that_is_not_there_is_removed() {
    let (directory, image) = directory();
    let copy = directory.path().join("copy.zst");
    let (ours, theirs) = (dead(ID, &image), dead(OTHER, &image));
    for is_replaced in [false, true] {
        std::fs::write(&copy, "a copy").expect("written");
        if is_replaced {
            // One that was there before: the save was to replace it.
            make_image(&image, OTHER);
        }
        let mut told = Told::with(&[("root", &[]), ("ours", &ours), ("theirs", &theirs)]);
        let done = tidy(&mut told, &plan(&image, &[&copy])).expect("tidied");
        assert_eq!(done, ["a disk snapshot removed"]);
        assert_eq!(told.names(), ["root", "theirs"]);
        assert!(!copy.exists());
    }
}

#[test]
fn what_belongs_to_an_image_that_stands_is_left_and_finished() {
    let (directory, image) = directory();
    let copy = directory.path().join("copy.zst");
    std::fs::write(&copy, "a copy").expect("written");
    make_image(&image, ID);
    let mut told = Told::with(&[("ours", &dead(ID, &image))]);
    tidy(&mut told, &plan(&image, &[&copy])).expect("tidied");
    assert_eq!(told.names(), ["ours"]);
    assert!(
        !told.volumes[0].1.iter().any(|tag| is_unfinished(tag)),
        "{:?}",
        told.volumes
    );
    assert!(copy.exists());
}

#[test]
fn where_it_cannot_be_told_nothing_is_done() {
    let image = Path::new("/no/such/directory/image.xl");
    let mut told = Told::with(&[("ours", &dead(ID, image))]);
    assert!(tidy(&mut told, &plan(image, &[])).is_err());
    assert_eq!(orphans(&mut told).expect("looked"), []);
    assert_eq!(told.names(), ["ours"]);
}

#[test]
fn one_that_cannot_be_removed_keeps_no_other() {
    let (_directory, image) = directory();
    let tags = dead(ID, &image);
    let mut told = Told::with(&[("first", &tags), ("second", &tags)]);
    told.fails = Some("vg/first");
    assert!(tidy(&mut told, &plan(&image, &[])).is_err());
    assert_eq!(told.names(), ["first"]);
}

#[test]
fn a_recovery_removes_what_killed_saves_left_and_nothing_else() {
    let (directory, image) = directory();
    let standing = directory.path().join("standing.xl");
    make_image(&standing, OTHER);
    let gone = directory.path().join("gone.xl");
    let mut by_hand = dead(OTHER, &gone);
    by_hand.retain(|tag| tag != DEAD);
    let clone = directory.path().join(format!("{CLONE}4194999.xl"));
    let mut of_clone = dead(ID, &clone);
    of_clone.retain(|tag| tag != DEAD);
    let mine = directory
        .path()
        .join(format!("{CLONE}{}.xl", std::process::id()));
    let mut cloning = dead(ID, &mine);
    cloning.retain(|tag| tag != DEAD);
    let mut told = Told::with(&[
        ("killed", &dead(ID, &image)),
        ("at-work", &tags_of(ID, &image)),
        ("standing", &dead(OTHER, &standing)),
        ("by-hand", &by_hand),
        ("clone", &of_clone),
        ("cloning", &cloning),
        (
            "no-path",
            &["livesave".into(), format!("livesave.id={ID}"), DEAD.into()],
        ),
        ("somebodys", &["x".into()]),
    ]);
    let found = orphans(&mut told).expect("looked");
    let names: Vec<_> = found
        .iter()
        .map(|orphan| orphan.volume.name.as_str())
        .collect();
    assert_eq!(names, ["killed", "by-hand", "clone", "no-path"]);
    let done = recover(&mut told).expect("recovered");
    assert_eq!(done.removed, ["vg/killed", "vg/clone", "vg/no-path"]);
    assert!(done.failed.is_empty(), "{done:?}");
    assert_eq!(
        told.names(),
        ["at-work", "standing", "by-hand", "cloning", "somebodys"]
    );
}
