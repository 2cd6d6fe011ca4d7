//! The running rounds: copy what is dirty while the guest runs, until the policy says stop.

use std::sync::Mutex;
use std::time::Instant;

use super::brownout::Books;
use super::error::chain;
use super::hot::Hot;
use super::pass::{self, Copied, Target};
use super::{Mode, OnMiss, Phase, Save, SaveError};
use crate::forecast::{Basis, Costs, milliseconds};
use crate::page_set::PageSet;
use crate::policy::{self, Decision, Goal, RoundStats, StopReason};
use crate::ports::{BATCH_PAGES, Domain, Event, ImageSink, MappedPages, Mapper};
use crate::report::{Brownout, Round};
use crate::units::{CpuPercent, PageCount};

/// How often a pass looks which of its pages have become dirty again, to leave them for the next:
/// after so many pages, and not more often than so many times.
const LOOK_PAGES: u64 = 32_768;
const LOOKS: u64 = 32;
/// What copying a page in the window costs is measured on so many.
const SAMPLE_PAGES: usize = 256;

/// What the running rounds left behind.
pub(super) struct Rounds {
    pub done: Vec<Round>,
    pub stop: StopReason,
    /// Pages still to copy.
    pub left: PageSet,
    /// What the pause is foretold to be.
    pub window_s: f64,
    /// How long the guest is expected to take to stand still, and how many pages it is expected to
    /// dirty on its way.
    pub suspend_s: f64,
    pub extra: f64,
    /// Pages that the guest dirties per second, not throttled.
    pub dirty_rate: f64,
    pub brownout: Option<Brownout>,
}

/// What is known while the rounds go on.
struct Course {
    done: Vec<Round>,
    hot: Hot,
    /// Pages that the next round leaves alone.
    hot_now: PageSet,
    /// What a page costs in the window, measured in this save.
    page_s: Option<f64>,
    /// What making memory ready for a page costs, measured in this save.
    touch_s: f64,
    goal: Goal,
    /// Rounds go to memory by now.
    held: bool,
    /// When dirty pages were last fetched.
    fetched: Instant,
    limit: Option<CpuPercent>,
    books: Option<Books>,
    means: &'static str,
}

impl Course {
    /// What the policy looks at.
    fn stats(&self) -> Vec<RoundStats> {
        self.done.iter().map(Round::stats).collect()
    }
}

/// What a pass over the pages left did.
struct Pass {
    copied: Copied,
    /// Pages that had become dirty again before they were reached.
    skipped: PageCount,
}

