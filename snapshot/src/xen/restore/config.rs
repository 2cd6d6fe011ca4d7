//! The configuration of a guest to be restored: libxl's JSON, as it stands in an image's header
//! and as `xl create --dryrun` prints it.

use serde_json::{Map, Value};

use crate::units::Bytes;

/// A configuration whose parts that are looked at here have the types that they should.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    json: Map<String, Value>,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The guest's name for it (`xvda`).
    pub vdev: String,
    /// The device or file of the host; empty for an empty drive.
    pub path: String,
    /// The guest may write to it.
    pub writable: bool,
    /// `path` is a device or file of this host, and not for a script to make something of.
    pub plain: bool,
}

/// What a guest is to have of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// At most.
    pub max: Bytes,
    /// Now.
    pub target: Bytes,
    /// For the hypervisor's tables of the guest, where the configuration says.
    pub tables: Option<Bytes>,
    /// Virtual CPUs.
    pub vcpus: u64,
}

impl Config {
    /// Takes a configuration from its text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let json: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let object = |key: &str| match json.get(key) {
            Some(Value::Object(_)) => Ok(()),
            _ => Err(format!("it has no {key}")),
        };
        object("c_info")?;
        object("b_info")?;
        for key in ["disks", "nics", "pcidevs", "dtdevs", "usbdevs"] {
            let devices = match json.get(key) {
                None => continue,
                Some(devices) => devices.as_array(),
            };
            if !devices.is_some_and(|devices| devices.iter().all(Value::is_object)) {
                return Err(format!("its {key} is not a list of devices"));
            }
        }
        let config = Self { json };
        if config.name().is_empty() {
            return Err("it has no name".to_owned());
        }
        match config.info("uuid") {
            Some(Value::String(text)) if !is_uuid(text) => Err(format!("its uuid is {text:?}")),
            None | Some(Value::String(_)) => Ok(config),
            Some(other) => Err(format!("its uuid is {other}")),
        }
    }

    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        Value::Object(self.json.clone()).to_string().into_bytes()
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.info("name").and_then(Value::as_str).unwrap_or("")
    }

    /// The guest's UUID in lower case, if it has one.
    #[must_use]
    pub fn uuid(&self) -> Option<String> {
        let text = self.info("uuid")?.as_str()?;
        Some(text.to_ascii_lowercase())
    }

    /// The disks.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        let text = |disk: &Value, key: &str| -> String {
            disk.get(key).and_then(Value::as_str).unwrap_or("").into()
        };
        let is_given = |disk: &Value, key: &str| match disk.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Number(number)) => number.as_u64() != Some(0),
            Some(_) => true,
        };
        self.devices("disks")
            .map(|disk| Disk {
                vdev: text(disk, "vdev"),
                path: text(disk, "pdev_path"),
                writable: is_given(disk, "readwrite"),
                plain: !["script", "backend_domname", "backend_domid"]
                    .iter()
                    .any(|key| is_given(disk, key)),
            })
            .collect()
    }

    /// The addresses of the network interfaces that have one, in lower case.
    #[must_use]
    pub fn macs(&self) -> Vec<String> {
        self.devices("nics").filter_map(mac_of).collect()
    }

    /// How many devices of the host are passed through to the guest.
    #[must_use]
    pub fn passed_through(&self) -> usize {
        ["pcidevs", "dtdevs", "usbdevs"]
            .iter()
            .map(|key| self.devices(key).count())
            .sum()
    }

    /// The memory that the guest is to have.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let field = |key: &str| self.json.get("b_info")?.get(key)?.as_u64();
        let kib = |key: &str| field(key).map(|kib| Bytes(kib.saturating_mul(1024)));
        let max = kib("max_memkb").unwrap_or_default();
        Memory {
            max,
            target: kib("target_memkb").unwrap_or(max),
            tables: kib("shadow_memkb"),
            vcpus: field("max_vcpus").unwrap_or(1),
        }
    }

    /// Gives the guest another name.
    pub fn set_name(&mut self, name: &str) {
        self.set_info("name", name);
    }

    /// Gives the guest another UUID.
    pub fn set_uuid(&mut self, uuid: &str) {
        self.set_info("uuid", uuid);
    }

    /// Puts a disk on another device; `false` if there is no such disk.
    pub fn set_disk_path(&mut self, vdev: &str, path: &str) -> bool {
        let disks = self.json.get_mut("disks").and_then(Value::as_array_mut);
        let mut disks = disks.into_iter().flatten().filter_map(Value::as_object_mut);
        let disk = disks.find(|disk| disk.get("vdev").and_then(Value::as_str) == Some(vdev));
        let Some(disk) = disk else {
            return false;
        };
        disk.insert("pdev_path".to_owned(), Value::String(path.to_owned()));
        true
    }

    /// Lets the toolstack choose the domain's number.
    pub fn forget_domid(&mut self) {
        if let Some(info) = self.json.get_mut("c_info").and_then(Value::as_object_mut) {
            info.remove("domid");
        }
    }

    /// Gives the interfaces with one of the addresses `taken` others, which `fresh` makes.
    pub fn replace_macs(&mut self, taken: &[String], mut fresh: impl FnMut() -> String) {
        let mut used = taken.to_vec();
        used.extend(self.macs());
        let nics = self.json.get_mut("nics").and_then(Value::as_array_mut);
        for nic in nics.into_iter().flatten() {
            if mac_of(nic).is_none_or(|mac| !taken.contains(&mac)) {
                continue;
            }
            let mut mac = fresh();
            // 23 bits are random: two of a guest's could be the same, but not again and again.
            for _ in 0..100 {
                if !used.contains(&mac) {
                    break;
                }
                mac = fresh();
            }
            used.push(mac.clone());
            if let Some(nic) = nic.as_object_mut() {
                nic.insert("mac".to_owned(), Value::String(mac));
            }
        }
    }

    fn info(&self, key: &str) -> Option<&Value> {
        self.json.get("c_info")?.get(key)
    }

    fn set_info(&mut self, key: &str, value: &str) {
        if let Some(info) = self.json.get_mut("c_info").and_then(Value::as_object_mut) {
            info.insert(key.to_owned(), Value::String(value.to_owned()));
        }
    }

    fn devices(&self, key: &str) -> impl Iterator<Item = &Value> {
        let devices = self.json.get(key).and_then(Value::as_array);
        devices.into_iter().flatten()
    }
}

