//! The barrier at which the guest's threads stand still while it is suspended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Every thread of the guest comes by here between two steps of its work.
#[derive(Debug)]
pub struct Gate {
    /// The same as `Inner::closed`, to be looked at without the lock.
    closed: AtomicBool,
    inner: Mutex<Inner>,
    /// The gate opened or closed.
    moved: Condvar,
    /// All threads stand still.
    still: Condvar,
}

#[derive(Debug)]
struct Inner {
    closed: bool,
    standing: usize,
    members: usize,
}

impl Gate {
    /// A closed gate for that many threads.
    pub fn new(members: usize) -> Self {
        Self {
            closed: AtomicBool::new(true),
            inner: Mutex::new(Inner {
                closed: true,
                standing: 0,
                members,
            }),
            moved: Condvar::new(),
            still: Condvar::new(),
        }
    }

    /// Stands still while the gate is closed.
    #[inline]
    pub fn pass(&self) {
        if self.closed.load(Ordering::Relaxed) {
            drop(self.stand(self.lock()));
        }
    }

    /// Sleeps until `time`, or less if the gate closed meanwhile: then stands still until it opens.
    pub fn sleep_until(&self, time: Instant) {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                drop(self.stand(inner));
                return;
            }
            let rest = time.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            inner = self
                .moved
                .wait_timeout(inner, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Closes the gate: threads stop as they come by.
    pub fn close(&self) {
        self.set(true);
    }

    /// Waits until all threads stand still; whether they do after `allowed`. What they wrote is
    /// then visible to the caller.
    pub fn all_still(&self, allowed: Duration) -> bool {
        let moving = |inner: &mut Inner| inner.closed && inner.standing < inner.members;
        let (inner, _) = self
            .still
            .wait_timeout_while(self.lock(), allowed, moving)
            .unwrap_or_else(PoisonError::into_inner);
        inner.closed && inner.standing == inner.members
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.set(false);
    }

    fn set(&self, closed: bool) {
        let mut inner = self.lock();
        inner.closed = closed;
        self.closed.store(closed, Ordering::Relaxed);
        self.moved.notify_all();
    }

    fn stand<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        inner.standing += 1;
        if inner.standing == inner.members {
            self.still.notify_all();
        }
        // A thread that is slow to wake up while the gate opens and closes again has not moved:
        // it still counts as standing, and does.
        inner = self
            .moved
            .wait_while(inner, |inner| inner.closed)
            .unwrap_or_else(PoisonError::into_inner);
        inner.standing -= 1;
        inner
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    #[test]
    fn threads_stand_still_from_close_to_open() {
        let gate = Gate::new(3);
        let (steps, end) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for sleeper in [false, false, true] {
                let (gate, steps, end) = (&gate, &steps, &end);
                scope.spawn(move || {
                    while !end.load(Ordering::SeqCst) {
                        gate.pass();
                        if sleeper {
                            gate.sleep_until(Instant::now() + Duration::from_secs(60));
                        }
                        steps.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            assert!(gate.all_still(Duration::from_secs(10)));
            for _ in 0..50 {
                let before = steps.load(Ordering::SeqCst);
                gate.open();
                while steps.load(Ordering::SeqCst) < before + 10 {
                    thread::yield_now();
                }
                assert!(!gate.all_still(Duration::ZERO), "an open gate stops nobody");
                gate.close();
                // The sleeper too, without waiting for its minute to end.
                assert!(gate.all_still(Duration::from_secs(10)));
                let still = steps.load(Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
                assert_eq!(steps.load(Ordering::SeqCst), still);
            }
            end.store(true, Ordering::SeqCst);
            gate.open();
            // The sleeper may have gone back to sleep.
            gate.close();
            gate.open();
        });
    }
}
