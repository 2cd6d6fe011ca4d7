//! Watches how a guest dirties its memory, without saving or suspending it.

use std::time::{Duration, Instant};

use super::error::{SaveError, chain};
use super::guard::Guard;
use crate::page::PageBytes;
use crate::page_set::PageSet;
use crate::plan::{Point, Sample};
use crate::ports::{BATCH_PAGES, Cancel, Domain, MappedPages, Mapper};
use crate::units::{PageCount, Pfn};

/// The first watch lasts so long, each further one twice as long as the one before.
const FIRST: Duration = Duration::from_millis(25);
/// So many stretches of pages are looked at for their content, spread over the memory.
const STRETCHES: u64 = 64;
const STRETCH: usize = 64;
/// A signal is looked for so often.
const LOOK: Duration = Duration::from_millis(20);

/// Watches a guest for about so long: its pages' content is looked at, its dirty bits are taken
/// after ever longer stretches of time. It runs all the while, and its dirty tracking is off afterwards, whatever happens.
///
/// # Errors
/// [`SaveError`]; what could not be put right is told through `warn`.
pub fn sample<D: Domain>(
    domain: &mut D,
    time: Duration,
    cancel: &Cancel,
    warn: &mut dyn FnMut(&str),
) -> Result<Sample, SaveError> {
    let mut guest = Guard::new(domain);
    let watched = watch(&mut guest, time, cancel);
    for warning in guest.put_right() {
        warn(&warning);
    }
    watched
}

fn watch<D: Domain>(
    guest: &mut Guard<'_, D>,
    time: Duration,
    cancel: &Cancel,
) -> Result<Sample, SaveError> {
    let cpu = guest.cpu();
    guest.log_dirty_on()?;
    let pages = guest.settled_map(cancel)?;
    let (zero_share, page_s) = look_at_pages(guest, &pages)?;
    let mut dirty = PageSet::new(pages.span());
    // What was dirtied meanwhile is not of the first watch.
    guest.fetch_dirty(&mut dirty, false)?;
    let mut points = vec![];
    let began = Instant::now();
    let cpu_before = guest.cpu_time()?;
    let mut last = FIRST;
    while points.is_empty() || began.elapsed() + last <= time {
        let watch = Instant::now();
        rest(last, cancel)?;
        dirty.clear();
        guest.fetch_dirty(&mut dirty, false)?;
        let seconds = watch.elapsed().as_secs_f64();
        dirty.intersect(&pages);
        points.push(Point {
            seconds,
            pages: dirty.count(),
        });
        last *= 2;
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = guest.cpu_time()?.saturating_sub(cpu_before);
    Ok(Sample {
        pages: pages.count(),
        span: pages.span(),
        image_bytes: crate::image::size_for(&guest.preamble()?, &pages),
        zero_share,
        page_s,
        points,
        cpu_percent: 100.0 * used.as_secs_f64() / seconds,
        vcpus: cpu.as_ref().map_or(1, |cpu| cpu.vcpus),
        own_cap: cpu.as_ref().ok().and_then(|cpu| cpu.own),
        no_throttle: cpu.err().map(|error| chain(&error)),
    })
}

/// Waits, but not beyond a signal.
fn rest(time: Duration, cancel: &Cancel) -> Result<(), SaveError> {
    let until = Instant::now() + time;
    loop {
        SaveError::if_raised(cancel)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
    }
}

/// The share of zero pages, and the seconds that mapping and copying a page takes.
fn look_at_pages<D: Domain>(
    guest: &mut Guard<'_, D>,
    pages: &PageSet,
) -> Result<(f64, f64), SaveError> {
    let mut mapper = guest.mapper()?;
    let mut copy = PageBytes::ZERO;
    let (mut looked, mut zero, mut seconds) = (0u64, 0u64, 0.0);
    let all: Vec<Pfn> = some_of(pages);
    for pfns in all.chunks(STRETCH.min(BATCH_PAGES)) {
        let began = Instant::now();
        let batch = mapper.map(pfns)?;
        for page in (0..pfns.len()).filter_map(|index| batch.page(index)) {
            looked += 1;
            if page.is_zero() {
                zero += 1;
            } else {
                page.copy_to(&mut copy);
            }
        }
        drop(batch);
        seconds += began.elapsed().as_secs_f64();
    }
    let looked = looked.max(1) as f64;
    Ok((zero as f64 / looked, seconds / looked))
}

/// Stretches of pages evenly spread.
fn some_of(pages: &PageSet) -> Vec<Pfn> {
    let PageCount(count) = pages.count();
    let step = (count / STRETCHES).max(1);
    pages
        .iter()
        .enumerate()
        .filter(|(n, _)| *n as u64 % step < STRETCH as u64)
        .map(|(_, pfn)| pfn)
        .collect()
}