fn mac_of(nic: &Value) -> Option<String> {
    Some(nic.get("mac")?.as_str()?.to_ascii_lowercase())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A configuration as Xen 4.17 writes it, with a disk and two interfaces.
    pub const TEXT: &str = r#"{
        "c_info": {"type": "pvh", "name": "web1", "domid": 4294967295,
            "uuid": "2F941814-e7bc-11f1-ba8f-ca684d7748dd", "run_hotplug_scripts": "True"},
        "b_info": {"max_vcpus": 2, "max_memkb": 524288, "target_memkb": 393216,
            "sched_params": {"cap": 0}, "type.pvh": {}, "cmdline": "a=\"b\\n\" ü"},
        "disks": [
            {"pdev_path": "/dev/vg/web1", "vdev": "xvda", "backend": "phy", "format": "raw",
             "readwrite": 1},
            {"pdev_path": "iqn.2001", "vdev": "xvdb", "script": "block-iscsi", "readwrite": 0},
            {"vdev": "xvdc", "removable": 1, "is_cdrom": 1}],
        "nics": [{"devid": 0, "mac": "00:16:3E:30:70:c3", "bridge": "xenbr0"}, {"devid": 1}],
        "on_reboot": "restart"}"#;

    pub fn config() -> Config {
        Config::parse(TEXT.as_bytes()).expect("a configuration")
    }

    #[test]
    fn what_matters_is_found() {
        let config = config();
        assert_eq!(config.name(), "web1");
        let uuid = config.uuid();
        assert_eq!(
            uuid.as_deref(),
            Some("2f941814-e7bc-11f1-ba8f-ca684d7748dd")
        );
        assert_eq!(config.macs(), ["00:16:3e:30:70:c3"]);
        let disk = |vdev: &str, path: &str, writable, plain| Disk {
            vdev: vdev.into(),
            path: path.into(),
            writable,
            plain,
        };
        assert_eq!(
            config.disks(),
            [
                disk("xvda", "/dev/vg/web1", true, true),
                disk("xvdb", "iqn.2001", false, false),
                disk("xvdc", "", false, true),
            ]
        );
        let memory = config.memory();
        assert_eq!(memory.max, Bytes::from_mib(512));
        assert_eq!(memory.target, Bytes::from_mib(384));
        assert_eq!((memory.tables, memory.vcpus), (None, 2));
        assert_eq!(config.passed_through(), 0);
    }

    #[test]
    fn only_what_is_to_be_another_is_changed() {
        let mut config = config();
        config.set_name("web2");
        config.set_uuid("00000000-0000-4000-8000-000000000001");
        config.forget_domid();
        let taken = config.macs();
        let mut made = ["00:16:3e:30:70:c3", "00:16:3e:00:00:01"].iter();
        config.replace_macs(&taken, || made.next().expect("enough").to_string());
        let mut want: Value = serde_json::from_str(TEXT).expect("JSON");
        want["c_info"]["name"] = "web2".into();
        want["c_info"]["uuid"] = "00000000-0000-4000-8000-000000000001".into();
        want["c_info"]
            .as_object_mut()
            .expect("object")
            .remove("domid");
        want["nics"][0]["mac"] = "00:16:3e:00:00:01".into();
        let got: Value = serde_json::from_slice(&config.text()).expect("JSON");
        assert_eq!(got, want);
    }

    #[test]
    fn an_interface_that_shares_no_address_keeps_its_own() {
        let mut config = config();
        config.replace_macs(&["00:16:3e:99:99:99".into()], || panic!("none is needed"));
        assert_eq!(config, super::tests::config());
    }

    #[test]
    fn odd_configurations_are_refused_with_the_reason() {
        for (text, why) in [
            ("", "not JSON"),
            ("[]", "not JSON"),
            ("{}", "c_info"),
            (r#"{"c_info": 1, "b_info": {}}"#, "c_info"),
            (r#"{"c_info": {"name": "a"}}"#, "b_info"),
            (r#"{"c_info": {}, "b_info": {}}"#, "no name"),
            (r#"{"c_info": {"name": 5}, "b_info": {}}"#, "no name"),
            (
                r#"{"c_info": {"name": "a", "uuid": 7}, "b_info": {}}"#,
                "uuid is 7",
            ),
            (
                r#"{"c_info": {"name": "a", "uuid": "12"}, "b_info": {}}"#,
                "uuid is \"12\"",
            ),
            (
                r#"{"c_info": {"name": "a"}, "b_info": {}, "nics": {}}"#,
                "nics",
            ),
            (
                r#"{"c_info": {"name": "a"}, "b_info": {}, "disks": ["x"]}"#,
                "disks",
            ),
        ] {
            let error = Config::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = format!("{{\"c_info\": {}", "[".repeat(100_000));
        assert!(Config::parse(deep.as_bytes()).is_err());
    }

    proptest! {
        /// Whatever a configuration holds, what is read from it never panics, and a name and a
        /// UUID that are set are read back with the rest as it was.
        #[test]
        fn any_json_is_taken_or_refused(
            disks in json(), nics in json(), memory in json(), name in ".{0,12}"
        ) {
            let text = serde_json::json!({
                "c_info": {"name": name, "x": disks}, "b_info": {"max_memkb": memory},
                "disks": [{"readwrite": nics, "vdev": memory}], "nics": nics,
            });
            let Ok(mut config) = Config::parse(text.to_string().as_bytes()) else {
                return Ok(());
            };
            let _ = (config.disks(), config.memory(), config.passed_through());
            let mut number = 0;
            config.replace_macs(&config.macs(), || { number += 1; number.to_string() });
            config.set_name("new");
            let again = Config::parse(&config.text()).expect("still one");
            prop_assert_eq!(again.name(), "new");
            prop_assert_eq!(again, config);
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<u64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("(mac|vdev|x)", inner, 0..3)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
