use snapshot::disks::Kept;
use tempfile::TempDir;

use super::super::fake::{Fake, SIZE, copy_kept, facts, place, thick_kept, thin_kept, write_copy};
use super::*;

const THIN: &str =
    "lvcreate -q -s -kn -prw --addtag livesave.restored -n root.restored-# vg0/root.snap";
const THICK: &str =
    "lvcreate -q -L 4194304b -Wy -y -Zy --addtag livesave.restored -n data.restored-# vg0";

struct Bench {
    directory: TempDir,
    fake: Fake,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let fake = Fake::new(directory.path());
        Self { directory, fake }
    }

    fn plan(&mut self, kept: Vec<Kept>) -> Result<NewDisks, RestoreError> {
        NewDisks::plan(&mut self.fake, &facts(kept), place(self.directory.path()))
    }

    fn make(&mut self, new: &NewDisks) -> Result<Vec<(u64, u64)>, RestoreError> {
        let mut told = vec![];
        new.make(&mut self.fake, &Cancel::new(), &mut |done, total| {
            told.push((done.0, total.0));
        })?;
        Ok(told)
    }

    fn refused(&mut self, kept: Kept, words: &[&str]) {
        let error = self.plan(vec![kept]).expect_err("refused");
        self.fake.must_have_refused(&error, words);
    }
}

#[test]
fn each_kind_of_disk_gets_a_volume_with_its_content() {
    let mut bench = Bench::new();
    let copy = bench.directory.path().join("copy");
    write_copy(&copy, 9);
    let kept = vec![
        thin_kept(),
        thick_kept(),
        copy_kept(&copy, None),
        copy_kept(&copy, Some("pool")),
        Kept::Unchanged,
    ];
    let new = bench.plan(kept).expect("planned");
    assert_eq!(bench.fake.asked(), ["lvs"]);
    let told = bench.make(&new).expect("made");
    assert_eq!(
        bench.fake.asked()[1..],
        [
            THIN,
            THICK,
            "lvs",
            THICK,
            "lvcreate -q -y -Wy -V 4194304b --thinpool pool --addtag livesave.restored -n \
             root.restored-# vg0",
        ]
    );
    assert_eq!(told.last(), Some(&(3 * SIZE.0, 3 * SIZE.0)));
    let held = new.paths().into_iter().map(|(vdev, path)| {
        assert!(path.starts_with(bench.directory.path().join("vg0")));
        let name = path.file_name().expect("a name").to_string_lossy();
        (vdev, bench.fake.holds(&name))
    });
    let held: Vec<_> = held.collect();
    let want = [("xvda", 3), ("xvdb", 3), ("xvdc", 9), ("xvdd", 9)];
    assert_eq!(held, want.map(|(vdev, byte)| (vdev.to_owned(), byte)));
}

#[test]
fn a_snapshot_is_found_by_its_uuid_and_copied_while_it_is_active() {
    let mut bench = Bench::new();
    bench.fake.row("root.snap").name = "kept".into();
    bench.fake.row("data.snap").attr = "sri---s---".into();
    let new = bench
        .plan(vec![thin_kept(), thick_kept()])
        .expect("planned");
    bench.make(&new).expect("made");
    assert_eq!(
        bench.fake.asked()[1..4],
        [
            THIN.replace("root.snap", "kept").as_str(),
            "lvchange -q -ay -K vg0/data.snap",
            THICK
        ]
    );
}

#[test]
fn a_copy_that_was_moved_with_its_image_is_found_beside_it() {
    let mut bench = Bench::new();
    write_copy(&bench.directory.path().join("copy"), 9);
    let facts = facts(vec![copy_kept("/nonexistent/copy".as_ref(), None)]);
    let mut place = place(bench.directory.path());
    assert!(NewDisks::plan(&mut bench.fake, &facts, place.clone()).is_err());
    place.beside = Some(bench.directory.path().to_owned());
    let new = NewDisks::plan(&mut bench.fake, &facts, place).expect("planned");
    bench.make(&new).expect("made");
    // The pool is gone: a volume of its own.
    let copy = bench.directory.path().join("copy");
    bench.fake.forget("pool");
    let new = bench.plan(vec![copy_kept(&copy, Some("pool"))]);
    bench.make(&new.expect("planned")).expect("made");
    let last = bench.fake.asked().pop().expect("asked");
    assert_eq!(last, THICK.replace("data", "root"));
}

