//! Slows a guest by pausing it in turns, where its scheduler knows no cap.

use std::mem::ManuallyDrop;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::rhythm::{Account, Rhythm, SHORTEST_RUN};
use crate::fault;

/// How often the end of a pause is tried.
const UNPAUSE_ATTEMPTS: u32 = 3;

/// The guest, and the note of what is done to it.
pub(super) trait Pausable: Send + 'static {
    /// Why a call failed.
    type Error: Send + 'static;

    /// Notes that it may be paused by us, or that it is not.
    fn note(&mut self, paused: bool) -> Result<(), Self::Error>;
    /// Pauses it, once more if it is paused.
    fn pause(&mut self) -> Result<(), Self::Error>;
    /// Takes one pause back. It is no error if there is none any more.
    fn unpause(&mut self) -> Result<(), Self::Error>;
}

/// How a pulser ended.
#[derive(Debug)]
pub(super) enum Ended<E> {
    /// The guest is not paused through us. The error is what ended it before it was told to.
    Unpaused(Option<E>),
    /// It could not be unpaused, and the note still says that it may be paused.
    Paused(E),
}

/// A thread that pauses a guest in turns. Dropped, it ends, the guest unpaused.
pub(super) struct Pulser<E> {
    /// Disconnected, it ends the thread at once.
    rhythm: Option<Sender<Rhythm>>,
    thread: Option<JoinHandle<Ended<E>>>,
}

impl<E: Send + 'static> Pulser<E> {
    /// Starts it.
    pub fn start(guest: impl Pausable<Error = E>, rhythm: Rhythm) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("livesave-pulse".into())
            .spawn(move || pulse(guest, rhythm, &receiver))?;
        Ok(Self {
            rhythm: Some(sender),
            thread: Some(thread),
        })
    }

    /// Goes on in another rhythm; whether it still runs to do so.
    pub fn change(&self, rhythm: Rhythm) -> bool {
        self.rhythm
            .as_ref()
            .is_some_and(|sender| sender.send(rhythm).is_ok())
    }

    /// Ends it, the guest unpaused. `None` if it had panicked; the guest is unpaused then too, or
    /// the note says that it may be paused.
    pub fn end(mut self) -> Option<Ended<E>> {
        self.join()
    }
}

impl<E> Pulser<E> {
    fn join(&mut self) -> Option<Ended<E>> {
        self.rhythm = None;
        self.thread.take()?.join().ok()
    }
}

impl<E> Drop for Pulser<E> {
    fn drop(&mut self) {
        self.join();
    }
}

/// Pauses the guest in turns until told to end or until a call fails.
fn pulse<G: Pausable>(
    mut guest: G,
    mut rhythm: Rhythm,
    orders: &Receiver<Rhythm>,
) -> Ended<G::Error> {
    let mut account = Account::default();
    loop {
        let began = Instant::now();
        if !wait(orders, account.run(rhythm), &mut rhythm) {
            return Ended::Unpaused(None);
        }
        if let Err(error) = guest.note(true) {
            return Ended::Unpaused(Some(error));
        }
        if let Err(error) = guest.pause() {
            // Noted or not: one that is found not paused is not unpaused.
            let _ = guest.note(false);
            return Ended::Unpaused(Some(error));
        }
        let ran = began.elapsed();
        let began = Instant::now();
        let paused = Paused { guest: &mut guest };
        fault::point("pulse-paused");
        let goes_on = wait(orders, rhythm.pause, &mut rhythm);
        if let Err(ended) = paused.end() {
            return ended;
        }
        if !goes_on {
            return Ended::Unpaused(None);
        }
        account.turn(rhythm, ran, began.elapsed());
    }
}

/// Waits, taking in another rhythm on the way; `false` at once if told to end.
fn wait(orders: &Receiver<Rhythm>, time: Duration, rhythm: &mut Rhythm) -> bool {
    let until = Instant::now() + time;
    loop {
        match orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(other) => *rhythm = other,
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// A guest that we have paused: it does not stay so, whatever happens.
struct Paused<'a, G: Pausable> {
    guest: &'a mut G,
}

impl<G: Pausable> Paused<'_, G> {
    /// Ends the pause, then notes that.
    fn end(self) -> Result<(), Ended<G::Error>> {
        ManuallyDrop::new(self).unpause()
    }

    fn unpause(&mut self) -> Result<(), Ended<G::Error>> {
        for attempt in 1.. {
            match self.guest.unpause() {
                Ok(()) => break,
                Err(error) if attempt == UNPAUSE_ATTEMPTS => return Err(Ended::Paused(error)),
                Err(_) => std::thread::sleep(SHORTEST_RUN),
            }
        }
        let noted = self.guest.note(false);
        noted.map_err(|error| Ended::Unpaused(Some(error)))
    }
}

