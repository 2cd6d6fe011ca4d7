//! Who the restored guest is to be, beside the guests that run. Pure but for random numbers, which
//! the caller hands in.

use super::config::{Config, Disk};
use super::disks::GuestDisks;
use super::refusal::Refusal;

/// A domain that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its number.
    pub domid: u32,
    /// Its name.
    pub name: String,
    /// Its UUID in lower case.
    pub uuid: String,
}

/// What the user asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Another name than the configuration's.
    pub name: Option<&'a str>,
    /// The user's own configuration, for the one in the image.
    pub config: Option<&'a Config>,
    /// On what the disks are to be.
    pub disks: &'a GuestDisks,
}

/// The configuration under which the guest of `image` can be restored beside the domains `running`.
/// `random` fills its argument with random bytes.
///
/// With another name the guest gets a UUID of its own. While the original runs (a domain with the
/// UUID or the name of the image) the two share no UUID and no MAC address, no disk that the second
/// would write to and no device of the host. Where the disks are is not changed here.
///
/// # Errors
/// [`Refusal`].
pub fn decide(
    image: &Config,
    wanted: Wanted<'_>,
    running: &[Running],
    mut random: impl FnMut(&mut [u8]),
) -> Result<Config, Refusal> {
    let mut config = wanted.config.unwrap_or(image).clone();
    let name = wanted.name.unwrap_or(config.name()).to_owned();
    // The image's own was good enough for Xen.
    if wanted.name.is_some() && !is_name(&name) {
        return Err(Refusal::BadName(name));
    }
    let original = running
        .iter()
        .find(|domain| image.uuid().as_ref() == Some(&domain.uuid))
        .or_else(|| running.iter().find(|domain| domain.name == image.name()));
    if let (Some(domain), GuestDisks::PutBack) = (original, wanted.disks) {
        let (domid, name) = (domain.domid, domain.name.clone());
        return Err(Refusal::PutBackWhileItRuns { domid, name });
    }
    // The same guest a second time: without a word about how they are to differ.
    if let (Some(domain), None, None) = (original, wanted.name, wanted.config) {
        let (domid, name) = (domain.domid, domain.name.clone());
        return Err(Refusal::OriginalRuns { domid, name });
    }
    if let Some(domain) = running.iter().find(|domain| domain.name == name) {
        let domid = domain.domid;
        return Err(Refusal::NameTaken { domid, name });
    }
    if let Some(original) = original {
        refuse_sharing(image, &config, wanted, original)?;
        config.forget_domid();
        config.replace_macs(&image.macs(), || random_mac(&mut random));
    }
    let uuid_is_free = |uuid: String| running.iter().all(|domain| domain.uuid != uuid);
    let renamed = name != image.name() && wanted.config.is_none();
    if renamed || !config.uuid().is_some_and(uuid_is_free) {
        config.set_uuid(&random_uuid(&mut random));
    }
    config.set_name(&name);
    Ok(config)
}

/// Refuses a second guest on what the first has and cannot share. With a configuration of his own
/// the user says which disks are whose; those of the image are not his to give a second time.
fn refuse_sharing(
    image: &Config,
    config: &Config,
    wanted: Wanted<'_>,
    original: &Running,
) -> Result<(), Refusal> {
    let own = wanted.config.is_some();
    let of_original: Vec<_> = image.disks().into_iter().map(|disk| disk.path).collect();
    let shared: Vec<_> = config
        .disks()
        .iter()
        .filter(|disk| disk.writable && !wanted.disks.is_new(&disk.vdev))
        .filter(|disk| !own || of_original.contains(&disk.path))
        .map(|Disk { vdev, path, .. }| format!("{vdev} ({path})"))
        .collect();
    if !shared.is_empty() {
        return Err(Refusal::SharedDisks {
            domid: original.domid,
            original: original.name.clone(),
            disks: shared.join(", "),
        });
    }
    if !own && config.passed_through() > 0 {
        return Err(Refusal::SharedDevices {
            domid: original.domid,
            original: original.name.clone(),
        });
    }
    Ok(())
}

/// Whether a domain may have that name. Xen itself allows more, but a name is a part of file names,
/// and digits alone are taken for a domain's number.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    (1..=128).contains(&name.len())
        && name.bytes().all(fits)
        && !name.bytes().all(|byte| byte.is_ascii_digit())
        && !name.starts_with('.')
        && !name.starts_with('-')
}

