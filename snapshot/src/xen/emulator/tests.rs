//! An emulator played by a thread.

use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#;

/// What it does with the commands that it is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// Does not answer this one.
    Hangs(&'static str),
    /// Answers it with that line.
    Says(&'static str, &'static str),
    /// Closes the connection at it.
    Leaves(&'static str),
}

/// What became of it.
#[derive(Default, Debug)]
struct Seen {
    commands: Vec<String>,
    running: bool,
    noting: bool,
    /// Off when it was off, on when it was on.
    aborted: bool,
}

struct Played {
    _dir: tempfile::TempDir,
    emulator: Emulator,
    seen: Arc<Mutex<Seen>>,
}

impl Played {
    fn start(greeting: &'static str, manner: Manner) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let emulator = Emulator {
            socket: dir.path().join("qmp-libxl-1"),
            lock: dir.path().join("lock"),
        };
        let listener = UnixListener::bind(&emulator.socket).expect("bound");
        let seen = Arc::new(Mutex::new(Seen {
            running: true,
            ..Seen::default()
        }));
        let theirs = seen.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serve(client, greeting, manner, &theirs);
            }
        });
        Self {
            _dir: dir,
            emulator,
            seen,
        }
    }

    fn good() -> Self {
        Self::start(GREETING, Manner::Good)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("not poisoned")
    }
}

fn serve(mut client: UnixStream, greeting: &str, manner: Manner, seen: &Mutex<Seen>) {
    writeln!(client, "{greeting}\r").ok();
    let mut descriptors = vec![];
    while let Some(line) = line_of(&client, &mut descriptors) {
        let command: Value = serde_json::from_str(&line).expect("JSON");
        let name = command["execute"].as_str().expect("a command").to_owned();
        let mut seen = seen.lock().expect("not poisoned");
        seen.commands.push(name.clone());
        match manner {
            Manner::Hangs(at) if at == name => {
                drop(seen);
                // Until the client is gone.
                while line_of(&client, &mut descriptors).is_some() {}
                return;
            }
            Manner::Leaves(at) if at == name => return,
            Manner::Says(at, text) if at == name => {
                writeln!(client, "{text}\r").ok();
                continue;
            }
            _ => {}
        }
        let result = act(&mut seen, &name, &command["arguments"], &descriptors);
        drop(seen);
        // Events come whenever they like.
        writeln!(client, r#"{{"event": "RTC_CHANGE", "data": {{}}}}"#).ok();
        writeln!(
            client,
            "{}\r",
            json!({"return": result, "id": command["id"]})
        )
        .ok();
    }
}

fn act(seen: &mut Seen, name: &str, arguments: &Value, descriptors: &[OwnedFd]) -> Value {
    match name {
        "query-status" => {
            let running = seen.running;
            return json!({"running": running, "status": if running { "running" } else { "paused" }});
        }
        "stop" => seen.running = false,
        "cont" => seen.running = true,
        "xen-set-global-dirty-log" => {
            let enable = arguments["enable"] == true;
            seen.aborted |= !enable && !seen.noting;
            seen.noting = enable;
        }
        "add-fd" => return json!({"fdset-id": 3, "fd": 11}),
        "xen-save-devices-state" => {
            assert_eq!(
                arguments,
                &json!({"filename": "/dev/fdset/3", "live": false})
            );
            assert!(!seen.running);
            let file = File::from(descriptors[0].try_clone().expect("cloned"));
            assert!((&file).write(b"devices").is_ok());
            assert!(file.read_at(&mut [0], 0).is_err(), "for writing alone");
        }
        _ => {}
    }
    json!({})
}

/// One line, with the descriptors that came with it.
fn line_of(client: &UnixStream, descriptors: &mut Vec<OwnedFd>) -> Option<String> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(client, &mut into, &mut extra, RecvFlags::empty()).ok()?;
    for message in extra.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // Ours come in one piece.
    let line = BufReader::new(&bytes[..got.bytes]).lines().next()?;
    line.ok()
}

const SHORT: Duration = Duration::from_millis(100);

#[test]
fn a_window_is_stop_save_and_run_on() {
    let played = Played::good();
    let mut session = played.emulator.session().expect("connected");
    assert_eq!(session.version(), Version::new(7, 2));
    let state = session.hand_over().expect("handed over");
    assert!(session.runs().expect("asked"));
    session.stop().expect("stopped");
    session.save(&state).expect("saved");
    assert_eq!(state.read_behind(vec![9]).expect("read"), b"\x09devices");
    session.run_on().expect("runs");
    assert!(session.runs().expect("asked"));
    let commands = played.seen().commands.join(" ");
    let want = "qmp_capabilities add-fd query-status stop xen-save-devices-state cont query-status";
    assert_eq!(commands, want);
}

#[test]
fn what_is_off_is_never_switched_off() {
    let played = Played::good();
    played.emulator.forget_writes(ANSWER).expect("ended");
    let mut session = played.emulator.session().expect("connected");
    session.note_writes().expect("on");
    assert!(played.seen().noting);
    session.note_no_writes().expect("off");
    drop(session);
    played.emulator.forget_writes(ANSWER).expect("ended");
    assert!(!played.seen().noting && !played.seen().aborted);
}

