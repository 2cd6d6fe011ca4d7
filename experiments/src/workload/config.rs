//! Settings of the workload, from the guest kernel's command line.

use super::pattern::Extent;
use crate::records::disk_number;
use std::fmt;
use std::str::FromStr;

/// How many pages per second a writer dirties, or how many records it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// That many pages per second, all writers together.
    PagesPerSecond(u64),
    /// As fast as it can.
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        text.parse()
            .map(Self::PagesPerSecond)
            .map_err(|_| format!("rate {text:?} is neither a number nor \"max\""))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PagesPerSecond(n) => n.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

/// In which order pages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Round and round, over the whole ring.
    Ring,
    /// Any page, evenly.
    Random,
    /// Round and round over the first so many MiB of the ring.
    Hot(u64),
    /// Nothing is written.
    Idle,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("ring", "") => Ok(Self::Ring),
            ("random", "") => Ok(Self::Random),
            ("idle", "") => Ok(Self::Idle),
            ("hot", mib) => match mib.parse() {
                Ok(mib) if mib > 0 => Ok(Self::Hot(mib)),
                _ => Err(format!("pattern {text:?}: hot:MIB needs a size")),
            },
            _ => Err(format!("pattern {text:?} is unknown")),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => f.write_str("ring"),
            Self::Random => f.write_str("random"),
            Self::Hot(mib) => write!(f, "hot:{mib}"),
            Self::Idle => f.write_str("idle"),
        }
    }
}

/// All settings; each has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `ls.rate`: pages per second of all writers together, or `max`.
    pub rate: Rate,
    /// `ls.pattern`: `ring`, `random`, `hot:MIB` or `idle`.
    pub pattern: Pattern,
    /// `ls.ring`: MiB of the ring, shared out evenly among the writers.
    pub ring_mib: u64,
    /// `ls.static`: MiB of the area that never changes.
    pub static_mib: u64,
    /// `ls.writers`: threads, each bound to a vCPU of its own.
    pub writers: usize,
    /// `ls.seed`: what tells this guest's pages from another guest's.
    pub seed: u64,
    /// `ls.scrub`: pages per second that each writer checks in passing.
    pub scrub: u64,
    /// `ls.write`: `whole` pages or their `edges`.
    pub extent: Extent,
    /// `ls.forks`: so many processes are being forked, use memory and exit, one after the other
    /// ([`super::forks`]).
    pub forks: u64,
    /// `ls.beat`: ms between two heartbeats.
    pub beat_ms: u64,
    /// `ls.gap`: steps of the ticker from so many ms on are printed.
    pub gap_ms: u64,
    /// `ls.disk=1`: keep writing to and reading from xvda.
    pub disk: bool,
    /// `ls.records=xvda,xvdb`: raw disks that get records ([`crate::records`]); nothing of this seed
    /// may be on them.
    pub records: Vec<String>,
    /// `ls.files=xvdc`: disks with an ext4 file system, in blocks of 4 KiB, that get records and
    /// small files.
    pub files: Vec<String>,
    /// `ls.record_rate`: records per second of all disks together, or `max`.
    pub record_rate: Rate,
    /// `ls.emulated=sda`: keep reading from that emulated disk ([`super::emulated`]).
    pub emulated: Option<String>,
    /// `ls.net=ADDRESS`: bring up eth0 with it and talk to `10.77.0.1:7777`.
    pub net: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rate: Rate::PagesPerSecond(1000),
            pattern: Pattern::Ring,
            ring_mib: 128,
            static_mib: 32,
            writers: 1,
            seed: 1,
            scrub: 64,
            extent: Extent::Whole,
            forks: 0,
            beat_ms: 1000,
            gap_ms: 20,
            disk: false,
            records: Vec::new(),
            files: Vec::new(),
            record_rate: Rate::PagesPerSecond(50),
            emulated: None,
            net: None,
        }
    }
}

