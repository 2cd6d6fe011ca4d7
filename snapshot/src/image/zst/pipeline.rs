//! Frames made by several threads and appended to a file in the order in which they were asked for.
//!
//! What waits is bounded: who asks for a frame while enough of them are under way waits. A worker
//! that fails makes every later call fail; nobody waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::job::{FrameAt, Job, Made, Tools};
use crate::fault;

/// Frames under way for each worker: one that it works on, one that waits for it, and one that
/// waits for its turn in the file.
const PER_WORKER: usize = 3;

/// The threads and the file.
pub struct Pipeline {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    file: File,
    source: Option<File>,
    level: i32,
    /// Frames under way at most.
    limit: usize,
    state: Mutex<State>,
    /// There is a job, or nothing more will come.
    work: Condvar,
    /// There is room, all is done, or it failed.
    moved: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(u64, Job)>,
    asked: u64,
    /// Made and waiting for those before them.
    made: BTreeMap<u64, Made>,
    placed: u64,
    written: u64,
    frames: Vec<FrameAt>,
    end: u64,
    spare: Vec<Vec<u8>>,
    failed: Option<io::Error>,
    closing: bool,
}

impl Pipeline {
    /// Starts `threads` workers that append to `file`, which is empty, compressing at `level`;
    /// `source` is where jobs that copy read.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(
        file: &File,
        source: Option<&File>,
        level: i32,
        threads: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            file: file.try_clone()?,
            source: source.map(File::try_clone).transpose()?,
            level,
            limit: threads.max(1) * PER_WORKER,
            state: Mutex::default(),
            work: Condvar::new(),
            moved: Condvar::new(),
        });
        let mut pipeline = Self {
            shared,
            workers: vec![],
        };
        for number in 0..threads.max(1) {
            let shared = pipeline.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || shared.work());
            pipeline.workers.push(worker?);
        }
        Ok(pipeline)
    }

    /// A buffer that was used before, or an empty one.
    pub fn buffer(&self) -> Vec<u8> {
        self.shared.lock().spare.pop().unwrap_or_default()
    }

    /// Asks for a frame; waits while enough of them are under way.
    ///
    /// # Errors
    /// What stopped an earlier one.
    pub fn submit(&self, job: Job) -> io::Result<()> {
        let limit = self.shared.limit as u64;
        let mut state = self.shared.wait(|state| state.under_way() < limit)?;
        let number = state.asked;
        state.asked += 1;
        state.jobs.push_back((number, job));
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits until all that was asked for is in the file.
    ///
    /// # Errors
    /// What stopped one of them.
    pub fn drain(&self) -> io::Result<()> {
        self.shared.wait(|state| state.under_way() == 0).map(drop)
    }

    /// Appends a frame at once, from this thread; whatever was asked for before is in the file
    /// then. For one thread at a time.
    ///
    /// # Errors
    /// What the system says, or what stopped an earlier frame.
    pub fn append(&self, made: &Made) -> io::Result<()> {
        let mut state = self.shared.wait(|state| state.under_way() == 0)?;
        fault::call("compress")?;
        let frame = made.at(state.end);
        self.shared.file.write_all_at(&made.bytes, frame.at)?;
        state.end += made.bytes.len() as u64;
        state.frames.push(frame);
        Ok(())
    }

    /// The frames in the file, and where the last ends. All that was asked for must be drained.
    pub fn frames(&self) -> (Vec<FrameAt>, u64) {
        let state = self.shared.lock();
        (state.frames.clone(), state.end)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // One that panicked has said so, and has made the image fail.
            let _ = worker.join();
        }
    }
}

impl State {
    /// Frames asked for and not in the file yet.
    fn under_way(&self) -> u64 {
        self.asked - self.written
    }