#[test]
fn what_fails_halfway_leaves_no_volume() {
    for (fails, left) in [
        ("lvcreate -q -L", "the new volumes were removed"),
        ("lvcreate -q -s", "no new volume was left"),
    ] {
        let mut bench = Bench::new();
        let before = bench.fake.names();
        let new = bench
            .plan(vec![thin_kept(), thick_kept()])
            .expect("planned");
        bench.fake.fail(fails);
        let error = bench.make(&new).expect_err("failed").to_string();
        assert!(error.contains(left), "{error}");
        assert_eq!(bench.fake.names(), before);
    }
    let mut bench = Bench::new();
    let new = bench
        .plan(vec![thin_kept(), thick_kept()])
        .expect("planned");
    bench.fake.fail("lvcreate -q -L");
    bench.fake.fail("lvremove");
    let error = bench.make(&new).expect_err("failed").to_string();
    assert!(
        error.contains(&new.names()[0]) && error.contains("lvremove"),
        "{error}"
    );
}

#[test]
fn an_interrupted_copy_leaves_no_volume() {
    let mut bench = Bench::new();
    let before = bench.fake.names();
    let new = bench
        .plan(vec![thin_kept(), thick_kept()])
        .expect("planned");
    let cancel = Cancel::new();
    let stopped = new.make(&mut bench.fake, &cancel, &mut |_, _| cancel.raise(2));
    assert!(matches!(
        stopped,
        Err(RestoreError::Interrupted { signal: 2, .. })
    ));
    assert_eq!(bench.fake.names(), before);
}

#[test]
fn a_snapshot_that_runs_full_meanwhile_is_not_taken() {
    let mut bench = Bench::new();
    let before = bench.fake.names();
    let new = bench.plan(vec![thick_kept()]).expect("planned");
    bench.fake.before = Some(("lvcreate".into(), |fake| {
        fake.row("data.snap").attr = "sri-I-s---".into();
    }));
    let error = bench.make(&new).expect_err("lost");
    assert!(matches!(
        error,
        RestoreError::Failed {
            source: Failure::SnapshotLost(_),
            ..
        }
    ));
    assert_eq!(bench.fake.names(), before);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let mut bench = Bench::new();
    bench.fake.row("data.snap").attr = "sri-I-s---".into();
    bench.refused(thick_kept(), &["xvda", "vg0/data.snap", "ran full"]);
    bench.fake.row("data.snap").attr = "sri-a-s---".into();
    bench.fake.row("data.snap").percent = "100.00";
    bench.refused(thick_kept(), &["ran full"]);
    bench.fake.row("data.snap").percent = "";
    bench.fake.set_free(SIZE.0 - 1);
    bench.refused(thick_kept(), &["vg0 has 4.0 MiB free", "need 4.0 MiB"]);
    // Of thin ones the pool has the room.
    bench.plan(vec![thin_kept()]).expect("planned");
    bench.fake.row("root.snap").segtype = "linear";
    bench.refused(thin_kept(), &["another kind"]);
    bench.fake.row("root.snap").segtype = "thin";
    bench.fake.row("root.snap").size = 1;
    bench.refused(thin_kept(), &["size"]);
    bench.fake.forget("root.snap");
    bench.refused(thin_kept(), &["vg0/root.snap", "SNAP-uuid", "is gone"]);
    let file = bench.directory.path().join("file");
    bench.refused(copy_kept(&file, None), &["cannot be read", "No such file"]);
    std::fs::write(&file, "something").expect("written");
    bench.refused(copy_kept(&file, None), &["no zstd file"]);
    write_copy(&file, 1);
    let changed = |change: fn(&mut snapshot::disks::CopyKept)| {
        let Kept::Copy(mut kept) = copy_kept(&file, None) else {
            panic!("a copy");
        };
        change(&mut kept);
        Kept::Copy(kept)
    };
    bench.refused(changed(|kept| kept.vg = "vg9".into()), &["vg9"]);
    bench.refused(changed(|kept| kept.origin = "-y".into()), &["\"-y\""]);
}