impl Config {
    /// Reads the `ls.*` words of a kernel command line. A wrong one is an
    /// error: a test must not run with other settings than it asked for.
    pub fn from_cmdline(cmdline: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for word in cmdline.split_whitespace() {
            let Some(setting) = word.strip_prefix("ls.") else {
                continue;
            };
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| format!("{word} has no value"))?;
            let number = || -> Result<u64, String> {
                value
                    .parse()
                    .map_err(|_| format!("{word} is not a whole number"))
            };
            match key {
                "rate" => config.rate = value.parse()?,
                "pattern" => config.pattern = value.parse()?,
                "ring" => config.ring_mib = number()?,
                "static" => config.static_mib = number()?,
                "writers" => config.writers = number()? as usize,
                "seed" => config.seed = number()?,
                "scrub" => config.scrub = number()?,
                "write" => {
                    config.extent = match value {
                        "whole" => Extent::Whole,
                        "edges" => Extent::Edges,
                        _ => return Err(format!("{word} is neither whole nor edges")),
                    }
                }
                "forks" => config.forks = number()?,
                "beat" => config.beat_ms = number()?,
                "gap" => config.gap_ms = number()?,
                "disk" => config.disk = number()? != 0,
                "records" => config.records = disks(value)?,
                "files" => config.files = disks(value)?,
                "record_rate" => config.record_rate = value.parse()?,
                "emulated" => config.emulated = Some(value.to_owned()),
                "net" => config.net = Some(value.to_owned()),
                _ => return Err(format!("{word} is unknown")),
            }
        }
        if config.writers == 0 || config.writers > 64 {
            return Err("ls.writers must be 1 to 64".to_owned());
        }
        if config.forks > 64 {
            return Err("ls.forks must be 0 to 64".to_owned());
        }
        if config.ring_mib < config.writers as u64 {
            return Err("ls.ring must give each writer 1 MiB or more".to_owned());
        }
        let mut all: Vec<_> = config.records.iter().chain(&config.files).collect();
        let xvda = "xvda".to_owned();
        if config.disk {
            // Its blocks would go over the records, or over the file system.
            all.push(&xvda);
        }
        all.sort();
        if all.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("ls.disk, ls.records and ls.files name a disk twice".to_owned());
        }
        Ok(config)
    }
}

/// Names of disks, with commas between them.
fn disks(value: &str) -> Result<Vec<String>, String> {
    let disk = |name: &str| match disk_number(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(format!("{name:?} is no disk like xvda")),
    };
    value.split(',').map(disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_words_and_leaves_the_kernels() {
        let config = Config::from_cmdline(
            "console=hvc0 quiet ls.rate=max ls.pattern=hot:8 ls.ring=64 ls.writers=2 ls.write=edges ls.net=10.77.0.5",
        )
        .unwrap();
        assert_eq!(config.rate, Rate::Max);
        assert_eq!(config.pattern, Pattern::Hot(8));
        assert_eq!((config.ring_mib, config.writers), (64, 2));
        assert_eq!(config.extent, Extent::Edges);
        assert_eq!(Config::from_cmdline("ls.forks=3").unwrap().forks, 3);
        assert_eq!(config.net.as_deref(), Some("10.77.0.5"));
        let config = Config::from_cmdline("ls.disk=1 ls.records=xvdb,xvdd ls.files=xvdc").unwrap();
        assert_eq!(config.records, ["xvdb", "xvdd"]);
        assert_eq!(config.files, ["xvdc"]);
        assert_eq!(config.record_rate, Rate::PagesPerSecond(50));
        assert_eq!(Config::from_cmdline("quiet").unwrap(), Config::default());
    }

    #[test]
    fn a_wrong_word_is_an_error() {
        for bad in [
            "ls.rate=fast",
            "ls.pattern=hot",
            "ls.pattern=hot:0",
            "ls.ring=",
            "ls.speed=1",
            "ls.writers=0",
            "ls.rate",
            "ls.write=half",
            "ls.forks=65",
            "ls.ring=1 ls.writers=2",
            "ls.records=",
            "ls.records=sda",
            "ls.files=xvdb,",
            "ls.records=xvda,xvdb ls.files=xvdb",
            "ls.records=xvda ls.disk=1",
            "ls.record_rate=often",
        ] {
            assert!(Config::from_cmdline(bad).is_err(), "{bad}");
        }
    }
}
