//! Whoever hears how a save goes.

use super::Identity;
use crate::policy::Decision;
use crate::report::{Round, Window};
use crate::units::{Bytes, PageCount};

/// What happens during a save, in order.
#[derive(Debug)]
pub enum Event<'a> {
    /// The guest was looked at; the save begins.
    Started {
        /// Who is saved.
        identity: &'a Identity,
        /// How many pages it has.
        pages: PageCount,
    },
    /// A pass begins.
    RoundStarted {
        /// Its number, from 0.
        round: u32,
        /// Pages to copy in it.
        pages: PageCount,
    },
    /// A pass goes on.
    Progress {
        /// Pages copied in it so far.
        pages: PageCount,
    },
    /// A pass ended.
    RoundEnded {
        /// How it went.
        round: &'a Round,
        /// What follows.
        decision: Decision,
    },
    /// The guest's memory was resized; the save starts over.
    StartedOver,
    /// The guest is asked to suspend.
    Suspending,
    /// The guest runs again.
    Resumed {
        /// How the pause window went.
        window: &'a Window,
    },
    /// What was captured is being written, and the image made durable.
    Flushing {
        /// Pages still to write.
        pages: PageCount,
    },
    /// A disk's content is being copied.
    CopyingDisk {
        /// Its name in the guest.
        vdev: &'a str,
        /// So much has been.
        done: Bytes,
        /// Of so much.
        total: Bytes,
    },
    /// Something went wrong that does not fail the save, or that happened while a failed save was
    /// put right. To be told to the user.
    Warning(&'a str),
}

/// Hears how a save goes. Never called inside the pause window: a terminal that takes no more
/// output would hold the guest suspended.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