/// A UUID of random numbers (RFC 9562, version 4).
fn random_uuid(random: &mut impl FnMut(&mut [u8])) -> String {
    let mut bytes = [0; 16];
    random(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    super::super::open::uuid_text(&bytes)
}

/// A MAC address in Xen's range (00:16:3e), the rest random; its highest bit is left 0 as the
/// toolstack does.
fn random_mac(random: &mut impl FnMut(&mut [u8])) -> String {
    let mut bytes = [0; 3];
    random(&mut bytes);
    let [a, b, c] = bytes;
    format!("00:16:3e:{:02x}:{b:02x}:{c:02x}", a & 0x7f)
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::{TEXT, config};
    use super::*;

    const UUID: &str = "2f941814-e7bc-11f1-ba8f-ca684d7748dd";

    fn domain(domid: u32, name: &str, uuid: &str) -> Running {
        Running {
            domid,
            name: name.into(),
            uuid: uuid.into(),
        }
    }

    const SAME: Wanted<'_> = Wanted {
        name: None,
        config: None,
        disks: &GuestDisks::AsIs,
    };

    fn named(name: &str) -> Wanted<'_> {
        Wanted {
            name: Some(name),
            ..SAME
        }
    }

    fn counting() -> impl FnMut(&mut [u8]) {
        let mut next = 0xf0;
        move |bytes| {
            bytes.fill(next);
            next += 1;
        }
    }

    fn without_disks() -> Config {
        let text = TEXT.replace("\"disks\"", "\"former_disks\"");
        Config::parse(text.as_bytes()).expect("a configuration")
    }

    #[test]
    fn where_nothing_of_it_runs_the_guest_is_who_it_was() {
        let others = [domain(0, "Domain-0", "0"), domain(4, "db1", "1")];
        let decided = decide(&config(), SAME, &others, counting());
        assert_eq!(decided, Ok(config()));
    }

    #[test]
    fn a_guest_without_a_uuid_gets_one() {
        let text = TEXT.replace("\"uuid\"", "\"former_uuid\"");
        let config = Config::parse(text.as_bytes()).expect("a configuration");
        let decided = decide(&config, SAME, &[], counting()).expect("decided");
        assert!(decided.uuid().is_some());
    }

    #[test]
    fn another_name_makes_another_guest_of_it() {
        let decided = decide(&config(), named("web2"), &[], counting()).expect("decided");
        assert_eq!(decided.name(), "web2");
        assert_eq!(
            decided.uuid().as_deref(),
            Some("f0f0f0f0-f0f0-40f0-b0f0-f0f0f0f0f0f0")
        );
        // Nobody else has the address, and the network knows it.
        assert_eq!(decided.macs(), config().macs());
    }

    #[test]
    fn beside_the_original_nothing_is_the_same() {
        for original in [
            domain(3, "web1", UUID),
            domain(3, "renamed", UUID),
            domain(3, "web1", "made anew"),
        ] {
            let running = [original];
            let decided =
                decide(&without_disks(), named("web2"), &running, counting()).expect("decided");
            assert_ne!(decided.uuid().as_deref(), Some(UUID));
            assert_eq!(decided.macs(), ["00:16:3e:70:f0:f0"]);
            assert!(!String::from_utf8_lossy(&decided.text()).contains("domid"));
            let refused = decide(&without_disks(), SAME, &running, counting());
            let text = refused.expect_err("refused").to_string();
            assert!(
                text.contains("domain 3") && text.contains("--name"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_taken_name_is_refused() {
        let running = [domain(9, "web2", "other")];
        let refused = decide(&config(), named("web2"), &running, counting());
        let (domid, name) = (9, "web2".to_owned());
        assert_eq!(refused, Err(Refusal::NameTaken { domid, name }));
        // The original's own name, too.
        let running = [domain(3, "web1", UUID)];
        let refused = decide(&without_disks(), named("web1"), &running, counting());
        assert!(matches!(refused, Err(Refusal::NameTaken { .. })));
    }

    #[test]
    fn disks_that_both_would_write_to_are_refused() {
        let running = [domain(3, "web1", UUID)];
        let refused = decide(&config(), named("web2"), &running, counting());
        let text = refused.expect_err("refused").to_string();
        assert!(text.contains("xvda (/dev/vg/web1)"), "{text}");
        assert!(!text.contains("xvdb"), "read-only: {text}");
        let read_only = TEXT.replace("\"readwrite\": 1", "\"readwrite\": 0");
        let read_only = Config::parse(read_only.as_bytes()).expect("a configuration");
        assert!(decide(&read_only, named("web2"), &running, counting()).is_ok());
        // Where the original does not run, its disks are free.
        assert!(decide(&config(), named("web2"), &[], counting()).is_ok());
    }

    #[test]
    fn beside_the_original_a_guest_may_be_on_disks_of_its_own() {
        let running = [domain(3, "web1", UUID)];
        let on = |disks: GuestDisks| {
            let wanted = Wanted {
                disks: &disks,
                ..named("web2")
            };
            decide(&config(), wanted, &running, counting())
        };
        let new = |vdev: &str| GuestDisks::New([(vdev.into(), "/dev/vg/new".into())].into());
        assert!(on(new("xvda")).is_ok());
        assert!(on(GuestDisks::NewLater).is_ok());
        let refused = on(new("xvdb"));
        assert!(matches!(refused, Err(Refusal::SharedDisks { .. })));
    }

    #[test]
    fn under_a_running_guest_no_disk_is_put_back() {
        let put_back = |wanted| Wanted {
            disks: &GuestDisks::PutBack,
            ..wanted
        };
        for original in [domain(3, "renamed", UUID), domain(3, "web1", "made anew")] {
            // A name of its own makes no difference, nor does that it cannot write to them.
            for wanted in [put_back(SAME), put_back(named("web2"))] {
                let running = [original.clone()];
                let refused = decide(&without_disks(), wanted, &running, counting());
                assert!(matches!(
                    refused,
                    Err(Refusal::PutBackWhileItRuns { domid: 3, .. })
                ));
            }
        }
        assert!(decide(&config(), put_back(SAME), &[], counting()).is_ok());
    }

    #[test]
    fn a_device_of_the_host_is_not_given_twice() {
        let text = TEXT.replace("\"disks\"", "\"pcidevs\"");
        let config = Config::parse(text.as_bytes()).expect("a configuration");
        let running = [domain(3, "web1", UUID)];
        let refused = decide(&config, named("web2"), &running, counting());
        assert!(matches!(refused, Err(Refusal::SharedDevices { .. })));
    }

    #[test]
    fn the_users_own_configuration_says_which_disks() {
        let running = [domain(3, "web1", UUID)];
        let own = |text: &str| Config::parse(text.as_bytes()).expect("a configuration");
        let wanted = |config| Wanted {
            config: Some(config),
            ..SAME
        };
        let copy = own(&TEXT.replace("web1", "web2").replace("2F941814", "3F941814"));
        let decided = decide(&config(), wanted(&copy), &running, counting()).expect("decided");
        assert_eq!(decided.name(), "web2");
        assert_eq!(decided.uuid(), copy.uuid());
        assert_eq!(decided.disks()[0].path, "/dev/vg/web2");
        assert_eq!(decided.macs(), ["00:16:3e:70:f0:f0"]);
        // Its UUID runs: another one.
        let same = own(&TEXT.replace("web1", "web2"));
        let decided = decide(&config(), wanted(&same), &running, counting()).expect("decided");
        assert_ne!(decided.uuid().as_deref(), Some(UUID));
        // The original's own disk is not his to give.
        let shared = own(&TEXT.replace("\"web1\"", "\"web2\""));
        let refused = decide(&config(), wanted(&shared), &running, counting());
        assert!(matches!(refused, Err(Refusal::SharedDisks { .. })));
        // Its name is taken.
        let taken = own(&TEXT.replace("/dev/vg/web1", "/dev/vg/web2"));
        let refused = decide(&config(), wanted(&taken), &running, counting());
        assert!(matches!(refused, Err(Refusal::NameTaken { .. })));
    }

    #[test]
    fn names_that_would_be_misread_are_refused() {
        for name in [
            "", "7", "a b", "../x", "a/b", ".a", "-a", "ä", "a\n", "a'b", "a\"b",
        ] {
            let refused = decide(&config(), named(name), &[], counting());
            assert_eq!(refused, Err(Refusal::BadName(name.into())));
        }
        for name in ["a", "web-1.example_x+y", "7a"] {
            assert!(decide(&config(), named(name), &[], counting()).is_ok());
        }
    }
}
