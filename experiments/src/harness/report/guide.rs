//! What a reader of the report must know: what was compared, and how it was measured.

use super::super::case::Method;

/// What a method does.
#[must_use]
pub const fn method(method: Method) -> &'static str {
    match method {
        Method::Plain => {
            "xl save -c: the guest stands still while all its memory is written. On an embedded guest, \
             livesave's own plain save."
        }
        Method::StockLive => {
            "Xen's own pre-copy loop, into a file: memory is copied while the guest runs, what it wrote \
             meanwhile is copied again, the rest is copied while it stands still."
        }
        Method::MigratedPipe => {
            "A live migration to a daemon that stores the stream in a file, over a pipe; in the style \
             of VNsnap."
        }
        Method::MigratedTcp => "The same over TCP on the loopback interface.",
        Method::Migration => {
            "A live migration to the same host. There is no image: the guest goes on as another domain."
        }
        Method::Live => "livesave --mode live: pre-copy without throttling.",
        Method::Improved => "livesave as it is by default: pre-copy with throttling.",
        Method::Increment => {
            "livesave, on an image that stands: only pages written since that image are saved."
        }
    }
}

/// Words of the tables, and what they mean.
pub const TERMS: [(&str, &str); 11] = [
    (
        "gap",
        "The longest time for which the guest stood still, as the guest itself saw it. A thread in it \
         wakes every millisecond and reads the time-stamp counter (TSC); the gap is the largest step \
         between two readings. So it is never below a millisecond or so, and it holds all that stops \
         the guest: the pause, its preparation, and the way back.",
    ),
    (
        "suspended",
        "How long the host saw the guest suspended. Nothing is said where nobody looked.",
    ),
    (
        "pause, forecast",
        "livesave's own measure of its pause, and what it forecast when it began it.",
    ),
    ("total time", "From the start of the command to its end."),
    (
        "pages sent",
        "Pages of 4 KiB that were written or sent, over all rounds and the pause; a page that is sent \
         again counts again.",
    ),
    (
        "image size, network",
        "The length of the image's file; bytes that went over a network or its loopback, both ways.",
    ),
    (
        "host CPU, peak memory",
        "CPU time of the host's side, and the largest resident memory of any one process of the method.",
    ),
    (
        "work lost",
        "Work that the guest did not do because of the save, in seconds of its work before. Negative \
         where it did more than before. Not told of guests that write as fast as they can on an \
         emulated machine: they have no steady pace to compare with.",
    ),
    (
        "failed",
        "The method failed or harmed the guest. This counts against the method; such runs are counted \
         and listed, and are in no median and in no plot.",
    ),
    (
        "refused",
        "livesave does not save guests of this type, and said so. It counts against nobody.",
    ),
    (
        "spoilt",
        "The machine spoilt the run: it stood still itself, by a witness in the host, or the guest did \
         not boot. This counts against nobody; the run is made again, is counted and listed, and is in \
         no median and in no plot.",
    ),
];

/// How values are put together.
pub const NUMBERS: &str = "\
Tables show medians, with the lower and the upper quartile in brackets and the number of runs in \
parentheses or in column n. Quartiles are interpolated between the sorted values (R's type 7); they are \
left out where they read as the median does. Of so few runs they show how far runs are apart, no more. A \
dash stands where nothing is known. MB are 1 000 000 bytes, MiB are 1 048 576.";

/// What has to be said of an emulated machine.
pub const EMULATED: &str = "\
This machine is an emulated one. Its times are longer than those of a real one, by factors that differ \
from one operation to another. They can be compared with each other, and not with times from elsewhere.";
