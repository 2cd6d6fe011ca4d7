//! `--json-log`: what happens in a save, as JSON lines on standard error. docs/json-log.md tells
//! of each event.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value, json};
use snapshot::policy::Decision;
use snapshot::ports::{Event, Observer};
use snapshot::units::PageCount;

use crate::out::event;

/// How often a running round is told of.
const PACE: Duration = Duration::from_secs(1);

/// An observer that logs.
pub fn observer() -> Box<dyn Observer> {
    Box::new(JsonLines {
        round: 0,
        pages: PageCount(0),
        told: Instant::now(),
    })
}

struct JsonLines {
    /// The running round.
    round: u32,
    /// Pages to copy in it.
    pages: PageCount,
    /// When something was last told of it.
    told: Instant,
}

impl Observer for JsonLines {
    fn event(&mut self, happened: &Event<'_>) {
        match happened {
            Event::RoundStarted { round, pages } => {
                (self.round, self.pages, self.told) = (*round, *pages, Instant::now());
            }
            Event::Progress { .. } if self.told.elapsed() < PACE => return,
            Event::Progress { .. } => self.told = Instant::now(),
            _ => {}
        }
        let (name, fields) = self.told_as(happened);
        event(name, fields);
    }
}

impl JsonLines {
    /// The event's name and its fields.
    fn told_as(&self, happened: &Event<'_>) -> (&'static str, Value) {
        match happened {
            Event::Started { identity, pages } => (
                "started",
                json!({ "domain": identity, "memory_pages": pages }),
            ),
            Event::RoundStarted { round, pages } => {
                ("round-started", json!({ "round": round, "pages": pages }))
            }
            Event::Progress { pages } => (
                "progress",
                json!({ "round": self.round, "pages": pages, "of_pages": self.pages }),
            ),
            Event::RoundEnded { round, decision } => {
                let mut fields = fields_of(round);
                fields.extend(decided(*decision));
                ("round-ended", Value::Object(fields))
            }
            Event::StartedOver => ("started-over", json!({})),
            Event::Suspending => ("suspending", json!({})),
            Event::Resumed { window } => ("resumed", Value::Object(fields_of(window))),
            Event::Flushing { pages } => ("flushing", json!({ "pages": pages })),
            Event::CopyingDisk { vdev, done, total } => (
                "copying-disk",
                json!({ "disk": vdev, "done": done, "total": total }),
            ),
            Event::Warning(text) => ("warning", json!({ "text": text })),
        }
    }
}

/// What follows a round.
fn decided(decision: Decision) -> Map<String, Value> {
    let (next, more) = match decision {
        Decision::Continue => ("round", None),
        Decision::Hold => ("hold", None),
        Decision::Throttle(limit) => ("throttle", Some(("throttle_to", json!(limit)))),
        Decision::Stop(why) => ("suspend", Some(("stop", json!(why)))),
    };
    let more = more.map(|(name, value)| (name.to_owned(), value));
    std::iter::once(("next".to_owned(), json!(next)))
        .chain(more)
        .collect()
}

/// The fields of a report's part. What has none, or a figure that JSON does not know, is left out:
/// a log fails no save.
fn fields_of(part: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(part) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use snapshot::policy::StopReason;
    use snapshot::ports::Identity;
    use snapshot::report::{Round, Window};
    use snapshot::units::CpuPercent;

    use super::*;

    fn told(event: &Event<'_>) -> (&'static str, Value) {
        let lines = JsonLines {
            round: 3,
            pages: PageCount(50),
            told: Instant::now(),
        };
        lines.told_as(event)
    }

    #[test]
    fn events_have_the_names_and_fields_of_the_report() {
        let identity = Identity {
            domid: 5,
            name: "a\n\"b\"".into(),
            uuid: "0a".into(),
        };
        let pages = PageCount(7);
        let (name, fields) = told(&Event::Started {
            identity: &identity,
            pages,
        });
        assert_eq!(
            (name, &fields["domain"]["name"]),
            ("started", &json!("a\n\"b\""))
        );
        assert_eq!(fields["memory_pages"], 7);
        let (name, fields) = told(&Event::Progress { pages });
        assert_eq!(name, "progress");
        assert_eq!(fields, json!({ "round": 3, "pages": 7, "of_pages": 50 }));
        let window = Window {
            total_s: 0.25,
            pages,
            ..Window::default()
        };
        let (name, fields) = told(&Event::Resumed { window: &window });
        assert_eq!((name, &fields["total_s"]), ("resumed", &json!(0.25)));
    }

    #[test]
    fn a_round_tells_what_follows_it() {
        let figures = json!({
            "round": 2, "pages": 9, "zero_pages": 1, "bytes": 32768, "seconds": 0.5,
            "dirty_pages": 3, "dirty_rate": 6.0,
        });
        let round: Round = serde_json::from_value(figures).expect("a round");
        for (decision, next, more) in [
            (Decision::Continue, "round", None),
            (Decision::Hold, "hold", None),
            (
                Decision::Throttle(CpuPercent(40)),
                "throttle",
                Some(("throttle_to", json!(40))),
            ),
            (
                Decision::Stop(StopReason::SmallEnough),
                "suspend",
                Some(("stop", json!("small-enough"))),
            ),
        ] {
            let (name, fields) = told(&Event::RoundEnded {
                round: &round,
                decision,
            });
            assert_eq!(name, "round-ended");
            assert_eq!(
                (&fields["round"], &fields["next"]),
                (&json!(2), &json!(next))
            );
            if let Some((field, value)) = more {
                assert_eq!(fields[field], value);
            }
        }
    }
}
