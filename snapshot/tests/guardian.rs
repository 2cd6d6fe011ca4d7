//! The guardian with real processes, kills and files; only the guest is a file that records what
//! was done to it. No Xen is needed.
//!
//! This program is its own save and its own guardian (`harness = false`): called with `worker` or
//! `guardian` it is that, else it runs the tests.

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getsid, kill_process, kill_process_group};
use snapshot::guardian::{
    Caps, Entry, Journal, Link, Outcome, Patience, PutRight, Slowed, State, Stop, serve,
};
use snapshot::ports::BoxError;

const MS: Duration = Duration::from_millis(1);
const SILENCE: Duration = Duration::from_millis(400);
const CAPS: Caps = Caps {
    own: 40,
    before: 40,
    now: 20,
};
const UUID: &str = "0b5c0000-0000-0000-0000-000000000001";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("guardian") => guardian(Path::new(&arguments[1])),
        Some("worker") => worker(Path::new(&arguments[1]), &arguments[2], &arguments[3]),
        // Asked by tools that list tests first.
        _ if arguments.iter().any(|argument| argument == "--list") => ExitCode::SUCCESS,
        _ => run_tests(),
    }
}

type Test = fn(&Stage);

fn run_tests() -> ExitCode {
    let tests: [(&str, Test); 11] = [
        ("killed in each state", killed_in_each_state),
        ("ended in order", ended_in_order),
        ("killed with its whole group", killed_with_its_group),
        ("hangs with the guest held up", hangs),
        ("hangs while its pauses go on", hangs_while_pausing),
        ("slow, but shows life", slow_but_alive),
        (
            "stands still while the guest runs",
            idle_while_the_guest_runs,
        ),
        ("guardian killed", guardian_killed),
        ("first attempts fail", first_attempts_fail),
        ("first attempt fails half way", half_an_attempt),
        ("guardian that gets not ready", not_ready),
    ];
    for (name, test) in tests {
        let stage = Stage::new();
        test(&stage);
        println!("guardian: {name}: ok");
    }
    ExitCode::SUCCESS
}

/// Records what it is told to put right; fails as often as `fail` says.
struct Recorder(PathBuf);

impl PutRight for Recorder {
    fn put_right(
        &mut self,
        journal: &Journal,
        entry: &Entry,
        state: State,
    ) -> Result<Vec<String>, BoxError> {
        let fail = self.0.join("fail");
        let left: u32 = fs::read_to_string(&fail)?.parse()?;
        if left > 0 {
            fs::write(&fail, (left - 1).to_string())?;
            if state.slowed == Slowed::Pulsing {
                // Half of it is done, and must not be done again.
                journal.set(State {
                    slowed: Slowed::No,
                    ..state
                })?;
            }
            return Err("not yet".into());
        }
        let mut record = File::options()
            .append(true)
            .create(true)
            .open(self.0.join("record"))?;
        let caps = (state.slowed == Slowed::Capped).then_some(entry.caps);
        writeln!(record, "{} {state:?} {caps:?}", entry.uuid)?;
        Ok(vec!["recorded".into()])
    }
}

fn guardian(directory: &Path) -> ExitCode {
    let patience = Patience {
        look: 20 * MS,
        handshake: 2 * SILENCE,
        silence: SILENCE,
        stall: SILENCE,
        retry: Duration::from_secs(10),
    };
    let open = || {
        if directory.join("refuse").exists() {
            return Err("as asked".into());
        }
        Ok(Recorder(directory.to_owned()))
    };
    match serve(&patience, open) {
        Outcome::Right => ExitCode::SUCCESS,
        Outcome::Wrong => ExitCode::FAILURE,
    }
}

