//! Without Xen: disks are files, another moment's disk is a copy put back, another moment's memory
//! a counter set back.

use super::*;
use crate::records::SLOTS;
use crate::records::look;
use crate::records::slots::Layout;
use std::fs::{self, File};

const SEED: u64 = 77;

fn owner(disk: u8) -> Owner {
    Owner { seed: SEED, disk }
}

/// A raw disk and a file system, which are a file and a directory.
struct Bench {
    dir: tempfile::TempDir,
    progress: Arc<Progress>,
    writer: Writer,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (disk, mounted) = (dir.path().join("disk"), dir.path().join("mounted"));
        File::create(&disk).unwrap().set_len(2 << 20).unwrap();
        fs::create_dir(&mounted).unwrap();
        let disks = vec![
            Disk::raw("xvda", &disk, owner(0)).unwrap(),
            Disk::files("xvdb", &mounted, owner(1)).unwrap(),
        ];
        let progress = Arc::new(Progress::default());
        Self {
            writer: Writer::new(disks, Arc::clone(&progress), Output::to_stdout()),
            dir,
            progress,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// So many records on each disk.
    fn write(&mut self, records: u64) {
        (0..2 * records).for_each(|_| self.writer.step().unwrap());
    }

    /// Puts the content back: in place, the writer has the file open.
    fn put_back(&self, name: &str, content: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.write_all_at(content, 0).unwrap();
        file.sync_all().unwrap();
    }

    fn bad(&self) -> u64 {
        self.progress.bad.load(Ordering::Relaxed)
    }
}

#[test]
fn the_rings_fill_and_wrap_and_are_right_at_every_record() {
    let mut bench = Bench::new();
    for acked in 1..=600 {
        bench.write(1);
        if acked % 50 == 0 || acked % SLOTS < 2 {
            let scan = bench.writer.scan();
            assert_eq!((scan.slots, scan.bad, scan.err), (512, 0, 0), "at {acked}");
            assert_eq!(scan.files, (acked / 16).min(8));
        }
    }
    assert_eq!(bench.bad(), 0);
    assert_eq!(bench.progress.acked.load(Ordering::Relaxed), 1200);
    // What a snapshot's reader sees, without this memory.
    let disk = look::ring(&bench.path("disk"), Layout::Disk, owner(0)).unwrap();
    let file = look::ring(&bench.path("mounted/records"), Layout::File, owner(1)).unwrap();
    let small = look::small(&bench.path("mounted/small"), owner(1), file.head).unwrap();
    assert_eq!((disk.head, file.head, small.looked_at), (600, 600, 8));
    assert!(disk.bad.is_empty() && file.bad.is_empty() && small.bad.is_empty());
}

#[test]
fn a_disk_of_an_earlier_moment_misses_what_was_acknowledged() {
    for name in ["disk", "mounted/records"] {
        for missing in [1, 20] {
            let mut bench = Bench::new();
            bench.write(300);
            let earlier = fs::read(bench.path(name)).unwrap();
            bench.write(missing);
            bench.put_back(name, &earlier);
            let scan = bench.writer.scan();
            assert_eq!((scan.bad, scan.err), (missing, 0), "{name}");
            // The guest writes on: whatever it comes to is noticed in passing as well.
            let before = bench.bad();
            bench.write(SLOTS);
            assert_eq!(bench.bad(), before + missing, "{name}");
            // Then all is of one moment again, but what was seen stays counted.
            assert_eq!(bench.writer.scan().bad, 0);
        }
    }
}

#[test]
fn a_disk_of_a_later_moment_has_records_from_after() {
    for disk in 0..2 {
        for more in [1, 20] {
            let mut bench = Bench::new();
            bench.write(300);
            let memory = bench.writer.disks[disk].ring;
            let files = bench.writer.disks[disk].files;
            bench.write(more);
            bench.writer.disks[disk].ring = memory;
            bench.writer.disks[disk].files = files;
            let scan = bench.writer.scan();
            // Twenty records have made two small files, and taken two away.
            let small = if disk == 1 && more == 20 { 4 } else { 0 };
            assert_eq!((scan.bad, scan.err), (more + small, 0), "disk {disk}");
            let before = bench.bad();
            bench.writer.turn = disk;
            bench.writer.step().unwrap();
            assert_eq!(bench.bad(), before + 1, "in passing");
        }
    }
}

#[test]
fn a_write_under_way_may_be_there_or_not() {
    let mut bench = Bench::new();
    bench.write(300);
    // Issued, not yet on the disk.
    bench.writer.disks[0].ring.issued = 301;
    assert_eq!(bench.writer.scan().bad, 0);
    bench.write(1);
    assert_eq!(bench.bad(), 0);
    // On the disk, not yet acknowledged.
    bench.writer.disks[0].ring.acked = 300;
    assert_eq!(bench.writer.scan().bad, 0);
    // It is written again then, which is what a front-end does after a restore.
    bench.write(1);
    assert_eq!((bench.bad(), bench.writer.disks[0].ring.acked), (0, 301));
}

#[test]
fn a_missing_small_file_and_one_of_old_are_noticed() {
    let mut bench = Bench::new();
    bench.write(300);
    fs::remove_file(bench.path("mounted/small/240")).unwrap();
    assert_eq!(bench.writer.scan().bad, 1);
    fs::copy(
        bench.path("mounted/small/256"),
        bench.path("mounted/small/144"),
    )
    .unwrap();
    assert_eq!(bench.writer.scan().bad, 2);
}

#[test]
fn after_an_error_the_same_record_comes_next() {
    let mut bench = Bench::new();
    bench.write(15);
    // The small file of record 16 cannot be made.
    let small = bench.path("mounted/small");
    fs::remove_dir(&small).unwrap();
    bench.writer.step().unwrap();
    bench.writer.step().unwrap_err();
    bench.writer.step().unwrap_err();
    assert_eq!(bench.progress.err.load(Ordering::Relaxed), 2);
    assert_eq!(bench.writer.scan().err, 1);
    fs::create_dir(&small).unwrap();
    bench.writer.step().unwrap();
    assert_eq!(bench.writer.disks[1].files.acked, 16);
    bench.write(300);
    let scan = bench.writer.scan();
    assert_eq!((scan.bad, scan.err), (0, 0));
}

#[test]
fn a_disk_that_has_records_of_this_guest_is_not_taken_for_a_fresh_one() {
    let mut bench = Bench::new();
    bench.write(10);
    let again = Disk::raw("xvda", &bench.path("disk"), owner(0)).unwrap();
    let foreign = Owner {
        seed: SEED + 1,
        disk: 0,
    };
    let other = Disk::raw("xvda", &bench.path("disk"), foreign).unwrap();
    for (disk, bad) in [(again, 10), (other, 0)] {
        let mut writer = Writer::new(vec![disk], Arc::default(), Output::to_stdout());
        assert_eq!(writer.scan().bad, bad);
    }
}
