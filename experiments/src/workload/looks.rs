//! Looks that a thread is asked for, and makes itself between two of its deeds: so what it must find
//! is exactly known.

use std::sync::mpsc::{Receiver, Sender, channel};

/// The end that asks.
pub struct Asker<T>(Sender<Sender<T>>);

/// The thread's end.
pub struct Asked<T>(Receiver<Sender<T>>);

/// Both ends.
#[must_use]
pub fn looks<T>() -> (Asker<T>, Asked<T>) {
    let (asker, asked) = channel();
    (Asker(asker), Asked(asked))
}

impl<T> Asker<T> {
    /// Asks for a look. There will be no answer if the thread is gone.
    #[must_use]
    pub fn ask(&self) -> Receiver<T> {
        let (answer, receiver) = channel();
        let _ = self.0.send(answer);
        receiver
    }
}

impl<T> Asked<T> {
    /// Looks once for each who has asked; says whether anybody has.
    pub fn answer(&self, mut look: impl FnMut() -> T) -> bool {
        let mut any = false;
        while let Ok(answer) = self.0.try_recv() {
            let _ = answer.send(look());
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_gets_an_answer_unless_the_thread_is_gone() {
        let (asker, asked) = looks();
        assert!(!asked.answer(|| 0));
        let (first, second) = (asker.ask(), asker.ask());
        let mut count = 0;
        let look = || {
            count += 1;
            count
        };
        assert!(asked.answer(look));
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(1), Ok(2)));
        drop(asked);
        assert!(asker.ask().recv().is_err());
    }
}