/// A save that comes to a state and then does something until it is killed, or ends.
fn worker(directory: &Path, state: &str, deed: &str) -> ExitCode {
    let journal = Journal::new(open_journal(directory));
    journal.file().try_lock().expect("locked");
    let entry = Entry {
        pid: std::process::id(),
        uuid: UUID.into(),
        partial: Some(directory.join("partial")),
        caps: Caps::default(),
        disks: String::new(),
    };
    journal.begin(&entry).expect("begun");
    let program = std::env::current_exe().expect("own path");
    let arguments = ["guardian".into(), directory.into()];
    let mut link = match Link::start(&program, &arguments, &journal) {
        Ok(link) => link,
        Err(error) => {
            println!("refused {error}");
            return ExitCode::SUCCESS;
        }
    };
    fs::write(directory.join("partial"), "half an image").expect("written");
    journal.set_caps(CAPS).expect("noted");
    journal.set(state_of(state)).expect("noted");
    println!("there");
    match deed {
        // The thread that pauses the guest goes on when the rest hangs.
        "pulse" => loop {
            for slowed in [Slowed::No, Slowed::Pulsing] {
                let state = State {
                    slowed,
                    ..state_of(state)
                };
                journal.set(state).expect("noted");
                sleep(10 * MS);
            }
        },
        "wait" => loop {
            sleep(1000 * MS);
        },
        "beat" => {
            let began = Instant::now();
            while began.elapsed() < 4 * SILENCE {
                journal.beat();
                sleep(20 * MS);
            }
        }
        "idle" => sleep(4 * SILENCE),
        "see" => {
            while link.lives() {
                sleep(MS);
            }
            println!("seen");
        }
        _ => {}
    }
    // In order.
    journal.set(State::NONE).expect("noted");
    fs::remove_file(directory.join("partial")).expect("removed");
    journal.clear().expect("cleared");
    drop(link);
    ExitCode::SUCCESS
}

fn state_of(name: &str) -> State {
    let mut words = name.split('/');
    let mut word = || words.next().expect("three words");
    State {
        tracking: word() == "tracking",
        stop: match word() {
            "no" => Stop::No,
            "requested" => Stop::Requested,
            "suspended" => Stop::Suspended,
            other => panic!("{other}"),
        },
        slowed: match word() {
            "free" => Slowed::No,
            "capped" => Slowed::Capped,
            "pulsing" => Slowed::Pulsing,
            other => panic!("{other}"),
        },
        ..State::NONE
    }
}

fn open_journal(directory: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("journal"))
        .expect("journal")
}

struct Stage(tempfile::TempDir);

/// A save under way.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().expect("directory"));
        stage.fail(0);
        stage
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fail(&self, times: u32) {
        fs::write(self.path().join("fail"), times.to_string()).expect("written");
    }

    fn start(&self, state: &str, deed: &str) -> Running {
        // Through env, so that no signal is ignored because whoever runs the tests ignores it.
        let mut child = Command::new("env")
            .arg("--default-signal")
            .arg(std::env::current_exe().expect("own path"))
            .arg("worker")
            .arg(self.path())
            .args([state, deed])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("started");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Running { child, output }
    }

    /// Waits until nobody holds the lock, which the guardian shares.
    fn wait_until_free(&self) {
        let journal = open_journal(self.path());
        let began = Instant::now();
        while let Err(error) = journal.try_lock() {
            assert!(matches!(error, TryLockError::WouldBlock), "{error}");
            assert!(began.elapsed() < Duration::from_secs(20), "still locked");
            sleep(MS);
        }
    }

    fn record(&self) -> String {
        fs::read_to_string(self.path().join("record")).unwrap_or_default()
    }

    /// The guardian did this, once, and left nothing.
    fn must_be_put_right(&self, state: &str) {
        self.wait_until_free();
        let state = state_of(state);
        let caps = (state.slowed == Slowed::Capped).then_some(CAPS);
        assert_eq!(self.record(), format!("{UUID} {state:?} {caps:?}\n"));
        self.must_be_clean();
    }

    fn must_be_clean(&self) {
        assert!(!self.path().join("partial").exists(), "a partial image");
        let left = fs::read_to_string(self.path().join("journal")).expect("read");
        assert_eq!(left, "");
    }
}

impl Running {
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim_end().to_owned()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn kill(&mut self) {
        kill_process(self.pid(), Signal::KILL).expect("killed");
        self.end();
    }

    fn end(&mut self) -> ExitStatus {
        self.child.wait().expect("waited")
    }

    /// The guardian, which is its only child.
    fn guardian(&self) -> Pid {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let child = children.expect("children").trim().parse().expect("one");
        Pid::from_raw(child).expect("a number")
    }
}

const STATES: [&str; 10] = [
    "off/no/free",
    "tracking/no/free",
    "off/requested/free",
    "tracking/requested/free",
    "off/suspended/free",
    "tracking/suspended/free",
    "off/no/capped",
    "tracking/no/capped",
    "tracking/no/pulsing",
    "tracking/suspended/capped",
];

