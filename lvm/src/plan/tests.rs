//! The plan, of volumes that are told.

use super::*;

const GIB: u64 = 1 << 30;

fn volume(vg: &str, name: &str, minor: u32, layout: Layout) -> Volume {
    Volume {
        vg: vg.into(),
        name: name.into(),
        uuid: format!("{name}-1"),
        vg_uuid: format!("{vg}-0"),
        size: Bytes(10 * GIB),
        vg_free: Bytes(3 * GIB),
        extent: Bytes::from_mib(4),
        layout,
        pool: (layout == Layout::Thin).then(|| "pool".into()),
        thin_id: (layout == Layout::Thin).then_some(7),
        origin: None,
        tags: vec![],
        data_percent: Some(50.0),
        metadata_percent: Some(10.0),
        device: Some((253, minor)),
        open: true,
        invalid: false,
        merging: false,
        merge_failed: false,
    }
}

fn volumes() -> Vec<Volume> {
    vec![
        volume("vg", "root", 1, Layout::Thick),
        volume("vg", "pool", 2, Layout::Pool),
        volume("vg", "data", 3, Layout::Thin),
        volume("vg", "raid", 4, Layout::Other),
        volume("vg", "swap", 5, Layout::Thick),
    ]
}

fn disk(vdev: &str, name: &str) -> Disk {
    Disk {
        vdev: vdev.into(),
        path: format!("/dev/vg/{name}"),
        writable: true,
    }
}

fn planned(disks: &[Disk], volumes: &[Volume], room: Option<Bytes>) -> Result<Plan, Refusal> {
    let device_of = |path: &Path| {
        let name = path.file_name().expect("a name").to_string_lossy();
        match &*name {
            "gone" => Err("it is gone".to_owned()),
            "file" => Ok(None),
            "sda" => Ok(Some((8, 0))),
            name => Ok(volumes
                .iter()
                .find(|v| v.name == name)
                .expect("there")
                .device),
        }
    };
    plan(
        disks,
        volumes,
        "0123456789abcdef",
        Path::new("/i/a b.xl"),
        room,
        device_of,
    )
}

#[test]
fn each_disk_gets_the_snapshot_that_fits_its_volume() {
    let read_only = Disk {
        writable: false,
        ..disk("hdc", "file")
    };
    let disks = [disk("xvda", "root"), disk("xvdb", "data"), read_only];
    let plan = planned(&disks, &volumes(), None).expect("planned");
    let [root, data] = &plan.snapshots[..] else {
        panic!("two: {plan:?}");
    };
    assert_eq!(root.full_name(), "vg/root.livesave-0123456789ab");
    assert_eq!(
        root.kind,
        Kind::Thick {
            room: Bytes::from_mib(1024)
        }
    );
    assert_eq!(root.devices().len(), 4);
    assert_eq!(data.devices(), [Device::Uuid("LVM-vg0data1".into())]);
    let want = Kind::Thin {
        pool: "pool".into(),
        device: Device::Uuid("LVM-vg0pool1-tpool".into()),
        origin_id: 7,
    };
    assert_eq!(data.kind, want);
    let read = Plan::of_text(&plan.text()).expect("read");
    assert_eq!(read, plan);
    assert_eq!(read.image_path(), Some("/i/a b.xl".into()));
}

#[test]
fn the_room_is_asked_for_or_a_tenth_and_never_more_than_can_be_used() {
    for (size, asked, mib) in [
        (10 * GIB, None, 1024),
        (GIB, None, 256),
        (GIB, Some(100 << 20), 100),
        (GIB, Some((100 << 20) + 1), 104),
        (64 << 20, None, 72),
        (64 << 20, Some(GIB), 72),
    ] {
        let mut volume = volume("vg", "a", 1, Layout::Thick);
        volume.size = Bytes(size);
        let room = room_for(&volume, asked.map(Bytes));
        assert_eq!(room, Bytes::from_mib(mib), "{size} {asked:?}");
    }
}

#[test]
fn what_cannot_be_cut_is_refused_and_named() {
    let refused = |disks: &[Disk], volumes: &[Volume], room| {
        planned(disks, volumes, room)
            .expect_err("refused")
            .to_string()
    };
    for (name, why) in [
        ("gone", "it is gone"),
        ("file", "no block device"),
        ("sda", "no logical volume"),
        ("raid", "linear, striped and thin"),
    ] {
        let said = refused(&[disk("xvdz", name)], &volumes(), None);
        assert!(said.contains("xvdz") && said.contains(why), "{said}");
        assert!(said.contains("--disks memory-only"), "{said}");
    }
    let twice = [disk("xvda", "root"), disk("xvdb", "root")];
    assert!(refused(&twice, &volumes(), None).contains("disk xvda is on the same volume"));
    // Each fits, and the two do not.
    let two = [disk("xvda", "root"), disk("xvdb", "swap")];
    let said = refused(&two, &volumes(), Some(Bytes(2 * GIB)));
    assert!(
        said.contains("group vg has 3.0 GiB free, and 4.0 GiB are needed"),
        "{said}"
    );
    for (data, metadata, what) in [(95.5, 1.0, "data"), (1.0, 99.0, "metadata")] {
        let mut full = volumes();
        full[1].data_percent = Some(data);
        full[1].metadata_percent = Some(metadata);
        let said = refused(&[disk("xvdb", "data")], &full, None);
        assert!(
            said.contains(&format!("the {what} of thin pool vg/pool")),
            "{said}"
        );
    }
}
