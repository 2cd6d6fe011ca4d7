//! Regenerates `src/bindings/*.rs` from Xen's headers, or compares the committed files with what
//! the headers of one or more versions of Xen give.

mod generate;
mod libraries;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use generate::generate;
use libraries::LIBRARIES;
use xen_sys::versions::{Difference, GENERATED_FROM, differences_of, expected};

const USAGE: &str = "usage: xen-sys-bindings [--check] [--headers VERSION=FOLDER]...
  Without --headers, those in /usr/include, which are then to be of the version that the committed
  bindings are generated from.";

/// A minor version of Xen 4.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version(u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "4.{}", self.0)
    }
}

/// Where a version's headers are.
struct Headers {
    version: Version,
    folder: PathBuf,
}

impl Headers {
    fn parse(text: &str) -> Option<Self> {
        let (version, folder) = text.split_once('=')?;
        let minor = version.strip_prefix("4.")?.parse().ok()?;
        Some(Self {
            version: Version(minor),
            folder: folder.into(),
        })
    }

    fn installed() -> Self {
        Self {
            version: Version(GENERATED_FROM),
            folder: "/usr/include".into(),
        }
    }
}

/// What was asked for.
struct Arguments {
    check: bool,
    headers: Vec<Headers>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let (mut check, mut headers) = (false, Vec::new());
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--check" => check = true,
                "--headers" => headers.push(Headers::parse(&arguments.next()?)?),
                _ => return None,
            }
        }
        if headers.is_empty() {
            headers.push(Headers::installed());
        }
        let one = matches!(&headers[..], [h] if h.version == Version(GENERATED_FROM));
        (check || one).then_some(Self { check, headers })
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!(
                "The bindings are not as expected. What differs in a version of Xen is listed, with what \
                 livesave does about it, in xen-sys/src/versions.rs; of the version that the bindings are \
                 generated from, run xen-sys-bindings without --check."
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the files, or with `check` says whether they are as expected.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings");
    let mut same = true;
    for headers in &arguments.headers {
        let place = headers.folder.display();
        let from = std::fs::canonicalize(&headers.folder).map_err(|e| format!("{place}: {e}"))?;
        if arguments.check {
            same &= compare(&folder, headers.version, &from)?;
            continue;
        }
        for library in LIBRARIES {
            let path = folder.join(library.name).with_extension("rs");
            std::fs::write(&path, generate(&folder, &from, library)?)
                .map_err(|e| format!("Failed to write {}: {e}", path.display()))?;
        }
    }
    Ok(same)
}

/// Compares the committed files with what the headers of `version` give, and says what was compared.
fn compare(folder: &Path, version: Version, headers: &Path) -> Result<bool, String> {
    let place = headers.display();
    println!("Xen {version}, headers in {place}:");
    let mut functions = 0;
    let mut listed: Vec<&Difference> = Vec::new();
    let mut others = Vec::new();
    for library in LIBRARIES {
        let path = folder.join(library.name).with_extension("rs");
        let committed = std::fs::read_to_string(&path)
            .map_err(|e| format!("Failed to read {}: {e}", path.display()))?;
        let text = generate(folder, headers, library).map_err(|e| format!("Xen {version}: {e}"))?;
        let expected = expected(&committed, library.name, version.0)
            .map_err(|d| format!("Xen {version}: no such text in {}: {}", library.name, d.was))?;
        if expected != text {
            show(library.name, version, &expected, &text)?;
            others.push(library.name);
        }
        functions += library.functions.len();
        // Those that a later one has not changed again.
        let here = differences_of(version.0).filter(|d| d.library == library.name);
        listed.extend(here.filter(|d| expected.contains(d.is)));
    }
    if !others.is_empty() {
        println!("  NOT as expected: {}", others.join(", "));
        return Ok(false);
    }
    let names: Vec<_> = LIBRARIES.iter().map(|l| l.name).collect();
    let names = names.join(", ");
    println!("  as committed: {functions} functions of {names}, their types, and constants");
    for difference in listed {
        println!("  but for, since 4.{}: {}", difference.since, difference.is);
        println!("    ({})", difference.handled);
    }
    Ok(true)
}

/// Prints how `text` differs from what was expected.
fn show(library: &str, version: Version, expected: &str, text: &str) -> Result<(), String> {
    let folder = std::env::temp_dir().join(format!("xen-sys-bindings-{}", std::process::id()));
    let shown = (|| {
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("expected"), expected)?;
        std::fs::write(folder.join("generated"), text)?;
        // The usual tool prints the difference better than we could.
        Command::new("diff")
            .args([
                "-u",
                "--label",
                &format!("{library}.rs as expected of Xen {version}"),
            ])
            .args(["--label", &format!("{library}.rs from its headers")])
            .args(["expected", "generated"])
            .current_dir(&folder)
            .status()
    })();
    let _ = std::fs::remove_dir_all(&folder);
    shown
        .map(drop)
        .map_err(|e| format!("The bindings of {library} differ, and cannot be shown: {e}"))
}
