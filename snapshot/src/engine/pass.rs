//! One pass over a set of pages while the guest runs: map, look, write, by several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::capture::Capture;
use super::error::SaveError;
use crate::page::GuestPage;
use crate::page_set::PageSet;
use crate::ports::{BATCH_PAGES, Cancel, ImageSink, MappedPages, Mapper, Written};
use crate::units::{Bytes, PageCount, Pfn};

/// Where a pass copies to.
pub(super) enum Target<'a, S> {
    /// The image.
    Image(&'a S),
    /// Memory, and the image when that is full.
    Memory(Mutex<&'a mut Capture>, &'a S),
}

impl<S: ImageSink> Target<'_, S> {
    fn take(&self, pages: &[(Pfn, GuestPage<'_>)]) -> Result<Written, SaveError> {
        let (capture, sink) = match self {
            Self::Image(sink) => return Ok(sink.write(pages)?),
            Self::Memory(capture, sink) => (capture, sink),
        };
        let mut overflow = vec![];
        {
            // A panic while a page was copied ends the save.
            let mut capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
            for &(pfn, page) in pages {
                if !capture.take(pfn, page) {
                    overflow.push((pfn, page));
                }
            }
        }
        let mut written = Written {
            pages: PageCount((pages.len() - overflow.len()) as u64),
            zero_pages: PageCount(0),
            bytes: Bytes(0),
        };
        if !overflow.is_empty() {
            written.add(sink.write(&overflow)?);
        }
        Ok(written)
    }
}

/// What a pass did.
pub(super) struct Copied {
    pub written: Written,
    /// Pages that could not be mapped now and are still to be copied.
    pub deferred: PageSet,
}

impl Copied {
    /// Nothing yet.
    pub fn none(span: PageCount) -> Self {
        Self {
            written: Written::default(),
            deferred: PageSet::new(span),
        }
    }

    /// Adds what another pass did.
    pub fn add(&mut self, more: &Self) {
        self.written.add(more.written);
        self.deferred.union(&more.deferred);
    }
}

/// What the threads of a pass share.
struct Shared<'s, 't, S, I> {
    todo: Mutex<I>,
    target: &'s Target<'t, S>,
    cancel: &'s Cancel,
    done: AtomicU64,
    stop: AtomicBool,
}

/// What one thread did.
#[derive(Default)]
struct Share {
    written: Written,
    deferred: Vec<Pfn>,
}

/// Copies all pages of `pages` to `target`. `progress` hears of the pages copied so far, from
/// this thread.
pub(super) fn copy<M: Mapper + Send, S: ImageSink>(
    mappers: &mut [M],
    pages: &PageSet,
    target: &Target<'_, S>,
    cancel: &Cancel,
    progress: &mut dyn FnMut(PageCount),
) -> Result<Copied, SaveError> {
    let shared = Shared {
        todo: Mutex::new(pages.iter()),
        target,
        cancel,
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    // A thread that would find nothing to do is not started.
    let batches = (pages.count().0 as usize).div_ceil(BATCH_PAGES).max(1);
    let workers = mappers.len().min(batches);
    let mut shares = vec![];
    if let Some((mine, others)) = mappers[..workers].split_first_mut() {
        std::thread::scope(|scope| {
            let threads: Vec<_> = others
                .iter_mut()
                .map(|mapper| scope.spawn(|| work(mapper, &shared, &mut |_| {})))
                .collect();
            shares.push(work(mine, &shared, progress));
            for thread in threads {
                match thread.join() {
                    Ok(share) => shares.push(share),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    let mut copied = Copied::none(pages.span());
    for share in shares {
        let share = share?;
        copied.written.add(share.written);
        for pfn in share.deferred {
            copied.deferred.insert(pfn);
        }
    }
    Ok(copied)
}

fn work<M: Mapper, S: ImageSink, I: Iterator<Item = Pfn>>(
    mapper: &mut M,
    shared: &Shared<'_, '_, S, I>,
    progress: &mut dyn FnMut(PageCount),
) -> Result<Share, SaveError> {
    let done = batches(mapper, shared, progress);
    if done.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    done
}

fn batches<M: Mapper, S: ImageSink, I: Iterator<Item = Pfn>>(
    mapper: &mut M,
    shared: &Shared<'_, '_, S, I>,
    progress: &mut dyn FnMut(PageCount),
) -> Result<Share, SaveError> {
    let mut share = Share::default();
    let mut pfns = Vec::with_capacity(BATCH_PAGES);
    while !shared.stop.load(Ordering::Relaxed) {
        SaveError::if_raised(shared.cancel)?;
        pfns.clear();
        if let Ok(mut todo) = shared.todo.lock() {
            pfns.extend(todo.by_ref().take(BATCH_PAGES));
        }
        if pfns.is_empty() {
            break;
        }
        share.copy_batch(mapper, &pfns, shared.target)?;
        let more = pfns.len() as u64;
        let so_far = shared.done.fetch_add(more, Ordering::Relaxed) + more;
        progress(PageCount(so_far));
    }
    Ok(share)
}

impl Share {
    fn copy_batch<M: Mapper, S: ImageSink>(
        &mut self,
        mapper: &mut M,
        pfns: &[Pfn],
        target: &Target<'_, S>,
    ) -> Result<(), SaveError> {
        let batch = mapper.map(pfns)?;
        let mut pages = Vec::with_capacity(pfns.len());
        for (index, &pfn) in pfns.iter().enumerate() {
            match batch.page(index) {
                Some(page) => pages.push((pfn, page)),
                None => self.deferred.push(pfn),
            }
        }
        self.written.add(target.take(&pages)?);
        Ok(())
    }
}
