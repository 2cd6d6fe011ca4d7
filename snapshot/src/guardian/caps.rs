//! The CPU caps of a throttled guest: which is its own, which are ours, and which of them to leave
//! it with.

use std::io::Write;

/// The caps that a save deals in, in percent of one CPU; 0 is no cap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caps {
    /// The guest's own, to be put back.
    pub own: u16,
    /// What it has until `now` is set: its own, or one that the save set earlier.
    pub before: u16,
    /// What the save sets, or has set.
    pub now: u16,
}

/// What is to be done about a guest's cap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// It is ours: its own cap is put back.
    PutBack(u16),
    /// It is the guest's own already.
    Nothing,
    /// It is neither: an administrator has set it meanwhile, and it is left.
    Leave(u16),
}

impl Caps {
    /// Three numbers of five digits between blanks.
    pub(super) const LENGTH: usize = 17;

    /// The caps of a guest that has the cap `current` and is given `now`; `past` are those that it
    /// was given last. A cap that somebody else has set since is its own from here on.
    #[must_use]
    pub fn next(past: Option<Self>, current: u16, now: u16) -> Self {
        let ours = past.filter(|past| matches!(past.remedy(current), Remedy::PutBack(_)));
        Self {
            own: ours.map_or(current, |past| past.own),
            before: current,
            now,
        }
    }

    /// What is to be done about a guest that has this cap now. A save may have been killed between
    /// its note and its deed: so either of the two that it set is its own doing. A cap that
    /// somebody else set and that happens to be one of these cannot be told from ours.
    #[must_use]
    pub fn remedy(self, current: u16) -> Remedy {
        if current == self.own {
            Remedy::Nothing
        } else if current == self.before || current == self.now {
            Remedy::PutBack(self.own)
        } else {
            Remedy::Leave(current)
        }
    }

    /// Always as long; allocates nothing.
    pub(super) fn encode(self) -> [u8; Self::LENGTH] {
        let mut text = [b' '; Self::LENGTH];
        // A u16 has five digits at most, so it always fits.
        let _ = write!(
            &mut text[..],
            "{:05} {:05} {:05}",
            self.own,
            self.before,
            self.now
        );
        text
    }

    pub(super) fn decode(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let mut words = text.split(' ').map(|word| word.parse().ok());
        let caps = Self {
            own: words.next()??,
            before: words.next()??,
            now: words.next()??,
        };
        (caps.encode() == text.as_bytes()).then_some(caps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cap_of_ours_is_replaced() {
        let first = Caps::next(None, 40, 20);
        let second = Caps::next(Some(first), 20, 10);
        let third = Caps::next(Some(second), 10, 5);
        let uncapped = Caps::next(None, 0, 80);
        for (caps, current, remedy) in [
            // Killed before the deed, and after it.
            (first, 40, Remedy::Nothing),
            (first, 20, Remedy::PutBack(40)),
            (second, 20, Remedy::PutBack(40)),
            (second, 10, Remedy::PutBack(40)),
            (third, 5, Remedy::PutBack(40)),
            // Put back already.
            (second, 40, Remedy::Nothing),
            (uncapped, 0, Remedy::Nothing),
            (uncapped, 80, Remedy::PutBack(0)),
            // Somebody else's.
            (first, 60, Remedy::Leave(60)),
            (first, 0, Remedy::Leave(0)),
            (third, 20, Remedy::Leave(20)),
            (uncapped, 40, Remedy::Leave(40)),
        ] {
            assert_eq!(caps.remedy(current), remedy, "{caps:?}, now {current}");
        }
    }

    #[test]
    fn its_own_cap_is_the_last_that_was_not_ours() {
        let caps = |own, before, now| Caps { own, before, now };
        let past = Some(caps(40, 30, 20));
        for (current, next) in [
            (20, caps(40, 20, 10)),
            // It could not be set.
            (30, caps(40, 30, 10)),
            (40, caps(40, 40, 10)),
            // Somebody else's.
            (60, caps(60, 60, 10)),
            (0, caps(0, 0, 10)),
        ] {
            assert_eq!(Caps::next(past, current, 10), next, "now {current}");
        }
        assert_eq!(Caps::next(None, 20, 10), caps(20, 20, 10));
    }

    #[test]
    fn they_are_as_long_whatever_they_are() {
        for (own, before, now) in [(0, 0, 0), (40, 20, 10), (65535, 400, 65535)] {
            let caps = Caps { own, before, now };
            assert_eq!(Caps::decode(&caps.encode()), Some(caps));
        }
        assert_eq!(Caps::next(None, 40, 8).encode(), *b"00040 00040 00008");
        for text in ["", "00040 00040", "00040 00040 0008 ", "+0040 00040 00008"] {
            assert_eq!(Caps::decode(text.as_bytes()), None, "{text:?}");
        }
    }
}
