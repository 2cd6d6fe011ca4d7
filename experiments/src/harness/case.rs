//! What one run measures: a method, on a guest, under a load.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A real Xen.
    Xen,
    /// A child process whose memory the kernel tracks: native speed, no hypervisor.
    Embedded,
}

/// A way to save a guest, or to move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// `xl save -c`: the guest stands still while all is written. On an embedded guest, livesave's
    /// own plain save.
    Plain,
    /// Xen's own pre-copy loop, to a file.
    StockLive,
    /// VNsnap style: a live migration to a daemon that stores the stream, over a pipe.
    MigratedPipe,
    /// The same over TCP on the loopback interface.
    MigratedTcp,
    /// A live migration to the same host: no image, the guest goes on as another domain.
    Migration,
    /// `livesave --mode live`: pre-copy without throttling.
    Live,
    /// `livesave` as it is by default: pre-copy with throttling.
    Improved,
    /// An increment on an image that stands.
    Increment,
}

impl Method {
    /// Every method, in the order in which tables list them.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::StockLive,
        Self::MigratedPipe,
        Self::MigratedTcp,
        Self::Migration,
        Self::Live,
        Self::Improved,
        Self::Increment,
    ];

    /// What tables and plots call it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain save",
            Self::StockLive => "stock live loop",
            Self::MigratedPipe => "live-migrated save (pipe)",
            Self::MigratedTcp => "live-migrated save (TCP)",
            Self::Migration => "live migration",
            Self::Live => "livesave live",
            Self::Improved => "livesave improved",
            Self::Increment => "livesave increment",
        }
    }

    /// As plans and records spell it.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::StockLive => "stock-live",
            Self::MigratedPipe => "migrated-pipe",
            Self::MigratedTcp => "migrated-tcp",
            Self::Migration => "migration",
            Self::Live => "live",
            Self::Improved => "improved",
            Self::Increment => "increment",
        }
    }

    /// Whether it is livesave's own.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Live | Self::Improved | Self::Increment)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

/// The kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// A PVH domU.
    Pvh,
    /// An HVM domU.
    Hvm,
    /// A PV domU.
    Pv,
    /// The embedded guest.
    Embedded,
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Hvm => "HVM",
            Self::Pv => "PV",
            Self::Embedded => "embedded",
        })
    }
}

/// What the guest writes meanwhile: so many pages a second, in this order, round an area.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// `ring`, `random`, `hot:MIB` or `idle`.
    pub pattern: String,
    /// Pages a second, or `max`.
    pub rate: String,
}

impl Load {
    /// Pages a second that are asked for: 0 of an idle guest, `None` for as many as it can.
    #[must_use]
    pub fn pages_per_second(&self) -> Option<u64> {
        if self.is_idle() {
            Some(0)
        } else {
            self.rate.parse().ok()
        }
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pattern == "idle"
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_idle() {
            return f.write_str("idle");
        }
        f.write_str(&self.rate)?;
        if self.pattern != "ring" {
            write!(f, " {}", self.pattern)?;
        }
        Ok(())
    }
}

/// What is measured, but for how often.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The part of the plan that asks for it; tables and plots are made for each.
    pub study: String,
    /// Where.
    pub backend: Backend,
    /// The kind of guest.
    pub guest: GuestKind,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// Its limit by the Credit scheduler, in percent of one CPU; `None` is none.
    pub cap: Option<u32>,
    /// What it writes.
    pub load: Load,
    /// How it is saved.
    pub method: Method,
    /// The longest pause asked for, in milliseconds; `None` is livesave's default.
    pub target_ms: Option<u32>,
    /// Of an increment: pages of the guest written since the image before, in percent of its memory.
    pub dirty_percent: Option<u32>,
}

/// One run of a case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Planned {
    /// What is measured.
    pub case: Case,
    /// 0 and up.
    pub repeat: u32,
}

impl Planned {
    /// A name that no other run of the plan has, by which an interrupted sweep is resumed.
    #[must_use]
    pub fn id(&self) -> String {
        let Case {
            study,
            backend: _,
            guest,
            memory_mib,
            vcpus,
            cap,
            load,
            method,
            target_ms,
            dirty_percent,
        } = &self.case;
        let mut id = format!("{study}/{guest}-{memory_mib}MiB-{vcpus}vcpu").to_lowercase();
        id.push_str(&format!("/{}-{}", load.pattern, load.rate));
        for (name, value) in [
            ("cap", cap),
            ("target", target_ms),
            ("dirty", dirty_percent),
        ] {
            if let Some(value) = value {
                id.push_str(&format!("/{name}-{value}"));
            }
        }
        id.push_str(&format!("/{}/{}", method.key(), self.repeat));
        id
    }
}