impl<G: Pausable> Drop for Paused<'_, G> {
    /// For a panic only.
    fn drop(&mut self) {
        let _ = self.unpause();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::units::CpuPercent;

    const MS: Duration = Duration::from_millis(1);

    #[derive(Default)]
    struct Script {
        /// As counted by the hypervisor.
        pauses: i32,
        noted: bool,
        /// Pauses made so far, and the longest.
        made: u32,
        since: Option<Instant>,
        paused: Duration,
        fail_pause: bool,
        fail_unpause: u32,
        panic_in_note: bool,
    }

    /// Checks that a pause is always noted.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<Script>>);

    impl Scripted {
        fn with<T>(&self, look: impl FnOnce(&mut Script) -> T) -> T {
            look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn wait_for(&self, pauses: u32) {
            let from = self.with(|script| script.made);
            let began = Instant::now();
            while self.with(|script| script.made) < from + pauses {
                assert!(began.elapsed() < 10_000 * MS, "it does not pause");
                std::thread::sleep(MS);
            }
        }

        /// What must hold of a guest that is left.
        fn must_run(&self) {
            self.with(|script| assert_eq!((script.pauses, script.noted), (0, false)));
        }
    }

    impl Pausable for Scripted {
        type Error = &'static str;

        fn note(&mut self, paused: bool) -> Result<(), &'static str> {
            let panics = self.with(|script| {
                assert!(script.pauses == 0, "noted too late or too early");
                script.noted = paused;
                std::mem::take(&mut script.panic_in_note)
            });
            assert!(!panics, "as asked");
            Ok(())
        }
        fn pause(&mut self) -> Result<(), &'static str> {
            self.with(|script| {
                assert!(script.noted);
                if script.fail_pause {
                    return Err("no pause");
                }
                script.pauses += 1;
                script.made += 1;
                script.since = Some(Instant::now());
                Ok(())
            })
        }
        fn unpause(&mut self) -> Result<(), &'static str> {
            self.with(|script| {
                assert!(script.noted && script.pauses == 1);
                if script.fail_unpause > 0 {
                    script.fail_unpause -= 1;
                    return Err("no unpause");
                }
                script.pauses = 0;
                script.paused += script.since.take().expect("paused").elapsed();
                Ok(())
            })
        }
    }

    fn rhythm(limit: u32) -> Rhythm {
        Rhythm::of(CpuPercent(limit), 1).expect("pauses")
    }

    #[test]
    fn it_pauses_in_turns_and_ends_at_once_with_the_guest_running() {
        let guest = Scripted::default();
        let began = Instant::now();
        let pulser = Pulser::start(guest.clone(), rhythm(25)).expect("started");
        guest.wait_for(10);
        let (took, paused) = (began.elapsed(), guest.with(|script| script.paused));
        assert!(paused > took / 4, "{paused:?} of {took:?}");
        // It is ended in a pause that would be long.
        let mut long = rhythm(25);
        long.pause = 60_000 * MS;
        assert!(pulser.change(long));
        let paused = || guest.with(|script| script.since.map(|since| since.elapsed()));
        while paused().is_none_or(|time| time < 100 * MS) {
            std::thread::sleep(MS);
        }
        let began = Instant::now();
        assert!(matches!(pulser.end(), Some(Ended::Unpaused(None))));
        assert!(began.elapsed() < 30_000 * MS, "{:?}", began.elapsed());
        guest.must_run();
        // The same when it is dropped.
        drop(Pulser::start(guest.clone(), rhythm(1)).expect("started"));
        guest.must_run();
    }

    #[test]
    fn it_ends_by_itself_when_a_call_fails() {
        let guest = Scripted::default();
        let pulser = Pulser::start(guest.clone(), rhythm(50)).expect("started");
        guest.wait_for(2);
        guest.with(|script| script.fail_pause = true);
        while pulser.change(rhythm(50)) {
            std::thread::sleep(MS);
        }
        assert!(matches!(
            pulser.end(),
            Some(Ended::Unpaused(Some("no pause")))
        ));
        guest.must_run();
    }

    #[test]
    fn the_end_of_a_pause_is_tried_again_and_else_stays_noted() {
        for (fails, stays) in [(UNPAUSE_ATTEMPTS - 1, false), (UNPAUSE_ATTEMPTS, true)] {
            let guest = Scripted::default();
            guest.with(|script| script.fail_unpause = fails);
            let pulser = Pulser::start(guest.clone(), rhythm(50)).expect("started");
            guest.wait_for(1);
            match pulser.end() {
                Some(Ended::Paused("no unpause")) if stays => {
                    guest.with(|script| assert_eq!((script.pauses, script.noted), (1, true)));
                }
                Some(Ended::Unpaused(None)) if !stays => guest.must_run(),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_panic_leaves_no_pause() {
        let guest = Scripted::default();
        let mut inside = guest.clone();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            inside.note(true).expect("noted");
            inside.pause().expect("paused");
            let _paused = Paused { guest: &mut inside };
            panic!("as asked");
        }));
        assert!(caught.is_err());
        guest.must_run();
        // One in the thread is told by its end.
        guest.with(|script| script.panic_in_note = true);
        let pulser = Pulser::start(guest.clone(), rhythm(50)).expect("started");
        while pulser.change(rhythm(50)) {
            std::thread::sleep(MS);
        }
        assert!(pulser.end().is_none());
        guest.with(|script| assert_eq!(script.pauses, 0));
    }
}
