//! Keeps what Xen's libraries would print.
//!
//! Without a logger libxenctrl writes its messages to stderr, into the middle of a progress bar.
//! With this one nothing is printed: each thread keeps its last warning or error, and the error
//! of a failed call carries it.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_ulong};

use crate::bindings::xenctrl::{__va_list_tag, XTL_WARN, xentoollog_level, xentoollog_logger};

/// Longest message kept, in bytes; the rest is cut off.
const CAPACITY: usize = 512;

/// The last message of a thread. Of fixed size: the callback runs inside C code, in the pause
/// window at worst, and neither allocates nor panics.
struct Message {
    bytes: [u8; CAPACITY],
    length: usize,
}

thread_local! {
    static LAST: RefCell<Message> =
        const { RefCell::new(Message { bytes: [0; CAPACITY], length: 0 }) };
}

unsafe extern "C" {
    // From the C library; the `libc` crate leaves out what takes a va_list. On x86-64 a va_list
    // parameter is a pointer to its one-element array.
    fn vsnprintf(
        into: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut __va_list_tag,
    ) -> c_int;
}

/// The logger given to every library. It has no state of its own, so one serves all threads.
static LOGGER: xentoollog_logger = xentoollog_logger {
    vmessage: Some(keep_message),
    progress: Some(ignore_progress),
    destroy: Some(keep_logger),
};

/// The logger as the libraries take it.
pub(crate) fn logger() -> *mut xentoollog_logger {
    // The libraries only call through it: none writes to a logger that it did not make itself.
    (&raw const LOGGER).cast_mut()
}

/// Forgets this thread's message; called before a library call, so that an old message is never
/// taken for the new failure's.
pub(crate) fn clear() {
    LAST.with_borrow_mut(|last| last.length = 0);
}

/// This thread's last message, taken away.
pub(crate) fn take() -> Option<String> {
    LAST.with_borrow_mut(|last| {
        let text = String::from_utf8_lossy(last.bytes.get(..last.length)?)
            .trim()
            .to_owned();
        last.length = 0;
        (!text.is_empty()).then_some(text)
    })
}

unsafe extern "C" fn keep_message(
    _logger: *mut xentoollog_logger,
    level: xentoollog_level,
    _errno: c_int,
    _context: *const c_char,
    format: *const c_char,
    arguments: *mut __va_list_tag,
) {
    if level < XTL_WARN || format.is_null() {
        return;
    }
    // try_*: a thread that is ending, or a message within a message, loses the message and no
    // more; a panic could not pass through the C frames.
    let _ = LAST.try_with(|last| {
        let Ok(mut last) = last.try_borrow_mut() else {
            return;
        };
        // SAFETY: at most CAPACITY bytes are written, NUL included; format and arguments are the
        // library's own pair.
        let wanted =
            unsafe { vsnprintf(last.bytes.as_mut_ptr().cast(), CAPACITY, format, arguments) };
        last.length = usize::try_from(wanted).unwrap_or(0).min(CAPACITY - 1);
    });
}

unsafe extern "C" fn ignore_progress(
    _logger: *mut xentoollog_logger,
    _context: *const c_char,
    _doing: *const c_char,
    _percent: c_int,
    _done: c_ulong,
    _total: c_ulong,
) {
}

unsafe extern "C" fn keep_logger(_logger: *mut xentoollog_logger) {}
