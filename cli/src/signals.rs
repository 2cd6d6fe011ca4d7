//! Ctrl-C and its kin ask the save to stop; it then puts the guest right and leaves nothing. Asked a
//! second time it ends at once, and its guardian does that: a request to xenstored may block for long.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGXFSZ};
use snapshot::ports::Cancel;

/// A process ended by signal N is seen by a shell as this much more.
const SIGNALLED: i32 = 128;

/// A request to stop that the usual signals raise. Those that were ignored when livesave started
/// stay so (`nohup`).
///
/// Two others would do harm by what they do by themselves: a stop (Ctrl-Z) in the pause window
/// would hold the guest suspended, and a file size limit would kill us instead of failing the
/// write. They have no effect.
pub fn cancel_on_signals() -> Result<Cancel> {
    let cancel = Cancel::new();
    let asked = Arc::new(AtomicBool::new(false));
    let ignored = ignored_signals();
    let failed = |signal| move || format!("Failed to handle signal {signal}");
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        if ignored >> (signal - 1) & 1 == 0 {
            // In this order: the first signal finds the flag down, and raises it.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                SIGNALLED + signal,
                asked.clone(),
            )
            .and_then(|_| signal_hook::flag::register(signal, asked.clone()))
            .with_context(failed(signal))?;
            let number = signal.unsigned_abs() as usize;
            signal_hook::flag::register_usize(signal, cancel.flag(), number)
                .with_context(failed(signal))?;
        }
    }
    for signal in [SIGTSTP, SIGXFSZ] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))
            .with_context(failed(signal))?;
    }
    Ok(cancel)
}

/// The signals that this process ignores, as bits; bit 0 is signal 1.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
