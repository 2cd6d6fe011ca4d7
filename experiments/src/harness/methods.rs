//! The ways to save a guest on a Xen, each as one measured command.

use super::case::{Case, GuestKind, Method};
use super::meter::{self, Usage};
use super::passes;
use super::wire::Passed;
use crate::dom0::image::{self, Size};
use crate::dom0::livesave::{Report, exit};
use crate::dom0::process::{self, Finished};
use crate::dom0::{stock as xen, xl};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any save takes on an emulated machine; what hangs is killed then.
const LIMIT: Duration = Duration::from_secs(600);

/// What the methods need.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The livesave command.
    pub livesave: PathBuf,
    /// This program, which is the receiver of migrations too.
    pub harness: PathBuf,
    /// Where the image goes.
    pub images: PathBuf,
    /// For small files.
    pub scratch: PathBuf,
}

/// A save that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// What it took.
    pub usage: Usage,
    /// Bytes that went over the network.
    pub network_bytes: u64,
    /// The image.
    pub image: Option<Size>,
    /// Pages in each pass, where the stream tells; the last is that of the pause.
    pub passes: Option<Vec<u64>>,
    /// What livesave tells of it.
    pub report: Option<Report>,
}

/// Why there is no save.
#[derive(Clone, Debug)]
pub enum Failure {
    /// livesave does not save guests of this kind so on this Xen.
    Refused(String),
    /// The method failed.
    Failed(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// Saves the guest; what the method did wrong is the inner error.
pub fn make(tools: &Tools, name: &str, case: &Case) -> Result<Result<Made, Failure>> {
    fs::create_dir_all(&tools.images)
        .with_context(|| format!("cannot make {}", tools.images.display()))?;
    let made = match case.method {
        Method::Plain => stock(plain(tools, name)),
        Method::StockLive => stock(stock_live(tools, name)),
        Method::MigratedPipe => stock(migrated_over_pipe(tools, name)),
        Method::MigratedTcp => stock(migrated_over_tcp(tools, name)),
        Method::Migration => stock(migration(tools, name)),
        Method::Live | Method::Improved => live(tools, name, case),
        Method::Increment => increment(tools, name, case),
    };
    let image = tools.image();
    if image.exists() {
        fs::remove_file(&image)?;
    }
    made
}

fn stock(made: Result<Result<Made, String>>) -> Result<Result<Made, Failure>> {
    made.map(|made| made.map_err(Failure::Failed))
}

/// Makes the images before a measured increment, if there are none: writes of the guest are tracked
/// from then on.
pub fn make_base(tools: &Tools, name: &str) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(tools.chain())?;
    let mut command = tools.livesave(&["save", name, "--quiet", "--incremental", "--dir"]);
    process::check(command.arg(tools.chain()), LIMIT).map(|_| ())
}

/// Ends the tracking that increments need, and removes their images.
pub fn forget_base(tools: &Tools, name: &str) -> Result<()> {
    if !tools.chain().exists() {
        return Ok(());
    }
    process::check(&mut tools.livesave(&["untrack", name]), LIMIT)?;
    fs::remove_dir_all(tools.chain())?;
    Ok(())
}

impl Tools {
    fn image(&self) -> PathBuf {
        self.images.join("measured.xl")
    }

    /// The directory of increments.
    fn chain(&self) -> PathBuf {
        self.images.join("increments")
    }

    fn livesave(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.livesave);
        command.args(args);
        command
    }

    /// What a shell is to run for this program with these arguments.
    fn rune(&self, args: &[&str]) -> Result<String> {
        let program = self
            .harness
            .to_str()
            .context("the program's path is not UTF-8")?;
        Ok([&[program], args].concat().join(" "))
    }