    /// Gives the frames whose turn it is their places.
    fn place(&mut self) -> Vec<(u64, Made)> {
        let mut ready = vec![];
        while let Some(made) = self.made.remove(&self.placed) {
            let frame = made.at(self.end);
            self.placed += 1;
            self.end += made.bytes.len() as u64;
            self.frames.push(frame);
            ready.push((frame.at, made));
        }
        ready
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under the lock that could leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready`, or until a frame has failed.
    fn wait(&self, ready: impl Fn(&State) -> bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.failed {
                return Err(again(error));
            }
            if ready(&state) {
                return Ok(state);
            }
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker's life.
    fn work(&self) {
        let _alarm = Alarm(self);
        if let Err(error) = self.jobs() {
            self.fail(error);
        }
    }

    fn fail(&self, error: io::Error) {
        self.lock().failed.get_or_insert(error);
        self.moved.notify_all();
    }

    fn jobs(&self) -> io::Result<()> {
        let mut tools = Tools::new(self.level, self.source.as_ref())?;
        while let Some((number, job, out)) = self.next() {
            let (made, spare) = tools.make(job, out)?;
            self.deliver(number, made, spare)?;
        }
        Ok(())
    }

    /// The next job and a buffer for it; `None` when nothing more will come.
    fn next(&self) -> Option<(u64, Job, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.closing || state.failed.is_some() {
                return None;
            }
            if let Some((number, job)) = state.jobs.pop_front() {
                let out = state.spare.pop().unwrap_or_default();
                return Some((number, job, out));
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, number: u64, made: Made, spare: Vec<u8>) -> io::Result<()> {
        let ready = {
            let mut state = self.lock();
            state.made.insert(number, made);
            keep(&mut state.spare, spare, self.limit);
            state.place()
        };
        for (at, made) in ready {
            fault::call("compress")?;
            self.file.write_all_at(&made.bytes, at)?;
            let mut state = self.lock();
            state.written += 1;
            keep(&mut state.spare, made.bytes, self.limit);
            drop(state);
            self.moved.notify_all();
        }
        Ok(())
    }
}

/// Keeps a buffer for later, if not enough are kept already.
fn keep(spare: &mut Vec<Vec<u8>>, buffer: Vec<u8>, limit: usize) {
    if buffer.capacity() > 0 && spare.len() < limit {
        spare.push(buffer);
    }
}

/// Tells when a worker panics, so that nobody waits for it.
struct Alarm<'s>(&'s Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .fail(io::Error::other("a thread that compresses panicked"));
        }
    }
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::Holds;
    use super::super::record::Content;
    use super::*;

    fn job(length: usize, byte: u8) -> Job {
        let mut bytes = vec![byte; length];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b ^= ((i * i) >> 5) as u8;
        }
        Job::Compress(Content::of(bytes), Holds::Other)
    }

    #[test]
    fn frames_stand_in_the_order_asked_for_whatever_each_takes() {
        let file = tempfile::tempfile().expect("a file");
        let pipeline = Pipeline::start(&file, None, 3, 4).expect("started");
        let length = |n: usize| if n.is_multiple_of(7) { 900_000 } else { 1 + n };
        for n in 0..100 {
            pipeline.submit(job(length(n), n as u8)).expect("taken");
        }
        pipeline.drain().expect("written");
        let (frames, end) = pipeline.frames();
        assert_eq!(frames.len(), 100);
        let mut at = 0;
        for (n, frame) in frames.iter().enumerate() {
            assert_eq!((frame.at, frame.entry.content), (at, length(n) as u32));
            at += u64::from(frame.entry.compressed);
        }
        assert_eq!((at, at), (end, file.metadata().expect("metadata").len()));
    }

    #[test]
    fn a_failed_write_fails_what_follows_and_nothing_waits() {
        let file = File::options().write(true).open("/dev/full");
        let file = file.expect("a disk that is full");
        let pipeline = Pipeline::start(&file, None, 1, 2).expect("started");
        let failed = (0..100).find_map(|n| pipeline.submit(job(100_000, n)).err());
        let error = failed.expect("it fails before a hundred are taken");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let error = pipeline.drain().expect_err("nor can it be ended");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_panicking_worker_fails_the_image() {
        let file = tempfile::tempfile().expect("a file");
        let pipeline = Pipeline::start(&file, None, 1, 1).expect("started");
        let shared = pipeline.shared.clone();
        let thread = std::thread::spawn(move || {
            let _alarm = Alarm(&shared);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(pipeline.submit(job(1, 1)).is_err());
    }
}
