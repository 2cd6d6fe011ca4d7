//! What a save did, in figures measured where they are claimed. Never changed once made.

use serde::{Deserialize, Serialize};

use crate::image::trailer::Facts;
use crate::policy::RoundStats;
use crate::units::{Bytes, CpuPercent, PageCount};

/// One pass over the pages that were dirty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Its number; 0 is the pass over all memory.
    pub round: u32,
    /// Pages copied.
    pub pages: PageCount,
    /// Pages not copied because they had become dirty again before they were reached.
    #[serde(default)]
    pub skipped_pages: PageCount,
    /// They were copied to memory, to be written after the pause.
    #[serde(default)]
    pub held: bool,
    /// Those copied that were all zero; of pages held it is not looked at.
    pub zero_pages: PageCount,
    /// Bytes written to the image for them.
    pub bytes: Bytes,
    /// How long it took, the fetch of the dirty set included.
    pub seconds: f64,
    /// Seconds from the fetch before to its beginning, in which memory for it was made ready, or a
    /// limit set.
    #[serde(default)]
    pub before_s: f64,
    /// Pages found dirty at its end.
    pub dirty_pages: PageCount,
    /// Pages dirtied per second since the fetch before.
    pub dirty_rate: f64,
    /// Pages left to copy after it: dirtied, not mappable for the moment, or hot.
    #[serde(default)]
    pub left_pages: PageCount,
    /// Pages dirtied in every round, which the next round leaves alone.
    #[serde(default)]
    pub hot_pages: PageCount,
    /// CPU that the guest used meanwhile, in percent of one CPU.
    #[serde(default)]
    pub cpu_percent: f64,
    /// The limit that livesave had set to the guest's use of the CPU, if it had.
    #[serde(default)]
    pub limit: Option<CpuPercent>,
    /// The pause foretold, had the guest been asked to suspend after this round; seconds.
    #[serde(default)]
    pub window_s: f64,
}

impl Round {
    /// The figures that the policy looks at.
    #[must_use]
    pub fn stats(&self) -> RoundStats {
        RoundStats {
            sent: self.pages + self.skipped_pages,
            seconds: self.seconds,
            before_s: self.before_s,
            left: self.left_pages,
            hot: self.hot_pages,
            dirty: self.dirty_pages,
            held: self.held,
            cpu: self.cpu_percent,
            limit: self.limit,
        }
    }
}

/// The pause window in its parts, on the host's clock; seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// From the suspend request until the guest was seen suspended.
    pub suspend_s: f64,
    /// Stopping the emulator of its devices and taking its state; 0 for a guest without one.
    #[serde(default)]
    pub emulator_s: f64,
    /// The last fetch of the dirty set.
    pub dirty_fetch_s: f64,
    /// Mapping and copying the last pages.
    pub copy_s: f64,
    /// vCPU and device state.
    pub state_s: f64,
    /// The disk cut.
    pub disks_s: f64,
    /// Letting the guest run on.
    pub resume_s: f64,
    /// From the suspend request until the guest ran on.
    pub total_s: f64,
    /// The domain's own share: seen suspended until it ran on.
    pub suspended_s: f64,
    /// For how long the guest was free of its own CPU cap, seconds: from before the request until it
    /// had thawed. 0 if it has none, or if it was left.
    #[serde(default)]
    pub uncapped_s: f64,
    /// Pages captured in the window.
    pub pages: PageCount,
    /// Bytes that were held in memory and written after the resume: of them, and of pages that
    /// rounds held.
    pub captured_bytes: Bytes,
    /// Bytes of the pages captured that were written to the image inside the window.
    pub written_in_window_bytes: Bytes,
    /// How long it was foretold to be when the guest was asked to suspend.
    #[serde(default)]
    pub predicted_s: f64,
    /// Pages that were left then.
    #[serde(default)]
    pub left_pages: PageCount,
    /// Pages that the guest dirtied per second before, not throttled.
    #[serde(default)]
    pub dirty_rate: f64,
}

/// The pause that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The window was not to be longer; seconds.
    pub max_downtime_s: f64,
    /// Whether it was not.
    pub met: bool,
}

/// How the guest was slowed so that the pause came out shorter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Brownout {
    /// By what: `credit cap`, `credit2 cap`, `pauses`, `cap` (embedded guest).
    pub means: String,
    /// For how long, seconds.
    pub seconds: f64,
    /// The limits, in their order.
    pub caps: Vec<CapStep>,
    /// CPU time that the guest would have used more, at the pace that it had before; seconds.
    pub cpu_lost_s: f64,
}

/// One limit of a brownout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapStep {
    /// The limit.
    pub cap: CpuPercent,
    /// How long it stood, seconds.
    pub seconds: f64,
}

/// A whole save.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the image itself tells too.
    #[serde(flatten)]
    pub facts: Facts,
    /// The image's absolute path.
    pub image: String,
    /// The image's size.
    pub image_bytes: Bytes,
    /// What the file system allocated for it.
    pub allocated_bytes: Bytes,
    /// From the start of the save until the image was durable, seconds.
    pub total_s: f64,
}