#[test]
fn one_that_cannot_be_switched_twice_is_left_alone() {
    let greeting = r#"{"QMP": {"version": {"qemu": {"major": 6, "minor": 2}}}}"#;
    let played = Played::start(greeting, Manner::Good);
    played.emulator.forget_writes(ANSWER).expect("left alone");
    assert_eq!(played.seen().commands, ["qmp_capabilities"]);
}

#[test]
fn a_stopped_one_is_let_run_and_a_running_one_left() {
    let played = Played::good();
    assert!(!played.emulator.run_on(ANSWER).expect("asked"));
    played
        .emulator
        .session()
        .expect("connected")
        .stop()
        .expect("stopped");
    assert!(played.emulator.run_on(ANSWER).expect("asked"));
    assert!(played.seen().running);
    assert_eq!(
        played
            .seen()
            .commands
            .iter()
            .filter(|name| *name == "cont")
            .count(),
        1
    );
}

#[test]
fn one_conversation_at_a_time() {
    let played = Played::good();
    let first = played.emulator.session().expect("connected");
    let error = played.emulator.session_within(SHORT).expect_err("locked");
    assert!(
        matches!(error, EmulatorError::Lock(LockError::Taken(_))),
        "{error}"
    );
    drop(first);
    played.emulator.session_within(SHORT).expect("free");
}

#[test]
fn a_client_without_the_lock_is_waited_for_no_longer_than_allowed() {
    let played = Played::good();
    let _other = UnixStream::connect(&played.emulator.socket).expect("connected");
    let error = played
        .emulator
        .session_within(SHORT)
        .expect_err("nobody answers");
    assert!(
        matches!(error, EmulatorError::Qmp(QmpError::Silent { .. })),
        "{error}"
    );
}

/// Whatever it does not answer, a remedy has an end.
#[test]
fn a_remedy_takes_no_longer_than_allowed() {
    for at in ["qmp_capabilities", "query-status", "cont"] {
        let played = Played::start(GREETING, Manner::Hangs(at));
        played.seen().running = false;
        let began = Instant::now();
        assert!(played.emulator.run_on(SHORT).is_err(), "{at}");
        assert!(began.elapsed() < ANSWER / 2, "{at}");
    }
    let played = Played::start(GREETING, Manner::Hangs("xen-set-global-dirty-log"));
    let began = Instant::now();
    assert!(played.emulator.forget_writes(SHORT).is_err());
    assert!(began.elapsed() < ANSWER / 2);
}

#[test]
fn nobody_there_is_told() {
    let dir = tempfile::tempdir().expect("directory");
    let emulator = Emulator {
        socket: dir.path().join("none"),
        lock: dir.path().join("lock"),
    };
    let error = emulator.session_within(SHORT).expect_err("nobody");
    assert!(
        matches!(error, EmulatorError::Qmp(QmpError::Connect { .. })),
        "{error}"
    );
    assert!(!dir.path().join("lock").exists());
}

#[test]
fn what_is_no_answer_is_an_error() {
    let fails = |manner, limit| {
        let played = Played::start(GREETING, manner);
        let mut session = played
            .emulator
            .session_within(Duration::from_secs(10))
            .expect("connected");
        let error = session
            .qmp
            .execute(Command::STATUS, &Value::Null, None, limit);
        error.expect_err("no answer")
    };
    let long = Duration::from_secs(10);
    let at = "query-status";
    assert!(matches!(
        fails(Manner::Hangs(at), SHORT),
        QmpError::Silent { .. }
    ));
    assert!(matches!(
        fails(Manner::Leaves(at), long),
        QmpError::Io { .. }
    ));
    for text in [
        "nonsense",
        "[]",
        "{}",
        r#"{"return": {}}"#,
        r#"{"return": {}, "id": 77}"#,
    ] {
        let error = fails(Manner::Says(at, text), long);
        assert!(matches!(error, QmpError::Junk { .. }), "{text}: {error}");
    }
    let refused = r#"{"error": {"class": "GenericError", "desc": "not now"}, "id": 2}"#;
    let QmpError::Refused { why, .. } = fails(Manner::Says(at, refused), long) else {
        panic!("refused");
    };
    assert_eq!(why, "not now");
}

#[test]
fn a_greeting_that_is_none_is_an_error() {
    for greeting in [
        "",
        "{}",
        "hello",
        r#"{"QMP": {"version": {"qemu": {"major": "7"}}}}"#,
    ] {
        let played = Played::start(greeting, Manner::Good);
        let error = played
            .emulator
            .session_within(SHORT)
            .expect_err("no greeting");
        assert!(
            matches!(error, EmulatorError::Qmp(QmpError::Junk { .. })),
            "{greeting}: {error}"
        );
    }
}

#[test]
fn a_state_that_was_not_written_is_none() {
    let played = Played::good();
    let mut session = played.emulator.session().expect("connected");
    let state = session.hand_over().expect("handed over");
    assert!(matches!(
        state.read_behind(vec![]),
        Err(EmulatorError::Size(0))
    ));
}