impl<D: Domain, S: ImageSink> Save<'_, D, S> {
    /// Copies while the guest runs, until the policy says that what is left is for the window;
    /// slows the guest if that is what it takes, and lets it run at its own pace again.
    pub(super) fn rounds(&mut self, pages: &PageSet) -> Result<Phase<Rounds>, SaveError> {
        let Phase::Done(mut left) = self.first_pages(pages)? else {
            return Ok(Phase::Resized);
        };
        if self.options.mode == Mode::Plain {
            return Ok(Phase::Done(Rounds {
                done: vec![],
                stop: StopReason::Plain,
                left,
                window_s: 0.0,
                suspend_s: 0.0,
                extra: 0.0,
                dirty_rate: 0.0,
                brownout: None,
            }));
        }
        let mut course = self.set_out(pages);
        loop {
            let Phase::Done(()) = self.round(&mut course, pages, &mut left)? else {
                self.lift(&mut course)?;
                return Ok(Phase::Resized);
            };
            if course.page_s.is_none() {
                self.sample_page_cost(&left, &mut course)?;
            }
            let (costs, mut decision) = self.judge(&course);
            if let Decision::Throttle(limit) = decision
                && !self.throttle(&mut course, limit)?
            {
                decision = self.judge(&course).1;
            }
            if decision == Decision::Hold {
                self.make_room(left.count(), &costs);
                course.held = true;
            }
            if let Some(round) = course.done.last_mut() {
                round.window_s = costs.window_s(left.count());
                self.observer.event(&Event::RoundEnded { round, decision });
            }
            if let Decision::Stop(stop) = decision {
                let window_s = costs.window_s(left.count());
                self.consider(&costs, left.count(), &course)?;
                self.make_room(left.count(), &costs);
                let brownout = self.lift(&mut course)?;
                return Ok(Phase::Done(Rounds {
                    stop,
                    left,
                    window_s,
                    // It is waited for by the clock only where that is known.
                    suspend_s: if costs.basis == Basis::Like {
                        costs.suspend_s
                    } else {
                        0.0
                    },
                    extra: costs.extra,
                    dirty_rate: policy::free_rate(&course.stats()),
                    brownout,
                    done: course.done,
                }));
            }
        }
    }

    fn set_out(&mut self, pages: &PageSet) -> Course {
        let mut means = "";
        let mut min_limit = None;
        if self.options.mode == Mode::Improved {
            match self.guest.cpu() {
                Ok(cpu) => {
                    means = cpu.means;
                    let lowest = (cpu.vcpus * self.options.min_cap).max(1);
                    min_limit = Some(CpuPercent(lowest))
                        .filter(|lowest| cpu.own.is_none_or(|own| *lowest < own));
                }
                Err(error) => self.warn_unthrottled(&chain(&error)),
            }
        }
        Course {
            done: vec![],
            hot: Hot::new(pages.span()),
            hot_now: PageSet::new(pages.span()),
            page_s: None,
            touch_s: 0.0,
            goal: Goal {
                max_window_s: self.options.max_downtime.as_secs_f64(),
                best_effort: self.options.on_miss == OnMiss::Proceed,
                min_limit,
            },
            held: false,
            fetched: Instant::now(),
            limit: None,
            books: None,
            means,
        }
    }

    fn judge(&self, course: &Course) -> (Costs, Decision) {
        let stats = course.stats();
        let rate = policy::free_rate(&stats);
        let costs = Costs {
            touch_s: course.touch_s,
            ..Costs::learn(&self.options.past, &self.options.now, rate, course.page_s)
        };
        let decision = policy::decide(&stats, &costs, &self.options.limits, &course.goal);
        (costs, decision)
    }

    /// Copies the pages in `left`, but for the hot ones, and puts there what was dirtied meanwhile.
    fn round(
        &mut self,
        course: &mut Course,
        pages: &PageSet,
        left: &mut PageSet,
    ) -> Result<Phase<()>, SaveError> {
        let cpu_before = self.guest.cpu_time()?;
        let began = Instant::now();
        let mut todo = left.clone();
        todo.subtract(&course.hot_now);
        self.observer.event(&Event::RoundStarted {
            round: course.done.len() as u32,
            pages: todo.count(),
        });
        let pass = self.copy(todo, course.held)?;
        left.clear();
        self.guest.fetch_dirty(left, false)?;
        let before_s = (began - course.fetched).as_secs_f64();
        course.fetched = Instant::now();
        let seconds = (course.fetched - began).as_secs_f64();
        let used = self.guest.cpu_time()?.saturating_sub(cpu_before);
        if !self.guest.confine(left, pages)? {
            return Ok(Phase::Resized);
        }
        let dirty_pages = left.count();
        let hot = course.hot.after(left);
        // Pages that were left alone, or could not be mapped, are still to be copied, dirty or not.
        left.union(&course.hot_now);
        left.union(&pass.copied.deferred);
        // A throttled guest is to leave less: then even they are worth a copy.
        course.hot_now = if course.limit.is_none() {
            hot
        } else {
            PageSet::new(pages.span())
        };
        let written = pass.copied.written;
        let round = Round {
            round: course.done.len() as u32,
            pages: written.pages,
            skipped_pages: pass.skipped,
            held: course.held,
            zero_pages: written.zero_pages,
            bytes: written.bytes,
            seconds,
            before_s,
            dirty_pages,
            dirty_rate: dirty_pages.0 as f64 / (before_s + seconds).max(1e-9),
            left_pages: left.count(),
            hot_pages: course.hot_now.count(),
            cpu_percent: 100.0 * used.as_secs_f64() / seconds.max(1e-9),
            limit: course.limit,
            window_s: 0.0,
        };
        course.done.push(round);
        Ok(Phase::Done(()))
    }

    /// Copies `todo`, looking now and then which of it has become dirty again: such a page is in
    /// the next fetch anyway, so it is left for the next round.
    fn copy(&mut self, mut todo: PageSet, held: bool) -> Result<Pass, SaveError> {
        let step = LOOK_PAGES.max(todo.count().0.div_ceil(LOOKS));
        let mut pass = Pass {
            copied: Copied::none(todo.span()),
            skipped: PageCount(0),
        };
        let mut again = PageSet::new(todo.span());
        let mut passed = 0;
        loop {
            let mut chunk = todo.take_first(PageCount(step));
            let count = chunk.count().0;
            if passed > 0 {
                again.clear();
                self.guest.peek_dirty(&mut again)?;
                chunk.subtract(&again);
                pass.skipped += PageCount(count - chunk.count().0);
            }
            let observer = &mut *self.observer;
            let target = if held {
                Target::Memory(Mutex::new(&mut self.capture), &*self.sink)
            } else {
                Target::Image(&*self.sink)
            };
            let copied = pass::copy(
                &mut self.mappers,
                &chunk,
                &target,
                self.cancel,
                &mut |pages| {
                    observer.event(&Event::Progress {
                        pages: PageCount(passed + pages.0),
                    });
                },
            )?;
            pass.copied.add(&copied);
            passed += count;
            if todo.is_empty() {
                return Ok(pass);
            }
        }
    }

    /// What mapping and copying a page costs, tried on some of those left; also what making memory
    /// ready for one does.
    fn sample_page_cost(&mut self, left: &PageSet, course: &mut Course) -> Result<(), SaveError> {
        let pfns: Vec<_> = left.iter().take(SAMPLE_PAGES.min(BATCH_PAGES)).collect();
        let Some(mapper) = self.mappers.first_mut().filter(|_| !pfns.is_empty()) else {
            return Ok(());
        };
        let began = Instant::now();
        let touched = self.capture.prepare(PageCount(pfns.len() as u64));
        let touch_s = began.elapsed().as_secs_f64();
        if touched.0 > 0 {
            course.touch_s = touch_s / touched.0 as f64;
        }
        let began = Instant::now();
        let batch = mapper.map(&pfns)?;
        for (index, &pfn) in pfns.iter().enumerate() {
            if let Some(page) = batch.page(index) {
                self.capture.take(pfn, page);
            }
        }
        drop(batch);
        let seconds = began.elapsed().as_secs_f64();
        self.capture.clear();
        course.page_s = Some(seconds / pfns.len() as f64);
        Ok(())
    }

    /// Slows the guest; `false` if that cannot be done, and then it will not be tried again.
    fn throttle(&mut self, course: &mut Course, limit: CpuPercent) -> Result<bool, SaveError> {
        if course.limit == Some(limit) {
            return Ok(true);
        }
        let before = course.done.last().map_or(0.0, |round| round.cpu_percent);
        let cpu_time = self.guest.cpu_time()?;
        let books = course
            .books
            .get_or_insert_with(|| Books::open(course.means, before, cpu_time));
        match self.guest.throttle(limit) {
            Ok(()) => {
                books.step(limit);
                course.limit = Some(limit);
                // What it dirtied at its own pace is worth one copy now.
                course.hot_now.clear();
                Ok(true)
            }
            Err(error) => {
                course.goal.min_limit = None;
                self.warn_unthrottled(&chain(&error));
                self.lift(course)?;
                Ok(false)
            }
        }
    }

    fn warn_unthrottled(&mut self, why: &str) {
        self.observer.event(&Event::Warning(&format!(
            "the guest cannot be slowed, should that be needed: {why}"
        )));
    }

    /// Lets the guest run at its own pace again.
    fn lift(&mut self, course: &mut Course) -> Result<Option<Brownout>, SaveError> {
        self.guest.unthrottle()?;
        course.limit = None;
        let Some(books) = course.books.take() else {
            return Ok(None);
        };
        Ok(Some(books.close(self.guest.cpu_time()?)))
    }

    /// Before the guest is asked to suspend: is the pause going to be as it was asked for?
    fn consider(
        &mut self,
        costs: &Costs,
        left: PageCount,
        course: &Course,
    ) -> Result<(), SaveError> {
        let (wanted, window_s) = (self.options.max_downtime, costs.window_s(left));
        if window_s <= wanted.as_secs_f64() {
            return Ok(());
        }
        let why = if costs.floor_s() > wanted.as_secs_f64() {
            "even with no page left"
        } else if course.books.is_some() {
            "throttled as far as allowed"
        } else if self.options.mode == Mode::Improved {
            "throttling would not help"
        } else {
            "without throttling (--mode improved)"
        };
        let foretold = milliseconds(window_s);
        let why = match costs.doubt(left) {
            Some(doubt) => format!("{why}; {doubt}"),
            None => why.to_owned(),
        };
        let known = costs.known_s(left) > wanted.as_secs_f64();
        match self.options.on_miss {
            OnMiss::Abort if known => Err(SaveError::TargetMissed {
                wanted,
                foretold,
                why,
            }),
            OnMiss::Abort | OnMiss::Proceed => {
                self.observer.event(&Event::Warning(&format!(
                    "the guest is going to pause for about {foretold:?}, longer than {wanted:?} \
                     ({why})"
                )));
                Ok(())
            }
        }
    }

    /// Room for `left` and what the window will capture more, touched now and not in it.
    fn make_room(&mut self, left: PageCount, costs: &Costs) {
        let expected = left.0 as f64 + 1.5 * costs.extra;
        self.capture.prepare(PageCount(expected as u64 + 1024));
    }
}
