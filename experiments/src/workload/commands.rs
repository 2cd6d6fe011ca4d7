//! Commands that reach the guest on its console: `ID VERB ARGS…`, one a line.
//!
//! Every command is answered by a line that carries its ID: `LS ok id=…`,
//! `LS error id=… why=…`, or the answer itself (`verify`, `records`, `maxgap`).

use super::config::{Pattern, Rate};
use std::time::Duration;

/// What dom0 may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    /// `verify`: check every page of all areas.
    Verify,
    /// `frames`: frame numbers of some pages that the emulator alone writes ([`super::emulated`]).
    Frames,
    /// `records`: look at every record on every disk.
    Records,
    /// `gap`: print the largest gap since the last `gap` and start anew; and the writes so far, and
    /// the time.
    Gap,
    /// `rate N|max`: pages per second of all writers together.
    Rate(Rate),
    /// `pattern ring|random|hot:MIB|idle`.
    Pattern(Pattern),
    /// `hog SECONDS`: never acknowledge a suspend request for so long.
    Hog(Duration),
    /// `nofreeze [MS]`: acknowledge, but never suspend; the kernel gives up
    /// freezing after so many ms.
    NoFreeze(u64),
    /// `unfreeze`: the end of `nofreeze`.
    Unfreeze,
    /// `crash [SECONDS]`: panic the kernel; until then as `hog`.
    Crash(Duration),
    /// `reboot [SECONDS]`: restart at once; until then as `hog`.
    Reboot(Duration),
    /// `ping`: answer.
    Ping,
}

/// Splits a line into its ID and what it asks for.
pub fn parse(line: &str) -> Result<(u64, Verb), String> {
    let mut words = line.split_whitespace();
    let id = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or("no command ID")?;
    let verb = words.next().ok_or("no command")?;
    let arg = words.next();
    if let Some(more) = words.next() {
        return Err(format!("{more:?} is one word too many"));
    }
    let needed = || arg.ok_or(format!("{verb} needs a value"));
    let seconds = |text: &str| {
        text.parse()
            .ok()
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
            .ok_or(format!("{text:?} is no number of seconds"))
    };
    let verb = match verb {
        "verify" => Verb::Verify,
        "frames" => Verb::Frames,
        "records" => Verb::Records,
        "gap" => Verb::Gap,
        "rate" => Verb::Rate(needed()?.parse()?),
        "pattern" => Verb::Pattern(needed()?.parse()?),
        "hog" => Verb::Hog(seconds(needed()?)?),
        "nofreeze" => Verb::NoFreeze(
            arg.unwrap_or("20000")
                .parse()
                .map_err(|_| "nofreeze takes milliseconds")?,
        ),
        "unfreeze" => Verb::Unfreeze,
        "crash" => Verb::Crash(seconds(arg.unwrap_or("0"))?),
        "reboot" => Verb::Reboot(seconds(arg.unwrap_or("0"))?),
        "ping" => Verb::Ping,
        _ => return Err(format!("{verb:?} is unknown")),
    };
    Ok((id, verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_verb() {
        for (line, verb) in [
            ("1 verify", Verb::Verify),
            ("1 frames", Verb::Frames),
            ("1 records", Verb::Records),
            ("1 gap", Verb::Gap),
            ("1 rate max", Verb::Rate(Rate::Max)),
            ("1 rate 20", Verb::Rate(Rate::PagesPerSecond(20))),
            ("1 pattern hot:3", Verb::Pattern(Pattern::Hot(3))),
            ("1 hog 1.5", Verb::Hog(Duration::from_millis(1500))),
            ("1 nofreeze", Verb::NoFreeze(20_000)),
            ("1 nofreeze 3000", Verb::NoFreeze(3000)),
            ("1 unfreeze", Verb::Unfreeze),
            ("1 crash", Verb::Crash(Duration::ZERO)),
            ("1 crash 8", Verb::Crash(Duration::from_secs(8))),
            ("1 reboot", Verb::Reboot(Duration::ZERO)),
            ("1 reboot 2", Verb::Reboot(Duration::from_secs(2))),
            ("1 ping\r", Verb::Ping),
        ] {
            assert_eq!(parse(line), Ok((1, verb)), "{line}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for line in [
            "",
            "verify",
            "1",
            "1 fly",
            "1 rate",
            "1 rate x",
            "1 hog -1",
            "1 hog",
            "1 crash soon",
            "1 rate 1 2",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