    /// Runs a command to its end, and says what it and its children took.
    fn run(&self, command: &Command) -> Result<(Finished, Usage)> {
        let usage = self.scratch.join("usage.json");
        let mut metered = Command::new(&self.harness);
        metered.arg("meter").arg(&usage);
        metered.arg(LIMIT.as_secs().to_string()).arg("--");
        metered.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                metered.env(key, value);
            }
        }
        let finished = process::run(&mut metered, LIMIT + Duration::from_secs(30))?;
        if finished.code() == i32::from(meter::TIMED_OUT) {
            bail!("{command:?} did not end within {} s", LIMIT.as_secs());
        }
        let text = fs::read_to_string(&usage)
            .with_context(|| format!("{command:?} could not be measured: {}", finished.tail()))?;
        fs::remove_file(&usage)?;
        Ok((finished, serde_json::from_str(&text)?))
    }
}

/// A save by Xen's own tools that left an image.
fn of_image(path: &Path, usage: Usage, network_bytes: u64) -> Result<Result<Made, String>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > 0 => {}
        _ => return Ok(Err("it left no image".to_owned())),
    }
    let passes = match passes::of_image(path) {
        Ok(passes) => passes,
        Err(err) => return Ok(Err(format!("{err:#}"))),
    };
    Ok(Ok(Made {
        usage,
        network_bytes,
        image: Some(image::size(path)?),
        passes: Some(passes),
        report: None,
    }))
}

fn failed(finished: &Finished) -> String {
    format!("exit code {}: {}", finished.code(), finished.tail())
}

fn plain(tools: &Tools, name: &str) -> Result<Result<Made, String>> {
    let path = tools.image();
    let mut command = xl::command(&["save", "-c", name]);
    let (finished, usage) = tools.run(command.arg(&path))?;
    if !finished.status.success() {
        return Ok(Err(failed(&finished)));
    }
    of_image(&path, usage, 0)
}

fn stock_live(tools: &Tools, name: &str) -> Result<Result<Made, String>> {
    let path = tools.image();
    let command = xen::live_loop_command(&[], name, &path, &tools.scratch)?;
    let (finished, usage) = tools.run(&command)?;
    if !finished.status.success() {
        return Ok(Err(failed(&finished)));
    }
    of_image(&path, usage, 0)
}

/// `xl migrate` to what the shell is told to start.
fn migrate(tools: &Tools, name: &str, rune: &str) -> Result<(Finished, Usage)> {
    tools.run(&xl::command(&["migrate", "-s", "", name, rune]))
}

/// The sender must have seen a migration that failed at its last moment, when the receiver went
/// without taking the guest over; the stream is complete then.
fn given_away(finished: &Finished) -> Option<String> {
    let away = finished.status.success();
    away.then(|| "the migration succeeded: the guest was given away".to_owned())
}

fn migrated_over_pipe(tools: &Tools, name: &str) -> Result<Result<Made, String>> {
    let path = tools.image();
    let rune = tools.rune(&["receive", utf8(&path)?])?;
    let (finished, usage) = migrate(tools, name, &rune)?;
    if let Some(why) = given_away(&finished) {
        return Ok(Err(why));
    }
    let made = of_image(&path, usage, 0)?;
    Ok(made.map_err(|why| format!("{why}: {}", finished.tail())))
}

fn migrated_over_tcp(tools: &Tools, name: &str) -> Result<Result<Made, String>> {
    let (path, counts) = (tools.image(), tools.scratch.join("passed.json"));
    let daemon = Daemon::start(tools, &path, &counts)?;
    let rune = tools.rune(&["relay", &daemon.address])?;
    let (finished, usage) = migrate(tools, name, &rune)?;
    let ended = daemon.end();
    if let Some(why) = given_away(&finished) {
        return Ok(Err(why));
    }
    if let Err(err) = ended {
        return Ok(Err(format!("{err:#}; {}", finished.tail())));
    }
    let passed = Passed::read(&counts)?;
    of_image(&path, usage, passed.received + passed.sent)
}

/// The receiving daemon.
struct Daemon {
    child: Child,
    address: String,
}

impl Daemon {
    fn start(tools: &Tools, image: &Path, counts: &Path) -> Result<Self> {
        let mut child = Command::new(&tools.harness)
            .arg("serve")
            .args([image, counts])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("the receiving daemon could not be started")?;
        let mut address = String::new();
        if let Some(said) = child.stdout.take() {
            BufReader::new(said).read_line(&mut address)?;
        }
        let address = address.trim().to_owned();
        let daemon = Self { child, address };
        if daemon.address.is_empty() {
            bail!("the receiving daemon did not say where it listens");
        }
        Ok(daemon)
    }

