use std::ffi::OsString;

use snapshot::disks::Kept;
use tempfile::TempDir;

use super::super::fake::{Fake, copy_kept, facts, place, thick_kept, thin_kept, write_copy};
use super::*;
use crate::run::RunError;

const SNAPSHOT: &str = "lvcreate -q -s -kn -prw --addtag mine -n root.rollback-# vg0/root.snap";
const REPLACE: [&str; 5] = [
    "lvchange -q -an vg0/root",
    "lvrename -q vg0 root root.replaced-#",
    "lvrename -q vg0 root.rollback-# root",
    "lvremove -q -f -y vg0/root.replaced-#",
    "lvchange -q -ay -K vg0/root",
];
const MERGE: [&str; 6] = [
    "lvchange -q -an vg0/data",
    "lvconvert -q -y --merge -b vg0/data.snap",
    "lvchange -q -ay -K vg0/data",
    "lvs",
    "lvchange -q --poll y vg0/data",
    "lvs",
];

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

    fn plan(&mut self, kept: Vec<Kept>) -> Result<Rollback, RestoreError> {
        Rollback::plan(&mut self.fake, &facts(kept), place(self.directory.path()))
    }

    fn run(&mut self, rollback: &Rollback) -> Result<Vec<String>, RestoreError> {
        rollback.run(&mut self.fake, &Cancel::new(), &mut |_, _| ())
    }

    /// A rollback that fails on the way, and what it says.
    fn fails(&mut self, kept: Vec<Kept>) -> String {
        let rollback = self.plan(kept).expect("planned");
        let error = self.run(&rollback).expect_err("failed");
        error.to_string()
    }

    fn refused(&mut self, kept: Kept, words: &[&str]) {
        let error = self.plan(vec![thin_kept(), kept]).expect_err("refused");
        self.fake.must_have_refused(&error, words);
    }
}

#[test]
fn a_thin_volume_is_replaced_and_the_snapshot_stays() {
    let mut bench = Bench::new();
    let before = bench.fake.names();
    let rollback = bench
        .plan(vec![thin_kept(), Kept::Unchanged])
        .expect("planned");
    assert_eq!(rollback.names(), ["vg0/root"]);
    assert_eq!(rollback.uses_up(), Vec::<String>::new());
    assert_eq!(bench.run(&rollback).expect("done"), Vec::<String>::new());
    let asked = bench.fake.asked();
    assert_eq!(asked[..2], ["lvs", SNAPSHOT]);
    assert_eq!(asked[2..], REPLACE);
    assert_eq!(bench.fake.holds("root"), 3);
    let mut names = bench.fake.names();
    names.sort();
    let mut same = before;
    same.sort();
    assert_eq!(names, same);
    // And once more.
    let rollback = bench.plan(vec![thin_kept()]).expect("planned");
    bench.run(&rollback).expect("done");
}

#[test]
fn a_thick_volume_is_put_back_by_lvm_which_uses_the_snapshot_up() {
    let mut bench = Bench::new();
    let rollback = bench.plan(vec![thick_kept()]).expect("planned");
    assert_eq!(rollback.uses_up(), ["vg0/data.snap"]);
    bench.run(&rollback).expect("done");
    assert_eq!(bench.fake.asked()[1..], MERGE);
    assert_eq!(bench.fake.holds("data"), 3);
    let again = bench.plan(vec![thick_kept()]).expect_err("gone");
    let RestoreError::Refused(refusal) = again else {
        panic!("{again}");
    };
    assert!(refusal.to_string().contains("was put back to it"));
}

#[test]
fn what_cannot_be_taken_back_comes_last() {
    let mut bench = Bench::new();
    let copy = bench.directory.path().join("copy");
    write_copy(&copy, 9);
    let Kept::Copy(mut kept) = copy_kept(&copy, None) else {
        panic!("a copy");
    };
    kept.origin = "root".into();
    // Both on one volume, which is no matter here.
    let kept = vec![thick_kept(), Kept::Copy(kept), thin_kept()];
    let rollback = bench.plan(kept).expect("planned");
    let mut told = vec![];
    rollback
        .run(&mut bench.fake, &Cancel::new(), &mut |done, total| {
            told.push((done.0, total.0));
        })
        .expect("done");
    let asked = bench.fake.asked();
    assert_eq!(asked[..2], ["lvs", SNAPSHOT]);
    assert_eq!(asked[2..7], REPLACE);
    assert_eq!(asked[7..], MERGE);
    assert_eq!(told.last(), Some(&(8 << 20, 8 << 20)));
}

