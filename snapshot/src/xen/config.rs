//! The guest's configuration, read from the running toolstack.
//!
//! `xl list -l` prints what libxl knows of a domain now; the same object stands in an `xl save`
//! file's header.

use serde_json::Value;

use super::xl;
pub use crate::ports::GuestKind as Kind;
use crate::ports::{BoxError, Cancel, DomainError};

/// `xl` leaves out a domain that it cannot ask everything about, and says so of none.
const NO_LISTING: &str = "the listing is empty; of an HVM guest xl asks the emulator (QEMU), which \
    does not answer or has another tool to talk to";

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    /// Its name in the guest (`xvda`).
    pub vdev: String,
    /// What it is on in dom0; empty for a drive with nothing in it.
    pub path: String,
    /// The guest can write to it.
    pub writable: bool,
}

/// A guest's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestConfig {
    json: Value,
    /// What kind of guest it is.
    pub kind: Kind,
}

impl GuestConfig {
    /// Asks the toolstack.
    ///
    /// # Errors
    /// [`DomainError::Call`] if `xl` cannot be run, does not know the domain or does not answer;
    /// [`DomainError::Interrupted`].
    pub fn read(domid: u32, cancel: &Cancel) -> Result<Self, DomainError> {
        let failed = |source: BoxError| DomainError::Call {
            operation: "read (through `xl list -l`) the configuration of",
            domain: domid.to_string(),
            source,
        };
        let mut command = xl::command(["list", "-l", &domid.to_string()]);
        let output = xl::output(&mut command, cancel).map_err(|error| {
            cancel
                .raised()
                .map_or_else(|| failed(error.into()), DomainError::Interrupted)
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(format!("{}: {said}", output.status).into()));
        }
        Self::parse(&output.stdout).map_err(|what| failed(what.into()))
    }

    /// Takes the configuration out of what `xl list -l` prints: an array of one domain.
    pub(super) fn parse(listing: &[u8]) -> Result<Self, String> {
        let listing: Value = serde_json::from_slice(listing).map_err(|error| error.to_string())?;
        let domain = listing.get(0).ok_or(NO_LISTING)?;
        let mut json = domain
            .get("config")
            .ok_or("the listing has no configuration")?
            .clone();
        let info = json
            .get_mut("c_info")
            .and_then(Value::as_object_mut)
            .ok_or("the configuration has no c_info")?;
        // An image is not tied to the number that its domain had (as `xl save` without -D).
        info.remove("domid");
        let kind = match info.get("type").and_then(Value::as_str) {
            Some("pvh") => Kind::Pvh,
            Some("hvm") => Kind::Hvm,
            Some("pv") => Kind::Pv,
            other => return Err(format!("the configuration's type is {other:?}")),
        };
        Ok(Self { json, kind })
    }

    /// The JSON text for the image's header.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        self.json.to_string().into_bytes()
    }

    /// The guest's disks.
    #[must_use]
    pub fn disks(&self) -> Vec<GuestDisk> {
        let text = |disk: &Value, key| {
            let text = disk.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        // Left out where it is 0.
        let writable = |disk: &Value| disk.get("readwrite").is_some_and(|value| *value != 0);
        self.json
            .get("disks")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|disk| GuestDisk {
                vdev: text(disk, "vdev"),
                path: text(disk, "pdev_path"),
                writable: writable(disk),
            })
            .collect()
    }

    /// How many devices of the host are passed through to the guest.
    #[must_use]
    pub fn passed_through(&self) -> usize {
        let count = |key| {
            self.json
                .get(key)
                .and_then(Value::as_array)
                .map_or(0, Vec::len)
        };
        count("pcidevs") + count("dtdevs") + count("usbdevs")
    }

    /// What the guest was built with under that key. Some of it stands under the guest's type;
    /// which, depends on the toolstack's version.
    fn build(&self, key: &str) -> impl Iterator<Item = &Value> {
        let info = self.json.get("b_info");
        let of_type = info.and_then(|info| info.get("type.hvm"));
        let found = [info, of_type].map(|info| info.and_then(|info| info.get(key)));
        found.into_iter().flatten()
    }

    /// A word of what the guest was built with.
    #[must_use]
    pub fn build_text(&self, key: &str) -> Option<&str> {
        self.build(key).find_map(Value::as_str)
    }

    /// A switch of what the guest was built with.
    #[must_use]
    pub fn build_flag(&self, key: &str) -> bool {
        // libxl's own kind of truth value is a text.
        self.build(key)
            .any(|value| value.as_bool() == Some(true) || value.as_str() == Some("True"))
    }

    /// The USB devices that its emulator was started with, as in `usbdevice`.
    #[must_use]
    pub fn usb_devices(&self) -> Vec<&str> {
        let lists = self.build("usbdevice_list").filter_map(Value::as_array);
        lists
            .flatten()
            .filter_map(Value::as_str)
            .chain(self.build_text("usbdevice"))
            .collect()
    }

    /// How many virtual NUMA nodes the guest was given.
    #[must_use]
    pub fn numa_nodes(&self) -> usize {
        let nodes = self
            .json
            .pointer("/b_info/vnuma_nodes")
            .and_then(Value::as_array);
        nodes.map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"[{"domid": 3, "config": {
        "c_info": {"type": "pvh", "domid": 3, "name": "g"},
        "b_info": {"max_memkb": 524288},
        "disks": [{"pdev_path": "/dev/vg/g", "vdev": "xvda", "readwrite": 1},
            {"vdev": "hdc", "is_cdrom": 1}]}}]"#;

    #[test]
    fn the_configuration_is_taken_without_the_domains_number() {
        let config = GuestConfig::parse(LISTING.as_bytes()).expect("parsed");
        assert_eq!(config.kind, Kind::Pvh);
        let json: Value = serde_json::from_slice(&config.text()).expect("JSON");
        assert_eq!(
            json["c_info"],
            serde_json::json!({"type": "pvh", "name": "g"})
        );
        assert_eq!(json["b_info"]["max_memkb"], 524_288);
        let disk = |vdev: &str, path: &str, writable| GuestDisk {
            vdev: vdev.into(),
            path: path.into(),
            writable,
        };
        let want = [disk("xvda", "/dev/vg/g", true), disk("hdc", "", false)];
        assert_eq!(config.disks(), want);
        assert_eq!((config.passed_through(), config.numa_nodes()), (0, 0));
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            "[{}]",
            r#"[{"config": {}}]"#,
            r#"[{"config": {"c_info": {}}}]"#,
        ] {
            assert!(GuestConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
