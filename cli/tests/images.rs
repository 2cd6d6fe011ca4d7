//! `verify`, `extract`, `diff` and `inspect` on images of both kinds.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use snapshot::image::file::Existing;
use snapshot::image::trailer::Facts;
use snapshot::image::{AnyImage, Compression, samples};
use snapshot::page::PageBytes;
use snapshot::ports::{Cancel, ImageSink};
use snapshot::{GuestPage, PAGE_SIZE, PageCount, Pfn};

const PAGES: u64 = 700;

fn image(path: &Path, compressed: bool, fill: impl Fn(u64) -> u8) {
    let how = compressed.then_some(Compression {
        level: 1,
        threads: 1,
    });
    let image = AnyImage::create(path, Existing::Keep, how, &Cancel::new());
    let mut image = image.expect("created");
    image
        .begin(&samples::preamble(), &samples::first_pages(PAGES))
        .expect("begun");
    for pfn in 0..PAGES {
        let page = PageBytes([fill(pfn); PAGE_SIZE]);
        let batch = [(Pfn(pfn), GuestPage::of(&page))];
        image.write(&batch).expect("written");
    }
    let facts = Facts {
        memory_pages: PageCount(PAGES),
        zero_pages: image.zero_pages(),
        ..samples::facts()
    };
    image.finish(&samples::tail(), &facts).expect("finished");
    image.commit().expect("committed");
}

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_livesave"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("livesave runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// `a.xl` and `b.xl.zst`, which differ in the pages 5, 6 and 600.
fn two_images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    image(&dir.path().join("a.xl"), false, |pfn| pfn as u8);
    image(&dir.path().join("b.xl.zst"), true, |pfn| match pfn {
        5 | 6 | 600 => 77,
        pfn => pfn as u8,
    });
    dir
}

#[test]
fn whole_and_damaged_images_are_told_apart() {
    let dir = two_images();
    for name in ["a.xl", "b.xl.zst"] {
        let whole = run(dir.path(), &["verify", name]);
        assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
        assert!(text(&whole.stdout).contains("is whole: 700 pages"));
        let whole = json(&run(dir.path(), &["verify", name, "--json"]));
        assert_eq!(
            (&whole["whole"], &whole["pages"]),
            (&true.into(), &700.into())
        );

        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let damaged = run(dir.path(), &["verify", name]);
        assert_eq!(damaged.status.code(), Some(8));
        assert!(damaged.stdout.is_empty());
        let said = text(&damaged.stderr);
        // The middle of a zstd image may be a frame's header.
        let told = said.contains("checksum") || said.contains("frame");
        assert!(told && said.contains("at byte"), "{said}");
        let damaged = run(dir.path(), &["verify", name, "--json"]);
        assert_eq!(damaged.status.code(), Some(8));
        let problem = &json(&damaged)["problems"][0];
        let offset = problem["offset"].as_u64().expect("an offset");
        assert!(offset <= middle as u64, "{problem}");
    }
    let missing = run(dir.path(), &["verify", "c.xl"]);
    assert_eq!(missing.status.code(), Some(8));
}

#[test]
fn two_images_are_compared() {
    let dir = two_images();
    let diff = run(dir.path(), &["diff", "a.xl", "b.xl.zst"]);
    assert_eq!(diff.status.code(), Some(0));
    let said = text(&diff.stdout);
    for line in [
        "0x5-0x6: 2 pages differ",
        "0x258-0x258: 1 pages differ",
        "697 equal, 3 differ",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let diff = json(&run(dir.path(), &["diff", "--json", "b.xl.zst", "a.xl"]));
    assert_eq!(
        diff["differ"]["ranges"],
        serde_json::json!([[5, 6], [600, 600]])
    );
    assert_eq!(diff["only_first"]["pages"], 0);
}

#[test]
fn pages_are_taken_out_and_nothing_is_overwritten() {
    let dir = two_images();
    for name in ["a.xl", "b.xl.zst"] {
        let args = ["extract", name, "--pfn", "0x1fe-0x202", "-o", "out"];
        let done = run(dir.path(), &args);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let path = dir.path().join("out");
        let bytes = std::fs::read(&path).expect("read");
        let firsts: Vec<_> = bytes.chunks(PAGE_SIZE).map(|page| page[0]).collect();
        assert_eq!(firsts, [0xfe, 0xff, 0, 1, 2]);
        assert_eq!(run(dir.path(), &args).status.code(), Some(1));
        std::fs::remove_file(&path).expect("removed");
        let beyond = run(
            dir.path(),
            &["extract", name, "--pfn", "690-710", "-o", "out"],
        );
        assert_eq!(beyond.status.code(), Some(1));
        assert!(text(&beyond.stderr).contains("11 of the 21 pages"));
        assert!(!path.exists());
    }
}

#[test]
fn a_compressed_image_is_inspected() {
    let dir = two_images();
    let found = json(&run(dir.path(), &["inspect", "--json", "b.xl.zst"]));
    assert_eq!(
        (&found["compressed"], &found["page_copies"]),
        (&true.into(), &700.into())
    );
    let found = run(dir.path(), &["inspect", "b.xl.zst"]);
    assert!(text(&found.stdout).contains("zstd of a stream of"));
}