#[test]
fn a_copy_is_written_back_and_a_bad_one_touches_nothing() {
    let mut bench = Bench::new();
    let copy = bench.directory.path().join("copy");
    write_copy(&copy, 9);
    let rollback = bench.plan(vec![copy_kept(&copy, None)]).expect("planned");
    bench.run(&rollback).expect("done");
    assert_eq!(bench.fake.holds("data"), 9);
    let packed = std::fs::read(&copy).expect("read");
    std::fs::write(&copy, &packed[..packed.len() - 2]).expect("cut off");
    let mut bench = Bench::new();
    let said = bench.fails(vec![copy_kept(&copy, None), thin_kept()]);
    assert!(said.contains("as before: xvda, xvdb"), "{said}");
    assert_eq!(bench.fake.holds("data"), 2);
    assert_eq!(bench.fake.asked(), ["lvs"]);
}

#[test]
fn an_interrupted_copy_says_that_the_volume_is_half_written() {
    let mut bench = Bench::new();
    let copy = bench.directory.path().join("copy");
    write_copy(&copy, 9);
    let kept = vec![copy_kept(&copy, None), thin_kept()];
    let rollback = bench.plan(kept).expect("planned");
    let cancel = Cancel::new();
    let stopped = rollback.run(&mut bench.fake, &cancel, &mut |done, _| {
        if done > Bytes::from_mib(4) {
            cancel.raise(15);
        }
    });
    let error = stopped.expect_err("stopped");
    assert!(matches!(
        error,
        RestoreError::Interrupted { signal: 15, .. }
    ));
    let said = error.to_string();
    assert!(
        said.contains("neither as it was nor put back: xvda"),
        "{said}"
    );
    assert!(said.contains("as before: xvdb"), "{said}");
    assert!(
        !bench
            .fake
            .names()
            .iter()
            .any(|name| name.contains("rollback"))
    );
}

#[test]
fn what_fails_halfway_is_taken_back_as_far_as_can_be() {
    // The snapshot that was to replace it.
    let mut bench = Bench::new();
    bench.fake.fail("lvcreate");
    let said = bench.fails(vec![thin_kept(), thick_kept()]);
    assert!(said.ends_with("as before: xvda, xvdb"), "{said}");
    // Somebody opens the volume meanwhile.
    let mut bench = Bench::new();
    let before = bench.fake.names();
    bench.fake.before = Some(("lvchange -q -an".into(), |fake| {
        fake.row("root").attr = "Vwi-aotz--".into();
    }));
    let said = bench.fails(vec![thin_kept()]);
    assert!(said.ends_with("as before: xvda"), "{said}");
    assert_eq!(bench.fake.names(), before);
    // Its place cannot be taken: it is back in it.
    let mut bench = Bench::new();
    bench.fake.fail("lvrename -q vg0 root.rollback");
    let said = bench.fails(vec![thin_kept()]);
    assert!(said.ends_with("as before: xvda"), "{said}");
    assert_eq!(bench.fake.names(), before);
    assert_eq!(bench.fake.holds("root"), 1);
    assert!(bench.fake.row("root").attr.starts_with("Vwi-a"));
    // The second disk fails.
    let mut bench = Bench::new();
    bench.fake.fail("lvconvert");
    let said = bench.fails(vec![thin_kept(), thick_kept()]);
    assert!(said.ends_with("put back: xvda; as before: xvdb"), "{said}");
    assert!(bench.fake.row("data").attr.starts_with("owi-a"));
    let mut bench = Bench::new();
    bench.fake.fail("lvchange -q -ay -K vg0/data");
    let said = bench.fails(vec![thin_kept(), thick_kept()]);
    let want = "put back: xvda; LVM is putting back xvdb by itself";
    assert!(said.contains(want), "{said}");
}

