//! The embedded guest that a case asks for.

use anyhow::{Result, anyhow, bail, ensure};
use snapshot::embedded::{Content, GuestSpec, Pattern, Workload};
use snapshot::units::{Bytes, CpuPercent, PageCount};
use std::time::Duration;

use crate::harness::case::{Case, Method};
use crate::workload::config::{Pattern as Order, Rate};

/// Of 100 pages so many are zero, and so many hold text; the others are noise.
const ZERO: u8 = 75;
const TEXT: u8 = 15;
/// The area that loads go round is a half of the memory, and at most this.
const LARGEST_AREA: Bytes = Bytes::from_mib(1024);
/// livesave's default.
const MAX_DOWNTIME: Duration = Duration::from_millis(300);

/// What a case means for the embedded guest.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub spec: GuestSpec,
    pub method: Method,
    pub cap: Option<CpuPercent>,
    pub max_downtime: Duration,
    /// What is to be written between an increment and its base.
    pub dirty: Bytes,
}

impl Wanted {
    /// What the case asks for.
    ///
    /// # Errors
    /// The embedded guest has no such load or method, or the load never writes what the increment
    /// is to hold.
    pub fn of(case: &Case) -> Result<Self> {
        if !matches!(
            case.method,
            Method::Plain | Method::Live | Method::Improved | Method::Increment
        ) {
            bail!("{} is not for the embedded guest", case.method);
        }
        let span = Bytes::from_mib(case.memory_mib).whole_pages();
        let mut spec = GuestSpec::new("run", span.bytes());
        spec.content = Content {
            zero_percent: ZERO,
            text_percent: TEXT,
            populated: false,
            seed: 1,
        };
        spec.workload = workload(case, span)?;
        spec.layout()?;
        let percent = u64::from(case.dirty_percent.unwrap_or(0));
        ensure!(percent <= 100, "{percent} % are more than there is");
        let dirty = PageCount(span.0 * percent / 100);
        let reach = match spec.workload.pattern {
            Pattern::Idle => span,
            _ => spec.workload.region.unwrap_or(span),
        };
        ensure!(
            dirty <= reach,
            "a load round {} never writes {dirty}",
            reach.bytes()
        );
        let target = case.target_ms.map(u64::from).map(Duration::from_millis);
        Ok(Self {
            spec,
            method: case.method,
            cap: case.cap.map(CpuPercent),
            max_downtime: target.unwrap_or(MAX_DOWNTIME),
            dirty: dirty.bytes(),
        })
    }

    /// Whether the guest writes nothing of itself.
    pub fn is_idle(&self) -> bool {
        self.spec.workload.pattern == Pattern::Idle
    }
}

fn workload(case: &Case, span: PageCount) -> Result<Workload> {
    let order = case
        .load
        .pattern
        .parse()
        .map_err(|why: String| anyhow!(why))?;
    let rate = case.load.rate.parse().map_err(|why: String| anyhow!(why))?;
    let area = PageCount((span.0 / 2).min(LARGEST_AREA.whole_pages().0));
    let (pattern, area) = match order {
        Order::Idle => {
            return Ok(Workload {
                threads: case.vcpus,
                ..Workload::IDLE
            });
        }
        Order::Ring => (Pattern::Ring, area),
        Order::Random => (Pattern::Random, area),
        // Round and round a small part of the area, as in the testbed's guest.
        Order::Hot(mib) => (Pattern::Ring, Bytes::from_mib(mib).whole_pages().min(area)),
    };
    Ok(Workload {
        pattern,
        rate: match rate {
            Rate::PagesPerSecond(rate) => Some(rate),
            Rate::Max => None,
        },
        region: Some(area),
        threads: case.vcpus,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::case::{Backend, GuestKind, Load};

    fn case(pattern: &str, rate: &str, method: Method) -> Case {
        Case {
            study: "s".into(),
            backend: Backend::Embedded,
            guest: GuestKind::Embedded,
            memory_mib: 256,
            vcpus: 2,
            cap: Some(50),
            load: Load {
                pattern: pattern.into(),
                rate: rate.into(),
            },
            method,
            target_ms: Some(20),
            dirty_percent: None,
        }
    }

    #[test]
    fn a_case_names_a_guest() {
        let wanted = Wanted::of(&case("ring", "500", Method::Live)).unwrap();
        assert_eq!(wanted.spec.span, PageCount(65_536));
        assert_eq!(wanted.cap, Some(CpuPercent(50)));
        assert_eq!(wanted.max_downtime, Duration::from_millis(20));
        let Workload {
            pattern,
            rate,
            region,
            threads,
        } = wanted.spec.workload;
        assert_eq!((pattern, rate, threads), (Pattern::Ring, Some(500), 2));
        assert_eq!(region, Some(PageCount(32_768)));

        let hot = Wanted::of(&case("hot:16", "max", Method::Plain)).unwrap();
        assert_eq!(hot.spec.workload.rate, None);
        assert_eq!(hot.spec.workload.region, Some(PageCount(4096)));
        assert!(
            Wanted::of(&case("idle", "0", Method::Plain))
                .unwrap()
                .is_idle()
        );
    }

    #[test]
    fn a_large_guest_has_no_larger_area() {
        let large = Case {
            memory_mib: 16 << 10,
            ..case("random", "max", Method::Live)
        };
        let wanted = Wanted::of(&large).unwrap();
        assert_eq!(wanted.spec.workload.region, Some(PageCount(262_144)));
    }

    #[test]
    fn what_the_embedded_guest_cannot_do_is_refused() {
        assert!(Wanted::of(&case("ring", "500", Method::StockLive)).is_err());
        assert!(Wanted::of(&case("spiral", "500", Method::Live)).is_err());
        assert!(Wanted::of(&case("ring", "many", Method::Live)).is_err());
        assert!(Wanted::of(&case("ring", "0", Method::Live)).is_err());
        let more = |pattern: &str, percent| Case {
            dirty_percent: Some(percent),
            ..case(pattern, "500", Method::Increment)
        };
        assert!(Wanted::of(&more("ring", 50)).is_ok());
        assert!(
            Wanted::of(&more("ring", 51)).is_err(),
            "half of it is its area"
        );
        assert!(Wanted::of(&more("idle", 100)).is_ok());
        assert!(Wanted::of(&more("idle", 101)).is_err());
    }
}