fn killed_in_each_state(_: &Stage) {
    for state in STATES {
        let stage = Stage::new();
        let mut save = stage.start(state, "wait");
        assert_eq!(save.says(), "there");
        save.kill();
        stage.must_be_put_right(state);
    }
}

fn ended_in_order(stage: &Stage) {
    for state in STATES {
        let mut save = stage.start(state, "end");
        assert_eq!(save.says(), "there");
        assert!(save.end().success());
        // At once: it waited for its guardian.
        open_journal(stage.path()).try_lock().expect("free");
        stage.must_be_clean();
    }
    assert_eq!(stage.record(), "");
}

fn killed_with_its_group(stage: &Stage) {
    for signal in [Signal::INT, Signal::HUP, Signal::KILL] {
        let stage_of_its_own = Stage::new();
        let mut save = stage_of_its_own.start("tracking/suspended/free", "wait");
        assert_eq!(save.says(), "there");
        let guardian = save.guardian();
        assert_eq!(getsid(Some(guardian)), Ok(guardian), "its own session");
        kill_process_group(save.pid(), signal).expect("killed");
        assert_eq!(save.end().signal(), Some(signal.as_raw()));
        stage_of_its_own.must_be_put_right("tracking/suspended/free");
    }
    assert_eq!(stage.record(), "");
}

fn hangs(_: &Stage) {
    for (state, limit) in [
        ("tracking/requested/free", 2 * SILENCE),
        ("off/suspended/free", SILENCE),
        ("tracking/no/capped", SILENCE),
        ("tracking/no/pulsing", SILENCE),
    ] {
        let stage = Stage::new();
        let mut save = stage.start(state, "wait");
        assert_eq!(save.says(), "there");
        let began = Instant::now();
        assert_eq!(save.end().signal(), Some(Signal::KILL.as_raw()));
        assert!(began.elapsed() > limit - 50 * MS, "{:?}", began.elapsed());
        stage.must_be_put_right(state);
    }
}

fn slow_but_alive(stage: &Stage) {
    for state in ["off/suspended/free", "tracking/no/capped"] {
        let mut save = stage.start(state, "beat");
        assert_eq!(save.says(), "there");
        assert!(save.end().success(), "it was killed");
        assert_eq!(stage.record(), "");
        stage.must_be_clean();
    }
}

/// Pauses that go on are no sign of life.
fn hangs_while_pausing(stage: &Stage) {
    let mut save = stage.start("off/no/pulsing", "pulse");
    assert_eq!(save.says(), "there");
    assert_eq!(save.end().signal(), Some(Signal::KILL.as_raw()));
    stage.wait_until_free();
    stage.must_be_clean();
    // In a pause, or between two.
    let record = stage.record();
    assert!(record.is_empty() || record.contains("Pulsing") || record.contains("slowed: No"));
}

fn idle_while_the_guest_runs(stage: &Stage) {
    let mut save = stage.start("tracking/no/free", "idle");
    assert_eq!(save.says(), "there");
    assert!(save.end().success(), "it was killed");
    assert_eq!(stage.record(), "");
    stage.must_be_clean();
}

fn guardian_killed(stage: &Stage) {
    let mut save = stage.start("tracking/no/free", "see");
    assert_eq!(save.says(), "there");
    kill_process(save.guardian(), Signal::KILL).expect("killed");
    assert_eq!(save.says(), "seen");
    assert!(save.end().success());
    assert_eq!(stage.record(), "");
    stage.must_be_clean();
}

fn first_attempts_fail(stage: &Stage) {
    stage.fail(3);
    let mut save = stage.start("tracking/suspended/free", "wait");
    assert_eq!(save.says(), "there");
    save.kill();
    stage.must_be_put_right("tracking/suspended/free");
}

/// What was done before an attempt failed is not done again.
fn half_an_attempt(stage: &Stage) {
    stage.fail(1);
    let mut save = stage.start("tracking/no/pulsing", "wait");
    assert_eq!(save.says(), "there");
    save.kill();
    stage.must_be_put_right("tracking/no/free");
}

fn not_ready(stage: &Stage) {
    fs::write(stage.path().join("refuse"), "").expect("written");
    let mut save = stage.start("tracking/no/free", "wait");
    assert!(save.says().starts_with("refused"), "it went on without");
    assert!(save.end().success());
    assert_eq!(stage.record(), "");
}