#[test]
fn lvm_is_never_asked_to_put_back_a_volume_that_somebody_opens() {
    let mut bench = Bench::new();
    bench.fake.before = Some(("lvchange -q -an".into(), |fake| {
        fake.row("data").attr = "owi-aos---".into();
    }));
    let said = bench.fails(vec![thick_kept()]);
    assert!(said.ends_with("as before: xvda"), "{said}");
    assert_eq!(bench.fake.asked(), ["lvs", MERGE[0]]);
}

#[test]
fn a_merge_is_not_waited_for_when_it_fails_or_the_user_wants_to_stop() {
    let mut bench = Bench::new();
    let rollback = bench.plan(vec![thick_kept()]).expect("planned");
    bench.fake.before = Some(("lvs".into(), |fake| {
        fake.row("data").attr = "Owi-m-s---".into();
    }));
    let error = bench.run(&rollback).expect_err("failed");
    let has_failed = |failure: &Failure| matches!(failure, Failure::MergeFailed(_));
    assert!(matches!(&error, RestoreError::Failed { source, .. } if has_failed(source)));
    let mut bench = Bench::new();
    let rollback = bench.plan(vec![thick_kept()]).expect("planned");
    let cancel = Cancel::new();
    // While LVM is asked how far it is.
    let mut run = Raises(&mut bench.fake, &cancel);
    let error = rollback.run(&mut run, &cancel, &mut |_, _| ());
    let said = error.expect_err("stopped").to_string();
    assert!(
        said.contains("LVM is putting back xvda by itself"),
        "{said}"
    );
}

/// Ctrl-C while a volume gets its device.
struct Raises<'a>(&'a mut Fake, &'a Cancel);

impl Run for Raises<'_> {
    fn run(
        &mut self,
        program: &str,
        arguments: &[OsString],
        limit: Duration,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<Vec<u8>, RunError> {
        if arguments.iter().any(|argument| argument == "-ay") {
            self.1.raise(2);
        }
        self.0.run(program, arguments, limit, meanwhile)
    }
}

#[test]
fn an_old_volume_that_cannot_be_removed_is_told() {
    let mut bench = Bench::new();
    bench.fake.fail("lvremove");
    let rollback = bench.plan(vec![thin_kept()]).expect("planned");
    let left = bench.run(&rollback).expect("done");
    assert_eq!(left.len(), 1);
    assert!(left[0].starts_with("vg0/root.replaced-"), "{left:?}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let mut bench = Bench::new();
    bench.fake.row("data").attr = "owi-aos---".into();
    bench.refused(thick_kept(), &["xvdb", "vg0/data", "in use"]);
    bench.fake.row("data").attr = "Owi-a-s---".into();
    bench.refused(thick_kept(), &["already"]);
    bench.fake.row("data").attr = "owi-a-s---".into();
    bench.fake.row("data.snap").attr = "sri-aos---".into();
    bench.refused(thick_kept(), &["vg0/data.snap", "in use"]);
    bench.fake.row("data.snap").attr = "sri-I-s---".into();
    bench.refused(thick_kept(), &["ran full"]);
    bench.fake.row("data.snap").attr = "sri-a-s---".into();
    // A snapshot of another volume is not put back to this one.
    bench.fake.row("data.snap").origin = "other".into();
    bench.refused(thick_kept(), &["no volume vg0/data"]);
    let copy = bench.directory.path().join("copy");
    write_copy(&copy, 9);
    bench.fake.row("data").size *= 2;
    bench.refused(copy_kept(&copy, None), &["8.0 MiB", "4.0 MiB"]);
    bench.fake.forget("data");
    bench.refused(
        copy_kept(&copy, None),
        &["no volume vg0/data", "--disks new"],
    );
    bench.fake.row("root").attr = "Vwi-aotz--".into();
    bench.refused(Kept::Unchanged, &["xvda", "vg0/root", "in use"]);
}
