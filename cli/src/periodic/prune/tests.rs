#[path = "../../../tests/made/mod.rs"]
mod images;

use images::{Made, damage, make, names};

use super::*;

const LAST: Rules = Rules {
    last: 1,
    hourly: 0,
    daily: 0,
    weekly: 0,
    monthly: 0,
};

fn images_of(dir: &Path) {
    for (file, uuid, cut) in [
        ("a-1.xl", "0a", "2026-01-01T00:00:00Z"),
        ("a-2.xl", "0a", "2026-01-02T00:00:00Z"),
        ("a-3.xl", "0a", "2026-01-03T00:00:00Z"),
        ("b-1.xl", "0b", "2026-01-01T00:00:00Z"),
        ("b-2.xl", "0b", "2026-01-02T00:00:00Z"),
    ] {
        // One name for both: the UUID tells them apart.
        let name = "same";
        make(&dir.join(file), &Made { name, uuid, cut });
    }
}

#[test]
fn after_a_save_only_its_own_guest_is_pruned() {
    let dir = tempfile::tempdir().expect("directory");
    images_of(dir.path());
    // A guest named like the UUID of the one that is saved.
    for (file, cut) in [
        ("c-1.xl", "2026-01-01T00:00:00Z"),
        ("c-2.xl", "2026-01-02T00:00:00Z"),
    ] {
        make(
            &dir.path().join(file),
            &Made {
                name: "0a",
                uuid: "0c",
                cut,
            },
        );
    }
    let done = after_save(&dir.path().join("a-3.xl"), &LAST, &Cancel::new()).expect("pruned");
    assert_eq!(done.brief()[..2], ["Removed a-1.xl", "Removed a-2.xl"]);
    done.check().expect("nothing failed");
    let left = ["a-3.xl", "b-1.xl", "b-2.xl", "c-1.xl", "c-2.xl"];
    assert_eq!(names(dir.path()), left);
}

#[test]
fn where_the_new_image_is_not_good_nothing_is_removed() {
    let dir = tempfile::tempdir().expect("directory");
    images_of(dir.path());
    let new = dir.path().join("a-3.xl");
    damage(&new);
    let error = after_save(&new, &LAST, &Cancel::new()).expect_err("refused");
    assert!(error.is::<snapshot::image::ImageError>(), "{error:#}");
    assert!(
        error.to_string().contains("Nothing was pruned"),
        "{error:#}"
    );
    std::fs::remove_file(&new).expect("removed");
    assert!(after_save(&new, &LAST, &Cancel::new()).is_err());
    assert_eq!(names(dir.path()), ["a-1.xl", "a-2.xl", "b-1.xl", "b-2.xl"]);
}

#[test]
fn a_file_that_took_the_name_meanwhile_stays() {
    let dir = tempfile::tempdir().expect("directory");
    images_of(dir.path());
    let listing = scan(dir.path()).expect("listed");
    let plan = Plan::new(&listing, &LAST, &TimeZone::UTC, |images| {
        is_meant(images, "0a")
    });
    // As `livesave -o FILE --force` does, in one step.
    let cut = "2026-01-04T00:00:00Z";
    let name = "same";
    make(
        &dir.path().join("new"),
        &Made {
            name,
            uuid: "0a",
            cut,
        },
    );
    std::fs::rename(dir.path().join("new"), dir.path().join("a-1.xl")).expect("renamed");
    // And one is gone already.
    std::fs::remove_file(dir.path().join("a-2.xl")).expect("removed");
    let done = plan.carry_out(dir.path(), false).expect("pruned");
    assert_eq!(done.removed, Vec::<PathBuf>::new());
    done.check().expect("that is no failure");
    assert_eq!(names(dir.path()), ["a-1.xl", "a-3.xl", "b-1.xl", "b-2.xl"]);
}

#[test]
fn what_cannot_be_removed_is_told() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("directory");
    std::fs::create_dir(&path).expect("created");
    let file = FileId::of(&path.metadata().expect("metadata"));
    let mut done = Pruned::default();
    done.remove(&path, file, Bytes(1));
    assert_eq!((done.removed.len(), done.freed), (0, Bytes(0)));
    let error = done.check().expect_err("it failed");
    assert!(error.to_string().contains("Failed to remove"), "{error}");
}

#[test]
fn where_a_byte_of_the_new_image_is_wrong_nothing_is_removed() {
    let dir = tempfile::tempdir().expect("directory");
    images_of(dir.path());
    let new = dir.path().join("a-3.xl");
    let mut bytes = std::fs::read(&new).expect("read");
    let page = bytes
        .windows(4096)
        .position(|page| page.iter().all(|&b| b == 7));
    bytes[page.expect("a page")] ^= 1;
    std::fs::write(&new, bytes).expect("written");
    let error = after_save(&new, &LAST, &Cancel::new()).expect_err("refused");
    assert!(error.to_string().contains("checksum"), "{error:#}");
    let cancel = Cancel::new();
    cancel.raise(2);
    assert!(after_save(&dir.path().join("b-2.xl"), &LAST, &cancel).is_err());
    assert_eq!(names(dir.path()).len(), 5);
}
