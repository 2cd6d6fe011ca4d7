//! What logical volumes there are, as LVM itself tells it.

use std::ffi::OsString;
use std::time::Duration;

use serde::Deserialize;
use snapshot::units::Bytes;

use crate::dm::Device;
use crate::run::{Run, RunError};

/// What `lvs` is asked for.
const FIELDS: &str = "lv_name,lv_uuid,vg_name,vg_uuid,vg_free,vg_extent_size,lv_size,segtype,\
    pool_lv,thin_id,origin,lv_attr,lv_tags,data_percent,metadata_percent,lv_kernel_major,lv_kernel_minor";

/// LVM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// `lvs` failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It answered something else than it should.
    #[error("Failed to understand what `lvs` told of the logical volumes")]
    Answer(#[source] serde_json::Error),
}

/// How a volume stores its blocks, as far as it matters for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In extents of its own, linear or striped.
    Thick,
    /// In a thin pool.
    Thin,
    /// The thin pool itself.
    Pool,
    /// What differs from another thick volume: a snapshot of it.
    ThickSnapshot,
    /// Something that livesave makes no snapshots of.
    Other,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Its volume group.
    pub vg: String,
    /// Its name there.
    pub name: String,
    /// Its UUID, as LVM prints it.
    pub uuid: String,
    /// The volume group's UUID, as LVM prints it.
    pub vg_uuid: String,
    /// Its size.
    pub size: Bytes,
    /// What the volume group has free.
    pub vg_free: Bytes,
    /// In what portions the volume group gives room.
    pub extent: Bytes,
    /// How it stores its blocks.
    pub layout: Layout,
    /// Its thin pool.
    pub pool: Option<String>,
    /// By what number its thin pool knows it.
    pub thin_id: Option<u64>,
    /// What it is a snapshot of.
    pub origin: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Percent used: of a pool's data, of a thick snapshot's room.
    pub data_percent: Option<f64>,
    /// Percent used of a pool's metadata.
    pub metadata_percent: Option<f64>,
    /// Its device, while it is active.
    pub device: Option<(u32, u32)>,
    /// Somebody has its device open.
    pub open: bool,
    /// A thick snapshot that has run full: its content is lost.
    pub invalid: bool,
    /// It is to be put back to one of its snapshots, or is that snapshot.
    pub merging: bool,
    /// That has failed.
    pub merge_failed: bool,
}

impl Volume {
    /// The name by which LVM's commands are told of it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// The UUID of its device in device-mapper.
    #[must_use]
    pub fn dm_uuid(&self) -> String {
        let plain = |uuid: &str| uuid.replace('-', "");
        format!("LVM-{}{}", plain(&self.vg_uuid), plain(&self.uuid))
    }

    /// Whether it is a thick snapshot of whose volume more was overwritten than it has room for.
    #[must_use]
    pub fn is_full_snapshot(&self) -> bool {
        let is_full = self.invalid || self.data_percent.is_some_and(|percent| percent >= 100.0);
        self.layout == Layout::ThickSnapshot && is_full
    }

    /// Its device in device-mapper.
    #[must_use]
    pub fn dm_device(&self) -> Device {
        Device::Uuid(self.dm_uuid())
    }
}

/// All logical volumes, hidden ones left out.
///
/// # Errors
/// [`InventoryError`].
pub fn volumes(run: &mut impl Run, limit: Duration) -> Result<Vec<Volume>, InventoryError> {
    let arguments = [
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "-o",
        FIELDS,
    ];
    let arguments = arguments.map(OsString::from);
    let answer = run.run("lvs", &arguments, limit, &mut || ())?;
    parse(&answer).map_err(InventoryError::Answer)
}

/// What `lvs --reportformat json` prints.
fn parse(answer: &[u8]) -> serde_json::Result<Vec<Volume>> {
    #[derive(Deserialize)]
    struct Answer {
        report: Vec<Report>,
    }
    #[derive(Deserialize)]
    struct Report {
        lv: Vec<Row>,
    }
    let answer: Answer = serde_json::from_slice(answer)?;
    let rows = answer.report.into_iter().flat_map(|report| report.lv);
    let mut volumes: Vec<Volume> = vec![];
    for row in rows {
        let volume = row.volume()?;
        // A volume of several segments has a row for each.
        match volumes.iter_mut().find(|other| other.uuid == volume.uuid) {
            Some(other) if other.layout != volume.layout => other.layout = Layout::Other,
            Some(_) => {}
            None => volumes.push(volume),
        }
    }
    Ok(volumes)
}

/// Every value is a text, empty where there is none.
#[derive(Deserialize)]
struct Row {
    lv_name: String,
    lv_uuid: String,
    vg_name: String,
    vg_uuid: String,
    vg_free: String,
    vg_extent_size: String,
    lv_size: String,
    segtype: String,
    pool_lv: String,
    thin_id: String,
    origin: String,
    lv_attr: String,
    lv_tags: String,
    data_percent: String,
    metadata_percent: String,
    lv_kernel_major: String,
    lv_kernel_minor: String,
}

