//! Guests that outlive those who talk to them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapshot::embedded::{
    Charge, EmbeddedDomain, EmbeddedGuest, GuestError, GuestSpec, GuestStatus, Pattern,
    TrackerChoice, Workload,
};
use snapshot::guardian::{Caps, DiskState, Entry, Journal, PutRight, Slowed, State, Stop};
use snapshot::ports::{Cancel, Domain};
use snapshot::{Bytes, CpuPercent, PageSet};

const SECOND: Duration = Duration::from_secs(1);

struct Stage {
    directory: tempfile::TempDir,
    guest: EmbeddedGuest,
}

impl Stage {
    fn new(tracker: TrackerChoice) -> Self {
        let mut spec = GuestSpec::new("shared", Bytes::from_mib(8));
        spec.workload = Workload {
            rate: Some(10_000),
            ..Workload::full_speed(Pattern::Ring)
        };
        spec.tracker = tracker;
        let program = Path::new(env!("CARGO_BIN_EXE_embedded-guest"));
        let guest = EmbeddedGuest::spawn(program, &[], spec).expect("a guest");
        let directory = tempfile::tempdir().expect("a directory");
        let stage = Self { directory, guest };
        stage.guest.listen(&stage.socket()).expect("it listens");
        stage
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("guest")
    }

    fn attach(&self) -> EmbeddedGuest {
        EmbeddedGuest::attach(&self.socket()).expect("attached")
    }

    fn written(&self) -> u64 {
        self.guest.stats().expect("counters").written
    }

    fn must_run(&self) {
        let (began, before) = (Instant::now(), self.written());
        while self.written() < before + 100 {
            assert!(began.elapsed() < 10 * SECOND, "it stands still");
            std::thread::sleep(SECOND / 100);
        }
    }

    fn must_be(&self, suspended: bool, tracked: bool, cap: u32) {
        let want = GuestStatus {
            suspended,
            tracked,
            cap,
        };
        assert_eq!(self.guest.status().expect("a status"), want);
    }

    fn entry(&self, uuid: Option<&str>) -> Entry {
        let attached = std::sync::Arc::new(self.attach());
        let uuid = uuid.map_or_else(
            || EmbeddedDomain::new(attached).identity().uuid.clone(),
            str::to_owned,
        );
        Entry {
            pid: 1,
            uuid,
            partial: None,
            caps: Caps::default(),
            disks: String::new(),
        }
    }
}

const HELD_UP: State = State {
    tracking: true,
    stop: Stop::Suspended,
    slowed: Slowed::No,
    disks: DiskState::No,
};

/// One that nothing is noted in.
fn journal() -> Journal {
    Journal::new(tempfile::tempfile().expect("a file"))
}

#[test]
fn another_process_sees_the_guest_as_its_parent_does() {
    for tracker in [TrackerChoice::Auto, TrackerChoice::Mprotect] {
        let stage = Stage::new(tracker);
        let other = stage.attach();
        assert_eq!((other.pid(), other.name()), (stage.guest.pid(), "shared"));
        assert_eq!(other.tracker(), stage.guest.tracker());
        other.track().expect("tracked");
        stage.must_be(false, true, 0);
        assert!(stage.guest.track().is_err(), "it is tracked already");
        let mut dirty = PageSet::new(other.layout().span());
        let began = Instant::now();
        while dirty.count().0 < 50 {
            assert!(began.elapsed() < 10 * SECOND, "nothing is dirtied");
            other.fetch_dirty(&mut dirty).expect("fetched");
        }
        other.suspend(SECOND, &Cancel::new()).expect("suspended");
        assert!(other.verify().expect("verified").matches());
        // What the dead asked for stands.
        drop(other);
        stage.must_be(true, true, 0);
    }
}

#[test]
fn whoever_is_left_puts_the_guest_right() {
    for tracker in [TrackerChoice::Auto, TrackerChoice::Mprotect] {
        let stage = Stage::new(tracker);
        stage.guest.cap_cpu(77).expect("its own cap");
        let own_cap = Some(CpuPercent(77));
        let mut guardian = Charge::new(&stage.socket(), own_cap)
            .opened()
            .expect("ready");
        for _ in 0..3 {
            let save = stage.attach();
            save.track().expect("tracked");
            save.cap_cpu(5).expect("capped");
            save.suspend(SECOND, &Cancel::new()).expect("suspended");
            drop(save);
            stage.must_be(true, true, 5);
            let done = guardian.put_right(&journal(), &stage.entry(None), HELD_UP);
            assert_eq!(done.expect("put right").len(), 3);
            stage.must_be(false, false, 77);
            stage.must_run();
            let done = guardian.put_right(&journal(), &stage.entry(None), HELD_UP);
            assert_eq!(done.expect("put right"), ["the guest needs nothing"]);
        }
    }
}

#[test]
fn only_what_was_done_to_this_guest_is_undone() {
    let stage = Stage::new(TrackerChoice::Auto);
    let mut charge = Charge::new(&stage.socket(), None);
    stage.guest.track().expect("tracked");
    stage
        .guest
        .suspend(SECOND, &Cancel::new())
        .expect("suspended");
    for (uuid, state) in [
        (Some("another"), HELD_UP),
        (None, State::NONE),
        // Suspended by somebody else.
        (
            None,
            State {
                stop: Stop::Requested,
                ..State::NONE
            },
        ),
    ] {
        charge
            .put_right(&journal(), &stage.entry(uuid), state)
            .expect("done");
        let ours = uuid.is_none() && state != State::NONE;
        stage.must_be(!ours, true, 0);
    }
    let gone = stage.entry(None);
    let socket = stage.socket();
    drop(stage.guest);
    let done = charge
        .put_right(&journal(), &gone, HELD_UP)
        .expect("nothing to do");
    assert_eq!(done, ["the guest is gone"]);
    assert!(matches!(
        EmbeddedGuest::attach(&socket),
        Err(GuestError::Gone(_))
    ));
}

#[test]
fn what_the_dead_asked_for_is_not_done_late() {
    let stage = Stage::new(TrackerChoice::Auto);
    let guardian = stage.attach();
    let sent_away = stage.attach();
    guardian.send_others_away().expect("sent away");
    let refused = sent_away.suspend(SECOND, &Cancel::new());
    assert!(matches!(refused, Err(GuestError::Gone(_))), "{refused:?}");
    stage.must_be(false, false, 0);
    // Half a message, and an end in the middle of an answer, are nobody else's affair.
    let mut stream = UnixStream::connect(stage.socket()).expect("connected");
    stream.write_all(b"{\"number\":1,\"bo").expect("written");
    drop(stream);
    let mut stream = UnixStream::connect(stage.socket()).expect("connected");
    stream
        .write_all(b"{\"number\":1,\"body\":\"Suspend\"}\n")
        .expect("written");
    drop(stream);
    let late = stage.attach();
    late.send_others_away().expect("sent away");
    if late.status().expect("a status").suspended {
        late.resume().expect("resumed");
    }
    stage.must_run();
    guardian.status().expect_err("it was sent away too");
}
