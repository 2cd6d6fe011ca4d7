//! How a save goes, on a terminal (a bar per round), in a pipe (plain lines) or not at all.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use snapshot::policy::{Decision, StopReason};
use snapshot::ports::{Event, Observer};
use snapshot::report::{Round, Window};
use snapshot::units::{Bytes, PageCount};

use crate::out::{note, span, warn};

/// The observer that fits where standard error goes.
pub fn observer(quiet: bool) -> Box<dyn Observer> {
    if quiet {
        Box::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Box::new(Bars {
            bar: ProgressBar::hidden(),
            last: None,
            began: Instant::now(),
        })
    } else {
        Box::new(Lines)
    }
}

/// A bar over so many bytes, where standard error is a terminal.
pub fn bytes(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    // The template is fixed: were it wrong, the plain bar would do.
    let style = ProgressStyle::with_template(
        "{bar:30} {binary_bytes:>10}/{binary_total_bytes}  {binary_bytes_per_sec}, {eta} left",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar());
    let target = ProgressDrawTarget::stderr_with_hz(8);
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// Warnings only.
struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            warn(text);
        }
    }
}

/// A line per round, for logs.
struct Lines;

impl Observer for Lines {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Warning(text) => warn(text),
            _ => text_of(event).iter().for_each(|text| note(text)),
        }
    }
}

/// A bar for the running round above the lines of the finished ones.
struct Bars {
    bar: ProgressBar,
    /// Dirty rate and foretold pause after the last round.
    last: Option<(f64, f64)>,
    began: Instant,
}

impl Observer for Bars {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::RoundStarted { round, pages } => self.start(*round, *pages),
            Event::Progress { pages } => {
                self.bar.set_message(self.rates(*pages));
                self.bar.set_position(pages.bytes().0);
            }
            Event::CopyingDisk { vdev, done, total } => {
                if self.bar.is_finished() || self.bar.length() != Some(total.0) {
                    self.bar = bytes(total.0);
                }
                self.bar.set_position(done.0);
                self.bar.set_message((*vdev).to_owned());
                if done == total {
                    self.bar.finish_and_clear();
                }
            }
            Event::RoundEnded { round, .. } => {
                self.last = Some((round.dirty_rate, round.window_s));
                self.bar.finish_and_clear();
            }
            _ => {}
        }
        match event {
            Event::Warning(text) => self.bar.suspend(|| warn(text)),
            _ => text_of(event)
                .iter()
                .for_each(|text| self.bar.suspend(|| note(text))),
        }
    }
}

impl Bars {
    fn start(&mut self, round: u32, pages: PageCount) {
        // The template is fixed: were it wrong, the plain bar would do.
        let style = ProgressStyle::with_template(
            "{prefix} {bar:30} {binary_bytes:>10}/{binary_total_bytes}  {msg}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏ ");
        self.bar = ProgressBar::with_draw_target(
            Some(pages.bytes().0),
            ProgressDrawTarget::stderr_with_hz(8),
        )
        .with_style(style)
        .with_prefix(format!("round {round}"));
        self.began = Instant::now();
    }

    /// The pace, the time left in this round, the dirty rate of the last and the pause foretold.
    fn rates(&self, done: PageCount) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-6);
        let pace = done.bytes().mib() / seconds;
        let left = self
            .bar
            .length()
            .unwrap_or(0)
            .saturating_sub(done.bytes().0);
        let mut text = format!(
            "{pace:.0} MiB/s, {} left",
            span(Bytes(left).mib() / pace.max(1e-6))
        );
        if let Some((rate, window_s)) = self.last {
            text.push_str(&format!(
                ", dirtied {rate:.0} pages/s, a pause now: {}",
                span(window_s)
            ));
        }
        text
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The line that tells of an event, where one is worth a line.
fn text_of(event: &Event<'_>) -> Option<String> {
    Some(match event {
        Event::Started { identity, pages } => format!(
            "Saving domain {} ({}), {} of memory",
            identity.domid,
            identity.name,
            pages.bytes()
        ),
        Event::RoundEnded { round, decision } => round_line(round, *decision),
        Event::StartedOver => "The guest's memory was resized: starting over".to_owned(),
        Event::Suspending => "Suspending the guest".to_owned(),
        Event::Resumed { window } => window_line(window),
        Event::Flushing {
            pages: PageCount(0),
        } => "Making the image durable".to_owned(),
        Event::Flushing { pages } => {
            format!("Writing the {pages} captured and making the image durable")
        }
        Event::CopyingDisk { vdev, done, total } if done == total => {
            format!("Copied disk {vdev}, {total}")
        }
        Event::RoundStarted { .. }
        | Event::Progress { .. }
        | Event::CopyingDisk { .. }
        | Event::Warning(_) => return None,
    })
}

fn round_line(round: &Round, decision: Decision) -> String {
    let why = match decision {
        Decision::Continue => String::new(),
        Decision::Hold => "; the next goes to memory, which is faster than the disk".to_owned(),
        Decision::Throttle(limit) => format!("; throttling the guest to {limit} of a CPU"),
        Decision::Stop(StopReason::SmallEnough) => "; little enough is left".to_owned(),
        Decision::Stop(StopReason::NoGain) => "; a further round would not help".to_owned(),
        Decision::Stop(StopReason::OnTarget) => "; the pause is short enough now".to_owned(),
        Decision::Stop(StopReason::LowestLimit) => {
            "; throttled as far as allowed, no more is gained".to_owned()
        }
        Decision::Stop(StopReason::MaxRounds) => "; that was the last round allowed".to_owned(),
        Decision::Stop(StopReason::Plain) => "; no rounds wanted".to_owned(),
    };
    format!(
        "round {}: {} in {} ({:.0} MiB/s), {} of it zero; {} dirtied meanwhile ({:.0}/s), a pause \
         now: {}{why}",
        round.round,
        round.pages.bytes(),
        span(round.seconds),
        round.pages.bytes().mib() / round.seconds.max(1e-9),
        round.zero_pages.bytes(),
        round.dirty_pages,
        round.dirty_rate,
        span(round.window_s),
    )
}

fn window_line(window: &Window) -> String {
    format!(
        "Paused for {}{}: suspend {}{}, dirty set {}, copy of {} {}, state {}, resume {}",
        span(window.total_s),
        foretold(window),
        span(window.suspend_s),
        emulator(window),
        span(window.dirty_fetch_s),
        window.pages,
        span(window.copy_s),
        span(window.state_s),
        span(window.resume_s),
    )
}

/// What an emulator took; most guests have none.
fn emulator(window: &Window) -> String {
    if window.emulator_s > 0.0 {
        format!(", emulator {}", span(window.emulator_s))
    } else {
        String::new()
    }
}

/// What had been foretold; nothing was of a plain save.
fn foretold(window: &Window) -> String {
    if window.predicted_s > 0.0 {
        format!(" ({} were foretold)", span(window.predicted_s))
    } else {
        String::new()
    }
}
