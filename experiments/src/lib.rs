//! What livesave's experiments are made of.
//!
//! Three parts that share one small line protocol:
//!
//! - [`workload`] runs inside a guest of the testbed: it dirties memory at a
//!   set rate, checks every page of it, and measures how long it stood still;
//! - [`dom0`] drives `xl`, the stock tools and `livesave` from the dom0;
//! - [`suite`] is the list of tests and measurements that the testbed runs.
//!
//! `experiments/testbed/run` boots a real Xen and runs the suite in it.

pub mod dom0;
pub mod harness;
pub mod kills;
pub mod lines;
pub mod mixed;
pub mod native;
pub mod peers;
pub mod records;
pub mod suite;
pub mod workload;