impl Row {
    fn volume(self) -> serde_json::Result<Volume> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (lv_size, vg_free) = (bytes(&self.lv_size)?, bytes(&self.vg_free)?);
        let extent = bytes(&self.vg_extent_size)?;
        let attribute = |at: usize| self.lv_attr.as_bytes().get(at).copied().unwrap_or(b'-');
        Ok(Volume {
            open: attribute(5) == b'o',
            invalid: matches!(attribute(4), b'I' | b'S'),
            merging: matches!(attribute(0), b'O' | b'S'),
            merge_failed: matches!(attribute(4), b'm' | b'M'),
            layout: self.layout(),
            // -1 for one that is not active.
            device: self
                .lv_kernel_major
                .parse()
                .ok()
                .zip(self.lv_kernel_minor.parse().ok()),
            pool: some(&self.pool_lv),
            thin_id: self.thin_id.parse().ok(),
            origin: some(&self.origin),
            tags: self.lv_tags.split(',').filter_map(some).collect(),
            data_percent: self.data_percent.parse().ok(),
            metadata_percent: self.metadata_percent.parse().ok(),
            size: lv_size,
            vg_free,
            extent,
            vg: self.vg_name,
            name: self.lv_name,
            uuid: self.lv_uuid,
            vg_uuid: self.vg_uuid,
        })
    }

    fn layout(&self) -> Layout {
        match (self.segtype.as_str(), self.lv_attr.bytes().next()) {
            ("thin", _) => Layout::Thin,
            ("thin-pool", _) => Layout::Pool,
            // `S` is one that has become invalid: it was full.
            ("linear" | "striped", Some(b's' | b'S')) => Layout::ThickSnapshot,
            ("linear" | "striped", _) => Layout::Thick,
            _ => Layout::Other,
        }
    }
}

fn bytes(text: &str) -> serde_json::Result<Bytes> {
    let number = text.parse().map(Bytes);
    number.map_err(|_| serde::de::Error::custom(format!("the size {text:?} is no number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03.16 prints it, with two segments of a volume that was grown.
    fn listing() -> String {
        let row = |name: &str, uuid: &str, segtype: &str, attr: &str, more: &str| {
            format!(
                r#"{{"lv_name":"{name}", "lv_uuid":"{uuid}", "vg_name":"vg0",
                "vg_uuid":"AAAAAA-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa", "vg_free":"1073741824",
                "vg_extent_size":"4194304", "lv_size":"268435456", "segtype":"{segtype}",
                "lv_attr":"{attr}", {more}}}"#
            )
        };
        let none = r#""pool_lv":"", "thin_id":"", "origin":"", "lv_tags":"", "data_percent":"",
            "metadata_percent":"", "lv_kernel_major":"253", "lv_kernel_minor":"4""#;
        let pool = none.replace(r#""data_percent":"""#, r#""data_percent":"91.50""#);
        let thin = none
            .replace(r#""pool_lv":"""#, r#""pool_lv":"pool""#)
            .replace(r#""thin_id":"""#, r#""thin_id":"3""#);
        let snap = none
            .replace(r#""origin":"""#, r#""origin":"root""#)
            .replace(r#""lv_tags":"""#, r#""lv_tags":"livesave,x=1""#)
            .replace("253", "-1")
            .replace(r#""4""#, r#""-1""#);
        format!(
            r#"{{"report": [{{"lv": [{},{},{},{},{},{}]}}]}}"#,
            row("root", "BBBBBB-b", "linear", "-wi-ao----", none),
            row("root", "BBBBBB-b", "linear", "-wi-ao----", none),
            row("pool", "CCCCCC-c", "thin-pool", "twi-aotz--", &pool),
            row("data", "DDDDDD-d", "thin", "Vwi-aotz--", &thin),
            row("snap", "EEEEEE-e", "linear", "swi-a-s---", &snap),
            row("mirror", "FFFFFF-f", "raid1", "rwi-a-r---", none),
        )
    }

    #[test]
    fn each_volume_is_told_once_and_as_what_it_is() {
        let volumes = parse(listing().as_bytes()).expect("parsed");
        let seen: Vec<_> = volumes
            .iter()
            .map(|volume| (volume.name.as_str(), volume.layout))
            .collect();
        assert_eq!(
            seen,
            [
                ("root", Layout::Thick),
                ("pool", Layout::Pool),
                ("data", Layout::Thin),
                ("snap", Layout::ThickSnapshot),
                ("mirror", Layout::Other),
            ]
        );
        let [root, pool, data, snap, _] = &volumes[..] else {
            panic!("five volumes");
        };
        assert_eq!(root.size, Bytes::from_mib(256));
        assert_eq!(root.vg_free, Bytes::from_mib(1024));
        assert_eq!(root.device, Some((253, 4)));
        assert!(root.open && !root.invalid && !root.merging);
        assert_eq!(root.full_name(), "vg0/root");
        assert_eq!(
            root.dm_uuid(),
            "LVM-AAAAAAaaaaaaaaaaaaaaaaaaaaaaaaaaBBBBBBb"
        );
        assert_eq!(pool.data_percent, Some(91.5));
        assert_eq!(data.pool.as_deref(), Some("pool"));
        assert_eq!(data.thin_id, Some(3));
        assert_eq!(snap.origin.as_deref(), Some("root"));
        assert_eq!(snap.tags, ["livesave", "x=1"]);
        assert_eq!(snap.device, None);
        assert!(!snap.open && !snap.invalid && !snap.merging);
    }

    #[test]
    fn a_snapshot_that_ran_full_and_a_merge_that_waits_are_seen() {
        let full = parse(listing().replace("swi-a-s---", "swi-I-s---").as_bytes());
        assert!(full.expect("parsed")[3].invalid);
        let waits = listing().replace("swi-a-s---", "Swi-a-s---");
        let waits = parse(waits.replace("-wi-ao", "Owi-ao").as_bytes()).expect("parsed");
        assert!(waits[0].merging && waits[3].merging && !waits[3].invalid);
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        let bad_size = listing().replace("268435456", "big");
        for text in ["", "{}", r#"{"report": [{}]}"#, &bad_size] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse(br#"{"report": [{"lv": []}]}"#).expect("none"), []);
    }
}
