//! What an emulator adds to an image, and which emulated guests cannot be saved.
//!
//! (`docs/specs/libxl-migration-stream.pandoc` of Xen: EMULATOR_XENSTORE_DATA, EMULATOR_CONTEXT.)

use super::Record;
use crate::image::libxl::record;
use crate::ports::DomainError;
use crate::units::Pfn;
use crate::xen::config::GuestConfig;
use crate::xen::guest::Guest;

/// What both records begin with: u32 2 (QEMU as it is upstream), u32 0 (the only one).
pub(super) const HEAD: [u8; 8] = [2, 0, 0, 0, 0, 0, 0, 0];

/// Where the memory of an emulated display, and the firmware, usually are; below 4 GiB.
pub(super) const HINTS: [Pfn; 4] = [Pfn(0xf_0000), Pfn(0xf_8000), Pfn(0xf_fc00), Pfn(0xf_ffff)];

/// The records behind the libxc image. `keys` are those of [`keys`], `state` is [`HEAD`] and the
/// emulator's own.
pub(super) fn records(keys: &[u8], state: Vec<u8>) -> Vec<Record> {
    let mut records = vec![];
    if !keys.is_empty() {
        let body = [&HEAD, keys].concat();
        records.push(Record::new(record::EMULATOR_XENSTORE_DATA, body));
    }
    records.push(Record::new(record::EMULATOR_CONTEXT, state));
    records
}

/// Where old emulators (before QEMU 2.10) say in xenstore where the guest has moved their memory:
/// keys and values, each with a NUL behind it; empty for others.
pub(super) fn keys(guest: &Guest) -> Result<Vec<u8>, DomainError> {
    let failed = |error| guest.failed("read what the emulator has in xenstore of", error);
    let root = format!("/local/domain/0/device-model/{}", guest.id);
    let mut packed = vec![];
    for entry in guest
        .store
        .directory(&format!("{root}/physmap"))
        .map_err(failed)?
    {
        for name in ["start_addr", "size", "name"] {
            let key = format!("physmap/{entry}/{name}");
            let value = guest.store.read_bytes(&format!("{root}/{key}"));
            let value = value.map_err(failed)?.unwrap_or_default();
            for part in [key.as_bytes(), &value] {
                packed.extend_from_slice(part);
                packed.push(0);
            }
        }
    }
    Ok(packed)
}

/// Says why a guest so configured cannot be saved.
pub(super) fn refusal(config: &GuestConfig) -> Option<String> {
    let version = config.build_text("device_model_version");
    if version.is_some_and(|version| version != "qemu_xen") {
        return Some(
            "its emulator is qemu-traditional; start it with device_model_version = \"qemu-xen\""
                .into(),
        );
    }
    if config.build_flag("device_model_stubdomain") {
        return Some(IN_STUB_DOMAIN.into());
    }
    if config.build_flag("nested_hvm") {
        return Some(
            "it may run guests of its own (nestedhvm), whose state an image cannot hold; start it \
             without nestedhvm"
                .into(),
        );
    }
    let host_device = config
        .usb_devices()
        .into_iter()
        .find(|device| device.starts_with("host:"))?;
    Some(format!(
        "a USB device of the host is passed through to it ({host_device}); start it without"
    ))
}

const IN_STUB_DOMAIN: &str = "its emulator runs in a domain of its own (a stub domain), which \
                              livesave cannot stop; start it with device_model_stubdomain_override \
                              = 0";

/// Says so if its emulator runs in another domain than dom0.
pub(super) fn in_stub_domain(guest: &Guest) -> Result<Option<String>, DomainError> {
    let node = format!("/local/domain/{}/image/device-model-domid", guest.id);
    let domid = guest
        .store
        .read(&node)
        .map_err(|error| guest.failed("look for the emulator of", error))?;
    Ok(domid
        .filter(|domid| domid != "0")
        .map(|_| IN_STUB_DOMAIN.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(info: &str) -> GuestConfig {
        let text = format!(r#"[{{"config": {{"c_info": {{"type": "hvm"}}, "b_info": {info}}}}}]"#);
        GuestConfig::parse(text.as_bytes()).expect("parsed")
    }

    #[test]
    fn what_no_image_can_hold_is_refused_with_a_way_out() {
        for (info, want) in [
            (
                r#"{"device_model_version": "qemu_xen_traditional"}"#,
                "qemu-xen",
            ),
            (
                r#"{"device_model_stubdomain": "True"}"#,
                "device_model_stubdomain_override",
            ),
            (r#"{"nested_hvm": "True"}"#, "without nestedhvm"),
            (
                r#"{"type.hvm": {"nested_hvm": "True"}}"#,
                "without nestedhvm",
            ),
            (r#"{"type.hvm": {"usbdevice": "host:1.2"}}"#, "host:1.2"),
            (
                r#"{"type.hvm": {"usbdevice_list": ["tablet", "host:4.2"]}}"#,
                "host:4.2",
            ),
        ] {
            let why = refusal(&config(info)).expect(info);
            assert!(why.contains(want), "{info}: {why}");
        }
        for info in [
            "{}",
            r#"{"device_model_version": "qemu_xen", "device_model_stubdomain": "False",
                "nested_hvm": "<default>", "type.hvm": {"usbdevice_list": ["tablet"]}}"#,
        ] {
            assert_eq!(refusal(&config(info)), None, "{info}");
        }
    }

    #[test]
    fn the_records_are_those_of_the_toolstack() {
        let context = || [&HEAD[..], b"QEVM"].concat();
        let only = records(b"", context());
        assert_eq!(only, [Record::new(3, b"\x02\0\0\0\0\0\0\0QEVM".to_vec())]);
        let both = records(b"physmap/f0000000/size\x0010\0", context());
        assert_eq!(both.len(), 2);
        assert_eq!(both[0].kind, 2);
        assert!(both[0].body.starts_with(b"\x02\0\0\0\0\0\0\0physmap/"));
    }
}