    /// It must end by itself, for it has the stream.
    fn end(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the receiving daemon ended with {status}");
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the receiving daemon got no complete stream")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended cannot be killed: nothing is lost.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn migration(tools: &Tools, name: &str) -> Result<Result<Made, String>> {
    let counts = tools.scratch.join("passed.json");
    let rune = tools.rune(&["count", utf8(&counts)?, "--", "xl", "migrate-receive"])?;
    let (finished, usage) = migrate(tools, name, &rune)?;
    if !finished.status.success() {
        return Ok(Err(failed(&finished)));
    }
    let passed = Passed::read(&counts)?;
    Ok(Ok(Made {
        usage,
        network_bytes: passed.received + passed.sent,
        image: None,
        passes: None,
        report: None,
    }))
}

/// A save by livesave with these arguments more.
fn own(tools: &Tools, name: &str, case: &Case, more: &[&str]) -> Result<Result<Made, Failure>> {
    let mut command = tools.livesave(&["save", name, "--json"]);
    command.args(more);
    if let Some(target) = case.target_ms {
        command.arg("--max-downtime").arg(format!("{target}ms"));
    }
    let (finished, usage) = tools.run(&command)?;
    if finished.code() == exit::NOT_SAVABLE && is_refusal(case.guest, &finished.stderr) {
        return Ok(Err(Failure::Refused(finished.tail())));
    }
    if !finished.status.success() {
        return Ok(Err(failed(&finished).into()));
    }
    let report: Report = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("the report is not as documented: {}", finished.stdout))?;
    Ok(Ok(Made {
        usage,
        network_bytes: 0,
        image: Some(Size {
            bytes: report.image_bytes,
            allocated: report.allocated_bytes,
        }),
        passes: None,
        report: Some(report),
    }))
}

/// Whether livesave says that guests of this type are not saved so, on this Xen. With the same exit code it
/// refuses a guest that others are at, or that is not as it should be: that would be a failure.
fn is_refusal(guest: GuestKind, said: &str) -> bool {
    match guest {
        GuestKind::Pvh | GuestKind::Embedded => false,
        // One that is too old, or may die of having its writes tracked.
        GuestKind::Hvm => said.contains("its emulator is QEMU"),
        GuestKind::Pv => said.contains("shadow paging"),
    }
}

fn live(tools: &Tools, name: &str, case: &Case) -> Result<Result<Made, Failure>> {
    let path = tools.image();
    let mode = if case.method == Method::Live {
        "live"
    } else {
        "improved"
    };
    own(tools, name, case, &["--mode", mode, "-o", utf8(&path)?])
}

fn increment(tools: &Tools, name: &str, case: &Case) -> Result<Result<Made, Failure>> {
    let chain = tools.chain();
    let made = own(
        tools,
        name,
        case,
        &["--incremental", "--dir", utf8(&chain)?],
    )?;
    Ok(made.and_then(|made| {
        let report = made.report.as_ref();
        if report.is_some_and(|report| report.parent.is_some()) {
            Ok(made)
        } else {
            Err("it made a full image, not an increment".to_owned().into())
        }
    }))
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("the path {} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_a_type_of_guest() {
        let shadow = "livesave: Domain g cannot be saved while it runs: this hypervisor cannot track the \
                      writes of PV guests: it was built without shadow paging, as those of ...";
        let qemu = "livesave: Domain g cannot be saved while it runs: its emulator is QEMU 6.2, which may ...";
        let other = "livesave: Domain g cannot be saved: another tool is at it";
        for (guest, said, refused) in [
            (GuestKind::Pv, shadow, true),
            (GuestKind::Pv, other, false),
            (GuestKind::Hvm, qemu, true),
            (GuestKind::Hvm, other, false),
            (GuestKind::Pvh, other, false),
        ] {
            assert_eq!(is_refusal(guest, said), refused, "{guest:?}: {said}");
        }
    }
}
