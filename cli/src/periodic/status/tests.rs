use std::path::PathBuf;

use snapshot::ports::Identity;

use super::super::directory::{FileId, Other};
use super::*;

fn image(name: &str, uuid: &str, cut: &str) -> Image {
    Image {
        path: PathBuf::from(format!("/images/{name}-{cut}.xl")),
        guest: Identity {
            domid: 1,
            name: name.into(),
            uuid: uuid.into(),
        },
        cut: cut.parse().expect("a time"),
        bytes: Bytes(1000),
        allocated: Bytes(500),
        mode: "improved".into(),
        id: None,
        parent: None,
        disks: None,
        pause_s: 0.1,
        file: FileId::of(&std::fs::metadata("/").expect("metadata")),
    }
}

fn judged(listing: &Listing, warn_s: Option<f64>, wanted: Option<&str>) -> (State, String) {
    let now = "2026-11-24T12:00:00Z".parse().expect("a time");
    judge(
        listing,
        &Limits {
            max_s: 7200.0,
            warn_s,
        },
        wanted,
        now,
    )
}

#[test]
fn the_age_of_the_latest_image_decides() {
    let mut listing = Listing::default();
    assert_eq!(
        judged(&listing, None, None),
        (State::Critical, "no image".into())
    );
    listing.images = vec![
        image("a", "1", "2026-11-24T11:00:00Z"),
        image("a", "1", "2026-11-24T09:00:00Z"),
    ];
    let (state, text) = judged(&listing, None, None);
    assert_eq!(state, State::Ok);
    assert_eq!(
        text,
        "a 1h old | 'a'=3600s;;7200;0 'a images'=2;;;0 'a size'=1000B;;;0"
    );
    let (state, text) = judged(&listing, Some(1800.0), None);
    assert_eq!(state, State::Warning);
    assert!(text.contains("'a'=3600s;1800;7200;0"), "{text}");
    listing.images.push(image("b", "2", "2026-11-24T09:59:59Z"));
    let (state, text) = judged(&listing, None, None);
    assert_eq!(state, State::Critical);
    assert!(
        text.starts_with("a 1h old; b 2h 1s old, more than 2h |"),
        "{text}"
    );
    assert_eq!(judged(&listing, None, Some("a")).0, State::Ok);
    assert_eq!(judged(&listing, None, Some("1")).0, State::Ok);
    let (state, text) = judged(&listing, None, Some("c"));
    assert_eq!((state, text.as_str()), (State::Critical, "no image of c"));
}

#[test]
fn what_is_odd_is_a_warning_and_hides_nothing_worse() {
    let mut listing = Listing {
        images: vec![image("a", "1", "2026-11-24T11:00:00Z")],
        damaged: vec![Other {
            path: "/images/b-1.xl".into(),
            what: "cut off".into(),
        }],
        ..Listing::default()
    };
    let (state, text) = judged(&listing, None, None);
    assert_eq!(state, State::Warning);
    assert!(text.contains("damaged: b-1.xl |"), "{text}");
    assert_eq!(judged(&listing, None, Some("a")).0, State::Ok);
    listing.damaged[0].path = "/images/a-1.xl".into();
    assert_eq!(judged(&listing, None, Some("a")).0, State::Warning);
    listing.images[0].cut = "2026-11-24T01:00:00Z".parse().expect("a time");
    assert_eq!(judged(&listing, None, None).0, State::Critical);
    listing.damaged.clear();
    listing.images[0].cut = "2026-11-24T12:10:00Z".parse().expect("a time");
    let (state, text) = judged(&listing, None, None);
    assert_eq!(state, State::Warning);
    assert!(text.contains("in the future"), "{text}");
}

#[test]
fn names_break_neither_the_line_nor_its_data() {
    let listing = Listing {
        images: vec![image("a|b='c'\n\u{1b}[2J", "1", "2026-11-24T11:00:00Z")],
        ..Listing::default()
    };
    let (_, text) = judged(&listing, None, None);
    assert_eq!(text.matches('|').count(), 1, "{text}");
    assert!(!text.contains(|c: char| c.is_control()), "{text}");
    assert!(text.contains("'a_b_''c''\\n\\u{1b}[2J'=3600s"), "{text}");
}

#[test]
fn two_guests_of_one_name_have_labels_of_their_own() {
    let listing = Listing {
        images: vec![
            image("a", "1", "2026-11-24T11:00:00Z"),
            image("a", "2", "2026-11-24T11:00:00Z"),
        ],
        ..Listing::default()
    };
    let (_, text) = judged(&listing, None, None);
    assert!(text.contains("'a 1'=") && text.contains("'a 2'="), "{text}");
}
