//! Guests that are throttled without a save, by a process that holds them so and is then killed:
//! quicker than a save, so that it can be done often.

use super::dying::{KILLED, recover, settled};
use super::throttle::{OTHER, OWN, must_have_cap, must_not_be_paused, set_cap, share};
use super::{Bench, Kind, Test};
use crate::dom0::hold::{Hold, THROTTLED};
use crate::dom0::livesave::LIMIT;
use crate::dom0::process::{Finished, check, run, start};
use crate::dom0::spec::Spec;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::thread::sleep;
use std::time::Duration;

/// The tests of this file.
#[must_use]
pub fn tests() -> Vec<Test> {
    vec![
        Kind::Small.in_turn("throttle_holds_its_limit", holds_its_limit),
        Kind::Small.in_turn("throttle_without_a_save", without_a_save),
    ]
}

/// On a host with other things to do a pause begins late, and the guest uses more than its limit
/// meanwhile: one of so many attempts must show it held.
const ATTEMPTS: usize = 3;

/// A limit is held by either means, and gone afterwards.
fn holds_its_limit(bench: &Bench) -> Result<String> {
    let guest = bench.guest(|spec| spec.small().rate("max"))?;
    let mut notes = Vec::new();
    for pauses in [false, true] {
        let means = if pauses { "pauses" } else { " cap" };
        let mut held = false;
        for _ in 0..ATTEMPTS {
            let hold = Hold {
                domain: &guest.spec.name,
                limit: 20,
                pauses,
                then: "measure",
                silence_ms: 60_000,
            };
            let said = check(&mut hold.command(&bench.suite), LIMIT)?.stdout;
            must_have_cap(&guest, 0)?;
            must_not_be_paused(&guest)?;
            held = was_held(&said, means)?;
            notes.push(said.trim().to_owned());
            if held {
                break;
            }
        }
        if !held {
            bail!("limited to 20 %, it used {}", notes.join("; "));
        }
    }
    bench.must_be_unharmed(&guest)?;
    Ok(format!(
        "CPU in % before, at 20 %, after: {}",
        notes.join("; ")
    ))
}

/// Whether the shares of the CPU that were measured before, under a limit of 20 % and after are as
/// they must be. An emulator's clocks are coarse; the limit is what the guest may use at most.
fn was_held(said: &str, means: &str) -> Result<bool> {
    let figures: Vec<f64> = said
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [before, throttled, after] = figures[..] else {
        bail!("it said {said:?}");
    };
    if !said.contains(means) {
        bail!("by what? {said:?}");
    }
    Ok((4.0..32.0).contains(&throttled) && before >= 50.0 && after >= 50.0)
}

/// A process that throttles and then hangs, or is killed at any instant.
fn without_a_save(bench: &Bench) -> Result<String> {
    let guest = bench.guest(Spec::small)?;
    set_cap(&guest, OWN)?;
    let hold = |pauses, then, silence_ms| Hold {
        domain: &guest.spec.name,
        // So low that it is nearly always paused.
        limit: 5,
        pauses,
        then,
        silence_ms,
    };
    let right = |what: &str| -> Result<()> {
        must_have_cap(&guest, OWN)
            .and_then(|()| must_not_be_paused(&guest))
            .with_context(|| what.to_owned())
    };
    let mut said = Vec::new();
    let last_words = |finished: &Finished| {
        let line = finished.stderr.lines().last().unwrap_or_default();
        line.rsplit("; ").next().unwrap_or_default().to_owned()
    };
    for pauses in [false, true] {
        for later_ms in [0, 3, 11, 27] {
            let mut running = start(&mut hold(pauses, "wait", 60_000).command(&bench.suite))?;
            if !running.wait_for_stderr(THROTTLED, LIMIT)? {
                bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
            }
            sleep(Duration::from_millis(later_ms));
            running.signal(Signal::KILL)?;
            settled(&guest)?;
            let finished = running.wait(LIMIT)?;
            right(&format!("killed after {later_ms} ms, pauses {pauses}"))?;
            if later_ms == 27 {
                said.push(last_words(&finished));
            }
        }
        let finished = run(&mut hold(pauses, "wait", 1000).command(&bench.suite), LIMIT)?;
        settled(&guest)?;
        right(&format!("hung, pauses {pauses}"))?;
        if finished.code() != KILLED {
            bail!("it hung and was not killed: {}", finished.tail());
        }
        // The second puts right what the first left.
        for _ in 0..2 {
            let both = run(
                &mut hold(pauses, "kill-both", 60_000).command(&bench.suite),
                LIMIT,
            )?;
            if both.code() != KILLED {
                bail!("it ended by itself: {}", both.tail());
            }
        }
        if !pauses && share(&guest)?.cap == OWN {
            bail!("the cap is back before the recovery, so that nothing is shown");
        }
        let recovered = recover(bench)?.stdout;
        right(&format!("both killed, pauses {pauses}"))?;
        said.push(recovered.trim().to_owned());
    }
    // An administrator's cap is left, by the guardian and by a recovery.
    let mut running = start(&mut hold(false, "wait", 60_000).command(&bench.suite))?;
    if !running.wait_for_stderr(THROTTLED, LIMIT)? {
        bail!("it ended too early: {}", running.wait(LIMIT)?.tail());
    }
    set_cap(&guest, OTHER)?;
    running.signal(Signal::KILL)?;
    settled(&guest)?;
    must_have_cap(&guest, OTHER)?;
    said.push(last_words(&running.wait(LIMIT)?));
    set_cap(&guest, 0)?;
    bench.must_be_unharmed(&guest)?;
    Ok(said.join(" | "))
}
